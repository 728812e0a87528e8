"""The Record: everything that a run measured, as JSON (`record.json`). The report is rebuilt from it alone.

Keys of version 1. A key is absent, or null, when its step did not run: `evaluation`, `distributions`, `speed` and
`verify` of a result that was not judged; `sensitivity`, `distributions` and `speed` of a language model. Times in
seconds, sizes in bytes, losses and errors as fractions.

    record_version 1 · bitwright_version · created (UTC, ISO 8601) · command (what reproduces the run) · exit_code
    model          name, source (as it was typed), model_type, architectures, n_parameters, n_blocks, license, dtype,
                   source_sha256, task ("embedding" | "sequence-classification" | "token-classification" |
                   "question-answering" | "text-generation")
    recipe         the resolved recipe, fallbacks included
    decision       what `method: auto` was decided on: evidence, what was rejected, and reasons, as plain data
    plan           a row per linear and embedding table: name, block (or null), role, unit, shape [N, K], scheme,
                   method, bytes_before, bytes_after, reason; "16bit" is a fallback or an exclusion: the reason says
    layers         a row per linear that a method quantized: name, block, role, unit, scheme, method, fallback (whether
                   it went back to 16 bit). Where inputs were looked at also n_tokens (calibration tokens that reached
                   it), error (‖XWᵀ − XŴᵀ‖ / ‖XWᵀ‖ over them, before inputs are rounded), error_rtn (the same of plain
                   rounding to nearest), error_input (what rounding the inputs is expected to add for an ordinary token,
                   relative to its output), sqnr_db, cosine, block_emd (Earth Mover's Distance between outputs of the
                   block), and what methods note: transform ("folded" | "at the input" | "none: …"), transform_alpha,
                   transform_exponent, damping, damping_failed, dead_inputs, reason (of a method that gave way to
                   rounding to nearest); starved (of experts that saw too few tokens: {n_tokens, fewest (that would
                   do), policy: "lent" (uses what all experts of the block saw) | "rtn" (rounded to nearest)})
    evaluation     metric {name, kind, task, unit, label_free, higher_is_better, protocol (of perplexity; or null)},
                   n_tuning, n_held_out, float_score, quantized_score, loss, loss_lower, loss_upper (one-sided bounds),
                   confidence (0.95), max_loss, verdict ("met" | "not met" | "undecided"), sentence, needed_samples (or
                   null), accepted_point_estimate, companions {name: value}, seed
    steps          what the fallback search, and then the front, measured, in order: n_fallback, units (kept in 16 bit),
                   unit (the last of them, or null), chosen (whether it was taken), loss, loss_upper, bytes, decided_on
                   ("tuning")
    front          with a min_speedup: min_speedup, met, n_units, rows [{n_fallback, units (in 16 bit), speedup (the
                   geometric mean over shapes, against the faster of torch fp32 and bf16), loss, loss_upper (tuning:
                   these decide), held_out {loss, lower, upper}, bytes, on_front, chosen}]
    sensitivity    n_samples, metric, spearman_with_metric_loss (or null), and rows (linears), units, groups (roles of a
                   block, or with block null of the whole model), each with name, block, role, unit, mode ("one" | "all
                   but one"), emd, sqnr_db, cosine, rank_flips, metric_loss
    distributions  per quantized linear: name, role, weight and activation (or null), each {edges, before, after},
                   counts as fractions
    size           source_bytes, checkpoint_bytes (weight files), weights_before, weights_after (what the plan covers)
    speed          threads, rows [{runtime, batch, tokens, median_ms, min_ms, per_second, ratio_to_fp32, ratio_to_bf16,
                   note}], peak_rss_mib {runtime: MiB}, load_s, skipped [{runtime, reason}], and what `run_bench` adds
    verify         per target: target, ok (null: not checked), checks {name: value}, detail
    warnings       texts
    environment    cpu, cores, isa, os, python, torch, transformers, bitwright, threads
    timings_s      {step: seconds}
"""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from bitwright.errors import CheckpointError

RECORD_VERSION = 1
RECORD_FILE = "record.json"

Record = dict[str, Any]


def write_record(record: Record, path: Path) -> None:
    """Write a record, all or nothing. Infinity and NaN, which JSON lacks, are written as strings (`plain_data`)."""
    write_text_atomically(path, json.dumps(plain_data(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """Read a record (a file, or a directory that holds `record.json`).

    Raises:
        CheckpointError: no such file, not JSON, or a version that this release cannot read.
    """
    path = path / RECORD_FILE if path.is_dir() else path
    try:
        record = _restored(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no record here; is this a directory that `bitwright quantize` wrote?") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as a record ({error}); run `bitwright quantize` again") from None
    version = record.get("record_version") if isinstance(record, dict) else None
    if version != RECORD_VERSION:
        raise CheckpointError(
            f"{path}: record_version is {version!r}, this release reads {RECORD_VERSION}; update Bitwright"
        )
    return dict(record)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file by way of a temporary one beside it, so that a reader never sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_NAMED_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def plain_data(value: Any) -> Any:
    """`value` as JSON can hold it: infinity and NaN become the strings "inf", "-inf" and "nan"; tuples become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, str):
        return _NAMED_FLOATS.get(value, value)
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return value
