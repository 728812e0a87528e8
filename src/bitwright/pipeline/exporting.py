"""Exports a result for another runtime, and verifies results and exports after the fact."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bitwright.calibration.passages import ROLES, passages
from bitwright.checkpoints.attention import ATTENTION_KEY
from bitwright.checkpoints.convert import convert
from bitwright.checkpoints.gguf_write import write_gguf
from bitwright.checkpoints.preflight import lost_of_result
from bitwright.errors import BitwrightError, InputError, TargetError, brief
from bitwright.files.directory import ModelDirectory
from bitwright.files.opening import is_gguf, open_path
from bitwright.files.task import find_task
from bitwright.models.load import load_model
from bitwright.onnx.verify import RUNTIMES, verify_graph
from bitwright.onnx.write import WrittenOnnx, write_onnx
from bitwright.pipeline.decoded import float_source
from bitwright.progress import Progress, Quiet
from bitwright.record import RECORD_FILE, Verification, from_data, read_record, write_record
from bitwright.runtime.expected import Expected, expect
from bitwright.runtime.generic_model import float_model
from bitwright.runtime.library import start_library
from bitwright.runtime.load import load
from bitwright.runtime.verify import CHECKED, compared, verify
from bitwright.runtime.verify_library import Given, beside_engine, check_library, missing
from bitwright.targets import ENGINE
from bitwright.targets import TARGETS as TARGET_TABLE

if TYPE_CHECKING:
    from bitwright.onnx.graph import WeightRange

# Format -> the runtimes that read it, where there are several.
_RUNTIMES_OF = {"gguf": ("gguf", "llama.cpp")}
_ONLY_OURS = "not checked, because the checkpoint holds what only Bitwright reads (quant_method: bitwright)"
_FORMATS = tuple(name for name, target in TARGET_TABLE.items() if target.format)
TARGETS = tuple(name for name in TARGET_TABLE if name in (*CHECKED, ENGINE, *RUNTIMES, *_FORMATS))


def export_onnx(
    directory: Path, out: Path, *, weights: "WeightRange" = "8bit", residuals: bool = False, overwrite: bool = False,
    check: bool = True, trust_remote_code: bool = False, progress: Progress,
) -> tuple[WrittenOnnx, Verification | None]:  # fmt: skip
    """Write the ONNX graph of a result, and verify it in ONNX Runtime before it appears.

    residuals: compute residual additions in 8 bits, too, on grids from the built-in texts for calibration.

    Raises:
        TargetError: also a graph that ONNX Runtime computes otherwise, or without integer kernels.
        As `write_onnx`.
    """
    opened = ModelDirectory(directory)
    rows: list[Verification] = []

    def checked(staged: Path) -> None:
        progress.say("running the graph in ONNX Runtime, in a clean process")
        row = verify_graph(staged, expect(opened))
        if row.ok is False:
            raise TargetError(f"{directory}: the ONNX graph is not right, and was not kept: {row.detail}")
        rows.append(row)

    progress.say(f"exporting {directory}")
    written = write_onnx(
        opened, out, weights=weights, overwrite=overwrite, trust_remote_code=trust_remote_code,
        check=checked if check else None, progress=progress,
        residuals=_calibrating_ids(directory) if residuals else (),
    )  # fmt: skip
    for folder in (directory, out):
        keep(folder, rows)
    return written, rows[0] if rows else None


def _calibrating_ids(directory: Path) -> list[np.ndarray]:
    """Token ids of some of the built-in texts that calibrate, a text a batch."""
    model = load(directory)
    texts = [passage.text for passage in passages() if ROLES[passage.kind] == "calibration"]
    ids = model.tokenize(texts[::10])
    return [np.array([row[: model.max_tokens]], np.int64) for row in ids]


def verify_result(
    directory: Path, targets: Sequence[str], *, export: Path | None = None, source: Path | None = None,
    progress: Progress,
) -> list[Verification]:  # fmt: skip
    """Check a result in runtimes, each in a clean process; the rows go to its record.

    Args:
        directory: a result, a checkpoint of another format, or a GGUF file.
        targets: of `TARGETS`.
        export: of the result, for "onnx" and "openvino", or converted, for a format; by default one is written, and
            removed afterwards. A checkpoint that is of the format already is checked itself.
        source: the float model, for what cannot be checked without it: int8 attention, and language models.

    Raises:
        InputError: a target that is unknown; no float model where it is needed.
        As `runtime.load.load` and `write_onnx`.
    """
    if unknown := [target for target in targets if target not in TARGETS]:
        raise InputError(f"target {unknown[0]!r} is unknown; known: {', '.join(TARGETS)}")
    progress.say(f"running {directory} in this process")
    opened = open_path(directory)
    expected = expect(opened)
    rows: dict[str, Verification] = {}
    libraries = list(dict.fromkeys("bitwright" if target == ENGINE else target for target in targets))
    libraries = [target for target in libraries if target in CHECKED]
    if not _is_portable(opened):
        rows |= {target: Verification(target, None, {}, _ONLY_OURS) for target in libraries if target != "bitwright"}
        libraries = [target for target in libraries if target not in rows]
    if libraries:
        progress.say("running it in clean processes")
        original = _original(opened, expected.ids_BT, source) if "bitwright" in libraries else None
        found = verify(
            directory, libraries, Given(expected.ids_BT, expected.plain_BV, expected.generic_BV), expected.calls,
            original=original, engine=expected.engine_BV,
        )  # fmt: skip
        rows |= {row["target"]: from_data(Verification, row) for row in found}
    if ENGINE in targets:
        rows[ENGINE] = on_engine(rows["bitwright"], expected.backend)
    if graphs := [target for target in targets if target in RUNTIMES]:
        progress.say(f"running its graph in {', '.join(RUNTIMES[target][0] for target in graphs)}")
        rows |= {row.target: row for row in verify_graphs(directory, graphs, expected, export=export)}
    ordered = [rows[target] for target in targets if target not in _FORMATS]
    for target in (target for target in targets if target in _FORMATS):
        progress.say(f"running it as {target}")
        ordered += _verify_format(opened, target, expected, export)
    keep(directory, ordered)
    return ordered


def on_engine(ours: Verification, backend: str) -> Verification:
    """The row of the target "engine". ours: that of Bitwright, on whatever path it ran, which `backend` says."""
    runs = backend.startswith("engine")
    return replace(
        ours, target=ENGINE, ok=ours.ok if runs else False, detail=ours.detail if runs else f"it runs as {backend}"
    )


def _verify_format(opened: ModelDirectory, target: str, expected: Expected, export: Path | None) -> list[Verification]:
    """The rows of a format: of each runtime that reads it, the format's own first."""
    with tempfile.TemporaryDirectory(prefix="bitwright-verify-") as folder:
        try:
            path = export or _converted(opened, target, Path(folder) / "export")
        except BitwrightError as error:
            return [Verification(target, None, {}, f"not checked: {error}")]
        if (form := _method(open_path(path))) != target:
            return [Verification(target, False, {}, f"{path} is no {target}; its quant_method is {brief(form)}")]
        start_library()
        rows = []
        for runtime in _RUNTIMES_OF.get(target, (target,)):
            if why := missing(runtime):
                rows.append(Verification(runtime, None, {}, why))
                continue
            found = check_library(path, runtime, Given(expected.ids_BT, expected.plain_BV, expected.engine_BV))
            checks = found.checks
            if found.outputs is not None:
                checks |= beside_engine(found.outputs, expected.engine_BV, find_task(opened))
            rows.append(Verification(runtime, found.ok, checks, found.detail))
        return rows


def _method(opened: ModelDirectory) -> object:
    """The `quant_method` that a model's files name."""
    said = None if opened.quantization is None else opened.quantization.said
    return said.get("quant_method") if isinstance(said, dict) else None


def _converted(opened: ModelDirectory, to: str, out: Path) -> Path:
    """The checkpoint in a format: as it is, or converted without loss.

    Raises:
        InputError, ModelError, CheckpointError: it would lose something.
    """
    if _method(opened) == to:
        return opened.path
    return write_gguf(opened, out.with_suffix(".gguf")).path if to == "gguf" else convert(opened, to, out).path


def verify_graphs(
    directory: Path, targets: Sequence[str], expected: Expected | None = None, *, export: Path | None = None
) -> list[Verification]:
    """Check the ONNX graph of a result in runtimes; one row per target.

    expected: what the result gives, if that is known. export: of the result; by default one is written, and removed
    afterwards.
    """
    if not targets:
        return []
    if find_spec("onnx") is None:
        return [Verification(target, None, {}, "not checked, because onnx is not installed") for target in targets]
    expected = expect(ModelDirectory(directory)) if expected is None else expected
    with tempfile.TemporaryDirectory(prefix="bitwright-verify-") as folder:
        try:
            export = write_onnx(directory, Path(folder) / "export").path if export is None else export
        except TargetError as error:
            return [Verification(target, False, {}, str(error)) for target in targets]
        return [verify_graph(export, expected, target) for target in targets]


def verify_formats(directory: Path, targets: Sequence[str]) -> list[Verification]:
    """Whether `bitwright convert` loses nothing of a result in these formats; one row per target. What it would lose
    makes no output wrong: such a row is none that failed.
    """
    rows = []
    for target in targets:
        try:
            lost = lost_of_result(target, ModelDirectory(directory))
        except BitwrightError as error:
            lost = str(error)
        detail = f"converting it would lose something: {lost}" if lost else "converting it loses nothing"
        rows.append(Verification(target, None if lost else True, {}, detail))
    return rows


def _is_portable(opened: ModelDirectory) -> bool:
    """Whether plain readers know the checkpoint's format."""
    said = opened.config.get("quantization_config")
    return not (isinstance(said, dict) and said.get("quant_method") == "bitwright")


def keep(directory: Path, rows: Sequence[Verification]) -> None:
    """Put rows into a result's record, in place of those of the same targets, and write its report again. Without a
    record nothing is kept.
    """
    if not rows or not (directory / RECORD_FILE).is_file():
        return
    from bitwright.report import REPORT_FILE, write_report  # Bokeh's memory is needed only now

    record = read_record(directory)
    named = {row.target: row for row in (*(record.verify or ()), *rows)}
    write_record(replace(record, verify=tuple(named.values())), directory / RECORD_FILE)
    if (directory / REPORT_FILE).is_file():
        write_report(directory)


def _original(opened: ModelDirectory, ids_BT: np.ndarray, source: Path | None) -> np.ndarray | None:
    """The outputs of the float model, where a check needs them: int8 attention, and the cache and head of a language
    model, are compared with it.

    Raises:
        InputError: it is nowhere.
    """
    if ATTENTION_KEY not in opened.config and find_task(opened) != "text-generation":
        return None
    if source is None and (opened.path / RECORD_FILE).is_file():
        made_from = read_record(opened.path).model.source
        source = None if made_from is None else Path(made_from)
    if source is None or not (source.is_dir() or is_gguf(source)):
        raise InputError(
            f"{opened.path}: int8 attention and language models are compared with the float model, and it is not "
            f"at {source or 'a known place'}; name it with --source"
        )
    with float_source(source, None, Quiet()) as floats:
        return compared(float_model(load_model(floats)), torch.from_numpy(ids_BT))[0]
