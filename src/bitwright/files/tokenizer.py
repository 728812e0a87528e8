"""Tokenizes texts without transformers: loads a directory's tokenizer, and cuts texts that are too long.

As transformers 5.23 does it, so that the engine and the generic path see the same tokens.
"""

import _thread
import json
import os
import re
import resource
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers

from bitwright.errors import EngineError, InputError, brief, foreign
from bitwright.families import FAMILIES
from bitwright.families.tokenizers import TOKENIZERS, TokenizerTraits
from bitwright.files.directory import ModelDirectory
from bitwright.files.folder import Folder, read_object
from bitwright.files.reading import MAX_JSON_BYTES
from bitwright.files.tokenizer_bounds import check_growth

# Written by `quantize` into tokenizer_config.json where the tokenizer of the files and that of transformers differ.
GENERIC_KEY = "bitwright_only_transformers_reads"

# What transformers builds a tokenizer from where there is no tokenizer.json.
_VOCABULARIES = (
    "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model",
    "bpe.codes",
)  # fmt: skip
_PARALLELISM = "TOKENIZERS_PARALLELISM"


class OpenTokenizer(NamedTuple):
    """A tokenizer without truncation or padding.

    side: where texts are cut, "right" or "left". types: whether it hands out token types at all; single_types: whether
    the tokens of a text alone have others than 0.
    """

    tokenizer: Tokenizer
    side: str
    types: bool
    single_types: bool


def open_tokenizer(directory: ModelDirectory, *, lowers: bool = False) -> OpenTokenizer | None:
    """The tokenizer of a directory, None if it has none.

    lowers: whether texts are lowered first (`sentences.lower_case`).

    Raises:
        EngineError: a tokenizer that cannot be built, or settings that transformers follows and this does not.
    """
    folder = directory.transformer
    file, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    made = directory.made(file.name)
    if made is None and not file.is_file():
        if found := next((name for name in _VOCABULARIES if (folder / name).is_file()), None):
            raise EngineError(
                f"{folder.path}: there is {found} but no tokenizer.json, and only transformers reads that"
            )
        return None
    settings = folder.object(settings_file.name) or {}
    if settings.get(GENERIC_KEY):
        raise EngineError(f"{settings_file}: {GENERIC_KEY} says that only transformers reads this tokenizer")
    size = len(made) if made is not None else file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise EngineError(f"{file}: the file has {size} bytes; Bitwright reads at most {MAX_JSON_BYTES}")
    with foreign(f"{file}: the tokenizer cannot be built", EngineError):
        traits = _traits(settings, directory.config)
        tokenizer = Tokenizer.from_file(str(file)) if made is None else Tokenizer.from_str(made)
        tokenizer = _as_set_up(tokenizer, file, traits, settings)
        if lowers:
            lower_case(tokenizer)
        check_growth(file, parts_of(tokenizer))
    side = settings.get("truncation_side", (tokenizer.truncation or {}).get("direction", "right"))
    if side not in ("right", "left"):
        raise EngineError(f"{settings_file}: truncation_side is {side!r}; it must be 'right' or 'left'")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _check_specials(tokenizer, folder, settings, traits)
    names = settings.get("model_input_names")
    types = "token_type_ids" in names if isinstance(names, list) else traits.types
    single_types = types and any(encodings_of(tokenizer, ["a"], None, file)[0].type_ids)
    return OpenTokenizer(tokenizer, side, types, single_types)


def _check_specials(tokenizer: Tokenizer, folder: Folder, settings: dict[str, Any], traits: TokenizerTraits) -> None:
    """Check that tokenizer.json has the tokens that transformers would add from side files, with cls and sep around a
    text.

    Raises:
        EngineError: tokenizer.json does not have them so.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    maps = folder.object("special_tokens_map.json") or {}
    named = [*_tokens_in(settings), *_tokens_in(maps), *(folder.object("added_tokens.json") or {})]
    if lost := next((token for token in named if token not in known), None):
        raise EngineError(f"{folder.path}: a side file names the token {brief(lost)}, which is not in tokenizer.json")
    if traits.word_piece:
        around = [_content(settings.get(key) or maps.get(key)) for key in ("cls_token", "sep_token")]
        found = encodings_of(tokenizer, [""], None, folder.path)[0].tokens
        if len(found) != 2 or any(a not in (None, b) for a, b in zip(around, found, strict=True)):
            raise EngineError(
                f"{folder.path}: tokenizer.json puts {brief(found)} around a text, but the side files ask for {around}"
            )


def _tokens_in(settings: dict[str, Any]) -> Iterator[str]:
    """Tokens that tokenizer_config.json or special_tokens_map.json names."""
    for key, value in settings.items():
        if key == "added_tokens_decoder" and isinstance(value, dict):
            found: list[Any] = list(value.values())
        elif key in ("additional_special_tokens", "extra_special_tokens"):
            found = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        else:
            found = [value] if key.endswith("_token") else []
        yield from (content for token in found if (content := _content(token)) is not None)


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def lower_case(tokenizer: Tokenizer) -> None:
    """Lower texts first, as sentence-transformers does with `do_lower_case`, unless the normalizer already lowers them.
    Mutates the tokenizer.
    """
    before = tokenizer.normalizer
    if isinstance(before, normalizers.Sequence):
        parts = [before[index] for index in range(len(before))]
    else:
        parts = [] if before is None else [before]
    if not any(isinstance(part, normalizers.Lowercase) for part in parts):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def parts_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The parts of a tokenizer that decide how many tokens a text becomes, as tokenizer.json has them."""
    model, pieces = tokenizer.model, None
    if isinstance(model, models.Unigram):
        pieces = [[piece, 0.0] for piece in tokenizer.get_vocab(with_added_tokens=False)]
    return {
        "normalizer": _state(tokenizer.normalizer),
        "pre_tokenizer": _state(tokenizer.pre_tokenizer),
        "post_processor": _state(tokenizer.post_processor),
        "model": {"max_input_chars_per_word": getattr(model, "max_input_chars_per_word", None), "vocab": pieces},
    }


def encodings_of(
    tokenizer: Tokenizer, first: list[str], second: list[str] | None, where: object = "tokenizer.json", *,
    special: bool = True,
) -> Sequence[Encoding]:  # fmt: skip
    """The encodings of texts or of pairs of texts, uncut. where: the model, for messages. special: whether special
    tokens are added.

    Raises:
        InputError: a text with half of a surrogate pair. EngineError: the tokenizer fails on a text.
    """
    with foreign(f"{where}: the tokenizer fails on these texts", EngineError):
        return _encodings_of(tokenizer, first, second, special)


def _encodings_of(
    tokenizer: Tokenizer, first: list[str], second: list[str] | None, special: bool
) -> Sequence[Encoding]:  # fmt: skip
    try:
        if len(first) == 1 or _few_addresses():  # of several it makes a pool of threads, one for each core, that stays
            seconds: Iterable[str | None] = second or repeat(None, len(first))
            pairs = zip(first, seconds, strict=True)
            return [tokenizer.encode(a, b, add_special_tokens=special) for a, b in pairs]
        texts = first if second is None else list(zip(first, second, strict=True))
        return tokenizer.encode_batch_fast(texts, add_special_tokens=special)
    except TypeError:
        refuse_surrogates(first, second)
        raise


def _few_addresses() -> bool:
    """Whether `ulimit -v` leaves too little address space for the library's threads. Each takes 64 MiB for malloc, and
    twice that while it starts. Without space the library ends the process.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and limit < (1024 + 128 * (os.cpu_count() or 1)) << 20


def cut(encoding: Encoding, limit: int, side: str, *, typed: bool) -> tuple[list[int], list[int] | None]:
    """Cut to at most `limit` tokens: their ids, and their types if asked for. Special tokens stay. A text loses tokens
    at one side; in a pair the longer text loses first.

    The library's own truncation also keeps what it cuts off: of pairs in every combination, which takes memory that
    grows with the product of their lengths.
    """
    ids, types = encoding.ids, encoding.type_ids if typed else None
    if len(ids) <= limit:
        return ids, types
    owners = encoding.sequence_ids  # 0, 1, or None of a special token
    kept = [i for i, owner in enumerate(owners) if owner is None]
    for owner, length in enumerate(longest_first(owners.count(0), owners.count(1), max(limit - len(kept), 0))):
        own = [i for i, other in enumerate(owners) if other == owner]
        kept += own[:length] if side == "right" else own[len(own) - length :]
    kept.sort()
    return [ids[i] for i in kept], types and [types[i] for i in kept]


def refuse_surrogates(*texts: Sequence[str] | None) -> None:
    """Refuse texts with half of a surrogate pair, which is not a character.

    Raises:
        InputError: such a text; the message says which, and where in it.
    """
    for side in texts:
        for index, text in enumerate(side or ()):
            found = re.search("[\ud800-\udfff]", text)
            if found is not None:
                raise InputError(
                    f"text {index} holds {found[0]!r} at position {found.start()}, which is half of a surrogate "
                    "pair; remove it"
                )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """The two lengths after their sum is cut to `room`: the longer one loses a token at a time."""
    shorter, longer = sorted((first, second))
    if shorter + longer > room:
        shorter = min(shorter, room // 2)
        longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)


def _traits(settings: dict[str, Any], config: dict[str, Any]) -> TokenizerTraits:
    """The traits of the tokenizer class that transformers chooses for these files."""
    row = FAMILIES.get(str(config.get("model_type")))
    if row is None or row.tokenizer is None:
        return TokenizerTraits()
    named = settings.get("tokenizer_class") or config.get("tokenizer_class") or row.tokenizer
    return TOKENIZERS.get(str(named).removesuffix("Fast"), TokenizerTraits())


def _as_set_up(tokenizer: Tokenizer, file: Path, traits: TokenizerTraits, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a file with the settings that its class applies."""
    if traits.word_piece:
        normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
            lowercase=settings.get("do_lower_case", True),
        )
        parts = {"normalizer": _state(normalizer), "pre_tokenizer": _state(pre_tokenizers.BertPreTokenizer())}
        if parts != {"normalizer": _state(tokenizer.normalizer), "pre_tokenizer": _state(tokenizer.pre_tokenizer)}:
            tokenizer = Tokenizer.from_str(json.dumps(read_object(file) | parts))
    found = f"{_state(tokenizer.normalizer)} {_state(tokenizer.pre_tokenizer)}"
    for switch in traits.switches:
        value = settings.get(switch.key, switch.default)
        if (f"'{switch.part}'" in found) != (bool(value) == switch.there):
            raise EngineError(f"{file}: this does not agree with {switch.key} = {value!r} in tokenizer_config.json")
    return tokenizer


def _state(part: Any) -> Any:
    """A part of a tokenizer, as tokenizer.json has it."""
    return None if part is None else json.loads(part.__getstate__())


def _see_to_forks() -> None:
    """Let a forked child tokenize on one thread, because the library's other threads are not in the child. It would
    wait for them for ever if the user asked for them (its variable is "true"), and warn on the terminal if the variable
    is not set.
    """
    lock = _thread.allocate_lock()  # held from before a fork until after it, so that two forks do not mix
    found: str | None = None

    def before() -> None:
        nonlocal found
        lock.acquire()
        found = os.environ.get(_PARALLELISM)
        os.environ[_PARALLELISM] = "false"

    def after_in_parent() -> None:
        if found is None:
            os.environ.pop(_PARALLELISM, None)
        else:
            os.environ[_PARALLELISM] = found
        lock.release()

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=lock.release)


_see_to_forks()
