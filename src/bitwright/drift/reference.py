"""`Reference`: what the texts of a model were like when it was calibrated; `drift.json` beside the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.atomic import write_text_atomically
from bitwright.drift.sketch import BUCKETS, DIRECTIONS, LEVELS, STATISTICS, Sketch, reference_of, sample_of
from bitwright.drift.thresholds import find_thresholds, spread
from bitwright.errors import CheckpointError, DataError
from bitwright.parsing import parse_json

if TYPE_CHECKING:
    from bitwright.runtime.model import Model

REFERENCE_FILE = "drift.json"
WINDOW = 500
MOST_TEXTS = 5000
_LEAST_TEXTS = 256
_VERSION = 1
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Reference:
    """n: texts it was made of. window: texts of a window, for which the thresholds hold. width: of the embeddings, 0
    without. unknown_id: of the unknown token. spread_P: of the embeddings along each direction.
    """

    n: int
    window: int
    width: int
    unknown_id: int | None
    sketch: Sketch
    spread_P: np.ndarray
    thresholds: dict[str, float]


def make_reference(model: "Model", texts: Sequence[str], *, window: int = WINDOW, seed: int = 0) -> Reference:
    """The reference of a model for texts like these. At most MOST_TEXTS of them are read.

    Raises:
        DataError: too few texts to tell chance from change.
    """
    texts = texts[:MOST_TEXTS]
    require_enough(texts)
    ids = model.tokenize(list(texts))
    embeddings = model.encode(ids) if model.width is not None else None
    return reference_from(ids, embeddings, unknown_id_of(model), window=window, seed=seed)


def require_enough(texts: Sequence[str]) -> None:
    """Raises:
    DataError: too few texts to tell chance from change.
    """
    if len(texts) < _LEAST_TEXTS:
        raise DataError(
            f"{len(texts)} texts are too few for a reference of drift; give at least {_LEAST_TEXTS}, better "
            f"{2 * WINDOW} and more"
        )


def reference_from(
    ids: Sequence[Sequence[int]], embeddings: np.ndarray | None, unknown_id: int | None, *, window: int = WINDOW,
    seed: int = 0,
) -> Reference:  # fmt: skip
    """The reference of texts whose tokens and embeddings are known."""
    sample = sample_of(ids, embeddings, unknown_id)
    return Reference(
        len(ids), window, 0 if embeddings is None else embeddings.shape[1], unknown_id, reference_of(sample),
        spread(sample), find_thresholds(sample, window, seed=seed),
    )  # fmt: skip


def unknown_id_of(model: "Model") -> int | None:
    """The id of the unknown token; None for a tokenizer that has none."""
    found = getattr(model.tokenizer, "unk_token_id", None)
    return found if isinstance(found, int) else None


def write_reference(reference: Reference, directory: Path) -> Path:
    """Write drift.json beside a model, all or nothing, and return its path.

    Raises:
        OSError: it cannot be written.
    """
    file, sketch = directory / REFERENCE_FILE, reference.sketch
    data = {
        "drift_version": _VERSION, "n": reference.n, "window": reference.window, "width": reference.width,
        "unknown_id": reference.unknown_id, "thresholds": reference.thresholds, "unknown": sketch.unknown,
        "octaves": _rounded(sketch.octaves), "counts": _rounded(sketch.counts_B),
        "spread": _rounded(reference.spread_P), "along": [_rounded(row) for row in sketch.along_P],
    }  # fmt: skip
    write_text_atomically(file, json.dumps(data, allow_nan=False) + "\n")
    return file


def read_reference(path: Path) -> Reference:
    """The reference in a file, or beside a model.

    Raises:
        CheckpointError: there is none, or it does not hold what it should.
    """
    file = path / REFERENCE_FILE if path.is_dir() else path
    try:
        data = parse_json(file.read_bytes())
        if data["drift_version"] != _VERSION:
            raise CheckpointError(f"{file}: drift_version is {data['drift_version']!r}; this release reads {_VERSION}")
        along = np.array(data["along"], np.float64).reshape(-1, LEVELS)
        sketch = Sketch(np.array(data["octaves"]), float(data["unknown"]), np.array(data["counts"]), along)
        thresholds = {str(name): float(value) for name, value in data["thresholds"].items()}
        found = Reference(
            int(data["n"]), int(data["window"]), int(data["width"]), data["unknown_id"], sketch,
            np.array(data["spread"]), thresholds,
        )  # fmt: skip
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: there is no reference here; make one with `bitwright drift MODEL --data FILE --make`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: this is no reference of drift ({_brief(error)}); make it again") from None
    _check(found, file)
    return found


def _check(found: Reference, file: Path) -> None:
    shapes: dict[str, Any] = {
        "octaves": (found.sketch.octaves.shape, (LEVELS,)),
        "counts": (found.sketch.counts_B.shape, (BUCKETS,)),
        "along": (found.sketch.along_P.shape, (DIRECTIONS if found.width else 0, LEVELS)),
        "spread": (found.spread_P.shape, (DIRECTIONS if found.width else 0,)),
    }
    wrong = [name for name, (there, wanted) in shapes.items() if there != wanted]
    if wrong or found.window < 1 or not set(found.thresholds) <= set(STATISTICS):
        what = ", ".join(wrong) or "window or thresholds"
        raise CheckpointError(f"{file}: {what} have another form than a reference of drift has; make it again")


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
