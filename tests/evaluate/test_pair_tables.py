"""Labelled pairs, for models that read both texts together."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from bitwright.errors import DataError
from bitwright.evaluate import labelled_task, paired_bootstrap, shared_texts, split
from bitwright.evaluate.companions import companions
from bitwright.evaluate.kinds import Classification, Ranking

RERANKER = SimpleNamespace(num_labels=1, id2label={0: "LABEL_0"})
NLI = SimpleNamespace(num_labels=3, id2label={0: "contradiction", 1: "entailment", 2: "neutral"})
PLAIN = SimpleNamespace(num_labels=2, id2label={0: "no", 1: "yes"})


def table(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows]).replace(",", "\t"), encoding="utf-8")
    return str(path)


def rows(n: int, labels: int) -> list[str]:
    return [f"q{i},p{i},{i % labels}" for i in range(n)]


def scored(spec: str, config: Any, evidence: str | None = None, kind: str | None = None) -> Any:
    return labelled_task("sequence-classification", config, spec, kind, evidence)


def test_a_reranker_is_scored_by_the_rank_of_its_scores(tmp_path: Path) -> None:
    task = scored(table(tmp_path / "t.tsv", "query,passage,score", *rows(40, 5)), RERANKER)
    assert isinstance(task.kind, Ranking)
    assert task.texts[7] == ("q7", "p7")
    outputs, gold = np.random.default_rng(0).normal(size=(40, 1)), np.arange(40) % 5
    assert task.score(outputs) == pytest.approx(spearmanr(outputs[:, 0], gold).statistic)
    float_outputs = outputs + gold[:, None]
    interval = paired_bootstrap(task, float_outputs, float_outputs + 0.01 * outputs)
    assert (interval.n_units, interval.unit) == (40, "pairs")
    assert task.loss(float_outputs, float_outputs) == 0
    assert {"kendall", "rank_flips"} <= companions(task.kind, float_outputs, float_outputs).keys()


def test_of_two_labels_the_scores_that_tell_them_apart_stand_beside(tmp_path: Path) -> None:
    task = scored(table(tmp_path / "t.tsv", "query,document,label", *rows(40, 2)), RERANKER)
    right = np.arange(40)[:, None] % 2 + 0.0
    found = companions(task.kind, right, 1 - right)
    assert (found["roc_auc_float"], found["roc_auc_quantized"]) == (1, 0)


def test_the_ranking_within_each_query_stands_beside(tmp_path: Path) -> None:
    """Against scikit-learn's nDCG of each query; a query with one text, or without a relevant one, has no ranking."""
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    lines = [f"q{i // 5},p{i},{i * 7 % 4}" for i in range(20)] + ["alone,p,3", *(f"none,p{i},0" for i in range(3))]
    task = scored(table(tmp_path / "t.tsv", "query,document,score", *lines), RERANKER)
    outputs = np.random.default_rng(0).normal(size=(len(lines), 2, 1))
    found = companions(task.kind, outputs[:, 0], outputs[:, 1])
    gold = np.arange(20).reshape(4, 5) * 7 % 4
    for i, model in enumerate(("float", "quantized")):
        assert found[f"ndcg_at_10_{model}"] == pytest.approx(ndcg_score(gold, outputs[:20, i, 0].reshape(4, 5), k=10))
    kind, _ = task.kind.select(np.arange(10, 24), task.texts)
    assert "ndcg_at_10_float" in companions(kind, outputs[10:, 0], outputs[10:, 1])


def test_classes_of_pairs_are_named_by_the_model(tmp_path: Path) -> None:
    labelled = ["a b,c,Neutral", "d,e f,entailment", "g,h,0", "i,k,neutral"]
    task = scored(table(tmp_path / "t.tsv", "premise,hypothesis,label", *labelled), NLI, "its labels")
    assert isinstance(task.kind, Classification)
    assert list(task.kind.gold_U) == [2, 1, 0, 2]
    assert task.score(np.eye(3)[[2, 1, 0, 0]]) == 0.75


def test_a_classifier_reads_what_the_table_has(tmp_path: Path) -> None:
    single = scored(table(tmp_path / "t.tsv", "text,label", "a,yes", "b,no"), PLAIN)
    pairs = scored(table(tmp_path / "p.tsv", "x,y,label", "a,b,yes", "c,d,no") + "#x,y", PLAIN)
    assert (single.texts, pairs.texts) == (("a", "b"), (("a", "b"), ("c", "d")))


def test_pairs_that_share_a_text_stay_on_one_side(tmp_path: Path) -> None:
    chained = [f"q{i // 4},p{i},{i % 3}" for i in range(40)]
    tuning, held_out = split(scored(table(tmp_path / "t.tsv", "query,document,score", *chained), RERANKER), seed=0)
    assert not shared_texts(tuning, held_out)
    assert {len(tuning.texts), len(held_out.texts)} == {20}


@pytest.mark.parametrize(
    ("config", "header", "lines", "spec", "message"),
    [
        (RERANKER, "text,label", ["a,1", "b,0"], "", "this model reads pairs of texts (one score). Give a table"),
        (NLI, "text,label", ["a,neutral"], "", "two columns of texts, such as sentence1 and sentence2, and a col"),
        (RERANKER, "query,document", ["a,b"], "", "If the texts have other names, write t.tsv#FIRST,SECOND"),
        (RERANKER, "x,y,score", ["a,b,1"], "#x,z", "no column z; the columns are x, y, score"),
        (RERANKER, "x,y,score", ["a,b,1"], "#x", "Give a table with two columns"),
        (RERANKER, "query,document,score", ["a,b,1", "c,,0"], "", "line 3: document is missing or empty"),
        (RERANKER, "query,document,score", ["a,b,high"], "", "line 2: score 'high' is not a number"),
        (RERANKER, "query,document,score", ["a,b,1", "c,d,1"], "", "all 2 scores are 1"),
        (RERANKER, "query,document,score", [], "", "this file has no rows"),
        (NLI, "premise,hypothesis,label", ["a,b,maybe"], "", "line 2: label 'maybe' is not a class of the model"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_pairs_is_refused(
    tmp_path: Path, config: Any, header: str, lines: list[str], spec: str, message: str
) -> None:
    path = table(tmp_path / "t.tsv", header, *lines)
    with pytest.raises(DataError) as caught:
        scored(f"{path}{spec}", config, "one score")
    assert message in str(caught.value)


def test_other_refusals_name_what_to_do(tmp_path: Path) -> None:
    pairs = table(tmp_path / "t.tsv", "question,context,label", "a,b,1")
    with pytest.raises(
        DataError, match=r"task is question-answering\. Leave --eval out: .* on pairs of question and con"
    ):
        labelled_task("question-answering", PLAIN, pairs)
    with pytest.raises(DataError, match="no such file"):
        scored(str(tmp_path / "none.tsv"), RERANKER, "one score")
    with pytest.raises(DataError, match="this model reads pairs"):
        scored(pairs, RERANKER, "one score", kind="classification")
