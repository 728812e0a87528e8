"""`analyze`: what quantizing each linear does, measured three ways, against what the definitions give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.models.load import load_model
from bitwright.pipeline import Texts, analyze
from bitwright.pipeline.gradients import fisher_rows
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.layer_errors import layers_by_error
from bitwright.pipeline.swapped import fold_in, only_quantized, quantized_modules
from bitwright.pipeline.variants import quantize_model
from bitwright.progress import Quiet
from bitwright.quantizing.layers import Quantized
from bitwright.recipe import Recipe, make_recipe
from bitwright.runtime.generic_model import GenericModel

TinyModel = Callable[..., Path]


def recipe_of(scheme: str = "w8a8", method: str = "rtn") -> Recipe:
    calibration = {"samples": 16, "max_tokens": 48, "batch_size": 8}
    return make_recipe({"scheme": scheme, "method": method, "targets": ["bitwright"], "calibration": calibration})


def quantized_job(source: Path, folder: Path, recipe: Recipe, samples: int = 40) -> tuple[Job, Quantized]:
    job = open_job(source, recipe, Texts(samples=samples))
    return job, quantize_model(job, folder, Quiet())


def test_a_language_model_gives_the_output_error_of_every_linear(trained_decoder: Path) -> None:
    found = analyze(trained_decoder, recipe=recipe_of("w4a16_g32"), samples=24)
    assert found.keys() == {"model", "layers"}
    errors = [row["error"] for row in found["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 3 * 7
    assert all(0 < error < 0.5 for error in errors)
    assert {row["n_tokens"] for row in found["layers"]} == {4 * 48}  # a window of each kind that choices are made on


def test_errors_are_those_of_the_linears_own_outputs(trained_decoder: Path, tmp_path: Path) -> None:
    job, quantized = quantized_job(trained_decoder, tmp_path, recipe_of("w4a16_g32"))
    rows = {row.name: row for row in layers_by_error(job, quantized, Quiet())}
    name = "model.layers.2.mlp.down_proj"
    model = load_model(trained_decoder).model
    seen: list[Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        model(input_ids=torch.tensor(job.scored.tuning.texts))
    weight, x_MK = model.get_parameter(f"{name}.weight").detach(), seen[0]
    lost = x_MK @ (weight - quantized.layers[name].load().weight.dequantize()).T
    expected = float(lost.norm() / (x_MK @ weight.T).norm())
    assert rows[name].error == pytest.approx(expected, rel=0.02)  # calibration multiplies in bf16 where it can


def test_an_encoder_gives_distances_and_what_else_is_known(tiny_model: TinyModel) -> None:
    plain = analyze(tiny_model("bert"), recipe=recipe_of(), samples=16)
    assert {"rows", "units", "groups"} < plain.keys()
    assert not {"layers", "fisher"} & plain.keys()
    more = analyze(tiny_model("bert"), recipe=recipe_of("w4a16_g32", "gptq"), samples=16, fisher=True)
    units = {row["name"] for row in more["units"]}
    assert {row["name"] for row in more["fisher"]} == {row["unit"] for row in more["layers"]} == units
    scores = [row["fisher"] for row in more["fisher"]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


def test_fisher_score_of_an_embedding_model_is_the_squared_change_of_its_direction(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    job, quantized = quantized_job(tiny_model("bert"), tmp_path, recipe_of(), samples=80)
    scores = {row["name"]: row["fisher"] for row in fisher_rows(job, quantized, Quiet())}
    model, texts = job.model.generic, list(job.scored.probe)
    original = directions(model, texts)
    modules = quantized_modules(quantized)
    for unit in ("encoder.layer.0.qkv", "encoder.layer.1.intermediate.dense"):
        with only_quantized(model.hf, modules, members(job, unit)):
            change = np.square(directions(model, texts) - original).sum(axis=1).mean()
        assert scores[unit] == pytest.approx(change, rel=0.3)


def members(job: Job, unit: str) -> frozenset[str]:
    return frozenset(site.name for site in job.opened.sites if site.unit == unit)


def directions(model: GenericModel, texts: list[str]) -> Any:
    rows = np.asarray(model.encode(texts), dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("sequence-classification", {}),
        ("sequence-classification", {"num_labels": 1}),
        ("sequence-classification", {"problem_type": "multi_label_classification"}),
        ("token-classification", {}),
        ("question-answering", {}),
    ],
)
def test_every_kind_of_output_has_gradients(
    tiny_model: TinyModel, tmp_path: Path, task: str, config: dict[str, Any]
) -> None:
    job, quantized = quantized_job(tiny_model("bert", task, **config), tmp_path, recipe_of(), samples=10)
    scores = [row["fisher"] for row in fisher_rows(job, quantized, Quiet())]
    assert len(scores) == 8
    assert min(scores) > 0


@pytest.mark.parametrize(("scheme", "method"), [("w4a16_g32", "rtn"), ("w8a8", "smoothquant")])
def test_fisher_scores_of_a_language_model_are_the_divergence_of_its_predictions(
    trained_decoder: Path, tmp_path: Path, scheme: str, method: str
) -> None:
    job, quantized = quantized_job(trained_decoder, tmp_path, recipe_of(scheme, method), samples=16)
    assert bool(quantized.changed) == (method == "smoothquant")
    scores = {row["name"]: row["fisher"] for row in fisher_rows(job, quantized, Quiet())}
    model = load_model(trained_decoder).model
    ids = torch.tensor(job.scored.tuning.texts)
    source = log_probabilities(model, ids)
    fold_in(model, quantized.changed)
    modules = quantized_modules(quantized)
    before = log_probabilities(model, ids)
    assert torch.allclose(before, source, atol=0.02)  # the same function, but that folded weights are kept in bf16
    ratios = []
    for unit, score in scores.items():
        with only_quantized(model, modules, members(job, unit)):
            after = log_probabilities(model, ids)
        ratios.append(score / (2 * float((before.exp() * (before - after)).sum()) / len(ids)))
    assert np.median(ratios) == pytest.approx(1, rel=0.4)  # of 8 windows, 4 scalars each


def log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids).logits[:, :-1].double()
    return logits.log_softmax(-1)


def test_a_language_model_whose_gradients_do_not_fit_is_refused(
    trained_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = type("Memory", (), {"available": 10_000})()
    monkeypatch.setattr("bitwright.pipeline.gradients.psutil.virtual_memory", lambda: few)
    with pytest.raises(InputError, match=r"gradients of the whole model.* GB are free. Leave it out"):
        analyze(trained_decoder, recipe=recipe_of("w4a16_g32"), samples=16, fisher=True)
