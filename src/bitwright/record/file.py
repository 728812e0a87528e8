"""`record.json`: a Record as a file."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitwright.atomic import write_text_atomically
from bitwright.errors import CheckpointError, brief
from bitwright.parsing import parse_json
from bitwright.record.convert import from_data, plain_data
from bitwright.record.sections import RECORD_VERSION, Record

RECORD_FILE = "record.json"

# How earlier releases told of a starved expert; the end of the sentence -> the policy.
_OLD_STARVED = re.compile(r"saw (\d+) calibration tokens, fewer than (\d+): (.*)")
_OLD_POLICIES = {"uses what all experts of the block saw": "lent", "rounded to nearest": "rtn"}


def write_record(record: Record, path: Path) -> None:
    """Write a record, all or nothing."""
    write_text_atomically(path, json.dumps(plain_data(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """Read a record (a file, or a directory that holds `record.json`).

    Raises:
        CheckpointError: no such file, not JSON, a version that this release cannot read, or a value of the wrong type:
            the message names the file and the key.
    """
    path = path / RECORD_FILE if path.is_dir() else path
    try:
        data = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: there is no record here; give a directory that `bitwright quantize` wrote"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as a record ({error}); run `bitwright quantize` again") from None
    version = data.get("record_version") if isinstance(data, dict) else None
    if version != RECORD_VERSION:
        raise CheckpointError(f"{path}: {_not_readable(data, version)}")
    return record_of(data, str(path))


def _not_readable(data: Any, version: Any) -> str:
    """Why a record of this version is not read, which release wrote it, and what to do."""
    writer = data.get("bitwright_version") if isinstance(data, dict) else None
    written = f", written by Bitwright {brief(writer)}" if writer else ""
    later = isinstance(version, int) and version > RECORD_VERSION
    remedy = "update Bitwright" if later else "quantize the model again, or use the release that wrote it"
    return f"record_version is {brief(version)}{written}; this release reads {RECORD_VERSION}: {remedy}"


def record_of(data: Mapping[str, Any], source: str = "record") -> Record:
    """The Record that plain data, as JSON has it, describes: of this release or an earlier one.

    Raises:
        CheckpointError: a value of the wrong type; the message begins with `source` and names the key.
    """
    rows = data.get("layers")
    if isinstance(rows, list):
        data = {**data, "layers": [_with_starved(row) for row in rows]}
    return from_data(Record, data, source)


def _with_starved(row: Any) -> Any:
    """A row of `layers` of an earlier release, with its sentence about a starved expert turned into fields."""
    said = row.get("starved") if isinstance(row, Mapping) else None
    match = _OLD_STARVED.fullmatch(said) if isinstance(said, str) else None
    if match is None or match[3] not in _OLD_POLICIES:
        return row
    starved = {"n_tokens": int(match[1]), "fewest": int(match[2]), "policy": _OLD_POLICIES[match[3]]}
    return {**row, "starved": starved}
