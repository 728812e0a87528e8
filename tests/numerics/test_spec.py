"""Laws of specs: the grid's ends and its number of steps."""

import subprocess
import sys
from typing import Any

import pytest

import bitwright.numerics
from bitwright.errors import NumericsError
from bitwright.numerics import SCHEMES, QuantSpec
from bitwright.numerics.spec import stored_dtype


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_signed_and_at_most_two_to_the_bits(bits: int, symmetric: bool) -> None:
    spec = QuantSpec(bits=bits, symmetric=symmetric)
    n_codes = spec.code_max - spec.code_min + 1
    assert n_codes == 2**bits - (not spec.uses_full_range)
    assert spec.code_min < 0 <= spec.code_max < 2 ** (bits - 1)


def test_symmetric_conventions() -> None:
    assert (QuantSpec().code_min, QuantSpec().half_steps) == (-127, 127)
    assert (QuantSpec(bits=4).code_min, QuantSpec(bits=4).half_steps) == (-8, 7.5)
    assert QuantSpec(bits=4, full_range=False).half_steps == 7
    assert QuantSpec(full_range=True).code_min == -128


@pytest.mark.parametrize(
    ("grid", "bits", "ends"),
    [
        ("ternary", 2, (-1, 1)),
        ("binary", 1, (0, 1)),
        ("nf4", 4, (0, 15)),
        ("kmeans", 3, (0, 7)),
        ("pot", 4, (0, 14)),
        ("apot", 3, (0, 6)),
    ],
)
def test_codes_of_other_grids(grid: Any, bits: int, ends: tuple[int, int]) -> None:
    spec = QuantSpec(bits=bits, grid=grid)
    assert (spec.code_min, spec.code_max) == ends
    assert spec.half_steps == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": 5},
        {"bits": 1},
        {"group_size": 0},
        {"group_size": 32, "per_tensor": True},
        {"symmetric": False, "full_range": False},
        {"grid": "octonary"},
        {"grid": "nf4"},
        {"grid": "nf4", "bits": 4, "symmetric": False},
        {"grid": "nf4", "bits": 4, "per_tensor": True},
        {"grid": "ternary", "bits": 2, "dynamic": True},
        {"grid": "apot", "bits": 2},
    ],
    ids=str,
)
def test_contradictions_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(NumericsError):
        QuantSpec(**arguments)


def test_schemes_are_keyed_by_their_names() -> None:
    assert all(name == scheme.name for name, scheme in SCHEMES.items())


def test_every_public_name_exists() -> None:
    assert all(hasattr(bitwright.numerics, name) for name in bitwright.numerics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Qtensor'"):
        _ = bitwright.numerics.Qtensor


def test_specs_do_not_import_torch() -> None:
    code = "import sys; from bitwright.numerics import SCHEMES, QuantSpec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("source", "stored"),
    [("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float64", "bfloat16")],
)
def test_sixteen_bit_is_bfloat16_but_for_float16(source: str, stored: str) -> None:
    assert stored_dtype(source) == stored
