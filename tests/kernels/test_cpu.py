"""Dispatch, argument checks and threads."""

import threading

import pytest
import torch

from bitwright.errors import KernelError, NumericsError
from bitwright.kernels import cpu, dispatch, layouts, native, reference
from bitwright.kernels.input_grid import InputGrid
from bitwright.numerics.linear import StaticGrid
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec

GRID = InputGrid.of(SCHEMES["w8a8"].input)


def packed_problem(m, n, k):
    """The arguments of cpu.linear_w8a8, with what they should give."""
    g = torch.Generator().manual_seed(m + n + k)
    x = torch.randn(m, k, generator=g)
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=g)
    scale, bias = torch.rand(n, generator=g) * 0.01, torch.randn(n, generator=g)
    want = reference.linear_w8a8(*reference.quantize_rows(x, SCHEMES["w8a8"].input), codes, scale, bias)
    columns = (layouts.pad_columns(scale), layouts.pad_columns(bias))
    return (x, cpu.PackedLinear(layouts.pack(codes), layouts.column_sums(codes), *columns), n, GRID), want


@pytest.fixture
def two_threads():
    """torch on two threads, and back."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 384, 64), (5, 100, 385), (40, 200, 100), (200, 96, 1000)])
def test_linear_is_quantize_then_multiply(m, n, k):
    arguments, want = packed_problem(m, n, k)
    torch.testing.assert_close(cpu.linear_w8a8(*arguments), want, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8192, 1024), (7, 2048, 512), (65, 512, 512), (1024, 384, 384)])
@pytest.mark.usefixtures("two_threads")
def test_same_bits_on_one_and_two_threads(shape):
    arguments, _ = packed_problem(*shape)
    both = cpu.linear_w8a8(*arguments)
    torch.set_num_threads(1)
    assert torch.equal(cpu.linear_w8a8(*arguments), both)


@pytest.mark.parametrize("shape", [(5, 100, 385), (200, 96, 100)])
def test_bf16_in_bf16_out(shape):
    (x, *rest), _ = packed_problem(*shape)
    y = cpu.linear_w8a8(x.bfloat16(), *rest)
    assert torch.equal(y, cpu.linear_w8a8(x.bfloat16().float(), *rest).bfloat16())


@pytest.mark.parametrize("shape", [(3, 20, 30), (70, 40, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_shifted_and_multiplied_before_they_are_quantized(shape, dtype):
    (x, linear, n, _), _ = packed_problem(*shape)
    x, g = x.to(dtype), torch.Generator().manual_seed(3)
    transform = torch.randn(shape[2], generator=g), torch.rand(shape[2], generator=g) + 0.1
    shift, multiplier = map(layouts.pad_inputs, transform)
    y = cpu.linear_w8a8(x, linear._replace(shift=shift, multiplier=multiplier), n, GRID)
    by_hand = reference.transform_inputs(x, *transform)
    assert torch.equal(y, cpu.linear_w8a8(by_hand, linear, n, GRID).to(dtype))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ((torch.ones(64), None), "needs both a shift and a multiplier"),
        ((torch.ones(64), torch.ones(30)), r"K = 30: the input's multiplier must be .* \(64,\) .* got .* \(30,\)"),
        ((torch.ones(64).double(), torch.ones(64)), "the input's shift must be .* got torch.float64"),
    ],
)
def test_input_transforms_are_checked(transform, message):
    (x, linear, *rest), _ = packed_problem(2, 20, 30)
    with pytest.raises(KernelError, match=message):
        cpu.linear_w8a8(x, linear._replace(shift=transform[0], multiplier=transform[1]), *rest)


def test_no_rows_give_no_rows():
    arguments, want = packed_problem(0, 20, 30)
    assert cpu.linear_w8a8(*arguments).shape == want.shape == (0, 20)


def test_rows_may_be_strided_columns_are_copied():
    (x, *rest), want = packed_problem(6, 30, 40)
    spread = torch.full((6, 3, 40), torch.nan)
    spread[:, 1] = x
    across = x.T.contiguous().T
    assert across.stride() == (1, 6)
    for view in (spread[:, 1], across):
        assert torch.equal(cpu.linear_w8a8(view, *rest), cpu.linear_w8a8(x, *rest))
    torch.testing.assert_close(cpu.linear_w8a8(x, *rest), want, rtol=1e-6, atol=1e-4)


@pytest.mark.usefixtures("two_threads")
def test_calls_from_several_python_threads_do_not_meet():
    problems = [packed_problem(m, 256, 512)[0] for m in (1, 33, 64, 130)]
    wants = [cpu.linear_w8a8(*arguments) for arguments in problems]
    wrong = []

    def work(arguments, want):
        wrong.extend(1 for _ in range(20) if not torch.equal(cpu.linear_w8a8(*arguments), want))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(problems, wants, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_every_call_is_counted():
    arguments, _ = packed_problem(2, 20, 30)
    before = dispatch.kernel_calls()
    cpu.linear_w8a8(*arguments)
    cpu.linear_w8a8(*arguments)
    assert dispatch.kernel_calls() == before + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 30, dtype=torch.float16)}, r"x must be float32 or bfloat16 .* got torch.float16"),
        ({"x": torch.zeros(2, 2, 30)}, r"\(2, 2, 30\)"),
        ({"x": torch.zeros(2, 65)}, r"K = 65: weight must be .*\(2, 32, 16, 4\).* got torch.int8 \(2, 16, 16, 4\)"),
        ({"x": torch.zeros(2, 0)}, "K = 0"),
        ({"weight": torch.zeros(2, 16, 16, 4)}, "weight must be .* got torch.float32"),
        ({"colsum": torch.zeros(32)}, "colsum must be .*int32"),
        ({"scale_n": torch.ones(20)}, r"scale must be .*\(32,\).* got torch.float32 \(20,\)"),
        ({"bias": torch.ones(33)[1:]}, "bias must begin at a multiple of 64 bytes"),
        ({"bias": torch.ones(64)[::2]}, "bias must be a contiguous"),
    ],
)
def test_arguments_that_do_not_fit_say_which_and_how(change, message):
    (x, linear, *rest), _ = packed_problem(2, 20, 30)
    x = change.get("x", x)
    with pytest.raises(KernelError, match=message):
        cpu.linear_w8a8(x, linear._replace(**{name: value for name, value in change.items() if name != "x"}), *rest)


def test_static_grids_are_checked():
    spec = SCHEMES["w8a8_static"].input
    assert InputGrid.of(spec, StaticGrid(0.5, 3)) == InputGrid("static", 0.5, 3)
    for scale in (0.0, float("nan"), 1e-45, float("inf")):
        with pytest.raises(NumericsError, match="finite, positive"):
            StaticGrid(scale)
    with pytest.raises(NumericsError, match="-128 to 127"):
        StaticGrid(0.1, 128)
    with pytest.raises(KernelError, match="no int8 kernel"):
        InputGrid.of(QuantSpec(bits=4, dynamic=True))


@pytest.fixture
def choose_again():
    """Call it to forget the instruction set chosen so far; what the test chose is forgotten after it."""

    def forget():
        dispatch.active_isa.cache_clear()
        cpu.has_gram.cache_clear()

    yield forget
    forget()


def test_environment_forces_an_instruction_set(monkeypatch, choose_again, isa):
    monkeypatch.setenv("BITWRIGHT_ISA", isa)
    choose_again()
    assert [row.name for row in dispatch.isa_table() if row.active] == [isa]
    arguments, want = packed_problem(3, 20, 30)
    torch.testing.assert_close(cpu.linear_w8a8(*arguments), want, rtol=1e-6, atol=1e-5)


def test_best_supported_is_active_by_default(monkeypatch, choose_again):
    monkeypatch.delenv("BITWRIGHT_ISA", raising=False)
    choose_again()
    table = dispatch.isa_table()
    assert [row.name for row in table] == list(dispatch.ISAS)
    assert next(row for row in table if row.supported).active
    assert sum(row.active for row in table) == 1
    assert table[-1] == ("scalar", True, True, table[-1].active)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neon", "BITWRIGHT_ISA=neon is unknown; known are amx, avx512vnni, avxvnni, avx2, scalar"),
        ("amx", "BITWRIGHT_ISA=amx: this machine does not have this instruction set; it has avx2, scalar"),
    ],
)
def test_forcing_what_is_not_there_raises(monkeypatch, choose_again, name, message):
    monkeypatch.setenv("BITWRIGHT_ISA", name)
    lacking = {"amx": False, "avx512vnni": False, "avxvnni": False, "avx2": True, "scalar": True}
    monkeypatch.setattr(dispatch, "_supported", lambda: lacking)
    choose_again()
    with pytest.raises(KernelError, match=message):
        dispatch.active_isa()


def test_features_agree_with_the_table():
    features = dispatch.cpu_features()
    supported = {row.name: row.supported for row in dispatch.isa_table()}
    assert supported["avx2"] <= features["avx2"]
    assert supported["avxvnni"] == (features["avx_vnni"] and supported["avx2"])
    assert supported["avx512vnni"] <= features["avx512vnni"]
    assert supported["amx"] <= features["amx_int8"]


def test_without_the_module_every_call_says_why(monkeypatch, choose_again):
    arguments, _ = packed_problem(2, 20, 30)
    monkeypatch.setattr(native, "load_error", lambda: "libsomething.so: not found")
    native.load.cache_clear()
    choose_again()
    with pytest.raises(KernelError, match=r"libsomething.so: not found.*pip install"):
        cpu.linear_w8a8(*arguments)
    assert not dispatch.available()
    assert dispatch.isa_table() == [(name, False, False, False) for name in dispatch.ISAS]
    assert dispatch.cpu_features() == {}


def test_a_linear_without_outputs_is_refused():
    (x, linear, _, grid), _ = packed_problem(2, 20, 30)
    nothing = cpu.PackedLinear(*(constant[:0] for constant in linear[:4]))
    with pytest.raises(KernelError, match="N = 0: a linear has at least one output"):
        cpu.linear_w8a8(x, nothing, 0, grid)


def test_an_unknown_activation_is_refused():
    arguments, _ = packed_problem(2, 20, 30)
    with pytest.raises(KernelError, match="no activation 'swish'; they have none, gelu"):
        cpu.linear_w8a8(*arguments, "swish")
