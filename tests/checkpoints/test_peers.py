"""The transformers, compressed-tensors and sentence-transformers libraries, unmodified, read what we write."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.families import architecture_of
from bitwright.files.directory import ModelDirectory
from bitwright.kernels.reference import quantize_rows
from bitwright.models.names import ModelNames, model_names
from bitwright.models.sites import find_linears
from bitwright.numerics.linear import PendingLinear, QuantizedLinear, ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec
from bitwright.runtime.generic import Linears

pytest.importorskip("compressed_tensors")
Quantize = Callable[..., dict[str, QuantizedLinear]]
# Those that compressed-tensors has words for, with groups that the tiny models' K are multiples of.
PORTABLE = [
    name
    for name, scheme in SCHEMES.items()
    if scheme.weight is not None and scheme.weight.grid == "uniform" and scheme.weight.group_size in (None, 32)
]
# Those whose inputs are rounded too, without packed zero points, for which its simulation has no place.
INTEGER = [name for name in PORTABLE if SCHEMES[name].input is not None and not name.endswith("_asym")]
IDS = torch.tensor([[2, 7, 9, 30, 3, 0], [2, 50, 8, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])


def names_of(model: Any) -> ModelNames:
    return model_names(model, architecture_of(model.config.model_type))


def lazy(layers: dict[str, QuantizedLinear]) -> dict[str, PendingLinear]:
    return {name: ready(layer) for name, layer in layers.items()}


def write(
    source: Path, out: Path, quantize: Quantize, scheme: str, skip: tuple[str, ...] = ("pooler",)
) -> QuantizedParts:
    model = transformers.AutoModel.from_pretrained(source)
    parts = QuantizedParts(lazy(quantize(model, scheme, skip=skip)), half=skip and ("pooler.dense",))
    write_checkpoint(ModelDirectory(source), out, parts, names_of(model), model_card="")
    return parts


def dense(source: Path, parts: QuantizedParts) -> Any:
    """The float model with each weight replaced by the numbers that its codes stand for."""
    model = transformers.AutoModel.from_pretrained(source).eval()
    with torch.no_grad():
        for name, layer in parts.layers.items():
            model.get_submodule(name).weight.copy_(layer.load().weight.dequantize())
        for name in (*parts.half, *names_of(model).embeddings):
            weight = model.get_submodule(name).weight
            weight.copy_(weight.bfloat16())
    return model


def without_dequantize(folder: Path) -> Path:
    """The same checkpoint, as a reader sees it that simulates the integer arithmetic instead of decompressing."""
    copy = Path(shutil.copytree(folder, folder.with_name("simulated")))
    config = json.loads((copy / "config.json").read_text())
    del config["quantization_config"]["dequantize"]
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize("scheme", PORTABLE)
def test_transformers_decompresses_to_our_numbers(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize, scheme: str
) -> None:
    parts = write(tiny_bert, tmp_path / "out", quantize_linears, scheme)
    loaded, report = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert all(".input_" in name for name in report["unexpected_keys"])
    expected = dense(tiny_bert, parts)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        ours, theirs = (m(input_ids=IDS, attention_mask=MASK) for m in (expected, loaded.eval()))
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    assert torch.equal(ours.pooler_output, theirs.pooler_output)


def test_the_same_file_loads_with_and_without_a_head(
    tiny_classifier: Path, tmp_path: Path, quantize_linears: Quantize
) -> None:
    parts = write(tiny_classifier, tmp_path / "out", quantize_linears, "w8a8")
    base = transformers.AutoModel.from_pretrained(tmp_path / "out")
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    for name, layer in parts.layers.items():
        assert torch.equal(base.get_submodule(name).weight, layer.load().weight.dequantize())
        assert torch.equal(whole.bert.get_submodule(name).weight, layer.load().weight.dequantize())


def simulate(model: nn.Module, layers: dict[str, QuantizedLinear]) -> nn.Module:
    """Round the inputs of the quantized linears as our kernels do, in float."""

    def rounded(layer: QuantizedLinear) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        grid: tuple[Tensor | None, Tensor | None] = (None, None)
        if layer.static is not None and layer.input_spec is not None:
            zero_point = torch.tensor([layer.static.zero_point], dtype=torch.int8)
            grid = (torch.tensor([layer.static.scale]), None if layer.input_spec.symmetric else zero_point)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x_MK = inputs[0].reshape(-1, inputs[0].shape[-1])
            assert layer.input_spec is not None
            codes, scale, zero = quantize_rows(x_MK, layer.input_spec, *grid)
            return (((codes - zero) * scale).view_as(inputs[0]),)

        return hook

    for name, layer in layers.items():
        model.get_submodule(name).register_forward_pre_hook(rounded(layer))
    return model


@pytest.mark.parametrize("scheme", INTEGER)
def test_compressed_tensors_simulates_our_arithmetic(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize, scheme: str
) -> None:
    """With input rounding on, outputs are equal up to conventions; off, exactly.

    They divide by the scale and add the zero point before rounding, we multiply by the reciprocal and add after: a tie
    may move a code by one step, which is rare. Their static symmetric codes may be −128, ours end at −127. Their
    dynamic symmetric scale is absmax / 127.5, ours absmax / 127: two roundings of the same numbers, each as far from
    float as the other.
    """
    parts = write(tiny_bert, tmp_path / "out", quantize_linears, scheme)
    theirs = transformers.AutoModel.from_pretrained(without_dequantize(tmp_path / "out")).eval()
    layers = {name: layer.load() for name, layer in parts.layers.items()}
    reference = simulate(dense(tiny_bert, parts), layers)
    with torch.no_grad():
        got, expected = (m(input_ids=IDS, attention_mask=MASK) for m in (theirs, reference))
        float_out = dense(tiny_bert, parts)(input_ids=IDS, attention_mask=MASK)
    rounding = (expected.last_hidden_state - float_out.last_hidden_state).abs().max()
    difference = (got.last_hidden_state - expected.last_hidden_state).abs().max()
    assert rounding > 1e-3  # what is compared does round
    assert difference <= (2 if scheme == "w8a8_symmetric" else 0.1) * rounding
    for module in theirs.modules():
        module.quantization_enabled = False
    with torch.no_grad():
        off = theirs(input_ids=IDS, attention_mask=MASK)
    assert torch.equal(off.last_hidden_state, float_out.last_hidden_state)
    assert torch.equal(off.pooler_output, float_out.pooler_output)


def test_a_pooler_left_out_is_not_quantized_and_one_let_in_is_quantized_per_tensor(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize
) -> None:
    """Why heads stay in 16 bit: a 2-D input is rounded as one "token", so that one text changes another's result."""
    write(tiny_bert, tmp_path / "out", quantize_linears, "w8a8")
    outside = transformers.AutoModel.from_pretrained(without_dequantize(tmp_path / "out")).eval()
    write(tiny_bert, tmp_path / "in", quantize_linears, "w8a8", skip=())
    shutil.rmtree(tmp_path / "simulated")
    inside = transformers.AutoModel.from_pretrained(without_dequantize(tmp_path / "in")).eval()
    rows = torch.stack((torch.linspace(-1, 1, 32), torch.linspace(-90, 90, 32)))
    with torch.no_grad():
        outside(input_ids=IDS)  # decompresses
        inside(input_ids=IDS)
        pooler = outside.pooler.dense
        assert torch.equal(pooler(rows), functional.linear(rows, pooler.weight, pooler.bias))
        pooler = inside.pooler.dense
        assert (pooler(rows)[:1] - pooler(rows[:1])).abs().max() > 1e-2


def test_sentence_transformers_encodes(sentence_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    library = pytest.importorskip("sentence_transformers")
    parts = write(sentence_bert, tmp_path / "out", quantize_linears, "w8a8")
    encoder = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    texts = ["1 2 3", "40 41"]
    got = encoder.encode(texts, convert_to_tensor=True)
    original = library.SentenceTransformer(str(sentence_bert), device="cpu")
    original[0].auto_model.load_state_dict(dense(sentence_bert, parts).state_dict())
    assert got.shape == (2, 8)
    assert torch.equal(got, original.encode(texts, convert_to_tensor=True))


def test_readers_without_our_code_refuse_int8_tables(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize
) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    table = QTensor(torch.ones(60, 32, dtype=torch.int8), torch.full((60, 1), 0.5), None, QuantSpec())
    parts = QuantizedParts(lazy(quantize_linears(model)), tables={"embeddings.word_embeddings": table})
    write_checkpoint(ModelDirectory(tiny_bert), tmp_path / "out", parts, names_of(model), model_card="")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModel.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("weights", "inputs"),
    [
        ({"num_bits": 8, "strategy": "channel"}, {"num_bits": 8, "strategy": "token", "dynamic": True}),
        ({"num_bits": 4, "strategy": "channel"}, {"num_bits": 8, "strategy": "token", "dynamic": True}),
        ({"num_bits": 4, "strategy": "group", "group_size": 32}, None),
        ({"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}, None),
        ({"num_bits": 3, "strategy": "channel", "symmetric": False, "actorder": "weight"}, None),
    ],
    ids=["W8A8", "W4A8, a byte for each code", "W4 symmetric", "W4 with zero points", "W3 with zero points"],
)
def test_we_read_what_compressed_tensors_writes(
    tiny_bert: Path, tmp_path: Path, weights: dict[str, Any], inputs: dict[str, Any] | None
) -> None:
    """compressed-tensors quantizes and compresses a model by itself; its bytes give its numbers."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    model = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    args = quantization.QuantizationArgs
    scheme = quantization.QuantizationScheme(
        targets=["Linear"],
        weights=args(**weights),
        input_activations=None if inputs is None else args(**inputs),
    )
    config = quantization.QuantizationConfig(config_groups={"group_0": scheme}, ignore=["pooler.dense"])
    quantization.apply_quantization_config(model, config)
    expected: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            weight = module.weight.detach()
            groups = weight.reshape(*module.weight_scale.shape, -1)
            low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
            steps = 2 ** weights["num_bits"] - 1
            if weights.get("symmetric", True):
                module.weight_scale.data = torch.maximum(-low, high) / (steps / 2)
            else:
                module.weight_scale.data = (high - low) / steps
                zero = (-(steps + 1) // 2 - low / module.weight_scale).round()
                module.weight_zero_point.data = zero.to(torch.int8)
            expected[name] = weight
    compressor: Any = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "theirs")
    compressor.update_config(str(tmp_path / "theirs"))
    found = read_checkpoint(ModelDirectory(tmp_path / "theirs"))
    assert found.linears.keys() == expected.keys()
    for name, weight in expected.items():
        layer = found.linears[name].load().torch()
        assert layer.weight.spec.bits == weights["num_bits"]
        error = (layer.weight.dequantize() - weight).abs().reshape(*layer.weight.scale_NG.shape, -1)
        # Where a zero point was rounded, the end of the range is cut by as much.
        limit = 0.5001 if layer.weight.spec.symmetric else 1.0001
        assert bool((error.amax(-1) <= limit * layer.weight.scale_NG.float()).all())


def test_minilm(minilm_dir: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    """A real sentence encoder, end to end."""
    library = pytest.importorskip("sentence_transformers")
    parts = write(minilm_dir, tmp_path / "out", quantize_linears, "w8a8")
    found = read_checkpoint(ModelDirectory(tmp_path / "out"))
    assert found.linears.keys() == parts.layers.keys()
    assert len(found.linears) == 36
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert weights < 0.4 * (minilm_dir / "model.safetensors").stat().st_size
    texts = ["A man is eating food.", "A man eats something.", "The sky is full of stars tonight."]
    ours, original = (
        library.SentenceTransformer(str(path), device="cpu").encode(texts, convert_to_tensor=True)
        for path in (tmp_path / "out", minilm_dir)
    )
    assert functional.cosine_similarity(ours, original).min() > 0.99
    assert ours[0] @ ours[1] > ours[0] @ ours[2]


@pytest.mark.parametrize("task", ["embedding", "token-classification"])
def test_every_family(
    families: list[str], tiny_model: Callable[..., Path], tmp_path: Path, quantize_linears: Quantize, task: str
) -> None:
    """Names, ties and heads of each family of the architecture table survive the round trip."""
    kind = "AutoModel" if task == "embedding" else "AutoModelForTokenClassification"
    for family in families:
        source, out = tiny_model(family, task), tmp_path / family
        auto = getattr(transformers, kind)
        model = auto.from_pretrained(source).eval()
        sites = find_linears(model, architecture_of(family))
        chosen = {site.name for site in sites if site.role != "head"}
        layers = {name: layer for name, layer in quantize_linears(model).items() if name in chosen}
        half = [site.name for site in sites if site.role == "head"]
        write_checkpoint(
            ModelDirectory(source), out, QuantizedParts(lazy(layers), half=half), names_of(model), model_card=""
        )
        assert Linears(read_checkpoint(ModelDirectory(out)), names_of(model)).keys() == layers.keys() == chosen, family
        loaded, report = auto.from_pretrained(out, output_loading_info=True)
        assert not any(report.values()), family
        for name, layer in layers.items():
            assert torch.equal(loaded.get_submodule(name).weight, layer.weight.dequantize()), (family, name)
