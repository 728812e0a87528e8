from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import ModelError
from bitwright.families import architecture_of
from bitwright.kernels import dispatch
from bitwright.kernels.linear import HalfLinear, QuantEmbedding, QuantLinear, RoundedEmbedding
from bitwright.models.sites import find_linears
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from bitwright.runtime.swap import is_exact_gelu, swap_linears, swap_one

needs_kernels = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
IDS = torch.tensor([[2, 7, 9, 30, 3], [2, 50, 8, 44, 3]])
WORDS = "embeddings.word_embeddings"


def rounded(w_NK: Tensor) -> QTensor:
    scale_NG = w_NK.abs().amax(1, keepdim=True) / 127
    return QTensor((w_NK / scale_NG).round().to(torch.int8), scale_NG, None, QuantSpec())


def weight_of(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def bias_of(model: nn.Module, name: str) -> Tensor | None:
    bias = model.get_submodule(name).bias
    return None if bias is None else bias.detach()


# (model, its block linears quantized, its heads with the dtype that they are kept in)
Swapped = tuple[nn.Module, dict[str, QuantizedLinear], dict[str, torch.dtype]]


@pytest.fixture
def load(tiny_model: Callable[..., Path]) -> Callable[..., Swapped]:
    """`load(family)`: (model, its block linears quantized, its heads)."""

    def load(family: str = "bert", **config: str) -> Swapped:
        model = transformers.AutoModel.from_pretrained(tiny_model(family, "embedding", **config)).eval()
        sites = find_linears(model, architecture_of(family))
        spec = QuantSpec(symmetric=False, dynamic=True)
        layers = {
            site.name: QuantizedLinear(rounded(weight_of(model, site.name)), bias_of(model, site.name), spec)
            for site in sites
            if site.role != "head"
        }
        return model, layers, {site.name: torch.bfloat16 for site in sites if site.role == "head"}

    return load


def run(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(input_ids=IDS).last_hidden_state
    return out


Load = Callable[..., Swapped]


@needs_kernels
def test_what_is_named_is_replaced_and_nothing_else(load: Load) -> None:
    model, layers, half = load()
    before = {name: type(module) for name, module in model.named_modules()}
    table = rounded(weight_of(model, WORDS))
    swap_linears(model, layers, half, architecture_of("bert"), tables={WORDS: table}, fuse_gelu=False)
    for name, module in model.named_modules():
        expected: type = QuantLinear if name in layers else HalfLinear if name in half else before[name]
        assert type(module) is (QuantEmbedding if name == WORDS else expected), name
    assert model.get_submodule(WORDS).padding_idx == 0


@needs_kernels
def test_the_bias_is_the_quantized_linears(load: Load) -> None:
    """That of the linear that is replaced is not looked at."""
    model, layers, _ = load()
    name = "encoder.layer.0.output.dense"
    shifted = replace(layers[name], bias_N=torch.full((32,), 3.0))
    swap_linears(model, {name: shifted}, {}, architecture_of("bert"))
    assert torch.equal(model.get_submodule(name).bias, torch.full((32,), 3.0))
    swap_one(model, name, nn.Linear(64, 32))
    swap_linears(model, {name: replace(shifted, bias_N=None)}, {}, architecture_of("bert"))
    assert model.get_submodule(name).bias is None


@needs_kernels
def test_swapped_outputs_stay_close_to_float(load: Load, families: list[str]) -> None:
    for family in families:
        model, layers, half = load(family)
        expected = run(model)
        swap_linears(model, layers, half, architecture_of(family))
        cosine = functional.cosine_similarity(run(model), expected, dim=-1).min()
        assert 0.99 < cosine < 1, family


@needs_kernels
def test_a_fused_gelu_changes_rounding_only(load: Load) -> None:
    outputs = []
    for fuse in (False, True):
        model, layers, half = load()
        swap_linears(model, layers, half, architecture_of("bert"), fuse_gelu=fuse)
        outputs.append(run(model))
        block = model.get_submodule("encoder.layer.0.intermediate")
        assert block.get_submodule("dense").gelu == fuse
        assert isinstance(block.get_submodule("intermediate_act_fn"), nn.Identity) == fuse
    difference = (outputs[0] - outputs[1]).abs()
    # A last bit of GELU can move a code of the next linear; that is one step in few places.
    assert difference.max() < 0.05
    assert difference.mean() < 1e-3


@needs_kernels
@pytest.mark.parametrize(("activation", "fused"), [("gelu", True), ("gelu_new", False), ("relu", False)])
def test_only_an_exact_gelu_is_fused(load: Load, activation: str, fused: bool) -> None:
    model, layers, half = load(hidden_act=activation)
    swap_linears(model, layers, half, architecture_of("bert"))
    assert model.get_submodule("encoder.layer.1.intermediate.dense").gelu == fused


@needs_kernels
def test_a_linear_that_stays_float_keeps_its_gelu(load: Load) -> None:
    model, layers, half = load()
    kept = "encoder.layer.0.intermediate.dense"
    del layers[kept]
    swap_linears(model, layers, half | {kept: torch.bfloat16}, architecture_of("bert"))
    assert is_exact_gelu(model.get_submodule("encoder.layer.0.intermediate.intermediate_act_fn"))
    assert isinstance(model.get_submodule("encoder.layer.1.intermediate.intermediate_act_fn"), nn.Identity)


def test_exact_gelu_is_told_by_its_values() -> None:
    assert is_exact_gelu(nn.GELU())
    assert not is_exact_gelu(nn.GELU(approximate="tanh"))
    assert not is_exact_gelu(nn.SiLU())
    assert not is_exact_gelu(nn.Identity())


@needs_kernels
def test_swap_one_gives_back_the_old_module(load: Load) -> None:
    model, layers, _ = load()
    name = "encoder.layer.0.output.dense"
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    new = QuantLinear(layers[name], name=name)
    assert swap_one(model, name, new) is old
    assert model.get_submodule(name) is new
    assert not new.training
    assert swap_one(model, name, old) is new


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_linears_get_the_16_bit_type_that_is_asked_for(load: Load, dtype: torch.dtype) -> None:
    model, _, half = load()
    swap_linears(model, {}, dict.fromkeys(half, dtype), architecture_of("bert"))
    assert model.get_submodule("pooler.dense").weight.dtype == dtype


def test_names_that_do_not_fit_are_refused(load: Load) -> None:
    model, layers, _ = load()
    bert, layer = architecture_of("bert"), layers["encoder.layer.0.output.dense"]
    with pytest.raises(ModelError, match=r"encoder.layer.9.x: .* has no such module"):
        swap_linears(model, {"encoder.layer.9.x": layer}, {}, bert)
    with pytest.raises(ModelError, match="cannot be replaced by a linear"):
        swap_linears(model, {"encoder.layer.0.intermediate.dense": layer}, {}, bert)
    with pytest.raises(ModelError, match="cannot be replaced by a linear"):
        swap_linears(model, {}, {"embeddings": torch.bfloat16}, bert)
    with pytest.raises(ModelError, match="an int8 table of shape"):
        swap_linears(model, {}, {}, bert, tables={WORDS: layer.weight})


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_table_is_rounded_where_it_is_looked_up(half: torch.dtype) -> None:
    """As if the whole table had been rounded first, to 16 bits and then to what the model computes in."""
    torch.manual_seed(0)
    table, ids = torch.nn.Embedding(50, 16), torch.randint(0, 50, (3, 7))
    rounded = RoundedEmbedding(table, half)
    for dtype in (torch.float32, torch.bfloat16):
        rounded.to(torch.bfloat16)  # which leaves the table alone
        rounded.dtype = dtype
        assert torch.equal(rounded(ids), table.weight.to(half).to(dtype)[ids])
    assert rounded.weight.data_ptr() == table.weight.data_ptr()
