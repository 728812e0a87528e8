"""A model that reads pairs is calibrated and judged on pairs; on single texts there is no verdict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright
from bitwright.errors import DataError
from bitwright.evaluate.kinds import pairs_in
from bitwright.pipeline import analyze, preview
from bitwright.pipeline.evaluation import evaluate
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import Texts
from bitwright.pipeline.variants import calibration_batches
from bitwright.recipe import make_recipe

pytestmark = pytest.mark.usefixtures("unverified")

TinyModel = Callable[..., Path]
QUICK: dict[str, Any] = {"samples": 60, "speed": False, "sensitivity": False}
HERE = {"targets": ["bitwright"], "budget": {"max_loss": 0.9}}


@pytest.fixture
def reranker(tiny_model: TinyModel) -> Path:
    return tiny_model("bert", "sequence-classification", num_labels=1)


@pytest.fixture
def pairs(tmp_path: Path, texts: list[str]) -> str:
    path = tmp_path / "pairs.tsv"
    rows = [f"{a}\t{b}\t{i % 7}" for i, (a, b) in enumerate(zip(texts[:120:2], texts[1:120:2], strict=True))]
    path.write_text("\n".join(["query\tdocument\tscore", *rows]), encoding="utf-8")
    return str(path)


def job_of(model: Path, data: str = "", recipe: Any = None, **given: Any) -> Job:
    given["data"] = (data,) if data else ()
    return open_job(model, make_recipe(recipe or HERE), Texts(**given, samples=40))


@pytest.fixture
def singles(tmp_path: Path, texts: list[str]) -> str:
    (tmp_path / "single.txt").write_text("\n".join(texts), encoding="utf-8")
    return str(tmp_path / "single.txt")


def test_single_texts_are_no_verdict_whatever_is_accepted(reranker: Path, singles: str, tmp_path: Path) -> None:
    recipe = make_recipe(HERE | {"budget": {"max_loss": 0.9, "accept_point_estimate": True}})
    result = bitwright.quantize(reranker, out=tmp_path / "out", recipe=recipe, data=singles, **QUICK)
    evaluation = result.record["evaluation"]
    assert (evaluation["verdict"], result.exit_code) == ("not judged on pairs", 3)
    assert not evaluation["accepted_point_estimate"]
    assert evaluation["metric"]["unit"] == "texts"
    assert "it puts out one score, as rerankers do" in evaluation["sentence"]
    assert "--data FILE#FIRST,SECOND" in evaluation["sentence"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "it is not judged as it is used" in card
    assert "Not judged on pairs" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", ["sequence-classification", "question-answering"])
def test_pairs_without_labels_are_a_verdict(task: str, tiny_model: TinyModel, tmp_path: Path, pairs: str) -> None:
    model = tiny_model("bert", task, **({"num_labels": 1} if task == "sequence-classification" else {}))
    result = bitwright.quantize(model, out=tmp_path / "out", recipe=make_recipe(HERE), data=pairs, **QUICK)
    evaluation = result.record["evaluation"]
    assert (evaluation["verdict"], result.exit_code) == ("met", 0)
    assert (evaluation["metric"]["unit"], evaluation["n_held_out"]) == ("pairs", 30)
    assert not any("reads pairs" in warning for warning in result.record["warnings"])


@pytest.mark.parametrize(
    ("task", "labels"), [("sequence-classification", 1), ("sequence-classification", 3), ("question-answering", 2)]
)
def test_built_in_pairs_are_a_verdict(task: str, labels: int, tiny_model: TinyModel) -> None:
    """A model that says nothing of pairs is judged on single texts; rerankers, NLI and question answering on pairs."""
    names = {"id2label": {0: "entailment", 1: "neutral", 2: "contradiction"}} if labels == 3 else {}
    job = job_of(tiny_model("bert", task, num_labels=labels, **names))
    assert job.scored.missing_pairs is None
    for side in (job.scored.tuning, job.scored.held_out):
        assert len(pairs_in(side.texts)) == len(side.texts) == len(side.text_kinds)
    assert len(set(job.scored.held_out.text_kinds)) >= 6


def test_labels_of_pairs_are_a_verdict(reranker: Path, pairs: str) -> None:
    job = job_of(reranker, evaluation=pairs)
    assert job.scored.missing_pairs is None
    assert job.scored.held_out.kind.metric == "Spearman of score"


def test_a_metric_of_one_s_own_is_a_verdict(reranker: Path, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(encode):\n    return encode([('a', 'b'), ('c', 'd')])[:, 0]\n")
    assert job_of(reranker, metric=f"{tmp_path / 'm.py'}:f").scored.missing_pairs is None


def test_a_model_that_reads_single_texts_is_judged_on_them(tiny_model: TinyModel) -> None:
    for task in ("embedding", "sequence-classification", "token-classification"):
        assert job_of(tiny_model("bert", task)).scored.missing_pairs is None


def test_calibration_sees_pairs(reranker: Path, pairs: str) -> None:
    static = HERE | {"scheme": "w8a8_static", "calibration": {"samples": 16}}
    job = job_of(reranker, pairs, static)
    assert not any("single texts" in warning for warning in job.warnings)
    assert not set(job.scored.calibration) & {*job.scored.tuning.texts, *job.scored.held_out.texts}
    separators = [int((batch["input_ids"] == 3).sum()) for batch in calibration_batches(job)]
    assert sum(separators) == 2 * len(job.scored.calibration)  # [CLS] a [SEP] b [SEP]
    beside_labels = job_of(reranker, "", static, evaluation=pairs)
    assert pairs_in(beside_labels.scored.calibration)
    assert not any("single texts" in warning for warning in beside_labels.warnings)


def test_sources_that_do_not_fit_are_refused(
    reranker: Path, tiny_model: TinyModel, pairs: str, tmp_path: Path, texts: list[str]
) -> None:
    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    with pytest.raises(DataError, match=r"holds pairs of texts, but .* holds single texts"):
        open_job(reranker, make_recipe(HERE), Texts((pairs, str(tmp_path / "t.txt"))))
    with pytest.raises(DataError, match="a model for embedding reads single texts; name one"):
        job_of(tiny_model("bert"), f"{pairs}#query,document")
    with pytest.raises(DataError, match="a model for text-generation reads single texts; name one"):
        job_of(tiny_model("llama"), f"{pairs}#query,document")
    assert len(job_of(tiny_model("bert"), f"{pairs}#document").scored.held_out.texts) == 20


def test_what_makes_no_result_takes_pairs(reranker: Path, pairs: str) -> None:
    assert preview(reranker, texts=Texts((pairs,), samples=20))["plan"]
    found = analyze(reranker, data=pairs, samples=20, fisher=True, recipe=make_recipe(HERE))
    assert found["metric"] == "Spearman of scores with float"
    assert all(row["fisher"] > 0 for row in found["fisher"])


def test_gradients_are_those_of_pairs_with_their_types(
    reranker: Path, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def remember(self: Any, *args: Any, **inputs: Any) -> Any:
        seen.append(inputs.get("token_type_ids"))
        return forward(self, *args, **inputs)

    bert = type(bitwright.load(reranker).hf)
    forward = bert.forward
    monkeypatch.setattr(bert, "forward", remember)
    analyze(reranker, data=pairs, samples=8, fisher=True, recipe=make_recipe(HERE))
    with_gradients = seen[-1]
    assert with_gradients is not None
    assert torch.unique(with_gradients).tolist() == [0, 1]


def test_evaluate_says_what_it_was_that_it_compared(reranker: Path, pairs: str, singles: str) -> None:
    found = evaluate(reranker, reference=reranker, data=pairs, samples=20)
    assert (found["metric"]["unit"], found["loss"]) == ("pairs", 0)
    assert found["protocol"].startswith("20 pairs of ")
    found = evaluate(reranker, reference=reranker, samples=20, data=singles)
    assert "single texts, but this model reads pairs (it puts out one score" in found["protocol"]
    found = evaluate(reranker, reference=reranker, samples=20)
    assert "built-in pairs of 12 kinds" in found["protocol"]
    assert len(found["kinds"]) == 12
    assert evaluate(reranker, evaluation=pairs)["metric"]["name"] == "Spearman of score"
