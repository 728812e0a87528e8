"""Serves the user's own library, sentence-transformers or transformers, in separate processes. It loads a directory as
a user would, and uses no Bitwright code that reads models.

This file, run as a module, is a server: it imports the libraries once, which takes seconds, and forks for each model
that it is asked for; the child answers until it is told to close, and its memory goes with it. The server ends when its
input does, or after as many seconds without work as its argument says.

A message is two lengths (8 bytes each, little endian), a JSON list of an object and of the types and shapes of arrays,
and the bytes of those arrays, one after the other.
"""

import contextlib
import ctypes
import gc
import json
import math
import os
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bitwright.runtime.library_formats import OPENERS, LlamaCpp, open_transformers

_PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that this process gets when its parent is gone
_BATCH = 8  # a sixth less padding than 32, of texts as long as each other; a float32 product is as fast

Message = tuple[dict[str, Any], list[np.ndarray]]
# A text; a pair of texts; the ids of a window of tokens.
Item = str | list[str] | list[int]


def send(descriptor: int, content: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Write a message."""
    kinds = [(array.dtype.str, array.shape) for array in arrays]
    head = json.dumps([content, kinds]).encode("utf-8", "surrogatepass")
    body = b"".join(array.tobytes() for array in arrays)
    for part in (struct.pack("<QQ", len(head), len(body)) + head, body):
        data = memoryview(part)
        while data:
            data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> Message:
    """Read a message.

    Raises:
        EOFError: there is none any more. ValueError: it is none.
    """
    head_bytes, body_bytes = struct.unpack("<QQ", _exactly(descriptor, 16))
    content, kinds = json.loads(_exactly(descriptor, head_bytes).decode("utf-8", "surrogatepass"))
    body = memoryview(_exactly(descriptor, body_bytes))
    arrays, at = [], 0
    for name, shape in kinds:
        kind = np.dtype(name)
        if kind.kind not in "biuf":
            raise ValueError(f"an array of {kind}")
        size = kind.itemsize * math.prod(shape)
        arrays.append(np.frombuffer(body[at : at + size], kind).reshape(shape))
        at += size
    return content, arrays


def _exactly(descriptor: int, count: int) -> bytearray:
    found = bytearray(count)
    left = memoryview(found)
    while left:
        read = os.readv(descriptor, [left[: 1 << 20]])
        if not read:
            raise EOFError
        left = left[read:]
    return found


def _serve(idle_seconds: float) -> None:
    """Answer requests on the old standard output; what the libraries print goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    _end_with_parent()  # a process that imports for seconds does not see that its input is closed
    import torch  # noqa: F401
    import transformers  # noqa: F401

    with contextlib.suppress(ImportError):
        import sentence_transformers  # noqa: F401
    _warm_up()
    gc.freeze()  # a child that collects garbage would go through all of this, and copy its pages: 0.3 s each time
    while select.select([0], [], [], idle_seconds)[0]:
        try:
            request, _ = receive(0)
        except EOFError:
            return
        child = os.fork()
        if child == 0:
            _end_with_parent()  # nor does one that computes
            _answer(request, answers)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            send(answers, {"died": status})


def _warm_up() -> None:
    """Do now what transformers does when it loads its first model, or every child would do it anew (0.2 s)."""
    with contextlib.suppress(ImportError, AttributeError):
        from transformers import AutoModel, AutoTokenizer, GenerationMixin, masking_utils, modeling_layers  # noqa: F401
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("")  # of none, but it compiles the patterns of all


def _end_with_parent() -> None:
    """Have this process killed when its parent ends, however that happens. A fork does not inherit it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(request: dict[str, Any], answers: int) -> None:
    """Load a model, and answer for it until told to close."""
    import torch

    torch.set_num_threads(request["threads"])
    try:
        model = _load(request)
        send(answers, {"library": model.library})
        while True:
            asked, given = receive(0)
            if asked["do"] == "close":
                return
            with torch.inference_mode():
                arrays = list(getattr(model, asked["do"])(asked["items"], *given))
            send(answers, {}, arrays)
    except EOFError:
        return
    except Exception as error:  # the boundary of the process: the parent decides what a failure means
        send(answers, {"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]})


def _load(request: dict[str, Any]) -> Any:
    """`runtime`: the library that is given ids, to check it; None for the one that users give texts to, to ask it."""
    task, trust = request["task"], request["trust_remote_code"]
    package, path = request["directory"], request["transformer"]
    if request["blocks"]:
        from bitwright.runtime.library_blocks import Blocks

        return Blocks(path, request["blocks"], trust)
    if request["runtime"] == "llama.cpp":
        return LlamaCpp(path, request["threads"], request["limit"])
    if request["runtime"] in OPENERS:
        return _Ids(*OPENERS[request["runtime"]](path, task, trust), task)
    if request["runtime"] == "sentence-transformers":
        return _Sentences(package, trust, reranks=False)
    reranks = task == "sequence-classification" and (
        request["cross_encoder"] or os.path.exists(os.path.join(package, "modules.json"))
    )
    if task == "embedding" or reranks:
        try:
            return _Sentences(package, trust, reranks)
        except ImportError:
            if task == "embedding":
                raise
    return _Heads(path, task, trust, request["limit"])


class _Sentences:
    """A SentenceTransformer, or a CrossEncoder without the activation of its scores."""

    def __init__(self, path: str, trust: bool, reranks: bool) -> None:
        import sentence_transformers
        import torch

        kind = sentence_transformers.CrossEncoder if reranks else sentence_transformers.SentenceTransformer
        # In float32, whatever the files have: the result is compared with what the model is, not with its rounding.
        how = {"model_kwargs": {"dtype": torch.float32}, "trust_remote_code": trust, "device": "cpu"}
        self.model: Any = kind(path, **how)
        self.reranks, self.batch = reranks, _batch_of(self.model.tokenizer)
        self.library = f"sentence-transformers {sentence_transformers.__version__}"

    def encode(self, items: list[Item]) -> Iterator[np.ndarray]:
        """The embedding or the logits of each item."""
        import torch

        given = [tuple(item) if isinstance(item, list) else item for item in items]
        if not self.reranks:
            yield from self.model.encode(given, batch_size=self.batch, show_progress_bar=False)
            return
        raw = torch.nn.Identity()
        scores = self.model.predict(given, batch_size=self.batch, activation_fn=raw, show_progress_bar=False)
        yield from (np.atleast_1d(row) for row in scores)

    def read(self, items: list[Item]) -> Iterator[np.ndarray]:
        """Ids and types of the tokens of each item, int64 (2, tokens): what the model gets."""
        name = self.model.default_prompt_name
        prompt = self.model.prompts.get(name) if name else None
        for item in items:
            features = self.model.preprocess([tuple(item) if isinstance(item, list) else item], prompt=prompt)
            yield _ids_and_types(features)

    def forward(self, items: list[Item]) -> Iterator[np.ndarray]:
        """The embeddings of ids, of equal length."""
        import torch

        ids_BT = torch.tensor(items)
        out = self.model.forward({"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)})
        yield from out["sentence_embedding"].float().numpy()


class _Ids:
    """A transformers model that gets ids of equal length, without tokenizer and pooling."""

    def __init__(self, model: Any, library: str, task: str) -> None:
        self.model, self.library, self.task = model, library, task

    def forward(self, items: list[Item]) -> Iterator[np.ndarray]:
        """Token vectors (tokens, H), logits as of `_Heads`, of a language model those after the last token."""
        out, ids_BT = self._run(items)
        yield from _ROWS[self.task](out, ids_BT >= 0)

    def states(self, items: list[Item]) -> Iterator[np.ndarray]:
        """The token vectors after the embeddings and after each layer, (1 + layers, tokens, H)."""
        out, _ = self._run(items, output_hidden_states=True)
        for layers in zip(*out.hidden_states, strict=True):
            yield np.stack([hidden_TH.float().numpy() for hidden_TH in layers])

    def _run(self, items: list[Item], **more: bool) -> tuple[Any, Any]:
        import torch

        ids_BT = torch.tensor(items)
        more |= {"use_cache": False} if self.task == "text-generation" else {}
        return self.model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), **more), ids_BT


class _Heads:
    """A transformers model with the head for a task, and its tokenizer."""

    def __init__(self, path: str, task: str, trust: bool, limit: int) -> None:
        import transformers

        self.model, self.library = open_transformers(path, task, trust)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
        self.task, self.limit = task, min(limit, self.tokenizer.model_max_length)

    def encode(self, items: list[Item]) -> Iterator[np.ndarray]:
        """The logits of each item: (tokens, labels) for token classifiers, (2, tokens) for question answering, and the
        result of `token_outputs` for language models.
        """
        import torch

        if self.task == "text-generation":
            from bitwright.evaluate.logits import token_outputs

            for item in items:
                ids = [i for i in item if isinstance(i, int)]
                yield token_outputs(self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0], ids)
            return
        found: dict[int, np.ndarray] = {}
        order = sorted(range(len(items)), key=lambda i: -sum(map(len, map(str, items[i]))))
        batch_size = _batch_of(self.tokenizer)
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            batch = self._tokens([items[i] for i in some], padding=True)
            out, real = self.model(**batch), batch["attention_mask"].bool()
            found |= zip(some, _ROWS[self.task](out, real), strict=True)
        yield from (found[i] for i in range(len(items)))

    def read(self, items: list[Item]) -> Iterator[np.ndarray]:
        """As of `_Sentences`."""
        for item in items:
            yield _ids_and_types(self._tokens([item], padding=False))

    def _tokens(self, items: list[Item], *, padding: bool) -> Any:
        pairs = not isinstance(items[0], str)
        sides = [[item[i] for item in items] for i in (0, 1)] if pairs else [items]
        return self.tokenizer(*sides, padding=padding, truncation=True, max_length=self.limit, return_tensors="pt")


def _batch_of(tokenizer: Any) -> int:
    """The number of texts in a batch: 1 if padding at the left would move the positions of the tokens."""
    return 1 if getattr(tokenizer, "padding_side", "right") == "left" else _BATCH


def _ids_and_types(features: Any) -> np.ndarray:
    ids = features["input_ids"][0].numpy()
    types = features["token_type_ids"][0].numpy() if "token_type_ids" in features else np.zeros_like(ids)
    return np.stack([ids, types])


def _hidden_rows(out: Any, real_BT: Any) -> list[np.ndarray]:
    return list(out.last_hidden_state.float().numpy())


def _last_rows(out: Any, real_BT: Any) -> list[np.ndarray]:
    return list(out.logits[:, -1].float().numpy())


def _text_rows(out: Any, real_BT: Any) -> list[np.ndarray]:
    return list(out.logits.numpy())


def _token_rows(out: Any, real_BT: Any) -> list[np.ndarray]:
    return [logits[real].numpy() for logits, real in zip(out.logits, real_BT, strict=True)]


def _span_rows(out: Any, real_BT: Any) -> list[np.ndarray]:
    spans = zip(out.start_logits, out.end_logits, real_BT, strict=True)
    return [np.stack([start[real].numpy(), end[real].numpy()]) for start, end, real in spans]


_ROWS: dict[str, Callable[[Any, Any], list[np.ndarray]]] = {
    "embedding": _hidden_rows,
    "text-generation": _last_rows,
    "sequence-classification": _text_rows,
    "token-classification": _token_rows,
    "question-answering": _span_rows,
}

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _serve(float(sys.argv[1]))
