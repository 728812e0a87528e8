from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bitwright.checkpoints.compressed_tensors import QuantizedParts, linear_tensors, table_tensors, write_checkpoint
from bitwright.checkpoints.stored import ModelNames, StoredLinear
from bitwright.errors import TargetError
from bitwright.numerics.qtensor import QTensor, scale_shape
from bitwright.numerics.spec import SCHEMES, QuantSpec, Scheme
from bitwright.targets import TARGETS, check_target, stored_bytes, stored_embedding_bytes

INT8_SCHEMES = [scheme for scheme in SCHEMES.values() if scheme.weight is not None]
SHAPES = [(1, 1), (3, 8), (64, 32)]


def stored(shape: tuple[int, int], scheme: Scheme) -> StoredLinear:
    assert scheme.weight is not None
    assert scheme.input is not None
    weight = QTensor(
        torch.zeros(shape, dtype=torch.int8), torch.ones(scale_shape(*shape, scheme.weight)), None, scheme.weight
    )
    static = not scheme.input.dynamic
    zero = torch.zeros(1, dtype=torch.int8) if static and not scheme.input.symmetric else None
    return StoredLinear(weight, scheme.input, torch.ones(1) if static else None, zero)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", [*INT8_SCHEMES, Scheme("t", QuantSpec(per_tensor=True), QuantSpec(dynamic=True))])
def test_predicted_bytes_are_the_bytes_written_for_a_linear(shape: tuple[int, int], scheme: Scheme) -> None:
    written = sum(tensor.n_bytes for tensor in linear_tensors("m", stored(shape, scheme)).values())
    assert stored_bytes(shape, scheme, bias=False, source_bytes_per_value=4) == written
    assert stored_bytes(shape, scheme, bias=True, source_bytes_per_value=4) == written + 4 * shape[0]
    assert stored_bytes(shape, scheme, bias=True, source_bytes_per_value=2) == written + 2 * shape[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_predicted_bytes_of_a_table(shape: tuple[int, int]) -> None:
    table = QTensor(torch.zeros(shape, dtype=torch.int8), torch.ones(shape[0], 1), None, QuantSpec())
    written = sum(tensor.n_bytes for tensor in table_tensors("m", table).values())
    assert stored_embedding_bytes(shape, "int8", source_bytes_per_value=4) == written
    assert stored_embedding_bytes(shape, "16bit", source_bytes_per_value=4) == torch.zeros(shape).bfloat16().nbytes
    assert stored_embedding_bytes(shape, "float", source_bytes_per_value=4) == torch.zeros(shape).nbytes
    with pytest.raises(TargetError, match="mode 'int4' is unknown"):
        stored_embedding_bytes(shape, "int4", source_bytes_per_value=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_predicted_bytes_are_the_bytes_in_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every kind of row at once, summed over the tensors of the file that was written."""
    model = nn.ModuleDict({
        "embeddings": nn.ModuleDict({"a": nn.Embedding(11, 8), "b": nn.Embedding(5, 8)}),
        **{scheme.name: nn.Linear(8, 6, bias=i % 2 == 0) for i, scheme in enumerate(SCHEMES.values())},
    }).to(dtype)  # fmt: skip
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text('{"model_type": "bert"}')
    save_file(model.state_dict(), tmp_path / "source" / "model.safetensors")
    table = QTensor(torch.zeros(11, 8, dtype=torch.int8), torch.ones(11, 1), None, QuantSpec())
    parts = QuantizedParts(
        {scheme.name: stored((6, 8), scheme) for scheme in INT8_SCHEMES},
        half=("16bit",),
        tables={"embeddings.a": table},
    )
    names = ModelNames("", tuple(SCHEMES), ("embeddings.a", "embeddings.b"), {})
    write_checkpoint(tmp_path / "source", tmp_path / "out", parts, names, model_card="")

    size = dtype.itemsize
    predicted = stored_embedding_bytes((11, 8), "int8", source_bytes_per_value=size)
    predicted += stored_embedding_bytes((5, 8), "16bit", source_bytes_per_value=size)
    for i, scheme in enumerate(SCHEMES.values()):
        predicted += stored_bytes((6, 8), scheme, bias=i % 2 == 0, source_bytes_per_value=size)
    assert sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / "model.safetensors").values()) == predicted


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_accepts_the_default_scheme(target: str) -> None:
    check_target(target, {"a": "w8a8", "pooler": "16bit"}, int8_embeddings=False)


def test_only_our_runtime_reads_int8_tables() -> None:
    schemes = {"a": "w8a8", "words": "int8"}
    check_target("bitwright", schemes, int8_embeddings=True)
    for target in TARGETS.keys() - {"bitwright"}:
        with pytest.raises(TargetError, match=rf"{target}: cannot read int8 .*\(words\)"):
            check_target(target, schemes, int8_embeddings=True)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(TargetError, match="did you mean 'transformers'"):
        check_target("transformer", {}, int8_embeddings=False)


def test_a_scheme_that_is_not_accepted_is_named_with_its_layer() -> None:
    with pytest.raises(TargetError, match=r"layer.3: vllm does not accept the scheme 'w2a2' \(1 of 2 rows\)"):
        check_target("vllm", {"layer.2": "w8a8", "layer.3": "w2a2"}, int8_embeddings=False)
