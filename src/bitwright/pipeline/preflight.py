"""Checks a plan, before anything is calibrated, against targets whose rules belong to what writes or runs results."""

from collections.abc import Callable, Sequence
from functools import partial

from bitwright.checkpoints.preflight import why_not
from bitwright.engine.decoders import FLOAT, lower_decoder
from bitwright.engine.weights import open_weights
from bitwright.errors import EngineError, TargetError
from bitwright.files.directory import ModelDirectory
from bitwright.models.load import LoadedModel
from bitwright.numerics.linear import LinearForm
from bitwright.numerics.schemes import SCHEMES
from bitwright.onnx.kinds import kind_of
from bitwright.plan import Plan, quantized_names
from bitwright.record import EMBEDDING
from bitwright.runtime.engine_model import not_on_engine
from bitwright.targets import ENGINE, TARGETS

# The model, the plan, linears whose inputs are transformed -> why the target cannot have it; "" if it can.
Rule = Callable[[LoadedModel, Plan, Sequence[str]], str]


def check_targets(targets: Sequence[str], loaded: LoadedModel, plan: Plan, transformed: Sequence[str]) -> None:
    """Refuse a plan that a target cannot have.

    Raises:
        TargetError: says what to change.
    """
    for target in targets:
        rule = _RULES.get(target)
        if rule is not None and (why := rule(loaded, plan, transformed)):
            raise TargetError(f"{target}: {why}")


def _forms(plan: Plan, transformed: Sequence[str]) -> dict[str, tuple[tuple[int, int], LinearForm]]:
    """Shape and form of each linear that will be quantized."""
    names, found = quantized_names(plan), {}
    for row in plan:
        scheme = SCHEMES[row.scheme] if row.name in names else None
        if scheme is not None and scheme.weight is not None:
            found[row.name] = row.shape, LinearForm(scheme.weight, scheme.input, row.name in transformed)
    return found


def _written(to: str, loaded: LoadedModel, plan: Plan, transformed: Sequence[str]) -> str:
    files = loaded.source.files
    tables = [row.name for row in plan if row.role == EMBEDDING and row.scheme == "int8"]
    shapes = {name: files.shape(name) for name in files}
    return why_not(to, loaded.directory, _forms(plan, transformed), tables, shapes)


def _in_a_graph(loaded: LoadedModel, plan: Plan, transformed: Sequence[str]) -> str:
    try:
        for name, (shape, form) in _forms(plan, transformed).items():
            kind_of(name, form, shape[1])
    except TargetError as error:
        return str(error)
    return ""


def _on_engine(loaded: LoadedModel, plan: Plan, transformed: Sequence[str]) -> str:
    if not quantized_names(plan):
        return "no linear is quantized, and a float model is run by transformers; quantize some"
    if loaded.task != "text-generation":
        return not_on_engine(ModelDirectory(loaded.path, loaded.task))  # opened anew, and let go of again
    try:  # heads and inputs in 16 bits, so that nothing is read to be rounded
        lower_decoder(open_weights(ModelDirectory(loaded.path, loaded.task)), arithmetic=FLOAT)
    except EngineError as error:
        return str(error)
    return ""


_RULES: dict[str, Rule] = {
    **{name: partial(_written, name) for name, row in TARGETS.items() if row.format},
    "onnx": _in_a_graph,
    "openvino": _in_a_graph,
    ENGINE: _on_engine,
}
