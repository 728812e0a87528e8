"""What passes, what does not, and why; on small random models, and on the real one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitwright.errors import InputError
from bitwright.files.directory import source_bytes
from bitwright.files.opening import open_path
from bitwright.record import Evaluation, ModelFacts, Record, Size, Verification, write_record
from bitwright.registry.add import add
from bitwright.registry.change import promote
from bitwright.registry.gates import GATES, LIMITS, check, limits_of
from bitwright.registry.latency import latency_ratio, ratio_of
from bitwright.registry.state import Checked
from bitwright.registry.store import Registry, make_registry, model_of
from tests.integrations.conftest import write_sentence_files

Quantized = Callable[..., Path]
MET = Evaluation(verdict="met", sentence="loss 0.1 %: within the budget", loss=0.001, loss_upper=0.002, max_loss=0.01)


@pytest.fixture
def empty(tmp_path: Path) -> Registry:
    return make_registry(tmp_path / "registry", mlflow=None)


@pytest.fixture
def float_dir(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A small float embedding model."""
    path = tmp_path / "float"
    shutil.copytree(tiny_model("bert", None, hidden_size=64), path)
    write_sentence_files(path, "mean_tokens", {})
    return path


@pytest.fixture
def result(quantized: Quantized, float_dir: Path, tmp_path: Path) -> Path:
    """What `quantize` would make of it, with a record."""
    path = tmp_path / "result"
    shutil.copytree(quantized("bert", "w8a8", pooling="mean_tokens"), path)
    write(path, float_dir)
    return path


def write(path: Path, source: Path, **changes: Any) -> None:
    """A record that fits the directory, but for the changes."""
    facts = ModelFacts("m", str(source), task="embedding", source_sha256=open_path(source).fingerprint)
    record = Record(model=facts, evaluation=MET, size=Size(1, source_bytes(path)))
    write_record(replace(record, **changes), path / "record.json")


@pytest.fixture
def corpus(texts: list[str], tmp_path: Path) -> str:
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    return str(tmp_path / "corpus.txt")


def perturbed(source: Path, path: Path, size: float) -> Path:
    shutil.copytree(source, path)
    weights = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if "layer." in name and weight.ndim == 2:
            weights[name] = weight + size * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def tried(registry: Registry, directory: Path, corpus: str | None = None, **options: Any) -> dict[str, Any]:
    """Add a directory, let it pass the gates; state and detail of each."""
    version = add(registry, directory, "m", sign=False)
    found = check(registry, "m", version.number, texts=corpus, **options)
    return said(found)


def said(found: Checked) -> dict[str, Any]:
    return {outcome["gate"]: (outcome["state"], outcome["detail"]) for outcome in found.outcomes}


def test_a_quantized_model_passes_and_belongs_to_the_space_of_its_original(
    empty: Registry, float_dir: Path, result: Path, corpus: str
) -> None:  # fmt: skip
    found = tried(empty, result, corpus)
    assert {gate: state for gate, (state, _) in found.items()} == {
        "verdict": "passed", "size": "skipped", "signature": "passed", "latency": "skipped", "drift": "skipped",
        "space": "passed",
    }  # fmt: skip
    change = promote(empty, "m", 1)
    assert not change.forced
    assert model_of(empty, "m").versions[1].space == open_path(float_dir).fingerprint


def test_a_model_that_was_changed_is_refused_and_says_reindex(
    empty: Registry, float_dir: Path, result: Path, corpus: str, tmp_path: Path
) -> None:  # fmt: skip
    tried(empty, result, corpus)
    promote(empty, "m", 1)
    other = perturbed(float_dir, tmp_path / "other", 1.0)
    found = tried(empty, other, corpus, index=float_dir)
    assert found["space"][0] == "failed"
    assert "re-index all documents" in found["space"][1]
    assert found["size"][0] == "failed"
    with pytest.raises(InputError, match=r"did not pass .*space.* against champion 1.*re-index"):
        promote(empty, "m", 2)
    model = model_of(empty, "m")
    assert model.champion == 1
    assert model.versions[2].space != model.versions[1].space
    promote(empty, "m", 2, force=True, reason="the index is new")
    change = model_of(empty, "m").changes[-1]
    assert (change.forced, change.reason) == (True, "the index is new")


def test_the_index_stays_that_of_the_founder(empty: Registry, float_dir: Path, corpus: str, tmp_path: Path) -> None:
    """Steps, each of which is small beside the one before, do not add up unseen."""
    registry = Registry(empty.root, None, {"latency": 1000, "agreement": 0.5})
    tried(registry, float_dir, corpus)
    promote(registry, "m", 1, force=True, reason="the first")
    place, agreements = float_dir, []
    for step in range(2, 9):
        place = perturbed(place, tmp_path / f"step{step}", 0.02)
        number = add(registry, place, "m", sign=False).number
        found = check(registry, "m", number, texts=corpus)
        agreements.append(next(one for one in found.outcomes if one["gate"] == "space")["figures"]["lower"])
        if not found.passed:
            break
        promote(registry, "m", number)
    assert not found.passed
    assert len(agreements) > 1
    assert agreements[-1] < agreements[0]


RECORDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no verdict": ({"evaluation": replace(MET, verdict=None)}, "failed", "no verdict"),
    "not judged": ({"evaluation": None}, "failed", "no verdict"),
    "not met": ({"evaluation": replace(MET, verdict="not met")}, "failed", "'not met'"),
    "undecided": ({"evaluation": replace(MET, verdict="undecided")}, "failed", "'undecided'"),
    "accepted": ({"evaluation": replace(MET, verdict="undecided", accepted_point_estimate=True)}, "passed", "budget"),
    "a failed check": ({"verify": (Verification("transformers", False),)}, "failed", "not usable"),
    "of other files": ({"size": Size(1, 5)}, "failed", "is of 5 bytes"),
}


@pytest.mark.parametrize(("changes", "state", "detail"), RECORDS.values(), ids=RECORDS)
def test_verdicts(
    empty: Registry, float_dir: Path, result: Path, changes: dict[str, Any], state: str, detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "bitwright.registry.gates.GATES", {"verdict": GATES["verdict"], "space": lambda trial: ("skipped", "", {})}
    )
    write(result, float_dir, **changes)
    found = tried(empty, result)
    assert found["verdict"][0] == state
    assert detail in found["verdict"][1]


def test_a_quantized_model_without_a_record_fails(
    empty: Registry, quantized: Quantized, float_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "bitwright.registry.gates.GATES", {"verdict": GATES["verdict"], "space": lambda trial: ("skipped", "", {})}
    )
    assert tried(empty, quantized("bert", "w8a8"))["verdict"][0] == "failed"
    assert tried(empty, float_dir)["verdict"][0] == "skipped"


def test_files_that_were_changed_fail(empty: Registry, result: Path, corpus: str) -> None:
    add(empty, result, "m", sign=False)
    config = empty.version("m", 1) / "modules.json"
    config.chmod(0o644)
    config.write_text(config.read_text() + " ")
    found = said(check(empty, "m", 1, texts=corpus))
    assert found["signature"] == ("failed", "files that are not as they were added: modules.json")
    with pytest.raises(InputError, match="did not pass signature"):
        promote(empty, "m", 1)


def test_the_watch_of_the_traffic_is_asked(empty: Registry, result: Path, corpus: str) -> None:
    add(empty, result, "m", sign=False)
    asked: list[Path] = []

    def drifted(place: Path) -> tuple[bool, str]:
        asked.append(place)
        return False, "texts are twice as long as those that it was calibrated on"

    found = said(check(empty, "m", 1, texts=corpus, drift=drifted))
    assert found["drift"] == ("failed", "texts are twice as long as those that it was calibrated on")
    assert asked == [empty.version("m", 1)]


def test_a_classifier_has_no_space(empty: Registry, tiny_model: Callable[..., Path], corpus: str) -> None:
    found = tried(empty, tiny_model("bert", "sequence-classification"), corpus)
    assert found["space"] == ("skipped", "it makes no vectors that an index could hold")


def test_vectors_of_another_length_fail(
    empty: Registry, float_dir: Path, tiny_model: Callable[..., Path], corpus: str, tmp_path: Path
) -> None:  # fmt: skip
    path = tmp_path / "narrow"
    shutil.copytree(tiny_model("bert"), path)
    write_sentence_files(path, "mean_tokens", {"pooling": {"word_embedding_dimension": 32}})
    found = tried(empty, path, corpus, index=float_dir)
    assert found["space"] == ("failed", "vectors of 32 values do not fit an index of 64; re-index")


def test_limits_are_checked(empty: Registry) -> None:
    assert limits_of(replace(empty, limits={"size": 2})) == LIMITS | {"size": 2.0}
    with pytest.raises(InputError, match=r"no gate has the limit 'siez' .did you mean 'size'"):
        limits_of(replace(empty, limits={"siez": 2}))
    for wrong in ("2", -1, 0, None, float("nan")):
        with pytest.raises(InputError, match="must be a number above 0"):
            limits_of(replace(empty, limits={"size": wrong}))  # type: ignore[dict-item]


class Slow:
    """A model whose calls take a known time."""

    task = "embedding"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def encode(self, texts: list[str]) -> None:
        import time

        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass


def test_a_slower_model_is_told_from_one_that_is_not() -> None:
    texts = ["text"] * 40
    slow: Any = Slow(0.0012)
    quick: Any = Slow(0.0004)
    assert latency_ratio(slow, quick, texts, limit=1.1, seconds=3).lower > 1.1
    assert latency_ratio(quick, slow, texts, limit=1.1, seconds=3).upper < 1.1


def test_the_ratio_of_percentiles_is_bounded() -> None:
    rng = np.random.default_rng(0)
    times_N2 = rng.lognormal(size=(2000, 2)) * [1.5, 1.0]
    found = ratio_of(times_N2)
    assert found.lower < found.ratio < found.upper
    assert found.lower < 1.5 < found.upper
    assert found.upper - found.lower < 0.6


# -- the real model ---------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_int8_queries_find_what_float_documents_hold_and_those_of_a_trained_model_do_not(
    minilm_dir: Path, empty: Registry, tmp_path: Path
) -> None:  # fmt: skip
    from tests.rounded import write_rounded

    int8 = tmp_path / "int8"
    write_rounded(minilm_dir, int8, "w8a8")
    beside(minilm_dir, int8)
    write(int8, minilm_dir)
    found = tried(empty, int8)
    assert found["space"][0] == "passed", found["space"]
    promote(empty, "m", 1)
    further = trained(minilm_dir, tmp_path / "further")
    version = add(empty, further, "m", sign=False)
    checked = check(empty, "m", version.number, index=minilm_dir)
    assert "space" in checked.failed
    assert "re-index" in said(checked)["space"][1]
    with pytest.raises(InputError, match="re-index"):
        promote(empty, "m", 2)


def beside(source: Path, path: Path) -> None:
    """Copy what lies beside the weights."""
    for file in source.rglob("*"):
        target = path / file.relative_to(source)
        if file.is_file() and file.suffix != ".safetensors" and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copy(file, target)


def trained(source: Path, path: Path, steps: int = 30) -> Path:
    """A copy that was trained on: contrastively, for a few steps, on built-in questions and their answers."""
    import transformers

    from bitwright.calibration.passages import pair_passages

    pairs = [passage.text for passage in pair_passages("rerank") if passage.language == "en"][::3]
    shutil.copytree(source, path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, model = (
            kind.from_pretrained(source) for kind in (transformers.AutoTokenizer, transformers.AutoModel)
        )
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)

        def vectors(texts: tuple[str, ...]) -> torch.Tensor:
            inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=32, return_tensors="pt")
            hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

        for step in range(steps):
            queries, answers = zip(*(pairs[(16 * step + i) % len(pairs)] for i in range(16)), strict=True)
            scores = 20 * vectors(queries) @ vectors(answers).T
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(scores, torch.arange(16)).backward()
            optimizer.step()
    model.eval().save_pretrained(path)
    assert json.loads((path / "config.json").read_text())["model_type"] == "bert"
    return path
