"""`Sequence`: one request under way, from its prompt to its last token. It knows nothing of caches and batches."""

import secrets
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from bitwright.errors import BitwrightError, InputError, NumericsError
from bitwright.generate.processors import Choice, Floats, chosen, processed
from bitwright.generate.sampling import Sampling
from bitwright.generate.texts import Detokenizer, StopStrings

# "stop": eos, a stop token or a stop string. "length": max_tokens, or the context is full. "error": see `error`.
FinishReason = Literal["stop", "length", "error"]


class Step(NamedTuple):
    """What one token adds. A piece of text may come some tokens late (`Detokenizer`, `StopStrings`).

    id: None where the logits gave no token. logprob, top: as in `Choice`. finish_reason: None while it goes on.
    """

    id: int | None
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one prompt.

    text: without stop strings and special tokens. ids: all tokens, the one that ended it included. logprobs: of each
    token, if they were asked for. prompt_tokens: how many the prompt has. error: what failed, if finish_reason says so.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[Choice, ...] | None
    prompt_tokens: int
    error: str | None = None


class Sequence:
    """One request under way. Its tokens depend on its logits, its sampling and its seed alone.

    prompt_ids: int64 array. tokens: the answer so far. text: what was given out of it. finish_reason: None while it
    goes on. error: what failed.
    """

    def __init__(
        self, prompt_ids: Several[int], sampling: Sampling, *, eos_ids: Several[int], detokenizer: Detokenizer | None,
        context: int, vocabulary: int,
    ) -> None:  # fmt: skip
        """Args:
            eos_ids: tokens with which the model ends an answer (`sampling.eos_ids`).
            detokenizer: a new one; None: the model has no tokenizer, and texts stay empty.
            context: tokens that the model can take, those of the answer included.
            vocabulary: ids below it exist.

        Raises:
            InputError: an empty prompt, one that leaves no room for an answer, or ids that the model does not have;
                stop strings where there is no tokenizer.
        """
        self.prompt_ids = np.asarray(prompt_ids, np.int64)
        _check_prompt(self.prompt_ids, context, vocabulary)
        sampling.check(vocabulary)
        if sampling.stop and detokenizer is None:
            raise InputError("stop names strings, and this model has no tokenizer; name stop_token_ids instead")
        if not sampling.greedy and sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(64))  # once: what is computed anew stays the same
        self.sampling = sampling
        self.tokens: list[int] = []
        self.choices: list[Choice] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.error: BitwrightError | None = None
        self._eos = frozenset(eos_ids)
        self._ends = tuple({*sampling.stop_token_ids} | (set() if sampling.ignore_eos else {*eos_ids}))
        self._most = min(sampling.max_tokens, context - len(self.prompt_ids))
        self._detokenizer = detokenizer
        self._stops = StopStrings(sampling.stop)

    @property
    def remaining(self) -> int:
        """Tokens that it takes at most from now on."""
        return self._most - len(self.tokens)

    def take(self, logits_V: Floats) -> Step:
        """Choose the next token from the logits at the last one.

        logits_V: float32. Logits that give no token end this request with the finish reason "error".
        """
        assert self.finish_reason is None, "the sequence is finished"
        try:
            scores_V = processed(logits_V, self.prompt_ids, self.tokens, self.sampling, self._ends)
            choice = chosen(scores_V, self.sampling, len(self.tokens), logits_V)
        except NumericsError as error:
            return self.fail(error)
        self.tokens.append(choice.id)
        self.choices.append(choice)
        text = self._text_of(choice.id)
        if self._stops.found is not None or choice.id in self._ends:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._most:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self._rest()
        self.text += text
        return Step(choice.id, text, choice.logprob, choice.top, self.finish_reason)

    def fail(self, error: BitwrightError) -> Step:
        """End the request because of an error; what was held back of its text is given out."""
        self.error, self.finish_reason = error, "error"
        rest = self._rest()
        self.text += rest
        return Step(None, rest, finish_reason="error")

    def generation(self) -> Generation:
        """The answer, of a request that is finished."""
        assert self.finish_reason is not None, "the sequence goes on"
        return Generation(
            text=self.text,
            ids=tuple(self.tokens),
            finish_reason=self.finish_reason,
            logprobs=None if self.sampling.logprobs is None else tuple(self.choices),
            prompt_tokens=len(self.prompt_ids),
            error=None if self.error is None else str(self.error),
        )

    def _text_of(self, token: int) -> str:
        """The text that a token adds; an eos token adds none, even where the tokenizer takes it for text."""
        if self._detokenizer is None or (token in self._eos and not self.sampling.ignore_eos):
            return ""
        piece = self._detokenizer.add(token)
        return self._stops.add(piece) if len(self.tokens) > self.sampling.min_tokens else piece

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        text = self._stops.add(self._detokenizer.rest()) + self._stops.rest()  # nothing after a stop string
        if self._stops.found is not None and self.finish_reason != "error":
            self.finish_reason = "stop"
        return text


def _check_prompt(ids: np.ndarray, context: int, vocabulary: int) -> None:
    if ids.ndim != 1 or not len(ids):
        raise InputError("the prompt has no tokens; write something, or give at least one token id")
    if len(ids) >= context:
        raise InputError(
            f"the prompt has {len(ids)} tokens and the model takes {context} with those of the answer; shorten the "
            f"prompt to {context - 1} tokens or fewer"
        )
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if len(wrong):
        raise InputError(f"the prompt holds token {wrong[0]}; this model has tokens 0 to {vocabulary - 1}")
