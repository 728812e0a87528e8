"""Arguments of sentence-transformers' functions: which have the same meaning here, and what replaces the others.
Imports no torch.
"""

from typing import Any

from bitwright.progress import Track

# Argument -> values that ask for what is done here anyway; what to do instead of others.
_OTHERS: dict[str, tuple[tuple[Any, ...], str]] = {
    "convert_to_numpy": ((True, False), ""),
    "output_value": (
        ("sentence_embedding",),
        'token vectors come from `model.hf(**model.tokenizer(text, return_tensors="pt")).last_hidden_state`',
    ),
    "precision": (
        ("float32", None),
        "quantize the vectors with sentence_transformers.util.quantize_embeddings",
    ),
    "pool": ((None,), "a model on the engine uses all processors in one process; set threads= for fewer"),
    "chunk_size": ((None,), "set batch_size= for the number of items at a time"),
    "processing_kwargs": ((None,), "texts are cut at model.max_tokens"),
    "task": ((None,), "choose a prompt with prompt_name="),
}
_OWN = (
    "prompt", "prompt_name", "types", "batch_size", "threads", "truncate", "normalize_embeddings", "truncate_dim",
    "convert_to_tensor", "show_progress_bar", "device", "track",
)  # fmt: skip


def refuse_others(function: str, others: dict[str, Any]) -> bool:
    """Whether `convert_to_numpy` is off.

    Raises:
        TypeError: an argument that has no meaning here, or another value than the one that has.
    """
    for name, value in others.items():
        if name not in _OTHERS:
            from difflib import get_close_matches

            near = get_close_matches(name, [*_OWN, *_OTHERS], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")
        allowed, instead = _OTHERS[name]
        if value not in allowed:
            raise TypeError(f"{function}({name}={value!r}) is not supported: {instead}")
    return others.get("convert_to_numpy") is False


def refuse_device(device: Any) -> None:
    """Raises:
    TypeError: another device than the CPU.
    """
    if device is not None and str(device) != "cpu":
        raise TypeError(f"device={str(device)!r}: this model runs on the CPU; leave device out")


def chosen_track(show_progress_bar: bool | None, track: Track) -> Track:
    """The function that wraps the loop over batches."""
    if not show_progress_bar:
        return track
    from rich.console import Console
    from rich.progress import track as bar

    return lambda items: bar(list(items), "Batches", console=Console(stderr=True))
