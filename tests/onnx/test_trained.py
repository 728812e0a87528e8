"""What was trained is what is exported: the graph holds the codes of the last forward, and computes as the engine."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.onnx.write import MODEL_FILE
from bitwright.recipe import make_recipe
from bitwright.runtime.generic import open_quantized
from bitwright.runtime.load import load
from bitwright.runtime.tolerances import largest_difference
from bitwright.training import convert, prepare, write_trained
from bitwright.training.prepare import fake_linears
from tests.onnx.test_write import TEXTS, Made, exported, run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")

FAMILIES = ["bert", "ernie", "albert", "roberta", "deberta-v2", "electra", "distilbert"]


def step(model: torch.nn.Module) -> None:
    """One step of training on random ids."""
    ids = torch.randint(5, 200, (8, 16), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(name, marks=pytest.mark.full) for name in FAMILIES if name != "bert")]
)
def test_a_trained_model_keeps_its_codes_in_the_graph(
    quantized: Made, tiny_model: Callable[..., Path], family: str, tmp_path: Path
) -> None:
    source = tiny_model(family)
    model = AutoModel.from_pretrained(source).eval()
    start = dict(open_quantized(ModelDirectory(quantized(family, "w8a8_static"))).layers)
    plan = prepare(model, make_recipe({"scheme": "w8a8_static"}), start=start)
    step(model)
    codes = {name: fake.quantized().weight.codes_NK for name, fake in fake_linears(model)}
    assert any(not torch.equal(codes[name], start[name].weight.codes_NK) for name in codes)
    linears = convert(model)
    model.save_pretrained(tmp_path / "saved")
    for file in source.glob("*token*"):
        (tmp_path / "saved" / file.name).write_bytes(file.read_bytes())
    out = write_trained(linears, plan, tmp_path / "saved", tmp_path / "out")

    opened = exported(out, tmp_path / "onnx")
    graph = onnx.load(tmp_path / "onnx" / MODEL_FILE).graph
    held = {tensor.raw_data for tensor in graph.initializer}
    assert {codes_NK.T.contiguous().numpy().tobytes() for codes_NK in codes.values()} <= held
    in_graph = run(opened, TEXTS)["sentence_embedding"]
    for compute in ("auto", "float32"):
        wanted = load(out, compute=compute)
        assert largest_difference(in_graph, np.stack([wanted.encode([text])[0] for text in TEXTS])) < 0.02
