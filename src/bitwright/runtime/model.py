"""`Model`: the interface of a model that is ready to run, whatever runs it. Imports no torch.

    EngineModel     native operators alone; a process that only loads and encodes needs no torch
    GenericModel    a transformers module, float or with our linears in it
    StreamedModel   a float model, or a variant of it, in the memory of one block, taken through its blocks anew by each
                    call

They differ in how tokens become outputs. `encode`, tokenizing, cutting, batching and what is refused are functions over
this protocol (`runtime/encoding.py`), which each of them has as methods.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bitwright.files.sentences import Sentences
from bitwright.runtime.items import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from bitwright.generate.chat import ChatTemplates
    from bitwright.runtime.generic_model import GenericModel


class Model(Protocol):
    """A float or quantized model that is ready to run."""

    @property
    def path(self) -> Path:
        """The directory it came from."""

    @property
    def task(self) -> str:
        """What it was trained for; it decides what `encode` returns."""

    @property
    def backend(self) -> str:
        """What runs it: "engine:<isa>", "kernels:<isa> …", "torch" (float), "blocks of …"."""

    @property
    def max_tokens(self) -> int:
        """Longer texts are cut there."""

    @property
    def vocabulary(self) -> int:
        """Token ids below it exist."""

    @property
    def n_types(self) -> int:
        """Token types that it has; 1 where it knows of none."""

    @property
    def width(self) -> int | None:
        """Values of the vector that it gives for each item; None where outputs are as long as the items."""

    @property
    def sentences(self) -> Sentences:
        """What sentence-transformers does with texts and vectors around it."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens, such as the one that ends a text."""

    @property
    def tokens_at_once(self) -> int | None:
        """A batch holds sequences of one length and no more tokens than these, but one sequence at least. None: any."""

    @property
    def pads(self) -> bool:
        """Whether the sequences of a batch are padded to the longest of them."""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; None where the directory's files build none."""

    @property
    def hf(self) -> Any:
        """The transformers module, in evaluation mode. Other paths than the generic one load it for this."""

    @property
    def generic(self) -> "GenericModel":
        """The same model on the generic path: itself, or one that is loaded for this."""

    @property
    def folded(self) -> int:
        """Calls of integer kernels that a forward of it spares, because their results were computed beforehand."""

    @property
    def templates(self) -> "ChatTemplates | None":
        """The chat templates into which texts are put, where `sentences.chat` says so."""

    def read(
        self, first: list[str], second: list[str] | None, *, typed: bool, limit: int | None, special: bool = True
    ) -> Tokens:  # fmt: skip
        """The tokens of texts, or of pairs (first, second), with special ones if `special`; if `typed`, with their
        types, where the tokenizer hands out any and they are not all 0 anyway.

        limit: texts are cut to so many tokens, of a pair the longer one first; None leaves them whole.

        Raises:
            ModelError: there is no tokenizer. InputError: a text with half of a surrogate pair.
        """

    def run(self, batches: Sequence[Tokens], threads: int | None = None) -> Iterator[Sequence[np.ndarray]]:
        """What `encode` gives for each sequence: float32 arrays, batch by batch.

        Raises:
            InputError: ids or types that the model does not have; threads < 1, or any where torch has its own.
        """

    def logits(self, ids_BT: "Tensor") -> "Tensor":
        """The logits of a language model for sequences of equal length, in the dtype that it computes in: (B, T, V)."""

    def encode(self, *items: Any, **options: Any) -> Any:
        """`encoding.encode`."""

    def encode_query(self, *items: Any, **options: Any) -> Any:
        """`encoding.encode_query`."""

    def encode_document(self, *items: Any, **options: Any) -> Any:
        """`encoding.encode_document`."""

    def tokenize(self, *items: Any, **options: Any) -> list[list[int]]:
        """`encoding.tokenize`."""

    def similarity(self, *items: Any, **options: Any) -> np.ndarray:
        """`scoring.similarity`."""

    def predict(self, *items: Any, **options: Any) -> Any:
        """`scoring.predict`."""

    def rank(self, *items: Any, **options: Any) -> list[dict[str, Any]]:
        """`scoring.rank`."""

    def __call__(self, **inputs: Any) -> Any:
        """The Hugging Face forward, on the generic path, without gradients."""
