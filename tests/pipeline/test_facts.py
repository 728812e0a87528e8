"""What the Record warns of."""

from types import SimpleNamespace
from typing import Any

from bitwright.pipeline.facts import warnings_of

FINE: dict[str, Any] = {"name": "a", "n_tokens": 900, "damping": 0.01}


def warnings(*rows: dict[str, Any]) -> list[str]:
    job: Any = SimpleNamespace(warnings=[])
    return warnings_of(job, {"layers": list(rows)}, None)[:-1]  # type: ignore[arg-type]


def test_a_run_in_which_all_went_well_warns_of_nothing() -> None:
    assert warnings(FINE, FINE | {"name": "b", "damping_failed": "0.01"}) == []


def test_starved_experts_are_announced_with_numbers() -> None:
    few = {"fewest": 32, "policy": "lent"}
    starved = [{"name": f"experts.{i}.up_proj", "n_tokens": i, "starved": few | {"n_tokens": i}} for i in (3, 7)]
    (text,) = warnings(FINE, *starved)
    assert text.startswith("2 linears of experts saw too few calibration tokens (experts.3.up_proj 3): ")


def test_inputs_that_no_static_range_suits_are_announced_unless_they_fell_back() -> None:
    large = {"name": "down_proj", "error_input": 0.87}
    (text,) = warnings(FINE | {"error_input": 0.04}, large, {"name": "b", "error_input": 0.4})
    assert text.startswith("down_proj: ")
    assert "an error of 87% (so 2 linears, over 30%)" in text
    assert warnings(large | {"fallback": True}) == []


def test_a_method_that_gave_way_is_announced_once_with_its_reason() -> None:
    failed = {"gave_way_to": "rtn", "reason": "the Gram matrix has no Cholesky factor"}
    (text,) = warnings({"name": "b"} | failed, FINE, {"name": "c"} | failed)
    assert text == "b and 1 more: rounded to nearest: the Gram matrix has no Cholesky factor"
