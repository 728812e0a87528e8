"""A few hundred mutated models, recipes and records in each run of the tests; `make long` tries a hundred thousand."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutations import mutate
from tests.fuzz.values import join_safetensors, split_safetensors


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    folder = tmp_path / "seed"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "sizes": [1, 2, {"three": 3.0}], "flag": True})
    )
    header = {name: {"dtype": "F32", "shape": [2, 2]} for name in "abc"}
    (folder / "model.safetensors").write_bytes(join_safetensors(header, dict.fromkeys("abc", bytes(16))))
    (folder / "recipe.yaml").write_text("scheme: w8a8\nrules:\n- {role: ffn, scheme: w8a8}\n")
    return folder


def test_nearly_all_mutated_files_still_parse(seed: Path, tmp_path: Path) -> None:
    contents = {file.name: file.read_bytes() for file in seed.iterdir()}
    other, parsed, same = seed.rename(tmp_path / "other"), [], 0
    for number in range(100):
        seed.mkdir(exist_ok=True)
        for name, content in contents.items():
            (seed / name).write_bytes(content)
        changed = mutate(seed, [other], Random(number))
        parsed += [good for _, good in changed]
        same += {file.name: file.read_bytes() for file in seed.iterdir()} == contents
    assert len(parsed) > 100
    assert sum(parsed) / len(parsed) > 0.6
    assert same < 10


def test_a_file_of_tensors_is_taken_apart_and_put_together(seed: Path) -> None:
    content = (seed / "model.safetensors").read_bytes()
    assert join_safetensors(*split_safetensors(content)) == content


def test_strangers_files_end_in_a_result_or_an_error_of_ours(tmp_path: Path) -> None:
    """In a process of its own, which has one thread when it forks."""
    figures = tmp_path / "fuzz.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inputs", "200", "--quantized", "4", "--few", "--json", str(figures)],
        capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(figures.read_text())
    assert found["inputs"] == 204
    assert found["parsed"] > 0.5
    assert found["ended"]["open: result"] > 20
    assert found["ended"]["plan: result"] > 0
