"""WeightedLayerPooling of sentence-transformers: a weighted mean of the layers' outputs. numpy, no torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bitwright.errors import ModelError, brief
from bitwright.files.after_pooling import ReadPickled, weights_of
from bitwright.files.directory import ModelDirectory
from bitwright.files.modules import Module, module_config

_KNOWN = ("embedding_dimension", "word_embedding_dimension", "layer_start", "num_hidden_layers")


class LayerMix(NamedTuple):
    """start: the first layer that counts; 0 is the embeddings. weights_L: the weight of each layer from start on,
    float32.
    """

    start: int
    weights_L: np.ndarray


def layer_mix_of(
    directory: ModelDirectory, modules: Sequence[Module], read_pickled: ReadPickled | None
) -> tuple[LayerMix | None, list[str]]:
    """The settings of the module, and the unknown keys of its file. None if the library skips the module, because
    config.json does not ask for the layers' outputs (`output_hidden_states`).

    Raises:
        ModelError: numbers that do not fit the model.
    """
    (module,) = modules
    config, unknown = module_config(directory.package, module, _KNOWN)
    if not directory.config.get("output_hidden_states", False):
        return None, unknown
    where, start = directory.package / module.file("config.json"), config.get("layer_start", 4)
    layers = directory.config.get("num_hidden_layers", directory.config.get("n_layers"))
    weights_L = weights_of(directory.package, module, read_pickled).get("layer_weights")
    if type(start) is not int or type(layers) is not int or weights_L is None:
        raise ModelError(
            f"{where}: layer_start is {brief(start)} and the number of layers is {brief(layers)}; both must be numbers"
        )
    if not 0 <= start <= layers or weights_L.shape != (layers + 1 - start,):
        raise ModelError(
            f"{where}: there are {weights_L.shape} weights from layer {start} on, but the model has {layers} layers "
            "and embeddings; one weight for each is needed"
        )
    if not np.isfinite(weights_L).all() or weights_L.sum() == 0:
        raise ModelError(f"{where}: the weights of the layers are not finite, or their sum is 0")
    return LayerMix(start, weights_L), unknown
