"""Loads a finished checkpoint in clean processes, once per target runtime, and compares the outputs.

The parent hands over token ids, and keeps what the output must be, from models in memory that never saw the file. Our
runtime loads the directory in a new interpreter (this file, run as a module), which imports while the other runtimes
are checked; those load it in forks of the process that has imported them and nothing that reads a model
(`runtime/verify_library.py`), and get the pooling from us and nothing else.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bitwright.errors import EngineError
from bitwright.files.opening import open_path
from bitwright.files.task import find_task
from bitwright.runtime.library import start_library
from bitwright.runtime.time_limit import kill_group, killed_after, seconds_allowed, weight_bytes
from bitwright.runtime.tolerances import SAME_BITS, attention_distances, engine_distances, largest_difference
from bitwright.runtime.verify_library import Given, beside_engine, check_library, missing, too_far

if TYPE_CHECKING:
    from torch import Tensor

    from bitwright.runtime.generic_model import GenericModel
    from bitwright.runtime.model import Model

_OURS = "bitwright"
ROWS_AT_ONCE = 8  # in a comparison: what a forward holds grows with them
CHECKED = (_OURS, "transformers", "sentence-transformers")


def verify(
    directory: Path,
    targets: Sequence[str],
    given: Given,
    n_integer: int,
    compute: str = "auto",
    original: np.ndarray | None = None,
    engine: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Check `directory` in every target; one row per target, as the Record documents.

    Args:
        given: where the engine runs, two texts at least, and distinct ones; `rounded` is of the quantized model.
        n_integer: calls of integer kernels that one forward of the "bitwright" target must make: one for each such
            linear, but for experts to which no token is routed.
        original: what `compared` says of the float model, if `directory` has int8 attention.
        engine: the same of the engine, beside which libraries are shown; by default that of the clean process.
    """
    expected = _Expected(given.rounded, given.dequantized, n_integer, original)
    rows = {target: row for target in targets if (row := _unchecked(target)) is not None}
    checked = [target for target in targets if target not in rows]
    libraries = [target for target in checked if target != _OURS]
    if libraries:
        start_library()
    with _clean_process(_OURS in checked) as child:
        found = {target: check_library(directory, target, given) for target in libraries}
        if child is not None:
            rows[_OURS], ran = _verify_ours(child, directory, given.ids_BT, expected, compute)
            engine = ran if engine is None else engine
    for target, check in found.items():
        checks = check.checks
        if engine is not None and check.outputs is not None:
            checks |= beside_engine(check.outputs, engine, find_task(open_path(directory)))
        rows[target] = _row(target, check.ok, checks, check.detail)
    return [rows[target] for target in targets]


def compared(model: "Model", ids_BT: "Tensor") -> tuple[np.ndarray, int]:
    """The outputs of a model that are compared, float32 (B, values), and the number of integer kernel calls of one
    forward of at most `ROWS_AT_ONCE` rows.

    Pooled embeddings or logits, flattened; of a language model the logits after the last token.
    """
    from bitwright.evaluate.kinds import OUTPUTS
    from bitwright.kernels import dispatch
    from bitwright.runtime.items import Tokens

    before = dispatch.kernel_calls()
    batches = [ids_BT[i : i + ROWS_AT_ONCE] for i in range(0, len(ids_BT), ROWS_AT_ONCE)]
    if OUTPUTS[model.task] == "tokens":
        rows = [row for ids in batches for row in model.logits(ids)[:, -1].float().numpy()]
    else:
        rows = list(chain.from_iterable(model.run([Tokens(ids.tolist()) for ids in batches])))
    return np.stack([row.reshape(-1) for row in rows]), _each(dispatch.kernel_calls() - before, len(batches))


def _each(calls: int, forwards: int) -> int:
    """The calls of one of several forwards; all of them, where the forwards differ."""
    return calls // forwards if calls % forwards == 0 else calls


def _verify_ours(
    child: "subprocess.Popen[str]", directory: Path, ids_BT: np.ndarray, expected: "_Expected", compute: str
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The row, and the engine's outputs, if that runs the directory."""
    with tempfile.TemporaryDirectory(prefix="bitwright-verify-") as folder:
        given, result = Path(folder) / "given.npz", Path(folder) / "result.npz"
        np.savez(given, ids=ids_BT)
        request = json.dumps([compute, *map(str, (directory, given, result))])
        seconds = seconds_allowed(weight_bytes(directory), ids_BT.size)
        with killed_after(child, seconds) as late:
            _, said = child.communicate(request)
        if late.is_set():
            return _row(_OURS, False, {}, f"the process gave no answer within {seconds:.0f} s, and was killed"), None
        if child.returncode != 0 or not result.exists():
            last = (said.strip().splitlines() or [f"the process ended with exit status {child.returncode}"])[-1]
            return _row(_OURS, False, {}, f"loading or running failed: {last[:300]}"), None
        with np.load(result) as file:
            found = dict(file)
    (shape, wanted) = (found["generic"].shape, expected.quantized.shape)
    if shape != wanted:
        return _row(_OURS, False, {}, f"the outputs have the shape {shape}, but {wanted} is expected"), None
    checks, faults = _checks_of_ours(found, expected)
    detail = "a clean process gives the same bits, with all integer kernels in use"
    if "engine" in found:
        detail += "; the engine agrees within the rounding of activations"
    if "engine_float_attention" in found:
        detail += ", and int8 attention adds no more than that"
    if "decodes" in found:
        detail = detail.replace("int8 attention adds", "an int8 cache and an int8 head add")
    return _row(_OURS, not faults, checks, "; ".join(faults) or detail), found.get("engine")


class _Expected(NamedTuple):
    """What our runtime must give, as `verify` takes it."""

    quantized: np.ndarray
    dequantized: np.ndarray
    n_integer: int
    original: np.ndarray | None


def _checks_of_ours(found: dict[str, np.ndarray], expected: _Expected) -> tuple[dict[str, float], list[str]]:
    """The measurements of what `_child` wrote, and the faults that they show."""
    n_integer = expected.n_integer
    error, calls = largest_difference(found["generic"], expected.quantized), int(found["generic_calls"])
    checks = {"relative_error": error, "relative_error_allowed": SAME_BITS}
    checks |= {"integer_kernel_calls": calls, "integer_kernel_calls_expected": n_integer}
    checks |= {"seconds": float(found["seconds"])}
    faults = []
    if not error <= SAME_BITS:
        faults.append(too_far("its outputs", error, SAME_BITS, "the model that was judged"))
    if calls != n_integer:
        faults.append(f"integer kernels were called {calls} times, but {n_integer} times are expected")
    if "engine" not in found:
        return checks, faults
    # As the engine, it may round inputs that the checkpoint leaves in 16 bits.
    first = "generic_rounded" if "generic_rounded" in found else "generic"
    generic = [found[name] for name in (first, "generic_bf16") if name in found]
    # The generic path computes attention in float; so does the engine that it is compared with.
    plain = found.get("engine_float_attention", found["engine"])
    checks |= engine_distances(plain, generic, expected.dequantized)
    others = {"engine_distance": "the generic path", "engine_float_distance": "the dequantized weights"}
    if "engine_float_attention" in found:
        assert expected.original is not None
        n_int8 = int(found["engine_int8_attention"])
        checks |= attention_distances(found["engine"], plain, expected.original, n_int8)
        others |= {"attention_distance": "the float model"}
    calls, folded, added = (int(found[name]) for name in ("engine_calls", "engine_folded", "engine_added"))
    checks |= {"engine_integer_kernel_calls": calls, "engine_folded_calls": folded, "engine_added_calls": added}
    for key, other in others.items():
        if not checks[key] <= checks[f"{key}_allowed"]:
            faults.append(too_far("the engine's outputs", checks[key], checks[f"{key}_allowed"], other))
    if calls + folded - added != n_integer:
        expected_calls = n_integer - folded + added
        faults.append(f"the engine called integer kernels {calls} times, but {expected_calls} times are expected")
    return checks, faults


def _unchecked(target: str) -> dict[str, Any] | None:
    """The row of a target that cannot be checked here."""
    if target == _OURS:
        return None
    why = missing(target) if target in CHECKED else "not checked: this release cannot check this runtime"
    return _row(target, None, {}, why) if why else None


def _row(target: str, ok: bool | None, checks: dict[str, Any], detail: str) -> dict[str, Any]:
    return {"target": target, "ok": ok, "checks": checks, "detail": detail}


@contextmanager
def _clean_process(wanted: bool) -> Iterator["subprocess.Popen[str] | None"]:
    """A new interpreter that imports what it needs, and then reads its instructions."""
    if not wanted:
        yield None
        return
    import torch

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        [sys.executable, "-m", "bitwright.runtime.verify"], text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    ) as child:  # fmt: skip
        try:
            yield child
        finally:
            kill_group(child)  # if something failed here


def _child() -> None:
    """Run a directory on the given ids, on the generic path and on the engine, there with float attention too if it has
    int8 attention; write the outputs and the counts of integer kernel calls."""
    import torch

    from bitwright.kernels.linear import cpu_multiplies_bf16
    from bitwright.runtime.engine_model import EngineModel
    from bitwright.runtime.generic import load_generic  # noqa: F401 (imported before there is something to do)
    from bitwright.runtime.load import load
    from bitwright.runtime.swap import round_groups, set_compute

    compute, directory, given, result = json.loads(sys.stdin.read())
    with np.load(given) as file:
        ids = torch.from_numpy(file["ids"])
    model = load(directory, compute=compute)
    found: dict[str, Any] = {}
    begun = time.perf_counter()
    found["generic"], found["generic_calls"] = compared(model.generic, ids)
    found["seconds"] = time.perf_counter() - begun
    if model.task == "text-generation":
        found |= _of_decoder(model.generic, ids)
    elif isinstance(model, EngineModel):
        begun = time.perf_counter()
        found["engine"], calls = compared(model, ids)
        found["seconds"] = time.perf_counter() - begun
        steps = model.executor.steps([ids.shape[1]] * min(len(ids), ROWS_AT_ONCE), model.threads)
        found["engine_calls"] = _each(calls, steps)
        found["engine_folded"], found["engine_added"] = model.folded, model.executor.program.added
        if model.executor.program.added:
            round_groups(model.generic.hf, on=True)
            found["generic_rounded"], _ = compared(model.generic, ids)
        if any(model.executor.program.int8_attention):
            found["engine_int8_attention"] = sum(model.executor.program.int8_attention)
            found["engine_float_attention"], _ = compared(EngineModel(model.directory, float_attention=True), ids)
        if not cpu_multiplies_bf16():  # else it computed in bf16 above
            set_compute(model.generic.hf, "bfloat16")
            found["generic_bf16"], _ = compared(model.generic, ids)
    np.savez(result, **found)


def _of_decoder(generic: "GenericModel", ids_BT: "Tensor") -> dict[str, Any]:
    """The outputs of a language model on the engine, if that runs it: as it is, and with cache and head as the generic
    path has them; and of the generic path with inputs rounded as the engine rounds them."""
    from bitwright.engine.cache_layout import CacheLayer
    from bitwright.engine.decoders import Arithmetic
    from bitwright.runtime.decoder_model import DecoderModel
    from bitwright.runtime.swap import round_groups, set_compute

    directory = open_path(generic.path)
    try:
        engine = DecoderModel(directory)
    except EngineError:
        return {}
    found: dict[str, Any] = {"decodes": 1, "engine_folded": 0, "engine_added": engine.executor.program.added}
    begun = time.perf_counter()
    found["engine"], found["engine_calls"] = compared(engine, ids_BT)
    found["seconds"] = time.perf_counter() - begun
    plain = Arithmetic(head="16", cache="bf16")
    attention = [layer for layer in engine.executor.program.layers if isinstance(layer, CacheLayer)]
    found["engine_int8_attention"] = len(attention) + 1  # and the head
    found["engine_float_attention"], _ = compared(DecoderModel(directory, arithmetic=plain), ids_BT)
    round_groups(generic.hf, on=True)
    found["generic_rounded"], _ = compared(generic, ids_BT)
    set_compute(generic.hf, "bfloat16")
    found["generic_bf16"], _ = compared(generic, ids_BT)
    return found


if __name__ == "__main__":
    _child()
