"""What ONNX Runtime gives in a clean process is compared, its integer kernels are counted, and faults are found."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitwright.errors import CheckpointError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.onnx.verify import RUNTIMES, mean_cosine, verify_graph
from bitwright.onnx.write import LINEARS_KEY, MODEL_FILE, write_onnx
from bitwright.runtime.expected import Expected, expect

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def static(quantized: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    """A directory with a graph, and what its checkpoint gives."""
    directory, out = quantized("bert", "w8a8_static", transformed=True), tmp_path_factory.mktemp("onnx") / "out"
    write_onnx(directory, out)
    return out, expect(ModelDirectory(directory))


def test_a_right_graph_is_proven(static: tuple[Path, Expected]) -> None:
    row = verify_graph(*static)
    assert row.ok, row
    assert row.checks["integer_kernels"] == row.checks["integer_kernels_expected"] == 12
    assert row.checks["distance"] <= row.checks["distance_allowed"]
    assert row.checks["cosine"] > 0.995
    assert row.checks["seconds"] > 0
    assert f"on {dispatch.active_isa()}: 12 MatMulIntegerToFloat" in row.detail


def _changed(out: Path, to: Path, change: Callable[[object], None]) -> Path:
    model = onnx.load(out / MODEL_FILE)
    change(model)
    (to / MODEL_FILE).parent.mkdir()
    onnx.save(model, to / MODEL_FILE)
    return to


def _wrong_scale(model: "onnx.ModelProto") -> None:
    scale = next(t for t in model.graph.initializer if t.name.endswith("attention.output.dense.scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.2), scale.name))


def _more_linears(model: "onnx.ModelProto") -> None:
    for entry in model.metadata_props:
        if entry.key == LINEARS_KEY:
            entry.value = json.dumps({"static": 13})


def _no_output(model: "onnx.ModelProto") -> None:
    model.graph.output[1].name = "nothing"


def _no_metadata(model: "onnx.ModelProto") -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_wrong_scale, "its outputs differ by"),
        (_more_linears, "ONNX Runtime runs 12 integer kernels, but the graph has 13 quantized linears"),
        (_no_output, "loading or running failed: "),
    ],
)
def test_a_wrong_graph_is_found(
    static: tuple[Path, Expected], tmp_path: Path, change: Callable[[object], None], says: str
) -> None:
    out, expected = static
    row = verify_graph(_changed(out, tmp_path, change), expected)
    assert row.ok is False
    assert says in row.detail


def test_a_graph_of_others_is_not_checked(static: tuple[Path, Expected], tmp_path: Path) -> None:
    out, expected = static
    with pytest.raises(CheckpointError, match="did not write this graph"):
        verify_graph(_changed(out, tmp_path, _no_metadata), expected)
    file = tmp_path / MODEL_FILE
    for content in (b"", b"\xff" * 40, (out / MODEL_FILE).read_bytes()[:5000]):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.onnx: "):
            verify_graph(tmp_path, expected)
    with pytest.raises(CheckpointError, match="no such file"):
        verify_graph(tmp_path / "nowhere", expected)


def test_a_runtime_that_is_not_there_is_told(static: tuple[Path, Expected], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "onnx", ("ONNX Runtime", ("onnx", "no_such_runtime")))
    row = verify_graph(*static)
    assert row.ok is None
    assert "no_such_runtime is not installed" in row.detail


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["w8a8", "w4a16_g32"])
def test_another_arithmetic_is_told(quantized: Made, tmp_path: Path, scheme: str) -> None:
    directory = quantized("bert", scheme)
    write_onnx(directory, tmp_path / "out")
    row = verify_graph(tmp_path / "out", expect(ModelDirectory(directory)))
    assert row.ok, row
    assert row.checks["cosine"] >= row.checks["cosine_allowed"]
    assert ("one scale for all tokens" in row.detail) == (scheme == "w8a8")


def test_openvino_runs_the_integers_too(static: tuple[Path, Expected]) -> None:
    pytest.importorskip("openvino")
    row = verify_graph(*static, "openvino")
    assert row.ok, row
    assert row.checks["integer_kernels"] == 12


def test_mean_cosine() -> None:
    a = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    assert mean_cosine(a, a * np.float32(2)) == pytest.approx(1)
    assert mean_cosine(a, np.array([[4.0, -3.0], [1.0, 0.0]], np.float32)) == pytest.approx(0.5)
