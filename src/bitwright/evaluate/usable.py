"""Refuses labelled data that cannot show anything, before the work."""

from bitwright.errors import DataError
from bitwright.evaluate.kinds import Custom, Pairs, Retrieval
from bitwright.evaluate.tasks import Task

LEAST_UNITS = 20
_LEAST_DISTINCT = 0.5  # of the units; copies are no more evidence than one of them


def refuse_few(task: Task, where: str) -> None:
    """Raises:
    DataError: so few units that half of them would not exclude a loss of 30 %.
    """
    n = task.n_units
    if n is None or n >= LEAST_UNITS:
        return
    raise DataError(
        f"{where}: there are only {n} {task.kind.unit}. Half of them judge, and {n // 2} can never exclude a loss "
        f"of {min(1.0, 3 / max(1, n // 2)):.0%}. Give at least {LEAST_UNITS}; a budget of 1 % needs several hundred"
    )


def refuse_copies(task: Task, where: str) -> None:
    """Raises:
    DataError: mostly the same few units again.
    """
    units = _units(task)
    distinct = len(set(units))
    if distinct < _LEAST_DISTINCT * len(units):
        raise DataError(
            f"{where}: only {distinct} of {len(units)} {task.kind.unit} are different, and copies prove nothing; "
            "give each once"
        )


def _units(task: Task) -> list[object]:
    """The judged item of each unit, without its label."""
    match task.kind:
        case Custom():
            return []
        case Pairs(first_P, second_P):
            return list(zip(first_P.tolist(), second_P.tolist(), strict=True))
        case Retrieval(n_documents):
            return list(task.texts[n_documents:])
        case _:
            return list(task.texts)
