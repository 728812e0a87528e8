"""prepare, any Trainer, convert, write: and what cannot be trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from bitwright.errors import InputError, RecipeError
from bitwright.numerics.schemes import SCHEMES
from bitwright.recipe import make_recipe
from bitwright.runtime.load import load
from bitwright.training.callback import delayed
from bitwright.training.fake import FakeLinear, rounded_start
from bitwright.training.prepare import convert, fake_linears, prepare, transformer_of
from bitwright.training.write import write_trained

TinyModel = Callable[..., Path]


@pytest.fixture
def bert(tiny_model: TinyModel) -> Any:
    return AutoModel.from_pretrained(tiny_model("bert"))


def test_every_planned_linear_is_in_training_and_back(bert: Any) -> None:
    names = list(bert.state_dict())
    parameters = dict(bert.named_parameters())
    plan = prepare(bert, "w4a8_channel")
    fakes = dict(fake_linears(bert))
    assert set(fakes) == {row.name for row in plan if row.is_linear and SCHEMES[row.scheme].weight is not None}
    assert set(names) <= set(bert.state_dict())
    assert all(bert.get_parameter(name) is value for name, value in parameters.items())
    ids = torch.randint(5, 100, (2, 9))
    codes = {name: fake.quantized().weight.codes_NK for name, fake in fakes.items()}
    made = convert(bert)
    assert list(bert.state_dict()) == names
    assert all(torch.equal(made[name].weight.codes_NK, codes[name]) for name in codes)
    assert not list(fake_linears(bert))
    assert bool(bert(input_ids=ids).last_hidden_state.isfinite().all())


def test_a_recipe_keeps_linears_in_float(bert: Any) -> None:
    recipe = make_recipe({"scheme": "w4a8_channel", "rules": [{"role": "ffn", "scheme": "16bit"}]})
    prepare(bert, recipe)
    assert isinstance(bert.encoder.layer[0].attention.self.query, FakeLinear)
    assert type(bert.encoder.layer[0].intermediate.dense) is nn.Linear


def test_a_module_around_a_model_is_looked_into(bert: Any) -> None:
    around = nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": bert}))
    assert transformer_of(around) is bert
    prepare(around, "w8a8")
    assert convert(around)


def test_what_cannot_be_trained_is_named(bert: Any, tiny_model: TinyModel) -> None:
    with pytest.raises(InputError, match=r"query: cannot be trained: w8a8_static needs calibrated input scales"):
        prepare(bert, "w8a8_static")
    with pytest.raises(RecipeError, match="quantizes no linear"):
        prepare(bert, "16bit")
    with pytest.raises(InputError, match="holds no transformers model"):
        prepare(nn.Linear(2, 2), "w8a8")
    with pytest.raises(InputError, match=r"call prepare\(model, scheme\) first"):
        convert(bert)
    assert not list(fake_linears(bert))
    prepare(bert, "w8a8")
    with pytest.raises(InputError, match="in training already"):
        prepare(bert, "w8a8")
    half = AutoModel.from_pretrained(tiny_model("bert"), dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"bfloat16 weights; load the model in float32"):
        prepare(half, "w8a8")
    tied = AutoModelForCausalLM.from_pretrained(tiny_model("llama", tie_word_embeddings=True))
    recipe = make_recipe({"scheme": "w4a16_channel", "rules": [{"role": "head", "scheme": "w4a16_channel"}]})
    with pytest.raises(InputError, match=r"lm_head: cannot be trained: .*embed_tokens has the same weight"):
        prepare(tied, recipe)


def test_a_start_of_another_shape_is_refused(bert: Any) -> None:
    spec = SCHEMES["w4a8_channel"].weight
    assert spec is not None
    name = "encoder.layer.0.attention.self.query"
    with pytest.raises(InputError, match=r"query: its weight is \(32, 32\), but the start is \(8, 32\)"):
        prepare(bert, "w4a8_channel", start={name: rounded_start(nn.Linear(32, 8), spec, None)})


def test_shares_of_the_callback_leave_steps_on_the_grids(bert: Any) -> None:
    with pytest.raises(InputError, match="together below 1"):
        delayed(bert, after=0.7, ramp=0.3)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 150, (32, 12), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones(12, dtype=torch.long), "labels": int(row[0] % 2)} for row in ids
    ]


def trainer_of(model: nn.Module, rows: list[dict[str, Any]], folder: Path, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=8, learning_rate=1e-3, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[delayed(model, after=0.5)])


def test_a_trainer_of_transformers_trains_and_the_engine_runs_it(
    tiny_model: TinyModel, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = tiny_model("bert", "sequence-classification")
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    plan = prepare(model, "w4a8_channel")
    trainer_of(model, rows, tmp_path / "run").train()
    ids = torch.stack([row["input_ids"] for row in rows])
    with torch.no_grad():
        simulated = model.eval()(input_ids=ids).logits
    linears = convert(model)
    model.save_pretrained(tmp_path / "saved")
    for file in source.glob("*token*"):
        (tmp_path / "saved" / file.name).write_bytes(file.read_bytes())
    loaded = load(write_trained(linears, plan, tmp_path / "saved", tmp_path / "out"))
    assert loaded.backend.startswith("engine")
    got = torch.from_numpy(loaded.encode(ids.tolist()))
    apart = (got - simulated).square().mean().sqrt()  # tables and head are stored in bf16, and ties fall elsewhere
    assert float(apart) < 0.03 * float(simulated.std())
