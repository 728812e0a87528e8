"""Graphs of every family: they check, run in ONNX Runtime on integers, and give what the checkpoint gives."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.errors import InputError, NumericsError, TargetError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.runtime.load import load
from bitwright.runtime.tolerances import largest_difference

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bitwright.onnx.graph import _Writer, halved  # noqa: E402
from bitwright.onnx.module import exportable  # noqa: E402
from bitwright.onnx.process import OpenedGraph, open_onnxruntime  # noqa: E402
from bitwright.onnx.write import MODEL_FILE, expected_bytes, write_onnx  # noqa: E402

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")

Made = Callable[..., Path]
TEXTS = [[2, 17, 40, 8, 99, 3], [2, 55, 3], [2, 7, 8, 9, 10, 11, 12, 13, 14, 15, 3]]


def run(opened: OpenedGraph, texts: list[list[int]]) -> dict[str, np.ndarray]:
    """The outputs by name for texts, padded at the right."""
    longest = max(map(len, texts))
    ids = np.array([[*text, *[1] * (longest - len(text))] for text in texts], np.int64)
    mask = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in texts], np.int64)
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return dict(zip(opened.outputs, opened.run({name: known[name] for name in opened.inputs}), strict=True))


def exported(directory: Path, out: Path, **how: str) -> OpenedGraph:
    write_onnx(directory, out, **how)  # type: ignore[arg-type]
    return open_onnxruntime(out / MODEL_FILE, 1)


FAMILIES = ["albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "ernie", "modernbert", "mpnet",
            "roberta", "xlm-roberta"]  # fmt: skip


@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(f, marks=pytest.mark.full) for f in FAMILIES if f != "bert")]
)
def test_every_family_gives_what_the_checkpoint_gives(quantized: Made, family: str, tmp_path: Path) -> None:
    directory = quantized(family, "w8a8_static")
    opened = exported(directory, tmp_path / "out")
    wanted = load(directory, compute="float32")
    found = run(opened, TEXTS)["sentence_embedding"]
    expected = np.stack([wanted.encode([text])[0] for text in TEXTS])
    linears = json.loads(_metadata(tmp_path / "out")["bitwright.linears"])
    assert linears["static"] >= 2 * 4
    assert opened.kernels == {"MatMulIntegerToFloat": linears["static"]}
    assert largest_difference(found, expected) < 0.02, family


SCHEMES = {
    "w8a8": ("dynamic", {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}),
    "w8a8_static_symmetric": ("static", {"MatMulIntegerToFloat"}),
    "w4a16_g32": ("weights", {"MatMulNBits"}),
    "w4a16_g32_asym": ("weights", {"MatMulNBits"}),
    "w4a16_channel": ("weights", {"MatMulNBits"}),
    "w8a16": ("weights", {"MatMulNBits"}),
}


QUICK = [("w8a8", True), ("w8a8_static_symmetric", False), ("w4a16_g32_asym", True)]
CASES = [(scheme, transformed) for scheme in SCHEMES for transformed in (False, True)]


@pytest.mark.parametrize(
    ("scheme", "transformed"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.full) for case in CASES],
)
def test_every_scheme_runs_on_codes(quantized: Made, scheme: str, transformed: bool, tmp_path: Path) -> None:
    directory = quantized("bert", scheme, transformed=transformed)
    opened = exported(directory, tmp_path / "out")
    wanted = load(directory, compute="float32")
    # One text at a time: a dynamic scale is of all tokens of a batch.
    found = np.concatenate([run(opened, [text])["sentence_embedding"] for text in TEXTS])
    expected = np.stack([wanted.encode([text])[0] for text in TEXTS])
    kind, kernels = SCHEMES[scheme]
    linears = json.loads(_metadata(tmp_path / "out")["bitwright.linears"])
    assert list(linears) == [kind]
    constants = onnx.load(tmp_path / "out" / MODEL_FILE).graph.initializer
    assert expected_bytes(exportable(ModelDirectory(directory))) == pytest.approx(
        sum(len(tensor.raw_data) for tensor in constants), rel=0.05
    )
    assert set(opened.kernels) == kernels
    assert sum(opened.kernels.values()) == linears[kind]
    limit = {"dynamic": 0.1, "static": 0.02, "weights": 0.05}[kind]
    assert largest_difference(found, expected) < limit


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "question-answering"])
@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(name, marks=pytest.mark.full) for name in FAMILIES if name != "bert")]
)
def test_heads_are_in_the_graph(quantized: Made, family: str, task: str, tmp_path: Path) -> None:
    directory = quantized(family, "w8a8_static", task)
    opened = exported(directory, tmp_path / "out")
    found, wanted = run(opened, TEXTS), load(directory, compute="float32")
    for row, text in enumerate(TEXTS):
        expected = wanted.encode([text])[0]
        ours = np.stack(list(found.values()), 1)[row] if task == "question-answering" else found["logits"][row]
        if task != "sequence-classification":
            ours = ours[..., : len(text)] if task == "question-answering" else ours[: len(text)]
        assert ours.shape == expected.shape
        assert largest_difference(ours, expected) < 0.02


POOLINGS = ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def test_what_follows_the_transformer_is_in_the_graph(quantized: Made, tmp_path: Path) -> None:
    directory = tmp_path / "in"
    shutil.copytree(quantized("bert", "w8a8_static"), directory)
    kinds = ["Transformer", "Pooling", "Dense", "LayerNorm", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    settings = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": 64},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode": POOLINGS},
        "2_Dense/config.json": {"in_features": 160, "out_features": 24, "bias": True,
                                "activation_function": "torch.nn.modules.activation.GELU"},
        "3_LayerNorm/config.json": {"dimension": 24},
    }  # fmt: skip
    for name, content in settings.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content))
    rng = np.random.default_rng(4)
    dense = {"linear.weight": rng.normal(size=(24, 160)) / 12, "linear.bias": rng.normal(size=24)}
    norm = {"norm.weight": rng.normal(size=24), "norm.bias": rng.normal(size=24)}
    for folder, tensors in (("2_Dense", dense), ("3_LayerNorm", norm)):
        floats = {name: values.astype(np.float32) for name, values in tensors.items()}
        save_file(floats, directory / folder / "model.safetensors")
    opened = exported(directory, tmp_path / "out")
    wanted = load(directory, compute="float32")
    found = run(opened, TEXTS)["sentence_embedding"]
    assert largest_difference(found, np.stack([wanted.encode([text])[0] for text in TEXTS])) < 0.02
    kept = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {*settings, "2_Dense/model.safetensors", "tokenizer.json", "onnx/model.onnx"} <= kept
    assert "model.safetensors" not in kept


def test_codes_are_those_of_the_file(quantized: Made, tmp_path: Path) -> None:
    directory = quantized("albert", "w8a8_static", tables=True)
    exported(directory, tmp_path / "out")
    found = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out" / MODEL_FILE).graph.initializer}
    checkpoint = read_checkpoint(ModelDirectory(directory))
    assert len(checkpoint.linears) > 4
    for name, pending in checkpoint.linears.items():
        linear = pending.load()
        assert np.array_equal(found[f"{name}.codes"], linear.weight.codes_NK.T)
        assert np.array_equal(found[f"{name}.scale"], linear.weight.scale_NG[:, 0])
    assert checkpoint.tables
    for table in checkpoint.tables:
        assert np.array_equal(found[f"{table}.codes"], checkpoint.table(table)[0])


def test_seven_bits_leave_room_in_sixteen(quantized: Made, tmp_path: Path) -> None:
    directory = quantized("bert", "w8a8_static")
    opened = exported(directory, tmp_path / "out", weights="7bit")
    linear = next(iter(read_checkpoint(ModelDirectory(directory)).linears.values())).load()
    fewer = halved("m", linear)
    assert 60 < abs(fewer.weight.codes_NK).max() <= 64
    off = abs(fewer.weight.dequantize() - linear.weight.dequantize())
    assert (off <= linear.weight.scale_NG * 1.0001).all()
    wanted = load(directory, compute="float32")
    found = run(opened, TEXTS)["sentence_embedding"]
    assert largest_difference(found, np.stack([wanted.encode([text])[0] for text in TEXTS])) < 0.1
    assert _metadata(tmp_path / "out")["bitwright.range"] == "7bit"


def test_what_cannot_be_exported_is_refused(quantized: Made, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="nothing is quantized"):
        write_onnx(tiny_model("bert"), tmp_path / "out")
    with pytest.raises(TargetError, match=r"layer\.0\..*: ONNX Runtime has no integer kernel for 4 bits on the nf4"):
        write_onnx(quantized("bert", "nf4_g32"), tmp_path / "out")
    with pytest.raises(TargetError, match="llama for text-generation is no encoder"):
        write_onnx(quantized("llama", "w8a8"), tmp_path / "out")
    with pytest.raises(InputError, match="weights = '6bit' is unknown"):
        write_onnx(quantized("bert", "w8a8_static"), tmp_path / "out", weights="6bit")  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        write_onnx(quantized("bert", "w8a8_static"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_integers_that_do_not_fit_are_refused() -> None:
    """Four bits of them would be other ones."""
    with pytest.raises(NumericsError, match=r"m\.zero_point: integers lie in \[0, 9\], and 4 bits hold \[-8, 7\]"):
        _Writer().integers("m.zero_point", np.array([[0], [9]], np.int8), 4)


def _metadata(out: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(out / MODEL_FILE).metadata_props}


@pytest.mark.parametrize("family", ["bert", pytest.param("modernbert", marks=pytest.mark.full)])
def test_residual_additions_in_8_bits(quantized: Made, family: str, tmp_path: Path) -> None:
    """Two in each of two blocks; their outputs feed a norm, and ONNX Runtime adds codes."""
    directory = quantized(family, "w8a8_static")
    write_onnx(directory, tmp_path / "out", residuals=[np.array([text]) for text in TEXTS])
    opened = open_onnxruntime(tmp_path / "out" / MODEL_FILE, 1)
    linears = json.loads(_metadata(tmp_path / "out")["bitwright.linears"])
    assert linears["residual"] == 4
    assert opened.kernels["QLinearAdd"] == 4
    assert sum(opened.kernels.values()) == linears["static"] + 4
    plain = run(exported(directory, tmp_path / "plain"), TEXTS)["sentence_embedding"]
    found = run(opened, TEXTS)["sentence_embedding"]
    apart = largest_difference(found, plain)
    assert 1e-4 < apart < 0.05
