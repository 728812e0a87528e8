"""What the Record warns of."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from bitwright.pipeline.facts import warnings_of
from bitwright.record import LayerRow, Starved

FINE = LayerRow("a", 0, "ffn", "a", n_tokens=900, damping=0.01)


def warnings(*rows: LayerRow) -> tuple[str, ...]:
    job: Any = SimpleNamespace(warnings=[], dropped=())
    journal: Any = None  # nothing was judged: nobody looks at it
    return warnings_of(job, rows, None, (), journal)[:-1]


def test_a_run_in_which_all_went_well_warns_of_nothing() -> None:
    assert warnings(FINE, replace(FINE, name="b", damping_failed="0.01")) == ()


def test_starved_experts_are_announced_with_numbers() -> None:
    starved = [replace(FINE, name=f"experts.{i}.up_proj", n_tokens=i, starved=Starved(i, 32, "lent")) for i in (3, 7)]
    (text,) = warnings(FINE, *starved)
    assert text.startswith("2 linears of experts saw too few calibration tokens (such as experts.3.up_proj with 3). ")


def test_inputs_that_no_static_range_suits_are_announced_unless_they_fell_back() -> None:
    large = replace(FINE, name="down_proj", error_input=0.87)
    (text,) = warnings(replace(FINE, error_input=0.04), large, replace(FINE, name="b", error_input=0.4))
    assert text.startswith("down_proj: ")
    assert "an error of 87%. 2 linears have over 30%" in text
    assert warnings(replace(large, fallback=True)) == ()


def test_a_method_that_gave_way_is_announced_once_with_its_reason() -> None:
    failed = replace(FINE, gave_way_to="rtn", reason="the Gram matrix has no Cholesky factor")
    (text,) = warnings(replace(failed, name="b"), FINE, replace(failed, name="c"))
    assert (
        text == "b and 1 more: rounded to nearest instead of the planned method: the Gram matrix has no Cholesky factor"
    )
