"""What a fleet knows of each of its models: a file each, so that a killed run goes on, and the next one compares."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitwright.atomic import write_text_atomically
from bitwright.errors import BitwrightError
from bitwright.record import Record, plain_data, read_record
from bitwright.record.convert import NULL, from_data

FOLDER = ".fleet"  # in a fleet's folder

FAILED, SKIPPED = "failed", "skipped"  # verdicts of models without a result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a model, for the table, the page and fleet.json.

    verdict: as in a record; "not judged"; "failed" or "skipped", and `error` says why. exit_code: as of
    `bitwright quantize`. loss, loss_upper, max_loss: fractions. before, after: bytes of the weight files.
    """

    verdict: str
    exit_code: int
    error: str = ""
    sentence: str = ""
    loss: float | None = field(default=None, metadata=NULL)
    loss_upper: float | None = field(default=None, metadata=NULL)
    max_loss: float | None = field(default=None, metadata=NULL)
    before: int | None = field(default=None, metadata=NULL)
    after: int | None = field(default=None, metadata=NULL)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was begun or done for one model.

    parts: digests of what the result depends on; plain: the same without the fresh texts of a request, if one was
    followed. result: digest of its files. request: the name of the request that was followed. at: when, in UTC.
    """

    name: str
    state: str
    out: str
    parts: Mapping[str, str]
    plain: Mapping[str, str]
    outcome: Outcome | None = field(default=None, metadata=NULL)
    result: str = ""
    request: str = ""
    at: str = ""


def receipt_file(folder: Path, name: str) -> Path:
    """Where the receipt of a model lies, in a fleet's hidden folder."""
    return folder / f"{name}.json"


def step_file(folder: Path, name: str) -> Path:
    """Where the worker of a model says what it does now."""
    return folder / f"{name}.step"


def read_receipt(folder: Path, name: str) -> Receipt | None:
    """The receipt of a model; None if there is none that can be read."""
    file = receipt_file(folder, name)
    try:
        return from_data(Receipt, json.loads(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError, BitwrightError):
        return None


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Raises:
    OSError: it cannot be written.
    """
    write_text_atomically(receipt_file(folder, receipt.name), json.dumps(plain_data(receipt), indent=1) + "\n")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def outcome_of(out: Path) -> Outcome:
    """What the record of a result says.

    Raises:
        CheckpointError: there is no readable one.
    """
    record = read_record(out)
    return _outcome(record)


def failed(error: str, exit_code: int = 1, seconds: float = 0.0) -> Outcome:
    """A model without a result."""
    return Outcome(FAILED, exit_code or 1, error, seconds=seconds)


def _outcome(record: Record) -> Outcome:
    from bitwright.report.verdict import verdict_sentence, verdict_word

    found, timings = record.evaluation, record.timings_s or {}
    measured: dict[str, Any] = {}
    if found is not None:
        measured = {"loss": found.loss, "loss_upper": found.loss_upper, "max_loss": found.max_loss}
    return Outcome(
        verdict_word(record) or "not judged", record.exit_code or 0, "", verdict_sentence(record), **measured,
        before=record.size.source_bytes, after=record.size.checkpoint_bytes, seconds=float(timings.get("total", 0.0)),
    )  # fmt: skip
