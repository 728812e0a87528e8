"""One OpenMP runtime and one pool of threads, shared with torch, whoever is imported first; and what the module takes:
structs with named fields, enumerations by name, variants by their tables."""

import ast
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest

from bitwright.kernels import dispatch, native

CSRC = Path(__file__).parents[2] / "csrc"
STUB = Path(native.__file__).with_name("_native.pyi")
LOAD_TORCH = "import torch"
LOAD_NATIVE = "from bitwright.kernels import native; assert native.load_error() is None, native.load_error()"
RUNTIMES = "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split('/')[-1]}))"
LINEAR = """
import os, torch
torch.set_num_threads(1)
from bitwright.kernels.linear import QuantLinear
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec
codes = torch.ones(512, 512, dtype=torch.int8)
weight = QTensor(codes, torch.ones(512, 1), None, QuantSpec())
linear = QuantLinear(QuantizedLinear(weight, None, SCHEMES["w8a8"].input))
x = torch.ones(512, 512)
threads = lambda: len(os.listdir("/proc/self/task"))
"""


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("order", [(LOAD_TORCH, LOAD_NATIVE), (LOAD_NATIVE, LOAD_TORCH)])
def test_one_openmp_runtime_is_mapped(order):
    assert run_python("\n".join((*order, RUNTIMES))) == ["1"]


def test_loading_does_not_import_torch():
    assert run_python(f"{LOAD_NATIVE}\nimport sys; print('torch' in sys.modules)") == ["False"]


def test_torch_sets_the_number_of_threads_and_lends_them():
    """One thread starts none; two start one; after that torch's own parallel work finds it there."""
    code = f"""{LINEAR}
before = threads()
linear(x)
alone = threads() - before
torch.set_num_threads(2)
linear(x)
two = threads() - before
torch.ones(2000, 2000).exp()
print(alone, two, threads() - before)
"""
    assert run_python(code) == ["0", "1", "1"]


FIELDS = {
    "x": 64, "residual": 0, "sum": 0, "y": 64, "weight": 64, "bias": 0, "stride": 8, "n": 8, "eps": 1e-5,
    "centred": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {name: value for name, value in FIELDS.items() if name != "bias"},
        FIELDS | {"axis": 0},
        FIELDS | {"x": 64.0},
        FIELDS | {"x": None},
        FIELDS | {"n": 8.0},
        FIELDS | {"n": -8},
        FIELDS | {"n": "8"},
    ],
)
def test_a_struct_is_built_of_all_its_fields_each_of_its_type(fields):
    module = native.load()
    module.Norm(**FIELDS)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        module.Norm(**fields)
    with pytest.raises(TypeError):
        module.Norm(*FIELDS.values())


def test_a_choice_is_a_member_of_its_enumeration():
    module = native.load()
    for choice in (0, "relu", module.WordKind.f32):
        with pytest.raises(TypeError):
            module.activate_row("scalar", 64, False, choice, 0)


def test_instruction_sets_have_their_names_best_first():
    module = native.load()
    assert [name for name, _ in module.isas()] == [isa.name for isa in module.Isa] == list(dispatch.ISAS)
    assert [dispatch.native_isa(name).name for name in dispatch.ISAS] == list(dispatch.ISAS)


@pytest.mark.parametrize("operator", dispatch.operators())
def test_what_is_chosen_is_supported_and_within_the_instruction_set(operator):
    rows = {row.name: row for row in dispatch.variants(operator)}
    for isa in (row.name for row in dispatch.isa_table() if row.supported):
        name = dispatch.chosen(operator, isa)
        if name is None:
            assert operator in ("gram", "peak_int8"), "every other operator has a scalar variant"
        else:
            assert rows[name].supported
            assert dispatch.ISAS.index(rows[name].isa) >= dispatch.ISAS.index(isa)


@pytest.mark.parametrize("operator", dispatch.operators())
def test_a_variant_is_a_file_in_the_operators_folder(operator):
    files = {path.stem for path in (CSRC / operator).glob("*.cpp")} - {"binding", "dispatch"}
    assert {row.name for row in dispatch.variants(operator)} == files


def test_a_variant_that_is_unknown_or_not_supported_is_refused():
    module = native.load()
    with pytest.raises(ValueError, match="no variant is named sse"):
        module.round_row("sse", 0, 0, 0)
    with pytest.raises(KeyError, match="softmax"):
        module.variants("softmax")


def test_the_stub_has_what_the_module_has():
    module, stub = native.load(), ast.parse(STUB.read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    functions = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    constants = {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert classes.keys() | functions | constants == {name for name in dir(module) if not name.startswith("_")}
    for name, node in classes.items():
        built = getattr(module, name)
        if issubclass(built, Enum):
            assert [ast.unparse(member.targets[0]) for member in node.body] == [member.name for member in built], name
        elif name != "Program":
            fields = [argument.arg for argument in node.body[0].args.kwonlyargs]
            assert re.findall(r"(\w+):", built.__init__.__nb_signature__[0][0]) == fields, name
