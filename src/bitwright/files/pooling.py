"""Makes one vector per text from its token vectors, as the model's sentence-transformers files say. No torch."""

from typing import Literal, NamedTuple, get_args

import numpy as np

from bitwright.errors import ModelError, brief
from bitwright.files.folder import Folder
from bitwright.files.modules import MODULES_FILE, Module, module_config

Mode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

# Older files have one flag per mode. Several that are set are concatenated in this order.
_FLAGS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KNOWN = (*_FLAGS, "pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension")


class Pooling(NamedTuple):
    """Pool the token vectors by each mode, concatenate the results, and scale to length 1 if `normalize`.

    include_prompt: whether the tokens of a prompt that is put before a text count.
    """

    modes: tuple[Mode, ...] = ("mean",)
    normalize: bool = False
    include_prompt: bool = True


def pooling_of(package: Folder, module: Module) -> tuple[Pooling, list[str]]:
    """The settings of the model's `Pooling` module, without normalization, and the unknown keys of its file.

    Raises:
        ModelError: no such file, or one that does not hold what it should.
    """
    config, unknown = module_config(package, module, _KNOWN)
    file = package / module.file("config.json")
    if package.object(module.file("config.json"), MODULES_FILE) is None:
        raise ModelError(f"{file}: {MODULES_FILE} names this file, but it does not exist; download the model again")
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = named if isinstance(named, list) else [named]
    wrong = [mode for mode in modes if mode not in get_args(Mode)]
    if wrong or not modes or len(modes) > len(get_args(Mode)):
        raise ModelError(
            f"{file}: pooling_mode {brief(wrong or named)} is unknown; known are {', '.join(get_args(Mode))}"
        )
    return Pooling(tuple(modes), include_prompt=bool(config.get("include_prompt", True))), unknown


def pool_rows(hidden_TH: np.ndarray, pooling: Pooling, skip: int) -> np.ndarray:
    """One vector for a text, float32 (H · number of modes,).

    hidden_TH: float32 vectors of its tokens, without padding. skip: so many at the beginning, those of a prompt, do not
    count; `weightedmean` gives the others the weights of their own places all the same.
    """
    skip = min(skip, len(hidden_TH))
    kept_TH = hidden_TH[skip:]
    vector: np.ndarray = np.concatenate([_pool_one(hidden_TH, kept_TH, skip, mode) for mode in pooling.modes])
    return unit(vector) if pooling.normalize else vector


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scaled to length 1 along the last axis; zeros stay."""
    scaled: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled


def _pool_one(hidden_TH: np.ndarray, kept_TH: np.ndarray, skip: int, mode: Mode) -> np.ndarray:
    if not len(kept_TH):  # a text that is all prompt: what the library's formulas give for no tokens
        empty = {"cls": hidden_TH[0], "max": np.full_like(hidden_TH[0], -np.inf)}
        return np.asarray(empty.get(mode, np.zeros_like(hidden_TH[0])))
    if mode in ("cls", "lasttoken"):
        return np.asarray(kept_TH[0 if mode == "cls" else -1])
    if mode == "max":
        return np.asarray(kept_TH.max(axis=0))
    places_T = np.arange(skip + 1, len(hidden_TH) + 1, dtype=np.float32)
    weights_T = places_T if mode == "weightedmean" else np.ones_like(places_T)
    total = np.sqrt(weights_T.sum()) if mode == "mean_sqrt_len_tokens" else weights_T.sum()
    mean: np.ndarray = weights_T @ kept_TH / total
    return mean
