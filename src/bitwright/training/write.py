"""Writes a trained model as a checkpoint like any other."""

from collections.abc import Mapping
from pathlib import Path

from bitwright.checkpoints.formats import FORMATS
from bitwright.checkpoints.write import QuantizedParts
from bitwright.errors import InputError
from bitwright.models.load import open_lazily
from bitwright.models.names import model_names
from bitwright.numerics.linear import QuantizedLinear, ready
from bitwright.plan import Plan, half_names


def write_trained(linears: Mapping[str, QuantizedLinear], plan: Plan, saved: str | Path, out: str | Path) -> Path:
    """Write the checkpoint of a trained model to `out`, complete or not at all.

    Args:
        linears: of `convert`. plan: of `prepare`.
        saved: the directory to which the converted model was saved in float (`save_pretrained`), tokenizer included:
            everything that is not quantized comes from there.

    Raises:
        InputError: another model is in `saved`, or `out` is taken. ModelError, CheckpointError: as for any checkpoint.
    """
    loaded = open_lazily(saved, runnable=False, tokenizes=False)
    names = model_names(loaded.model, loaded.architecture)
    if lost := [name for name in linears if name not in names.linears]:
        raise InputError(f"{saved}: this model has no linear {lost[0]}; save the converted model itself there")
    parts = QuantizedParts({name: ready(linear) for name, linear in linears.items()}, half_names(plan))
    write = FORMATS["compressed-tensors"].write
    assert write is not None
    write(loaded.directory, Path(out), parts, names, model_card="")
    return Path(out)
