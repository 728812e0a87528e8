"""How one vector per text is made of token vectors, as the model's own sentence-transformers files say."""

from typing import Any, Literal, NamedTuple, get_args

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory

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
    modules, path = directory.json("modules.json"), directory.path
    if modules is None:
        return Pooling()
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and {"type", "path"} <= module.keys() for module in modules
    ):
        raise ModelError(f"{path / 'modules.json'}: not a list of modules with a type and a path")
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    odd = [kind for kind in kinds[2:] if kind not in ("Normalize", "Dropout")]
    if kinds[:2] != ["Transformer", "Pooling"] or odd:
        raise ModelError(
            f"{path / 'modules.json'}: the modules are {', '.join(kinds)}; supported is Transformer, Pooling and then "
            f"Normalize. Without {', '.join(odd) or 'that order'} the embeddings would differ from the model's own"
        )
    for module, kind in zip(modules, kinds, strict=True):
        if kind == "Normalize":
            _check_normalize(directory, _config_of(module))
    return Pooling(_modes(directory, _config_of(modules[1])), "Normalize" in kinds)


def _config_of(module: dict[str, Any]) -> str:
    return f"{module['path']}/config.json"


def _modes(directory: ModelDirectory, name: str) -> tuple[Mode, ...]:
    config, file = directory.object(name), directory.path / name
    if config is None:
        raise ModelError(f"{file}: no such file, and modules.json points to it")
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
    modes = named if isinstance(named, list) else [named]
    unknown = [mode for mode in modes if mode not in get_args(Mode)]
    if unknown or not modes:
        raise ModelError(f"{file}: pooling_mode {unknown or named}; known are {', '.join(get_args(Mode))}")
    return tuple(modes)


def _check_normalize(directory: ModelDirectory, name: str) -> None:
    """Older models have no file for this module; newer ones can point it at something other than the pooled vector."""
    config, file = directory.object(name) or {}, directory.path / name
    for key in ("module_input_name", "module_output_name"):
        if config.get(key, "sentence_embedding") not in (None, "sentence_embedding"):
            raise ModelError(f"{file}: {key} is {config[key]!r}; only sentence_embedding is normalized here")
