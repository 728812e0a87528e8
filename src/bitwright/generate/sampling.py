"""`Sampling`: how the tokens of one request are chosen, and when it ends."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import inf, isnan
from numbers import Integral, Real
from typing import Any, NamedTuple

from bitwright.errors import InputError, ModelError, brief
from bitwright.files.directory import ModelDirectory

GENERATION_FILE = "generation_config.json"
_GREEDY = 1e-5  # a temperature below it, as in vLLM: logits that are divided by less become infinite
DEFAULT_MAX_TOKENS = 256  # transformers' own 20 ends in the middle of any answer


# numpy's among them; mypy knows no order of these
_WHOLE: Any = Integral
_NUMBERS: Any = Real


class Range(NamedTuple):
    """Which numbers an argument may have. above: the least is not among them. optional: None is allowed."""

    whole: bool
    least: float
    most: float = inf
    above: bool = False
    optional: bool = False

    def __str__(self) -> str:
        words = f"{'a whole number' if self.whole else 'a number'} {'above' if self.above else 'of at least'}"
        words += f" {self.least}" + (f" and at most {self.most}" if self.most < inf else "")
        return words + (", or None" if self.optional else "")

    def holds(self, value: Any) -> bool:
        """Whether it is such a number; NaN and True are none."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, _WHOLE if self.whole else _NUMBERS):
            return False
        return bool((self.least < value if self.above else self.least <= value) and value <= self.most and value < inf)


RANGES = {
    "max_tokens": Range(whole=True, least=1),
    "min_tokens": Range(whole=True, least=0),
    "temperature": Range(whole=False, least=0),
    "top_k": Range(whole=True, least=0),
    "top_p": Range(whole=False, least=0, most=1, above=True),
    "min_p": Range(whole=False, least=0, most=1),
    "repetition_penalty": Range(whole=False, least=0, above=True),
    "presence_penalty": Range(whole=False, least=-2, most=2),
    "frequency_penalty": Range(whole=False, least=-2, most=2),
    "seed": Range(whole=True, least=0, most=2**64 - 1, optional=True),
    "logprobs": Range(whole=True, least=0, optional=True),
}

_ID = Range(whole=True, least=0)

# Our argument -> the key of generation_config.json that gives its default. Those below only where tokens are drawn.
_FOLLOWED = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "stop": "stop_strings",
}
_DRAWN = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}  # with transformers' defaults
# Keys that change the output in transformers, and are not followed here -> the values that change nothing.
_NOT_FOLLOWED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,), "diversity_penalty": (0,),
    "typical_p": (1,), "top_h": (), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "penalty_alpha": (0,),
    "encoder_repetition_penalty": (1,), "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],), "force_words_ids": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (), "suppress_tokens": ([],), "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []), "guidance_scale": (1,), "watermarking_config": (), "token_healing": (False,),
    "remove_invalid_values": (False,), "min_length": (0,), "max_length": (20,), "max_time": (), "constraints": ([],),
}  # fmt: skip
# What of those an argument replaces, as in transformers.
_REPLACED = {"max_length": ("max_tokens", "max_new_tokens"), "min_length": ("min_tokens", "min_new_tokens")}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one request are chosen, and when it ends.

    Args:
        max_tokens: new tokens, at most.
        temperature: 0, or less than 0.00001, takes the likeliest token (greedy); else logits are divided by it and a
            token is drawn.
        top_k: draw among so many of the likeliest tokens, and those as likely as the last of them; 0: all.
        top_p: draw among the likeliest tokens that have this probability together.
        min_p: draw among tokens at least so likely as this fraction of the likeliest.
        repetition_penalty: logits of tokens in prompt or answer are divided by it (negative ones multiplied).
        presence_penalty, frequency_penalty: taken from logits of tokens in the answer; once, and for each time there.
        logit_bias: token id -> what is added to its logit; -inf forbids it.
        seed: of the random numbers; None: another for each request.
        stop: strings that end the answer, which holds them no more; one string or several.
        stop_token_ids: tokens that end the answer beside those that the model ends with (eos).
        ignore_eos: eos tokens end nothing.
        logprobs: give the log-probability of each token and of so many of the likeliest; None: none.
        min_tokens: so many tokens come before eos, a stop token or a stop string may end the answer.

    Raises:
        InputError: a value outside its range.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            check_number(name, getattr(self, name), allowed)
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"ignore_eos is {brief(self.ignore_eos)}; it must be True or False")
        if self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, and no random number is used."""
        return self.temperature < _GREEDY

    def check(self, vocabulary: int) -> None:
        """Check what only the model can tell.

        Raises:
            InputError: an id of `logit_bias` or `stop_token_ids` that is not below `vocabulary`.
        """
        for name, ids in (("logit_bias", self.logit_bias or ()), ("stop_token_ids", self.stop_token_ids)):
            if (largest := max(ids, default=0)) >= vocabulary:
                raise InputError(f"{name} names token {largest}; this model has tokens 0 to {vocabulary - 1}")

    @classmethod
    def of(cls, generation_config: Mapping[str, Any], **asked: Any) -> "Sampling":
        """What a user asked, with the model's defaults for the rest, as transformers has them.

        Without do_sample in generation_config.json the default is greedy; whoever asks for a temperature, top_k, top_p
        or min_p draws. Where tokens are drawn, top_k is 50 unless one of both says otherwise. `not_followed` names
        what else the file asks for.

        Args:
            asked: fields of `Sampling`; None: not asked.

        Raises:
            InputError: an unknown argument or a wrong value. ModelError: a wrong value in generation_config.json.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in asked if name not in known]:
            near = get_close_matches(unknown[0], known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"sampling has no argument {unknown[0]!r}{hint}; it has {', '.join(known)}")
        given = {name: value for name, value in asked.items() if value is not None}
        for name in RANGES.keys() & given.keys():
            check_number(name, given[name], RANGES[name])
        draws = bool(generation_config.get("do_sample")) or any(name in given for name in _DRAWN)
        defaults = _defaults(generation_config, _FOLLOWED)
        if draws and given.get("temperature") != 0:
            defaults |= _DRAWN | _defaults(generation_config, {name: name for name in _DRAWN})
        if "max_tokens" in given or "min_tokens" in given:  # the file's other bound gives way
            defaults["max_tokens"] = max(defaults.get("max_tokens", DEFAULT_MAX_TOKENS), given.get("min_tokens", 0))
            defaults["min_tokens"] = min(defaults.get("min_tokens", 0), given.get("max_tokens", defaults["max_tokens"]))
        return cls(**defaults | given)


def not_followed(generation_config: Mapping[str, Any], **asked: Any) -> list[str]:
    """What generation_config.json asks for, transformers would do and this does not: "key = value" of each, for a
    warning. asked: as for `Sampling.of`.
    """
    found = []
    for key, neutral in _NOT_FOLLOWED.items():
        value = generation_config.get(key)
        argument, replacing = _REPLACED.get(key, ("", ""))
        replaced = asked.get(argument) is not None or generation_config.get(replacing) is not None
        if value is not None and value not in neutral and not replaced:
            found.append(f"{key} = {brief(value)}")
    return found


def generation_config(directory: ModelDirectory) -> dict[str, Any]:
    """generation_config.json; where there is none, what config.json says of the same, as transformers takes it.

    Raises:
        ModelError: a file that is not a JSON object.
    """
    found = directory.transformer.object(GENERATION_FILE)
    if found is not None:
        return found
    inner = directory.config.get("text_config")
    return directory.config | (inner if isinstance(inner, dict) else {})


def eos_ids(generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end an answer: eos_token_id, one or a list.

    Raises:
        ModelError: something else.
    """
    found = generation_config.get("eos_token_id")
    try:
        return _ids("eos_token_id", () if found is None else found)
    except InputError as error:
        raise ModelError(f"{GENERATION_FILE}: {error}") from None


def check_number(name: str, value: Any, allowed: Range) -> None:
    """Raises:
    InputError: the value is outside its range.
    """
    if not allowed.holds(value):
        zero = "; 0 is greedy" if name == "temperature" else "; 0 keeps all" if name == "top_k" else ""
        raise InputError(f"{name} is {brief(value)}; it must be {allowed}{zero}")


def _defaults(config: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of these arguments, checked by itself: the user is not to blame for it."""
    found = {name: config[key] for name, key in keys.items() if config.get(key) is not None}
    for name, value in found.items():
        try:
            if name in RANGES:
                check_number(keys[name], value, RANGES[name])
            else:
                _stop_strings(value)
        except InputError as error:
            raise ModelError(f"{GENERATION_FILE}: {error}") from None
    return found


def _stop_strings(value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if strings is None or not all(isinstance(one, str) and one for one in strings):
        raise InputError(f"stop is {brief(value)}; it must be a string or several, none of them empty")
    return strings


def _ids(name: str, value: Any) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not all(_ID.holds(one) for one in ids):
        raise InputError(f"{name} is {brief(value)}; it must hold token ids, whole numbers of at least 0")
    return tuple(map(int, ids))


def _bias(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InputError(f"logit_bias is {brief(value)}; it must give a number for each token id")
    for one in value.values():
        if isinstance(one, bool) or not isinstance(one, Real) or isnan(one) or one == inf:
            raise InputError(f"logit_bias holds {brief(one)}; it must give a number, or -inf to forbid a token")
    return dict(zip(_ids("logit_bias", value), map(float, value.values()), strict=True))
