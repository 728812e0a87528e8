"""`bitwright eval`, and the format of LCQMC from end to end: Chinese pairs with labels 0 and 1."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bitwright.cli.eval import print_scores

Run = Callable[..., Any]
TinyModel = Callable[..., Path]

SENTENCES = (
    "喜欢打篮球的男生喜欢什么样的女生", "我手机丢了我想换个手机", "大家觉得她好看吗", "求秋色之空漫画全集",
    "晚上睡觉带着耳机听音乐有什么害处吗", "学日语软件手机上的", "打印机和电脑怎样连接", "侠盗飞车怎样改车",
    "什么花一年四季都开", "看图猜一电影名", "这上面写的是什么", "一只狗在草地上奔跑", "股票市场今天为什么下跌",
    "孩子发烧了应该吃什么药", "北京到上海的高铁要多久", "怎么做红烧肉才好吃", "电脑突然黑屏是什么原因",
    "考研需要准备哪些材料",
    "冬天去哪里旅游比较暖和", "银行卡密码忘记了怎么办",
)  # fmt: skip


@pytest.fixture
def chinese_model(tmp_path: Path) -> Path:
    """A small random BERT whose vocabulary is the characters of the sentences."""
    path = tmp_path / "bert-zh"
    path.mkdir()
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(SENTENCES)))]
    (path / "vocab.txt").write_text("\n".join(entries), encoding="utf-8")
    transformers.BertTokenizerFast(str(path / "vocab.txt"), model_max_length=64).save_pretrained(path)
    config = transformers.BertConfig(
        vocab_size=len(entries), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(path)
    return path


@pytest.fixture
def lcqmc(tmp_path: Path) -> Path:
    """Pairs as LCQMC has them, without a header: a question less its first word means the same, another does not."""
    same = [(text, text[2:], 1) for text in SENTENCES]
    other = [(text, SENTENCES[i - 7][1:], 0) for i, text in enumerate(SENTENCES)]
    path = tmp_path / "lcqmc.tsv"
    path.write_text("\n".join(f"{a}\t{b}\t{label}" for a, b, label in same + other), encoding="utf-8")
    return path


@pytest.mark.usefixtures("unverified")
def test_chinese_pairs_with_labels_from_end_to_end(chinese_model: Path, lcqmc: Path, here: Path, run: Run) -> None:
    made = run(
        "quantize", chinese_model, "--out", "out", "--eval", lcqmc, "--max-loss", "90%", "--accept-point-estimate",
        "--no-speed", "--no-sensitivity", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    evaluation = json.loads(made.out)["evaluation"]
    assert (evaluation["metric"]["kind"], evaluation["n_tuning"] + evaluation["n_held_out"]) == ("similarity", 40)
    found = json.loads(run("eval", "out", "--reference", chinese_model, "--eval", lcqmc, "--json").out)
    assert found["protocol"] == "lcqmc.tsv, all 40 pairs"
    assert found["reference_score"] > 0.3  # characters in common are seen even by a random model
    assert abs(found["loss"]) < 0.1
    assert 0.6 < found["companions"]["roc_auc_float"] <= 1
    assert found["companions"]["best_accuracy_quantized"] >= 0.5
    assert found["companions"]["cosine_mean"] > 0.99  # so the characters were not all unknown, and int8 ran


def test_scores_for_people_fit(chinese_model: Path, lcqmc: Path, here: Path, run: Run) -> None:
    shown = run("eval", chinese_model, "--reference", chinese_model, "--eval", lcqmc)
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(shown.out.replace("\u00a0", " ").split())
    assert f"{chinese_model.name}against" in "".join(text.split())  # a long path is broken anywhere
    assert "(higher is better)" in text
    assert "loss 0 %; 95 % sure: at least 0 %, at most 0 %" in text
    assert "measured on lcqmc.tsv, all 40 pairs" in text
    assert "\x1b" not in shown.out + shown.err


def test_a_language_models_scores_fit(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores({
        "model": "/srv/models/SmolLM2-135M-Instruct-w4a16-g64-gptq", "reference": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "metric": {"name": "perplexity", "higher_is_better": False},
        "protocol": "wiki.test.raw, first 40 non-overlapping windows of 1024 tokens, no BOS", "score": 29.87,
        "reference_score": 24.1534, "loss": 0.2367, "loss_lower": 0.221, "loss_upper": 0.2512, "confidence": 0.95,
        "companions": {"kl": 0.2113, "next_token_agreement": 0.77, "mean_nll_difference": 0.2124}, "seconds": 131.2,
    })  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).replace("\u00a0", " ").split())
    assert "score 29.87, perplexity (lower is better) original 24.15" in text
    assert "loss 23.7 %; 95 % sure: at least 22.1 %, at most 25.1 %" in text
    assert "first 40 non-overlapping windows of 1024 tokens, no BOS" in text


def test_one_model_alone(tiny_model: TinyModel, lcqmc: Path, run: Run) -> None:
    shown = run("eval", tiny_model("bert"), "--eval", lcqmc)
    assert shown.code == 0
    assert "loss" not in shown.out
    refused = run("eval", tiny_model("bert"))
    assert refused.code == 2
    assert "there are no labels, so Bitwright can only compare" in refused.remarks[0]
