"""Requests for a new calibration: files in a folder, written by whoever watches a model, taken up by `fleet run`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bitwright.atomic import write_text_atomically
from bitwright.errors import InputError
from bitwright.parsing import parse_json

_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DONE = "done"  # folder of those that were followed


@dataclass(frozen=True, slots=True)
class Request:
    """model: its name in the fleet. reason: for people. created: UTC. statistics, thresholds: of the last window."""

    file: Path
    model: str
    reason: str
    created: str


def file_request(
    queue: Path, model: str, reason: str, statistics: Mapping[str, float], thresholds: Mapping[str, float]
) -> Path | None:
    """Ask for a new calibration of a model; None if one is asked for already.

    Raises:
        InputError: a name that cannot be one of a file. OSError: the folder cannot be written.
    """
    if not _NAME.fullmatch(model):
        raise InputError(f"{model!r}: give the name that the model has in fleet.yaml, of letters, digits, . _ and -")
    queue.mkdir(parents=True, exist_ok=True)
    file = queue / f"{model}.json"
    if file.exists():
        return None
    data = {
        "request_version": _VERSION, "model": model, "reason": reason, "created": datetime.now(UTC).isoformat(),
        "statistics": dict(statistics), "thresholds": dict(thresholds),
    }  # fmt: skip
    write_text_atomically(file, json.dumps(data, indent=1) + "\n")
    return file


def read_requests(queue: Path) -> list[Request]:
    """The open requests, by name.

    Raises:
        InputError: there is no such folder, or a file there is no request.
    """
    if not queue.is_dir():
        raise InputError(f"{queue}: there is no such folder of requests")
    return [_read(file) for file in sorted(queue.glob("*.json"))]


def close_request(request: Request) -> None:
    """Move a request that was followed to the folder `done`.

    Raises:
        OSError: it cannot be moved.
    """
    folder = request.file.parent / DONE
    folder.mkdir(exist_ok=True)
    stamp = re.sub(r"[^0-9]", "", request.created)[:20]
    request.file.replace(folder / f"{request.model}-{stamp}.json")


def _read(file: Path) -> Request:
    try:
        data = parse_json(file.read_bytes())
        found = Request(file, data["model"], data["reason"], data["created"])
        if data["request_version"] != _VERSION or not all(
            isinstance(text, str) for text in (found.model, found.reason, found.created)
        ):
            raise ValueError("another version, or other types")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: this is no request for a calibration ({error}); remove it") from None
    return found
