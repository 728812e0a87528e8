"""What the verdict rests on: data on one side only, measurements that are never mistaken for others."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitwright
from bitwright.errors import DataError, InputError, ModelError, RecipeError, TargetError
from bitwright.pipeline import analyze, quantize
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import Texts, make_texts, reproducing_command, resolve_recipe
from bitwright.recipe import Recipe, make_recipe

TinyModel = Callable[..., Path]
HERE = make_recipe({"targets": ["bitwright"], "budget": {"max_loss": 0.5}})
STATIC = make_recipe({"scheme": "w8a8_static", "targets": ["bitwright"], "calibration": {"samples": 40}})
QUICK: dict[str, Any] = {"samples": 60, "speed": False, "sensitivity": False}


def write_pairs(path: Path, pairs: list[tuple[str, str]], score: Callable[[int], int] = lambda i: i % 6) -> str:
    rows = "\n".join(f"{a}\t{b}\t{score(i)}" for i, (a, b) in enumerate(pairs))
    path.write_text(f"sentence1\tsentence2\tscore\n{rows}\n", encoding="utf-8")
    return str(path)


def scored(job: Job) -> set[str]:
    return set(job.scored.tuning.texts) | set(job.scored.held_out.texts)


def test_no_text_is_on_two_sides(tiny_model: TinyModel) -> None:
    job = open_job(tiny_model("bert"), STATIC, Texts(samples=100))
    sides = [set(job.scored.tuning.texts), set(job.scored.held_out.texts), set(job.scored.calibration)]
    kinds = [set(job.scored.tuning.text_kinds), set(job.scored.held_out.text_kinds)]
    assert [len(side) for side in sides] == [8 * len(kinds[0]), 8 * len(kinds[1]), 40]  # few samples: eight of a kind
    assert len(set.union(*sides)) == sum(map(len, sides))
    assert not kinds[0] & kinds[1]
    assert set(job.scored.probe) <= sides[0]
    assert job.warnings == []
    assert "English" in job.scored.languages
    assert "Chinese" in job.scored.unread


def test_calibration_avoids_the_labelled_texts(tiny_model: TinyModel, tmp_path: Path, texts: list[str]) -> None:
    pairs = write_pairs(tmp_path / "pairs.tsv", list(zip(texts[:80:2], texts[1:80:2], strict=True)))
    (tmp_path / "all.txt").write_text("\n".join(texts[:150]), encoding="utf-8")
    job = open_job(tiny_model("bert"), STATIC, Texts((str(tmp_path / "all.txt"),), evaluation=pairs))
    assert len(job.scored.calibration) == 40  # all of what was asked for: none goes to a metric that is not used
    assert not scored(job) & set(job.scored.calibration)


def test_too_few_calibration_texts_are_refused(tiny_model: TinyModel, tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "few.txt").write_text("\n".join(texts[:10]), encoding="utf-8")
    with pytest.raises(DataError, match="static ranges"):
        open_job(tiny_model("bert"), STATIC, Texts((str(tmp_path / "few.txt"),)))


def test_texts_that_no_split_can_part_are_mentioned(tiny_model: TinyModel, tmp_path: Path, texts: list[str]) -> None:
    pairs = write_pairs(tmp_path / "pairs.tsv", [(texts[0], text) for text in texts[1:60]])
    job = open_job(tiny_model("bert"), HERE, Texts(evaluation=pairs))
    assert any("1 texts are in the tuning data and in the held-out data" in warning for warning in job.warnings)


def test_measurements_are_keyed_by_everything_they_depend_on(
    tiny_model: TinyModel, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, metric, pairs = tiny_model("bert"), tmp_path / "m.py", list(zip(texts[:40], texts[40:80], strict=True))
    seen = set()

    def context(recipe: Recipe = HERE, **given: Any) -> None:
        seen.add(tuple(open_job(source, recipe, Texts(**given)).context().values()))

    context(samples=60)
    context(samples=60)
    assert len(seen) == 1
    context(samples=600)
    context(evaluation=write_pairs(tmp_path / "a.tsv", pairs))
    context(evaluation=write_pairs(tmp_path / "a.tsv", pairs, score=lambda i: (i + 1) % 6))
    for factor in (1, 2):
        metric.write_text(f"def f(encode):\n    return {factor} * encode(['a list', 'a class'])[:, 0] ** 2\n")
        context(metric=f"{metric}:f")
    context(make_recipe({"scheme": "w8a8_symmetric"}), samples=60)
    context(HERE.with_fallback(("encoder.layer.0.qkv",), ""), samples=60)
    assert len(seen) == 8
    context(make_recipe({"targets": ["bitwright"], "budget": {"max_loss": 0.1}}), samples=60)
    assert len(seen) == 8  # a budget changes what is decided, not what is measured
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    try:
        context(samples=60)
    finally:
        (source / "sentence_bert_config.json").unlink()
    assert len(seen) == 9


def test_two_runs_do_not_share_a_destination(tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / ".out.bitwright").mkdir()
    with (tmp_path / ".out.bitwright" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is writing here"):
            quantize(tiny_model("bert"), out=tmp_path / "out", recipe=HERE, **QUICK)


def test_what_appears_at_the_destination_meanwhile_is_kept(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*args: Any) -> list[Any]:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious.txt").write_text("mine")
        return []

    monkeypatch.setattr("bitwright.pipeline.facts.verify", meanwhile)
    with pytest.raises(InputError, match="exists already"):
        quantize(tiny_model("bert"), out=tmp_path / "out", recipe=HERE, **QUICK)
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


def test_a_target_that_fails_the_check_fails_the_run(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"target": "transformers", "ok": False, "checks": {}, "detail": "broken"}
    monkeypatch.setattr("bitwright.pipeline.facts.verify", lambda *args: [row])
    result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=HERE, **QUICK)
    assert (result.exit_code, result.record["exit_code"]) == (1, 1)
    assert "transformers: broken" in result.record["warnings"]


def test_a_model_that_computes_otherwise_is_caught(tiny_model: TinyModel, tmp_path: Path) -> None:
    """The clean process must give the same bits as the model in memory: damage the staged file and it does not."""
    from safetensors.torch import load_file, save_file

    import bitwright.checkpoints.write as writing

    def damage(*args: Any, **kwargs: Any) -> Any:
        written = write(*args, **kwargs)
        file = args[1] / "model.safetensors"
        tensors = load_file(file)
        tensors["encoder.layer.1.output.dense.weight"][0] += 1
        save_file(tensors, file, metadata={"format": "pt"})
        return written

    write = writing.write_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "write_checkpoint", damage)
        result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=HERE, **QUICK)
    assert [row["ok"] for row in result.record["verify"]] == [False]
    assert result.exit_code == 1


def test_a_plan_that_quantizes_nothing_is_still_checked(tiny_model: TinyModel, tmp_path: Path) -> None:
    recipe = make_recipe({"scheme": "16bit", "targets": ["bitwright"]})
    result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=recipe, **QUICK)
    assert [(row["ok"], row["checks"]["integer_kernel_calls"]) for row in result.record["verify"]] == [(True, 0)]
    assert result.exit_code == 0


def test_short_names_for_short_calls(tiny_model: TinyModel, tmp_path: Path) -> None:
    assert make_texts("a.txt", None, None, None, 10).data == ("a.txt",)
    for wrong in ("1%", 1.5, 0.0):
        with pytest.raises(RecipeError, match="a fraction between 0 and 1"):
            resolve_recipe(None, wrong)  # type: ignore[arg-type]
    assert resolve_recipe(None, 0.02).budget.max_loss == 0.02
    (tmp_path / "data.jsonl").write_text('{"text": "mine"}\n')
    with pytest.raises(InputError, match="is not a journal"):
        bitwright.analyze(tiny_model("bert"), recipe=HERE, samples=60, journal=tmp_path / "data.jsonl")
    assert (tmp_path / "data.jsonl").read_text() == '{"text": "mine"}\n'
    assert "--eval 'my pairs.tsv'" in reproducing_command("m", Path("o"), Recipe(), Texts(evaluation="my pairs.tsv"))


def test_heads_are_not_quantized_for_runtimes_that_would_do_it_otherwise(
    tiny_model: TinyModel, texts: list[str]
) -> None:
    source = tiny_model("bert", "sequence-classification")
    rules: dict[str, Any] = {"rules": [{"role": "head", "scheme": "w8a8"}]}
    with pytest.raises(TargetError, match=r"would quantize its 2-D input as one tensor.* --target bitwright"):
        open_job(source, make_recipe(rules | {"targets": ["vllm"]}), Texts(samples=60))
    plan = open_job(source, make_recipe(rules | {"targets": ["bitwright"]}), Texts(samples=60)).plan
    assert {row.scheme for row in plan if row.role == "head"} == {"w8a8"}


def test_a_tokenizer_whose_code_came_with_the_model_is_refused_before_the_work(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result holds no code: loaded, it would make other tokens of the same text."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = Path(shutil.copytree(tiny_model("bert"), tmp_path / "model"))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "words.Words"]}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "words.py").write_text("from transformers import BertTokenizer\nclass Words(BertTokenizer):\n    pass\n")
    for trusted, wanted in (
        (False, r"tokenizer_config\.json: auto_map = "),
        (True, r"Words has its own code \(words"),
    ):
        with pytest.raises(ModelError, match=wanted):
            open_job(source, HERE, Texts(samples=60), trust_remote_code=trusted)


@pytest.mark.parametrize(
    ("family", "asked", "why"),
    [
        ("gpt2", {"scheme": "w4a16"}, "keeps its weight transposed"),
        ("mixtral", {"scheme": "w8a8"}, "reads a mixture of experts only if"),
        ("bert", {"scheme": "nf4"}, "does not accept the scheme 'nf4"),
        ("bert", {"embeddings": "int8"}, "cannot read int8 embedding tables"),
        ("bert", {"method": "smoothquant"}, "transforms the input"),
        ("bert", {"rules": [{"role": "head", "scheme": "w8a8"}]}, "would quantize its 2-D input as one tensor"),
    ],
)
def test_default_targets_give_way_and_named_ones_do_not(
    family: str, asked: dict[str, Any], why: str, tiny_model: TinyModel, tiny_decoder: Callable[..., Path]
) -> None:
    source = tiny_model(family) if family == "bert" else tiny_decoder(family)
    job = open_job(source, make_recipe(asked), Texts(samples=60))
    assert job.recipe.targets == ("bitwright",)
    assert len(job.dropped) == 1
    assert job.dropped[0].startswith("the result is not made for transformers")
    assert why in job.dropped[0]
    with pytest.raises(TargetError, match=rf"{why}.*targets: \[bitwright\] in the recipe"):
        open_job(source, make_recipe(asked | {"targets": ["bitwright", "transformers"]}), Texts(samples=60))


def test_targets_fit_every_recipe_that_the_search_tries(tiny_decoder: Callable[..., Path]) -> None:
    """With one expert in 16 bit transformers cannot stack them; what is asked of it was known of the plan before."""
    job = open_job(tiny_decoder("mixtral"), make_recipe({"scheme": "w4a16"}), Texts(samples=60))
    assert (job.recipe.targets, job.dropped) == (("bitwright", "transformers"), ())
    expert = next(row.unit for row in job.plan if row.role == "expert")
    tried = job.with_recipe(job.recipe.with_fallback((expert,), "sensitive"))
    assert tried.recipe.targets == ("bitwright",)
    assert "reads a mixture of experts only if" in tried.dropped[0]
    assert tried.with_recipe(job.recipe).dropped == ()


def test_targets_by_argument(tmp_path: Path) -> None:
    assert resolve_recipe(None).targets is None
    assert resolve_recipe(HERE, targets="vllm").targets == ("vllm",)
    assert resolve_recipe(HERE, targets=["bitwright", "vllm"]).targets == ("bitwright", "vllm")
    with pytest.raises(TargetError, match=r"'vlm' is unknown \(did you mean 'vllm'\?\)"):
        quantize(tmp_path / "nowhere", out=tmp_path / "o", targets=["vlm"])


def test_analysis_goes_on_from_its_journal(tiny_model: TinyModel, tmp_path: Path) -> None:
    first = analyze(tiny_model("bert"), recipe=HERE, samples=40, journal=tmp_path / "j")
    lines = (tmp_path / "j").read_text().splitlines()
    (tmp_path / "j").write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])  # stopped while writing the sixth
    assert analyze(tiny_model("bert"), recipe=HERE, samples=40, journal=tmp_path / "j") == first


def test_a_language_model_judged_on_the_built_in_prose(tiny_decoder: Callable[..., Path]) -> None:
    """The one evaluation text that is no file."""
    recipe = make_recipe({"scheme": "w8a16", "targets": ["bitwright"]})
    job = open_job(tiny_decoder("llama"), recipe, Texts(evaluation="builtin"))
    assert job.scored.tuning.kind.name == "language model"


def test_experts_share_a_group_size_that_suits_all_their_linears(tiny_decoder: Callable[..., Path]) -> None:
    source = tiny_decoder("mixtral", hidden_size=64, intermediate_size=96)
    plan = open_job(source, make_recipe({"scheme": "w4a16", "targets": ["bitwright"]}), Texts()).plan
    experts = [row for row in plan if row.role == "expert"]
    assert {row.shape[1] for row in experts} == {64, 96}
    assert {row.scheme for row in experts} == {"w4a16_g32"}
    assert "their K are 64 and 96, so g32" in experts[0].reason
    assert {row.scheme for row in plan if row.role == "qkv"} == {"w4a16_g64"}


def test_what_stands_beside_is_of_other_kinds_than_those_given(tiny_model: TinyModel) -> None:
    beside = open_job(tiny_model("bert"), HERE, Texts(("builtin#law", "builtin#news"), samples=60)).scored.elsewhere
    assert beside is not None
    assert len(set(beside.text_kinds)) >= 6
    assert not {"law", "news"} & set(beside.text_kinds)
    every = Texts(("builtin", "builtin#law"), samples=60)
    assert open_job(tiny_model("bert"), HERE, every).scored.elsewhere is None
