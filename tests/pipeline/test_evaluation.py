"""`evaluate`: the score is the model's own, the loss is against the reference, and what does not fit is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bitwright.errors import DataError, InputError
from bitwright.pipeline.evaluation import evaluate

TinyModel = Callable[..., Path]
MAX_TOKENS = 48


class Counted:
    """Progress that remembers what was counted."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def track(self, items: Any, what: str) -> Any:
        self.counts[what] = len(items)
        return iter(items)

    def say(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Callable[[float], Path]:
    """`decoder(noise)`: a small random Llama with a tokenizer, its weights moved by as much noise."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(text_file)], trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", model_max_length=MAX_TOKENS
    )
    made: dict[float, Path] = {}

    def make(noise: float = 0.0) -> Path:
        if noise in made:
            return made[noise]
        made[noise] = tmp_path_factory.mktemp("llama")
        config = transformers.LlamaConfig(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=MAX_TOKENS, initializer_range=0.2,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                parameter += noise * torch.randn_like(parameter)
        model.save_pretrained(made[noise])
        wrapped.save_pretrained(made[noise])
        return made[noise]

    return make


def pairs_file(path: Path, texts: list[str]) -> Path:
    rows = "\n".join(f"{a}\t{b}\t{i % 6}" for i, (a, b) in enumerate(zip(texts[:80:2], texts[1:80:2], strict=True)))
    path.write_text(f"sentence1\tsentence2\tscore\n{rows}\n", encoding="utf-8")
    return path


def test_perplexity_is_what_the_models_own_loss_gives(decoder: Callable[..., Path], text_file: Path) -> None:
    progress = Counted()
    found = evaluate(decoder(), evaluation=text_file, window=32, windows=5, progress=progress)
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder())
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder())
    ids = torch.tensor(tokenizer(text_file.read_text(encoding="utf-8"))["input_ids"][: 5 * 32]).reshape(5, 32)
    with torch.no_grad():
        losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in ids]
    assert found["score"] == pytest.approx(math.exp(sum(losses) / 5), rel=1e-4)
    assert found["protocol"] == "prose.txt, first 5 non-overlapping windows of 32 tokens, no BOS"
    assert (found["n_units"], found["metric"]["unit"], found["metric"]["higher_is_better"]) == (5, "windows", False)
    assert (found["reference_score"], found["loss"], found["companions"]) == (None, None, {})
    assert progress.counts == {"windows": 5}


def test_a_reference_tells_the_rise_the_divergence_and_the_agreement(
    decoder: Callable[..., Path], text_file: Path
) -> None:
    settings: dict[str, Any] = {"data": str(text_file), "windows": 6, "bos": True}
    found = evaluate(decoder(0.02), reference=decoder(), **settings)
    alone = [evaluate(decoder(noise), **settings)["score"] for noise in (0.02, 0.0)]
    assert [found["score"], found["reference_score"]] == pytest.approx(alone, rel=1e-6)
    assert found["loss"] == pytest.approx(alone[0] / alone[1] - 1, rel=1e-3)
    assert found["loss_lower"] <= found["loss"] <= found["loss_upper"]
    assert found["companions"]["kl"] > 0
    assert 0 < found["companions"]["next_token_agreement"] < 1
    assert found["companions"]["mean_nll_difference"] == pytest.approx(math.log(alone[0] / alone[1]), rel=1e-3)
    assert "6 non-overlapping windows of 48 tokens, each begun with BOS" in found["protocol"]


def test_a_model_against_itself_lost_nothing(decoder: Callable[..., Path], text_file: Path) -> None:
    found = evaluate(decoder(), reference=decoder(), evaluation=text_file, windows=4)
    assert (found["loss"], found["loss_lower"], found["loss_upper"]) == (0, 0, 0)
    assert found["companions"] == {"kl": 0, "next_token_agreement": 1, "mean_nll_difference": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 49}, "windows of 49 tokens are too long: .* takes at most 48"),
        ({"kind": "similarity"}, "--kind similarity is not for language models"),
        ({"data": "other.txt"}, "on one text, but 2 were given"),
    ],
)
def test_options_that_do_not_fit_a_language_model(
    decoder: Callable[..., Path], text_file: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(decoder(), evaluation=text_file, **settings)


def test_a_text_shorter_than_a_window_is_refused_with_both_numbers(
    decoder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("A few words.")
    with pytest.raises(DataError, match=r"short\.txt: the text has \d+ tokens, but a window needs 48; give more text"):
        evaluate(decoder(), evaluation=tmp_path / "short.txt")


def test_an_encoder_is_scored_by_labels(tiny_model: TinyModel, tmp_path: Path, texts: list[str]) -> None:
    pairs, progress = pairs_file(tmp_path / "pairs.tsv", texts), Counted()
    alone = evaluate(tiny_model("bert"), evaluation=pairs)
    found = evaluate(tiny_model("bert"), reference=tiny_model("bert"), evaluation=pairs, progress=progress)
    assert alone["score"] == found["score"] == found["reference_score"]
    assert found["protocol"] == "pairs.tsv, all 40 pairs"
    assert found["companions"]["cosine_mean"] == pytest.approx(1)
    assert set(progress.counts) == {"texts, the model"}  # the reference is the library's


def test_an_encoder_without_labels_needs_a_reference(tiny_model: TinyModel, texts: list[str]) -> None:
    with pytest.raises(InputError, match="--eval, or the float model with --reference"):
        evaluate(tiny_model("bert"), samples=30)
    other = tiny_model("bert", layer_norm_eps=0.1)
    prose = "builtin#documentation"
    found = evaluate(other, reference=tiny_model("bert"), data=prose, samples=30, seed=3)
    assert (found["n_units"], found["reference_score"], found["metric"]["label_free"]) == (30, 1, True)
    assert 0 < found["loss"] < 1
    assert found["protocol"] == f"30 texts of {prose}, drawn with seed 3, without labels"
    found = evaluate(other, reference=tiny_model("bert"), samples=30)
    assert (found["n_units"], len(found["kinds"])) == (144, 18)  # few samples: eight of a kind
    assert found["loss"] == pytest.approx(sum(kind["loss"] for kind in found["kinds"]) / 18)
    assert found["protocol"].startswith("144 built-in texts of 18 kinds (English, ")


def test_a_metric_of_ones_own(tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def size(encode):\n    return (encode(['a list', 'a class']) ** 2).sum(axis=1)\n")
    found = evaluate(tiny_model("bert"), metric=f"{tmp_path}/own.py:size")
    assert (found["n_units"], found["metric"]["kind"]) == (2, "custom")
    with pytest.raises(InputError, match="--metric and --eval both"):
        evaluate(tiny_model("bert"), metric=f"{tmp_path}/own.py:size", evaluation="pairs.tsv")


def test_what_does_not_fit_an_encoder(
    tiny_model: TinyModel, decoder: Callable[..., Path], tmp_path: Path, texts: list[str]
) -> None:
    with pytest.raises(InputError, match="and --bos are for language models, and this model's task is embedding"):
        evaluate(tiny_model("bert"), window=32)
    pairs = pairs_file(tmp_path / "a.tsv", texts)
    with pytest.raises(
        DataError, match="similarity scores embeddings, but this model's task is sequence-classification"
    ):
        evaluate(tiny_model("bert", "sequence-classification"), evaluation=pairs, kind="similarity")
    with pytest.raises(InputError, match=r"task is text-generation, but the task of .* is embedding"):
        evaluate(tiny_model("bert"), reference=decoder(), samples=30)


def test_a_reference_that_reads_other_tokens_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(InputError, match="have different vocabularies"):
        evaluate(tiny_model("bert"), reference=tiny_model("roberta"), samples=30)
