"""`OnEngine`: what models on the engine have in common: `encode` and its like, a tokenizer without transformers, and
the transformers module for those who ask for it. Imports no torch.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bitwright.engine.executor import check_count
from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.tokenizer import OpenTokenizer
from bitwright.kernels.processors import usable_processors
from bitwright.runtime import encoding, scoring
from bitwright.runtime.items import Tokens, read_with
from bitwright.runtime.pickling import LoadedFrom, reduce_model

if TYPE_CHECKING:
    from bitwright.generate.chat import ChatTemplates
    from bitwright.runtime.generic_model import GenericModel


class OnEngine:
    """A model whose every operator is native.

    directory: what it was loaded from; path: where that lies.
    """

    directory: ModelDirectory
    path: Path
    loaded_from: LoadedFrom | None = None
    _tokenizer: OpenTokenizer | None
    _trusted: bool  # for the generic path
    _generic: "GenericModel | None" = None
    _templates: "ChatTemplates | None" = None

    encode = encoding.encode
    encode_query = encoding.encode_query
    encode_document = encoding.encode_document
    tokenize = encoding.tokenize
    similarity = scoring.similarity
    predict = scoring.predict
    rank = scoring.rank
    __reduce__ = reduce_model

    def __copy__(self) -> Self:
        """A model that shares everything with this one: any thread may run the packed weights, which nobody writes."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As `__copy__`, but a loaded transformers module is copied, because users may change it."""
        twin = copy.copy(self)
        twin._generic = copy.deepcopy(self._generic, memo)
        return twin

    @property
    def templates(self) -> "ChatTemplates":
        """The model's chat templates."""
        if self._templates is None:
            from bitwright.generate.chat import ChatTemplates  # not every model chats

            self._templates = ChatTemplates(self.directory)
        return self._templates

    def read(
        self, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None, special: bool = True
    ) -> Tokens:  # fmt: skip
        """As `Model.read`."""
        if self._tokenizer is None:
            raise ModelError(f"{self.path}: there is no tokenizer.json; give token ids instead of texts")
        return read_with(self._tokenizer, first, second, typed=typed, limit=limit, special=special, where=self.path)

    @property
    def special_ids(self) -> frozenset[int]:
        """As `Model` says."""
        found = {} if self._tokenizer is None else self._tokenizer.tokenizer.get_added_tokens_decoder()
        return frozenset(index for index, token in found.items() if token.special)

    @property
    def generic(self) -> "GenericModel":
        """The same checkpoint on the generic path: a transformers module with our linears. Needs torch."""
        if self._generic is None:
            from bitwright.runtime.generic import load_generic

            self._generic = load_generic(self.directory, trust_remote_code=self._trusted)
        return self._generic

    @property
    def hf(self) -> Any:
        """The transformers module, on the generic path."""
        return self.generic.hf

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.generic.tokenizer

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward, on the generic path, without gradients."""
        return self.generic(**inputs)


def at_most_processors(threads: int) -> int:
    """As many threads as asked for, but no more than the process may use processors.

    Raises:
        InputError: no number of threads.
    """
    return min(check_count("threads", threads), usable_processors())
