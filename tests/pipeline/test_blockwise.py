"""Blocks of a language model that does not fit are those of transformers, or the run is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.errors import ModelError, NotFiniteError
from bitwright.models.load import LoadedModel, open_lazily
from bitwright.models.source_tensors import SourceTensors
from bitwright.pipeline.blockwise import chosen_blocks, compare_blocks, compared_bytes, path_of_blocks
from bitwright.runtime.library import Library
from tests.families import DECODERS

TinyModel = Callable[..., Path]

IDS = torch.randint(5, 200, (40,), generator=torch.Generator().manual_seed(3)).tolist()


def compared(path: Path) -> str:
    loaded = open_lazily(path, runnable=False)
    with Library(path, loaded.task, threads=1, limit=64, blocks=path_of_blocks(loaded)) as library:
        return compare_blocks(loaded, library, IDS)


def patch_weight(monkeypatch: pytest.MonkeyPatch, name: str, factor: float) -> None:
    """Let Bitwright read one weight wrong."""
    read = SourceTensors.__getitem__
    monkeypatch.setattr(SourceTensors, "__getitem__", lambda self, n: read(self, n) * (factor if n == name else 1))
    monkeypatch.setattr(SourceTensors, "looked_up", lambda self, n, check: None)  # tables are read as all else


def patch_model(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], object]) -> None:
    """Let Bitwright miss what a key of config.json says."""
    reopen = LoadedModel.reopen

    def changed(self: LoadedModel) -> LoadedModel:
        opened = reopen(self)
        change(opened.model)
        return opened

    monkeypatch.setattr(LoadedModel, "reopen", changed)


@pytest.mark.parametrize("family", DECODERS)
def test_blocks_of_every_family_agree(tiny_model: TinyModel, family: str) -> None:
    path = tiny_model(family, num_hidden_layers=4)
    assert compared(path) == "blocks 0, 2 and 3 of 4 compared; Bitwright alone ran the others"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whatever_dtype_the_files_have(tiny_model: TinyModel, dtype: torch.dtype) -> None:
    assert compared(tiny_model("mixtral", dtype=dtype, num_hidden_layers=1)).startswith("blocks 0 of 1 compared;")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.embed_tokens.weight", r"model\.layers\.0:"),
        ("model.layers.0.input_layernorm.weight", r"model\.layers\.0:"),
        ("model.layers.2.self_attn.q_proj.weight", r"model\.layers\.2:"),
        ("model.layers.2.mlp.experts.3.down_proj.weight", r"model\.layers\.2:"),
        ("model.layers.3.mlp.gate.weight", r"model\.layers\.3:"),
        ("model.norm.weight", r"the head after model\.layers\.3:"),
    ],
)
def test_a_weight_that_is_read_wrong_is_refused(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    path = tiny_model("mixtral", num_hidden_layers=4)
    patch_weight(monkeypatch, name, 1.02)
    with pytest.raises(ModelError, match=rf"{place} .* differ by 0\.\d+ for token \d+ of .* nothing was quantized"):
        compared(path)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gemma3_text", lambda model: model.model.embed_tokens.embed_scale.fill_(1)),
        ("llama", lambda model: model.model.rotary_emb.inv_freq.mul_(1.01)),
        ("llama", lambda model: [setattr(m, "variance_epsilon", 1e-2) for m in model.modules()]),
        ("mistral", lambda model: setattr(model.config, "sliding_window", None)),
    ],
)
def test_a_key_that_is_not_followed_is_refused(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, family: str, change: Callable[[Any], object]
) -> None:
    path = tiny_model(family, num_hidden_layers=4, **({"sliding_window": 8} if family == "mistral" else {}))
    patch_model(monkeypatch, change)
    with pytest.raises(ModelError, match=r"model\.layers\.0: .* differ by .* for token"):
        compared(path)


def test_a_block_of_each_kind_is_compared(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sixth block of Gemma attends to all tokens, with angles of its own."""
    path = tiny_model("gemma3_text", num_hidden_layers=9, sliding_window=8)
    assert chosen_blocks(open_lazily(path, runnable=False)) == [0, 4, 5, 8]
    assert compared(path).startswith("blocks 0, 4, 5 and 8 of 9 compared;")
    patch_model(monkeypatch, lambda model: model.model.rotary_emb.full_attention_inv_freq.mul_(1.5))
    with pytest.raises(ModelError, match=r"model\.layers\.5: "):
        compared(path)


def test_dense_blocks_before_experts_are_another_kind(tiny_model: TinyModel) -> None:
    path = tiny_model("qwen3_moe", num_hidden_layers=7, mlp_only_layers=[2])
    assert chosen_blocks(open_lazily(path, runnable=False)) == [0, 2, 3, 6]


def test_a_library_without_finite_outputs_is_told(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Library.block
    monkeypatch.setattr(Library, "block", lambda *args: [x * float("nan") for x in block(*args)])
    with pytest.raises(NotFiniteError, match=r"model\.layers\.0: .* NaN or infinite"):
        compared(tiny_model("llama"))


def test_memory_is_that_of_a_block(tiny_model: TinyModel) -> None:
    few, many = (open_lazily(tiny_model("llama", num_hidden_layers=n), runnable=False) for n in (2, 9))
    assert compared_bytes(few) == compared_bytes(many)
