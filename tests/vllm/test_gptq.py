"""Linears packed as GPTQ packs them, without an engine: the product, and what is refused."""

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

import torch
from torch import nn

from bitwright.kernels import torch_ops
from bitwright.numerics.bits import pack_words

pytestmark = pytest.mark.filterwarnings("ignore")  # of what vLLM imports
N, K, GROUP = 32, 64, 16
INDEX = torch.arange(K) // GROUP


def linear(index: torch.Tensor, shards: list[Any], k: int = K, group: int = GROUP) -> tuple[Any, nn.Module, Any]:
    """A method with its layer, loaded with as many linears as there are shards, and their weights in float."""
    from bitwright.integrations.vllm.gptq import BitwrightGptqLinearMethod, Layout

    torch_ops.load()
    random = torch.Generator().manual_seed(0)
    layer, weights = nn.Module(), {}
    layer.register_parameter("bias", nn.Parameter(torch.randn(N * len(shards), generator=random)))
    method = BitwrightGptqLinearMethod(Layout(4, group, less_one=False), "x")
    method.create_weights(layer, k, [N] * len(shards), k, N * len(shards), torch.bfloat16)
    for shard in shards:
        codes_NK = torch.randint(-8, 8, (N, k), dtype=torch.int8, generator=random)
        zero_GN = torch.randint(-8, 8, (k // group, N), dtype=torch.int8, generator=random)
        scale_GN = torch.rand(k // group, N, generator=random).half() + 0.1
        of = index.long()
        weights[shard] = (codes_NK.float() - zero_GN.float().T[:, of]) * scale_GN.float().T[:, of]
        tensors = {
            "qweight": pack_words(codes_NK.T.contiguous(), 4, dim=0), "qzeros": pack_words(zero_GN, 4),
            "scales": scale_GN, "g_idx": index.int(),
        }  # fmt: skip
        for name, tensor in tensors.items():
            place: Any = layer.get_parameter(name)
            place.weight_loader(place, tensor, *([] if shard is None else [shard]))
    method.process_weights_after_loading(layer)
    return method, layer, torch.cat([weights[shard] for shard in sorted(shards, key=str)])


@pytest.mark.parametrize("shards", [[None], [1, 0], ["v", "k", "q"]])
@pytest.mark.parametrize("shuffled", [False, True])
def test_product(shards: list[Any], shuffled: bool) -> None:
    """Of one linear and of several that came in another order, whatever the order of their columns, with a bias."""
    index = INDEX[torch.randperm(K, generator=torch.Generator().manual_seed(1))] if shuffled else INDEX
    method, layer, weight_NK = linear(index, shards)
    if "q" in shards:
        k, q, v = weight_NK.split(N)
        weight_NK = torch.cat([q, k, v])
    x = torch.randn(2, 3, K, generator=torch.Generator().manual_seed(2)).bfloat16()
    for bias in (None, layer.bias):
        want = x.float() @ weight_NK.T + (0 if bias is None else bias)
        got = method.apply(layer, x, bias)
        assert float((got.float() - want).norm() / want.norm()) < 0.01


def test_what_is_refused() -> None:
    from bitwright.integrations.vllm.gptq import BitwrightGptqLinearMethod, Layout

    with pytest.raises(ValueError, match="g_idx does not name each group for 16 of 64 inputs"):
        linear(torch.zeros(K), [None])
    with pytest.raises(ValueError, match="x: groups of 12 in K = 60; Bitwright's kernel takes multiples of 8"):
        linear(torch.arange(60) // 12, [None], 60, 12)
    with pytest.raises(ValueError, match=r"x: inputs in torch\.float16; .* \(--dtype bfloat16\)"):
        BitwrightGptqLinearMethod(Layout(4, 16, True), "x").create_weights(nn.Module(), 32, [8], 32, 8, torch.float16)
    with pytest.raises(ValueError, match="is not split among processes"):
        BitwrightGptqLinearMethod(Layout(4, 16, True), "x").create_weights(nn.Module(), 32, [8], 64, 8, torch.bfloat16)
