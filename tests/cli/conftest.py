"""Records with long names, and a language model that says what it is told."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitwright.cli import terminal
from bitwright.generate.processors import Choice
from bitwright.generate.sequence import Generation, Step


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both consoles 80 characters wide, whatever the terminal of whoever runs the tests."""
    for console in (terminal.out, terminal.err):
        monkeypatch.setattr(console, "width", 80)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that anything left behind is seen."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[..., Path]) -> Path:
    """Directory of a small random language model with the tokenizer of the small encoders."""
    return tiny_model("llama", hidden_size=64, head_dim=16, intermediate_size=96, max_position_embeddings=64)


@pytest.fixture(scope="session")
def language_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a mixture of experts with long names, some starved, judged by perplexity."""
    rows = [
        {
            "name": f"model.layers.{block}.{name}", "block": block, "role": "expert" if "experts" in name else "qkv",
            "unit": name, "scheme": "w4a16_g128_asym", "method": "awq_gptq",
        }
        for block in range(12)
        for name in ("self_attn.q_proj", *(f"mlp.experts.{i}.gate_up_proj" for i in range(10)))
    ]  # fmt: skip
    cost = {"shape": [3072, 768], "bytes_before": 9_437_184, "bytes_after": 1_371_584, "reason": "default scheme"}
    account = {"fallback": False, "error_rtn": 0.123456, "error": 0.1012, "sqnr_db": 19.9, "cosine": 0.99487}
    starved = {"n_tokens": 3, "fewest": 32, "policy": "rtn"}
    layers = [row | account | ({"starved": starved} if "experts.7" in row["name"] else {}) for row in rows]
    metric = {"name": "perplexity", "kind": "language model", "unit": "windows", "label_free": False,
              "higher_is_better": False,
              "protocol": "wiki.test.raw, first 40 non-overlapping windows of 1024 tokens, no BOS"}  # fmt: skip
    scores = {"metric": metric, "float_score": 24.13, "quantized_score": 24.5, "n_held_out": 20}
    return record | {
        "model": {"name": "org/a-language-model-with-a-rather-long-name", "task": "text-generation"},
        "plan": [row | cost for row in rows], "layers": layers, "speed": None, "sensitivity": None,
        "evaluation": record["evaluation"] | scores,
    }  # fmt: skip


@pytest.fixture(scope="session")
def record() -> dict[str, Any]:
    """A record with the longest names that models of everyday use have."""
    linears = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    plan = [
        {
            "name": f"bert.encoder.layer.{block}.{name}", "block": block, "role": "attention_output", "unit": name,
            "shape": [3072, 768], "scheme": "w8a8_static_symmetric", "method": "rtn", "bytes_before": 9_437_184,
            "bytes_after": 2_371_584, "reason": "default scheme",
        }
        for block in range(12)
        for name in linears
    ]  # fmt: skip
    plan.append(
        plan[0]
        | {
            "name": "bert.embeddings.word_embeddings",
            "role": "embedding",
            "scheme": "16bit",
            "reason": "a long reason " * 9,
        }
    )
    return {
        "record_version": 1, "bitwright_version": "0.1.0", "created": "2025-03-04T10:20:30+00:00",
        "command": "bitwright quantize m", "exit_code": 3,
        "model": {"name": "sentence-transformers/paraphrase-multilingual-mpnet-base-v2", "model_type": "bert"},
        "recipe": {"scheme": "w8a8"}, "plan": plan,
        "evaluation": {
            "metric": {"name": "Spearman of pairwise similarities with float", "kind": "label-free", "unit": "texts",
                       "label_free": True, "higher_is_better": True},
            "n_tuning": 500, "n_held_out": 500, "float_score": 1.0, "quantized_score": 0.98, "loss": 0.0123,
            "loss_lower": 0.0101, "loss_upper": 0.0149, "confidence": 0.95, "max_loss": 0.01, "verdict": "not met",
            "sentence": "loss 1.23 %", "needed_samples": None, "companions": {"top1_neighbour_agreement": 0.9333},
        },
        "size": {"source_bytes": 1_112_345_678, "checkpoint_bytes": 412_345_678},
        "speed": {"threads": 16, "peak_rss_mib": {"bitwright": 1388.6}, "rows": [
            {"runtime": "bitwright", "batch": 64, "tokens": 512, "median_ms": 12345.6, "min_ms": 12000.0,
             "per_second": 5.2, "ratio_to_fp32": 2.41}]},
        "verify": [
            {"target": "bitwright", "ok": True, "checks": {}, "detail": "reloaded"},
            {"target": "transformers", "ok": None, "checks": {},
             "detail": "not checked: compressed_tensors not installed"},
            {"target": "sentence-transformers", "ok": False, "checks": {},
             "detail": "loading or running failed: " + "x " * 80},
        ],
        "warnings": [], "timings_s": {"total": 754.2},
        "environment": {"cpu": "Intel(R) Xeon(R) Platinum 8480+ Processor @ 2.00GHz", "isa": "avx512vnni"},
    }  # fmt: skip


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed, which must fit 80 columns."""
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert max(map(len, lines)) <= 80
    return lines


class Speaker:
    """A language model that says the same to everyone, a letter at a time, and writes down what it was asked."""

    task, backend = "text-generation", "engine:test"

    def __init__(self, path: Path, says: str = "Yes, I do.", reason: Any = "stop") -> None:
        self.path, self.says, self.reason = path, says, reason
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.conversations: list[list[dict[str, Any]]] = []
        self.stopped_after: int | None = None  # tokens, then Ctrl-C

    def chat_prompt(self, messages: list[dict[str, Any]], tools: Any = None) -> list[int]:
        self.conversations.append(messages)
        return [len(messages), len(str(messages[-1]["content"]))]

    def stream(self, prompt: str | list[int], **asked: Any) -> Iterator[Step]:
        self.asked.append((prompt, asked))
        for i, letter in enumerate(self.says):
            if i == self.stopped_after:
                raise KeyboardInterrupt
            yield Step(i, letter, finish_reason=self.reason if i == len(self.says) - 1 else None)

    def generate(self, prompts: Any, **asked: Any) -> list[Generation]:
        self.asked.append((prompts, asked))
        scores = (Choice(3, -0.5, ((3, -0.5),)),) if asked.get("logprobs") else None
        error = "NaN" if self.reason == "error" else None
        return [Generation(self.says, (3, 4), self.reason, scores, 2, error) for _ in prompts]


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Speaker:
    """What `bitwright.load` gives; `speaker.loaded` are its arguments. It has a chat template."""
    made = Speaker(tmp_path / "model")
    made.path.mkdir()
    (made.path / "config.json").write_text("{}")
    (made.path / "chat_template.jinja").write_text("{{ messages }}")

    def load(directory: str, **options: Any) -> Speaker:
        made.loaded = (directory, options)  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr("bitwright.load", load)
    return made
