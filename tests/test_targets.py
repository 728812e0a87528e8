from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bitwright.checkpoints.tensor_plan import pending_linears, table_tensors
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.errors import TargetError
from bitwright.files.directory import ModelDirectory
from bitwright.models.names import ModelNames
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid, ready
from bitwright.numerics.qtensor import QTensor, scale_shape
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.numerics.spec import QuantSpec
from bitwright.targets import TARGETS, check_target, stored_bytes, stored_embedding_bytes

QUANTIZED = {name: scheme for name, scheme in SCHEMES.items() if scheme.weight is not None}
SHAPES = [(1, 1), (3, 8), (5, 37), (64, 128)]


def stored(shape: tuple[int, int], scheme: Scheme, *, scale_K: bool = False, shift_K: bool = False) -> QuantizedLinear:
    assert scheme.weight is not None
    spec, size = scheme.weight, scale_shape(*shape, scheme.weight)
    codebook = torch.linspace(-1, 1, spec.code_max + 1) if spec.grid == "kmeans" else None
    zero = None if spec.symmetric else torch.zeros(size, dtype=torch.int8)
    weight = QTensor(torch.zeros(shape, dtype=torch.int8), torch.ones(size), zero, spec, codebook)
    static = StaticGrid(1.0) if scheme.input is not None and not scheme.input.dynamic else None
    ones = torch.ones(shape[1])
    transform = InputTransform(ones if scale_K else None, ones if shift_K else None) if scale_K or shift_K else None
    return QuantizedLinear(weight, None, scheme.input, static, transform)


def fits(scheme: Scheme, k: int) -> bool:
    return scheme.weight is not None and (scheme.weight.group_size is None or k % scheme.weight.group_size == 0)


PER_TENSOR = Scheme("per tensor", QuantSpec(per_tensor=True), QuantSpec(dynamic=True))
CASES = [(shape, scheme) for scheme in (*QUANTIZED.values(), PER_TENSOR) for shape in SHAPES if fits(scheme, shape[1])]


@pytest.mark.parametrize(("shape", "scheme"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_predicted_bytes_are_the_bytes_written_for_a_linear(shape: tuple[int, int], scheme: Scheme) -> None:
    for scale_K, shift_K in ((False, False), (True, False), (True, True)):
        for guarded in (False, True):
            linear = {"m": ready(stored(shape, scheme, scale_K=scale_K, shift_K=shift_K))}
            tensors = pending_linears(linear, guarded=guarded)
            written = sum(tensor.load().nbytes for tensor in tensors.values())
            assert written == sum(tensor.n_bytes for tensor in tensors.values())

            def predicted(*, bias: bool, width: int, scale_K: bool = scale_K, shift_K: bool = shift_K) -> int:
                return stored_bytes(
                    shape, scheme, bias=bias, source_bytes_per_value=width, scale_K=scale_K, shift_K=shift_K
                )

            assert predicted(bias=False, width=4) == written
            assert predicted(bias=True, width=4) == written + 4 * shape[0]
            assert predicted(bias=True, width=2) == written + 2 * shape[0]


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (64, 32)])
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
    k = 128
    model = nn.ModuleDict({
        "embeddings": nn.ModuleDict({"a": nn.Embedding(11, 8), "b": nn.Embedding(5, 8)}),
        **{scheme.name: nn.Linear(k, 6, bias=i % 2 == 0) for i, scheme in enumerate(SCHEMES.values())},
    }).to(dtype)  # fmt: skip
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text('{"model_type": "bert"}')
    save_file(model.state_dict(), tmp_path / "source" / "model.safetensors")
    table = QTensor(torch.zeros(11, 8, dtype=torch.int8), torch.ones(11, 1), None, QuantSpec())
    parts = QuantizedParts(
        {name: ready(stored((6, k), scheme)) for name, scheme in QUANTIZED.items()},
        half=("16bit",),
        tables={"embeddings.a": table},
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = ModelNames("", tuple(SCHEMES), ("embeddings.a", "embeddings.b"), {}, shapes)
    write_checkpoint(ModelDirectory(tmp_path / "source"), tmp_path / "out", parts, names, model_card="")

    size = dtype.itemsize
    predicted = stored_embedding_bytes((11, 8), "int8", source_bytes_per_value=size)
    predicted += stored_embedding_bytes((5, 8), "16bit", source_bytes_per_value=size)
    for i, scheme in enumerate(SCHEMES.values()):
        predicted += stored_bytes((6, k), scheme, bias=i % 2 == 0, source_bytes_per_value=size)
    assert sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / "model.safetensors").values()) == predicted


# Those that read the files themselves. The others get ONNX graphs, which are made of the codes.
PLAIN = [name for name, row in TARGETS.items() if row.plain]


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "openvino"])
def test_every_target_accepts_the_default_scheme(target: str) -> None:
    check_target(target, {"a": "w8a8", "pooler": "16bit"}, int8_embeddings=False)


def test_plain_readers_read_no_int8_tables() -> None:
    schemes = {"a": "w8a8", "words": "int8"}
    for target in TARGETS.keys() - {*PLAIN, "openvino"}:
        check_target(target, schemes, int8_embeddings=True)
    for target in PLAIN:
        with pytest.raises(TargetError, match=rf"{target} cannot read int8 .*\(words\)"):
            check_target(target, schemes, int8_embeddings=True)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(TargetError, match="did you mean 'transformers'"):
        check_target("transformer", {}, int8_embeddings=False)


def test_a_scheme_that_is_not_accepted_is_named_with_its_layer() -> None:
    with pytest.raises(TargetError, match=r"layer.3: vllm does not accept the scheme 'w2a2' of 1 of 2 layers"):
        check_target("vllm", {"layer.2": "w8a8", "layer.3": "w2a2"}, int8_embeddings=False)


DENSE = {"a": "w4a16_g32", "b": "w4a16_g32"}


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_grids_are_for_our_runtime_alone(scheme: str) -> None:
    check_target("bitwright", {"a": scheme}, int8_embeddings=False)
    uniform = QUANTIZED[scheme].weight.grid == "uniform"  # type: ignore[union-attr]  # it has a weight
    for target in ("transformers", "sentence-transformers"):
        if uniform:
            check_target(target, {"a": scheme, "b": "16bit"}, int8_embeddings=False)
        else:
            with pytest.raises(TargetError, match=f"a: {target} does not accept the scheme '{scheme}'"):
                check_target(target, {"a": scheme}, int8_embeddings=False)


def test_what_vllm_has_kernels_for() -> None:
    for scheme in ("w8a8", "w8a8_static", "w8a16", "w4a16", "w4a16_g32", "w4a16_channel"):
        check_target("vllm", {"a": scheme, "b": "w8a8"}, int8_embeddings=False)
    for scheme in ("w4a16_asym", "w4a8", "w3a16", "w2a16", "nf4"):
        with pytest.raises(TargetError, match="vllm does not accept"):
            check_target("vllm", {"a": scheme}, int8_embeddings=False)


@pytest.mark.parametrize(
    ("target", "first", "second", "accepted"),
    [
        ("bitwright", "nf4", "w4a16_asym", True),
        ("vllm", "w4a16", "w8a8", True),
        ("transformers", "w4a16", "w8a8", True),
        ("transformers", "w4a16_asym", "w8a8", False),
        ("transformers", "w8a8", "w8a8_static", True),
        ("sentence-transformers", "w4a16", "w8a8", False),
        ("sentence-transformers", "w4a16", "w4a8", True),
        ("sentence-transformers", "w8a8", "w8a8_static", True),
        ("sentence-transformers", "w4a16_g32", "w4a16_g64", False),
    ],
)
def test_schemes_side_by_side(target: str, first: str, second: str, accepted: bool) -> None:
    plan = {"a": first, "b": second, "c": "16bit"}
    if accepted:
        check_target(target, plan, int8_embeddings=False)
    else:
        with pytest.raises(TargetError, match=f"cannot read '{first}' beside {second}"):
            check_target(target, plan, int8_embeddings=False)


def test_openvino_wants_static_inputs() -> None:
    check_target("openvino", {"a": "w8a8_static", "b": "16bit"}, int8_embeddings=False, transformed=["a"])
    with pytest.raises(TargetError, match="openvino does not accept the scheme 'w8a8' of 1 of 1 layers; it accepts 16"):
        check_target("openvino", {"a": "w8a8"}, int8_embeddings=False)
    with pytest.raises(TargetError, match="onnx does not accept the scheme 'nf4'"):
        check_target("onnx", {"a": "nf4"}, int8_embeddings=False)


@pytest.mark.parametrize("target", ["bitwright", *PLAIN])
@pytest.mark.parametrize("what", ["transformed", "transposed"])
def test_transforms_and_transposed_linears_are_for_our_runtime_alone(target: str, what: str) -> None:
    options: dict[str, tuple[str, ...]] = {what: ("b",)}
    check_target(target, {"a": "w8a8", "b": "16bit"}, int8_embeddings=False, **options)
    if target == "bitwright":
        check_target(target, DENSE, int8_embeddings=False, **options)
        return
    with pytest.raises(TargetError, match=r"^b: .*; (use another method|keep it in 16bit)$"):
        check_target(target, DENSE, int8_embeddings=False, **options)


@pytest.mark.parametrize("target", ["bitwright", *PLAIN])
def test_packed_codes_have_no_weight_to_set(target: str) -> None:
    """As `modernbert` in transformers; vLLM has models of its own."""
    check_target(target, {"a": "w8a8"}, int8_embeddings=False, needs_weights=True)
    if target in ("bitwright", "vllm"):
        check_target(target, {"a": "w4a16"}, int8_embeddings=False, needs_weights=True)
        return
    with pytest.raises(TargetError, match=r"^a: transformers changes .*; use w8a8$"):
        check_target(target, {"a": "w4a16"}, int8_embeddings=False, needs_weights=True)


def test_experts_are_packed_alike_or_not_portable() -> None:
    def check(target: str, expert: str, dense: str = "w4a16_g32") -> None:
        check_target(
            target, {"dense": dense, "e.0": expert, "e.1": expert}, int8_embeddings=False, experts=["e.0", "e.1"]
        )

    for target in ("transformers", "vllm"):
        check(target, "w4a16_g32")
        check(target, "16bit", "16bit")
        for expert, dense in (("w8a8", "w8a8"), ("w4a16_g32", "w8a16"), ("w4a16_g32", "w8a8")):
            with pytest.raises(TargetError, match=f"{target} reads a mixture of experts only if"):
                check(target, expert, dense)
    check("bitwright", "w8a8")
    check("transformers", "w4a16_g32", "16bit")
    check("vllm", "16bit")
    with pytest.raises(TargetError, match=r"e.0 \(16bit\): transformers reads a mixture"):
        check("transformers", "16bit")
