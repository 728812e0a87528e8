"""How one vector per text is made of token vectors, as the model's own sentence-transformers files say."""

from typing import Literal, NamedTuple, get_args

from bitwright.errors import ModelError, brief
from bitwright.files.directory import ModelDirectory
from bitwright.files.modules import MODULES_FILE, read_modules

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


class Pooling(NamedTuple):
    """What becomes of the token vectors: pooled by each mode, concatenated, scaled to unit length if `normalize`."""

    modes: tuple[Mode, ...] = ("mean",)
    normalize: bool = False


def read_pooling(directory: ModelDirectory) -> Pooling:
    """The pooling of a model directory: modules.json and the files it points to; the mean of the tokens without one.

    Raises:
        ModelError: a file that is not what it should be, or a module (such as Dense) that is neither pooling nor
            normalization.
    """
    modules, file = read_modules(directory), directory.path / MODULES_FILE
    if modules is None:
        return Pooling()
    kinds = [module.kind for module in modules]
    odd = [kind for kind in kinds[2:] if kind not in ("Normalize", "Dropout")]
    if kinds[:2] != ["Transformer", "Pooling"] or odd:
        raise ModelError(
            f"{file}: the modules are {', '.join(kinds[:9])}; supported is Transformer, Pooling and then "
            f"Normalize. Without {', '.join(odd[:3]) or 'that order'} the embeddings would differ from the model's own"
        )
    for module in modules:
        if module.kind == "Normalize":
            _check_normalize(directory, f"{module.folder}/config.json")
    return Pooling(_modes(directory, f"{modules[1].folder}/config.json"), "Normalize" in kinds)


def _modes(directory: ModelDirectory, name: str) -> tuple[Mode, ...]:
    config, file = directory.object(name, MODULES_FILE), directory.path / name
    if config is None:
        raise ModelError(f"{file}: no such file, and modules.json points to it")
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = named if isinstance(named, list) else [named]
    unknown = [mode for mode in modes if mode not in get_args(Mode)]
    if unknown or not modes or len(modes) > len(get_args(Mode)):
        raise ModelError(f"{file}: pooling_mode {brief(unknown or named)}; known are {', '.join(get_args(Mode))}")
    return tuple(modes)


def _check_normalize(directory: ModelDirectory, name: str) -> None:
    """Older models have no file for this module; newer ones can point it at something other than the pooled vector."""
    config, file = directory.object(name, MODULES_FILE) or {}, directory.path / name
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") not in (None, "sentence_embedding"):
            raise ModelError(f"{file}: {key} is {config[key]!r}; only sentence_embedding is normalized here")
