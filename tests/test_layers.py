"""Imports point left only; torch and transformers stay out of the command line's way."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitwright

ROOT = Path(bitwright.__file__).parent
LAYERS = (
    *(
        "errors",
        "parsing",
        "progress",
        "atomic",
        "record",
        "families",
        "numerics",
        "files",
        "kernels",
        "workers",
        "models",
        "calibration",
    ),
    *("methods", "recipe", "targets", "plan", "evaluate", "search", "checkpoints", "quantizing", "training", "engine"),
    *("generate", "runtime", "bulk", "onnx", "pipeline", "report", "drift", "registry", "fleet"),
    *("serve", "integrations", "cli"),
)
# `report` turns a Record into pages; the pipeline writes them last.
EXCEPTIONS = {("pipeline", "report")}


def imported_names(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield str(node.module), node.lineno


def test_every_file_belongs_to_a_layer() -> None:
    found = {path.relative_to(ROOT).with_suffix("").parts[0] for path in ROOT.rglob("*.py")}
    assert found - {"__init__", "__main__"} <= set(LAYERS)


def test_imports_point_left() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        layer = path.relative_to(ROOT).with_suffix("").parts[0]
        for name, line in imported_names(path):
            target = name.split(".")[1] if name.startswith("bitwright.") else None
            known = layer in LAYERS and target in LAYERS and (layer, target) not in EXCEPTIONS
            if known and LAYERS.index(target) > LAYERS.index(layer):
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({layer}) imports {name}")
    assert not wrong, "\n".join(wrong)


def importers(*packages: str) -> set[str]:
    """The files that import one of these when they are imported."""
    return {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for name, _ in imported_names(path, top_level_only=True)
        if name.split(".")[0] in packages
    }


def test_few_import_transformers_when_imported() -> None:
    assert importers("transformers") == {"models/build.py", "integrations/hf_quantizer.py"}


def test_only_integrations_import_what_need_not_be_installed() -> None:
    found = importers("sentence_transformers", "langchain_core", "compressed_tensors")
    assert found == {"integrations/engine_module.py", "integrations/langchain.py"}


@pytest.mark.parametrize(
    "module",
    [
        *("bitwright", "bitwright.cli", "bitwright.cli.options", "bitwright.cli.terminal"),
        *("bitwright.generate.sequence", "bitwright.generate.chat", "bitwright.generate.sandbox"),
    ],
)
def test_import_brings_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names() -> None:
    assert bitwright.__all__ == sorted(bitwright.__all__, key=str)
    assert set(bitwright.__all__) == {"BitwrightError", "Watch", "__version__", "analyze", "follow", "load", "quantize"}
    for name in bitwright.__all__:
        assert getattr(bitwright, name) is not None
    with pytest.raises(AttributeError, match="it has BitwrightError"):
        _ = bitwright.quantise  # type: ignore[attr-defined]
