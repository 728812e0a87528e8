"""Makes sure that the result's tokenizer files give the same tokens as transformers reads from the model's files.

The engine reads tokenizer.json alone; transformers builds a tokenizer of that and of several other files, by rules of
each class. So both read hard texts and the run's own, before the work. Where they differ, the tokenizer as transformers
has it is what the result gets; and where even that differs, only transformers reads the result.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from tokenizers import Tokenizer

from bitwright.errors import EngineError, brief
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.tokenizer import GENERIC_KEY, OpenTokenizer, open_tokenizer
from bitwright.models.build import load_tokenizer
from bitwright.models.load import LoadedModel
from bitwright.pipeline.hard_texts import hard_pairs, hard_texts
from bitwright.runtime.generic_model import read_texts
from bitwright.runtime.items import Pair, Tokens, read_with

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_OTHERS = ("special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The tokenizer files of a result, and a warning if there is one.

    files: in place of the source's, by name. note: what a reader should know.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    note: str | None = None


NO_TOKENIZER_FILES = TokenizerFiles()


def tokenizer_files(loaded: LoadedModel, items: Sequence[object]) -> TokenizerFiles:
    """The files that a result needs so that the engine and transformers tokenize hard texts and `items` equally."""
    theirs, settings = loaded.tokenizer, dict(loaded.directory.transformer.object(SETTINGS) or {})
    only_theirs = {SETTINGS: _json(settings | {GENERIC_KEY: True})}
    if not getattr(theirs, "is_fast", False):
        kind = type(theirs).__name__
        return TokenizerFiles(
            only_theirs, f"{kind} runs in Python, so only transformers can read the result's tokenizer"
        )
    if loaded.task == "text-generation":  # which transformers tokenizes for
        there = (loaded.directory.transformer / TOKENIZER).is_file()
        return TokenizerFiles() if there else TokenizerFiles(_as_transformers_has_it(theirs, loaded.directory))
    limit = loaded.max_tokens
    singles = [*hard_texts(sorted(theirs.get_added_vocab()), limit), *(x for x in items if isinstance(x, str))]
    pairs = [*hard_pairs(singles[:40]), *(x for x in items if _is_pair(x))]
    compare = _Compared(theirs, singles, pairs, limit, loaded.path)
    difference = compare(loaded.directory, loaded.sentences.lower_case)
    if difference is None:
        return TokenizerFiles()
    files = _as_transformers_has_it(theirs, loaded.directory)
    with tempfile.TemporaryDirectory(prefix="bitwright-tokenizer-") as folder:
        copy = _side_files(loaded.directory, Path(folder), files)
        left = compare(copy, loaded.sentences.lower_case)
        again, problem = load_tokenizer(copy, loaded.trust_remote_code, loaded.sentences)
        if left is None and problem is None:
            left = _Compared(again, singles, pairs, limit, loaded.path).with_transformers(theirs)
    if left is None and problem is None:
        return TokenizerFiles(
            files,
            "tokenizer.json was written again as transformers reads the model's files, because the two differed "
            f"({difference})",
        )
    return TokenizerFiles(only_theirs, f"only transformers can read the result's tokenizer: {problem or left}")


class _Reader(NamedTuple):
    """The argument of `read_texts` for a model."""

    tokenizer: Any
    path: Path


class _Compared:
    """The tokens of one transformers tokenizer, to compare with those of another tokenizer."""

    def __init__(self, theirs: Any, singles: list[str], pairs: list[Pair], limit: int, where: Path) -> None:
        self.singles, self.pairs, self.limit, self.where = singles, pairs, limit, where
        self.single, self.pair = self._read(theirs)

    def __call__(self, directory: ModelDirectory, lowers: bool) -> str | None:
        """How the engine's reader of a directory differs, in words; None if it does not."""
        try:
            ours = open_tokenizer(directory, lowers=lowers)
        except EngineError as error:
            folder = directory.transformer.path
            return str(error).removeprefix(f"{folder}: ").removeprefix(f"{folder}/")
        if ours is None:
            return "there is no tokenizer.json"
        return self._difference(self._read_ours(ours, self.singles, None), self._read_ours(ours, *_sides(self.pairs)))

    def with_transformers(self, other: Any) -> str | None:
        """As calling it, but with another transformers tokenizer."""
        return self._difference(*self._read(other))

    def _read(self, tokenizer: Any) -> tuple[Tokens, Tokens]:
        how: dict[str, Any] = {"typed": True, "limit": self.limit}
        reader = _Reader(tokenizer, self.where)
        return read_texts(reader, self.singles, None, **how), read_texts(reader, *_sides(self.pairs), **how)

    def _read_ours(self, ours: OpenTokenizer, first: list[str], second: list[str] | None) -> Tokens:
        return read_with(ours, first, second, typed=True, limit=self.limit, where=TOKENIZER)

    def _difference(self, single: Tokens, pair: Tokens) -> str | None:
        rows: list[tuple[Sequence[object], Tokens, Tokens]] = [
            (self.singles, self.single, single),
            (self.pairs, self.pair, pair),
        ]
        for items, expected, found in rows:
            for i, item in enumerate(items):
                if expected.ids[i] != found.ids[i]:
                    return (
                        f"transformers reads {brief(item)} as {brief(expected.ids[i])}, but Bitwright reads it as "
                        f"{brief(found.ids[i])}"
                    )
                if _types(expected, i) != _types(found, i):
                    return f"the token types of {brief(item)} differ"
        return None


def _is_pair(item: object) -> TypeGuard[Pair]:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _types(tokens: Tokens, i: int) -> list[int]:
    return [0] * len(tokens.ids[i]) if tokens.types is None else tokens.types[i]


def _sides(pairs: list[Pair]) -> tuple[list[str], list[str]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def _as_transformers_has_it(theirs: Any, directory: ModelDirectory) -> dict[str, bytes]:
    """tokenizer.json, and what tokenizer_config.json must say beside it."""
    copy = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    settings = dict(directory.transformer.object(SETTINGS) or {})
    files = {TOKENIZER: copy.to_str(pretty=True).encode()}
    if settings.get("model_input_names") != theirs.model_input_names:
        files[SETTINGS] = _json(settings | {"model_input_names": list(theirs.model_input_names)})
    return files


def _side_files(directory: ModelDirectory, folder: Path, files: Mapping[str, bytes]) -> ModelDirectory:
    """A directory with the tokenizer files that a result will have."""
    for name in (CONFIG_FILE, SETTINGS, *_OTHERS):
        if (directory.transformer / name).is_file():
            shutil.copyfile(directory.transformer / name, folder / name)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return ModelDirectory(folder)


def _json(settings: Mapping[str, Any]) -> bytes:
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
