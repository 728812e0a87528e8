"""`encode` and `tokenize`, for every `Model`: items in, arrays or ids out, as users of sentence-transformers know it.

Imports no torch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.engine.executor import check_count
from bitwright.errors import InputError, NotFiniteError
from bitwright.files.pooling import unit
from bitwright.files.sentences import Sentences
from bitwright.progress import Track
from bitwright.runtime.items import (
    Items,
    Tokens,
    check_ids,
    check_range,
    check_types,
    listed,
    refuse_long,
    refuse_types,
    texts_of,
)
from bitwright.runtime.keywords import chosen_track, refuse_device, refuse_others

if TYPE_CHECKING:
    from bitwright.runtime.model import Model

# Of a padded batch: the least share of the longest sequence that another one has, once there are a few. 32 texts of 9
# to 256 tokens then take 3.5 times fewer tokens.
_LEAST_FILLED, _FEWEST = 0.75, 4


def encode(
    model: "Model", items: Items | str, *, prompt: str | None = None, prompt_name: str | None = None,
    types: Sequence[Sequence[int]] | None = None, batch_size: int = 32, threads: int | None = None,
    truncate: bool = True, normalize_embeddings: bool = False, truncate_dim: int | None = None,
    convert_to_tensor: bool = False, show_progress_bar: bool | None = None, device: Any = None, track: Track = iter,
    **others: Any,
) -> Any:  # fmt: skip
    """What the model makes of each text, each pair (text, text), or each sequence of token ids.

    Embedding models: float32 (n, H), pooled and treated as the model's own sentence-transformers files say.
    Sequence classifiers: logits, float32 (n, labels). Token classifiers: a list of n arrays (tokens, labels);
    question answering: a list of n arrays (2, tokens), the start and end logits. Language models: a list of n
    arrays (2, tokens − 1): the negative log-likelihood of each token after the first, in nats, and the id of the
    token held most likely in its place. Of a single string, what there is for it alone.

    Items are taken `batch_size` at a time, those of like length together, so that little or none of the work is
    padding; the result is in the order of `items`. Texts are cut at `max_tokens`, of a pair the longer one first. The
    tokens of a pair have the types that the tokenizer gives them, if the model has more than one.

    Args:
        items: texts, pairs of texts, or sequences of token ids; or a single text.
        prompt: is put before each text, before the first one of a pair; in a chat template as a system message.
        prompt_name: of a prompt in config_sentence_transformers.json. With neither, the default prompt there, if it
            names one.
        types: of the tokens of each item, where items are ids; by default all of type 0.
        batch_size: how many items are computed together.
        threads: of the CPU, for a model on the engine; by default the model's. Other models use torch's setting.
        truncate: cut texts that are too long, instead of refusing them.
        normalize_embeddings: scale embeddings to length 1.
        truncate_dim: keep so many values of each embedding; by default what config_sentence_transformers.json says.
        convert_to_tensor: give a torch tensor, or a list of tensors, instead of numpy arrays.
        show_progress_bar: draw one on stderr.
        track: wraps the loop over batches, for a progress bar of your own.
        device: "cpu" or None.
        others: of sentence-transformers' further arguments, the values that mean what is done here anyway.

    Raises:
        InputError: `items` holds something else than `Items` says, or a text without tokens, or ids or types that the
            model does not have, or more of them than `max_tokens`; a text that is longer, unless it may be cut; types
            of texts, or not one for each id; an unknown prompt_name; batch_size or threads < 1, or threads for a model
            that uses torch's.
        TypeError: an argument that has no meaning here; the message says what takes its place.
        ModelError: the directory has no tokenizer, and texts or different lengths need one.
        NumericsError: the model produced NaN or infinity.
    """
    to_list = refuse_others("encode", others)
    refuse_device(device)
    if model.task != "embedding" and (normalize_embeddings or truncate_dim is not None):
        raise InputError(
            f"normalize_embeddings and truncate_dim are only for embeddings, and this model's task is {model.task}; "
            "leave them out"
        )
    single = isinstance(items, str)
    tokens = tokens_of(
        model, [items] if isinstance(items, str) else items, types, batch_size=batch_size, truncate=truncate,
        prompt=prompt, prompt_name=prompt_name,
    )  # fmt: skip
    refuse_empty(tokens.ids)
    rows = _run(model, tokens, batch_size, threads, chosen_track(show_progress_bar, track))
    if model.width is None:
        return _converted(rows[0] if single else rows, convert_to_tensor or to_list)
    found = np.stack(rows) if rows else np.empty((0, model.width), np.float32)
    if model.task == "embedding":
        kept = model.sentences.truncate_dim if truncate_dim is None else truncate_dim
        if kept is not None:
            check_count("truncate_dim", kept)
            found = np.ascontiguousarray(found[:, :kept])
        found = unit(found) if normalize_embeddings else found
    if to_list and not convert_to_tensor and not single:
        return _converted(list(found), True)
    return _converted(found[0] if single else found, convert_to_tensor or to_list)


def encode_query(model: "Model", items: Items | str, **options: Any) -> Any:
    """`encode` with the prompt that is named "query", if there is one, unless another one is given."""
    return encode(model, items, **_with_prompt(model, ("query",), options))


def encode_document(model: "Model", items: Items | str, **options: Any) -> Any:
    """`encode` with the first prompt that is named "document", "passage" or "corpus", unless another one is given."""
    return encode(model, items, **_with_prompt(model, ("document", "passage", "corpus"), options))


def tokenize(
    model: "Model", items: Items, *, prompt: str | None = None, prompt_name: str | None = None, batch_size: int = 32
) -> list[list[int]]:
    """Token ids of each text or pair, special tokens and prompt included, cut at `max_tokens`; ids as they are.

    Raises as `encode`.
    """
    return tokens_of(model, items, batch_size=batch_size, prompt=prompt, prompt_name=prompt_name).ids


def _with_prompt(model: "Model", names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    given = options.get("prompt") is not None or options.get("prompt_name") is not None
    name = next((name for name in names if name in model.sentences.prompts), None)
    return options if given or name is None else options | {"prompt_name": name}


def _run(model: "Model", tokens: Tokens, batch_size: int, threads: int | None, track: Track) -> list[np.ndarray]:
    """Run batches, and return an output for each item in the order of the items."""
    batches = batches_of([len(ids) for ids in tokens.ids], batch_size, model.tokens_at_once, pads=model.pads)
    rows: list[np.ndarray] = [np.empty(0, np.float32)] * len(tokens.ids)
    made = model.run([tokens.of(chosen) for chosen in batches], threads)
    for chosen, found in zip(track(batches), _named(made, model, tokens), strict=True):
        for i, row in zip(chosen, found, strict=True):
            check_output(row, i, model.path)
            rows[i] = row
    return rows


def check_output(row: np.ndarray, i: int, where: Path) -> None:
    """Raises:
    NotFiniteError: NaN or infinity in the output for text i.
    """
    if not np.isfinite(row).all():
        raise NotFiniteError(
            f"{where}: the output for text {i} has {int((~np.isfinite(row)).sum())} values of {row.size} that are NaN "
            "or infinite"
        )


def refuse_empty(ids: Sequence[Sequence[int]]) -> None:
    """Raises:
    InputError: a text without tokens.
    """
    if [] in ids:
        raise InputError(
            f"text {ids.index([])} has no tokens, and this model's tokenizer adds no special tokens; leave it out"
        )


def _named(made: Iterator[Sequence[np.ndarray]], model: "Model", tokens: Tokens) -> Iterator[Sequence[np.ndarray]]:
    """The outputs of a run. If the run refuses an id, the error names the item, because a run knows only the place in a
    batch.
    """
    try:
        yield from made
    except InputError:
        check_range(tokens.ids, model.vocabulary, "its tokenizer gives the token id")
        raise


def _converted(found: Any, to_tensor: bool) -> Any:
    """The same outputs, as torch tensors if the user wants them."""
    if not to_tensor:
        return found
    import torch

    return [torch.as_tensor(row) for row in found] if isinstance(found, list) else torch.as_tensor(found)


def tokens_of(
    model: "Model", items: Items, types: Sequence[Sequence[int]] | None = None, *, batch_size: int = 32,
    truncate: bool = True, prompt: str | None = None, prompt_name: str | None = None,
) -> Tokens:  # fmt: skip
    """The ids of each item, and their types if the model has several. Raises as `encode`."""
    check_count("batch_size", batch_size)
    given, n_types = listed(items), model.n_types
    texts = texts_of(given)
    if texts is None:
        if prompt or prompt_name:
            raise InputError(
                "a prompt cannot be put before token ids; give texts, or tokenize the prompt together with the texts"
            )
        ids = check_ids(given, model.max_tokens)
        check_range(ids, model.vocabulary, "token id")
        return check_types(types, ids, n_types)
    refuse_types(types)
    first, second = texts
    prefix, chat = prompt_of(model.sentences, prompt, prompt_name), model.sentences.chat
    limit = model.max_tokens if truncate else None
    if chat is not None:
        from bitwright.runtime.chat_pairs import read_in_chat  # few models have it

        tokens = read_in_chat(model, chat, first, second, prefix, limit=limit)
        prefix = ""
    else:
        first = [prefix + text for text in first] if prefix else first
        tokens = model.read(first, second, typed=n_types > 1, limit=limit)
    if not truncate:
        refuse_long((len(ids) > model.max_tokens for ids in tokens.ids), model.max_tokens)
    checked = check_types(tokens.types, tokens.ids, n_types)
    skips = bool(prefix) and not model.sentences.pooling.include_prompt
    return checked._replace(skip=_length_of(model, prefix)) if skips else checked


def prompt_of(sentences: Sentences, prompt: str | None, name: str | None) -> str:
    """The prompt that is put before each text: the one given, the one of that name, or the model's default.

    Raises:
        InputError: the model has no prompt of that name.
    """
    if prompt is not None:
        return prompt
    prompts = sentences.prompts
    name = sentences.default_prompt if name is None else name
    if name is not None and name not in prompts:
        raise InputError(
            f"prompt_name = {name!r} is unknown; this model's prompts are {', '.join(map(repr, prompts)) or 'none'}"
        )
    return "" if name is None else prompts[name]


def _length_of(model: "Model", prompt: str) -> int:
    """The number of a prompt's tokens at the beginning of a text, without a special token at the end, as the library
    counts.
    """
    (ids,) = model.read([prompt], None, typed=False, limit=model.max_tokens).ids
    return len(ids) - (ids[-1] in model.special_ids) if ids else 0


def batches_of(
    lengths: Sequence[int], batch_size: int, tokens_at_once: int | None, *, pads: bool = False
) -> list[list[int]]:
    """Indices of sequences with these lengths in tokens, longest first, in batches of at most `batch_size`.

    tokens_at_once: if given, the sequences of a batch have one length, and no more tokens together; but one sequence at
    least is in each. pads: whether sequences cost as much as the longest of their batch: those that are far shorter
    then begin another one.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches, begin = [], 0
    while begin < len(order):
        end = min(begin + batch_size, len(order))
        if tokens_at_once is not None:
            length = lengths[order[begin]]
            end = min(end, begin + max(tokens_at_once // length, 1))
            end = next((i for i in range(begin, end) if lengths[order[i]] != length), end)
        elif pads:
            least = _LEAST_FILLED * lengths[order[begin]]
            end = next((i for i in range(begin + _FEWEST, end) if lengths[order[i]] < least), end)
        batches.append(order[begin:end])
        begin = end
    return batches
