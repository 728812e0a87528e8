"""What a model is for: witnesses that agree decide, witnesses that contradict each other ask, and the reply is kept."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.pooling import Pooling
from bitwright.files.sentences import read_sentences
from bitwright.files.task import TASK_KEY, find_task, pair_evidence

Written = Callable[..., ModelDirectory]
POOLED = ["Transformer", "Pooling", "Normalize"]
CLASSIFIER, LM = {"classifier.weight": (3, 8)}, {"lm_head.weight": (9, 8)}
QWEN = {"model_type": "qwen3"}
CROSS = {"st": "CrossEncoder"}
THREE = {"id2label": {"0": "a", "1": "b", "2": "c"}}


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """`written(of, modules, heads, st, task, beside, **config)`: a directory that says so."""

    def write(
        of: str | None = None, modules: list[str] | None = None, heads: Mapping[str, tuple[int, int]] = {},
        st: Any = None, task: Any = None, beside: str | None = None, **config: Any,
    ) -> ModelDirectory:  # fmt: skip
        named = {"architectures": [of]} if of else {}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **named, **config}))
        if modules is not None:
            rows = [
                {"path": kind if i else "", "type": f"sentence_transformers.models.{kind}"}
                for i, kind in enumerate(modules)
            ]
            (tmp_path / "modules.json").write_text(json.dumps(rows))
        if beside is not None:
            (tmp_path / beside).write_text(json.dumps({"max_seq_length": 9}))
        if st is not None:
            (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"model_type": st}))
        tensors = {"encoder.weight": (8, 8), **heads}
        save_file(
            {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, tmp_path / "model.safetensors"
        )
        return ModelDirectory(tmp_path, task)

    return write


@pytest.mark.parametrize(
    ("said", "task"),
    [
        ({}, "embedding"),
        ({"of": "BertModel"}, "embedding"),
        ({"of": "BertForMaskedLM"}, "embedding"),
        ({"of": "BertForMaskedLM", "heads": {"cls.predictions.decoder.weight": (9, 8)}}, "embedding"),
        ({"of": "BertForSequenceClassification", "heads": CLASSIFIER, **THREE}, "sequence-classification"),
        ({"of": "BertForTokenClassification", "heads": CLASSIFIER, **THREE}, "token-classification"),
        ({"of": "BertForSequenceClassification", "st": "CrossEncoder"}, "sequence-classification"),
        ({"heads": {"qa_outputs.weight": (2, 8)}}, "question-answering"),
        # sentence-transformers builds the bare model, whatever class it was pretrained as
        ({"of": "Qwen3ForCausalLM", **QWEN, "modules": POOLED}, "embedding"),
        (
            {"of": "Qwen3ForCausalLM", **QWEN, "modules": POOLED, "heads": LM},
            "embedding",
        ),
        ({"of": "BertForMaskedLM", "modules": POOLED, "st": "SentenceTransformer"}, "embedding"),
        ({"of": "BertForMultipleChoice", "modules": POOLED}, "embedding"),
        ({"of": "BertForSequenceClassification", "modules": POOLED}, "embedding"),  # its head is not there
        ({"of": "Qwen3ForCausalLM", **QWEN}, "text-generation"),
        (
            {"of": "Qwen3ForCausalLM", **QWEN, "modules": ["Transformer", "LogitScore"], **CROSS},
            "sequence-classification",
        ),
        # files of sentence-transformers that its modules.json is missing from fit what it makes
        ({"beside": "sentence_bert_config.json"}, "embedding"),
        ({"of": "BertModel", "beside": "sentence_roberta_config.json"}, "embedding"),
        ({"of": "BertForSequenceClassification", "beside": "sentence_bert_config.json"}, "sequence-classification"),
        (CROSS, "sequence-classification"),
        ({**QWEN, "heads": LM, "modules": POOLED}, "embedding"),
        # not the head that the config counts: something beside the model
        ({"of": "BertModel", "heads": {"classifier.weight": (7, 8)}, **THREE}, "embedding"),
    ],
)  # fmt: skip
def test_witnesses_that_agree_decide(written: Written, said: dict[str, Any], task: str) -> None:
    assert find_task(written(**said)) == task


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (
            {"of": "BertModel", "heads": CLASSIFIER, **THREE},
            ["BertModel", r"classifier\.weight \(3 × 8\)", "embedding or sequence-.* or token-classification$"],
        ),
        ({"heads": CLASSIFIER, **THREE}, ["classifier", ": sequence-classification or token-classification$"]),
        ({"of": "BertForQuestionAnswering", "heads": CLASSIFIER, **THREE}, ["BertForQuestionAnswering", "classifier"]),
        (
            {"of": "BertForSequenceClassification", "modules": POOLED, "heads": CLASSIFIER, **THREE},
            [r"modules\.json has a Pooling", "BertForSequenceClassification"],
        ),
        ({"of": "Qwen3Model", **QWEN, "heads": LM}, ["lm_head", "Qwen3Model"]),
        ({**QWEN, "heads": LM}, [r"lm_head\.weight \(9 × 8\)", "names no class", ": embedding or text-generation$"]),
        (
            {"of": "Qwen3ForCausalLM", **QWEN, "heads": LM, "beside": "sentence_bert_config.json"},
            ["Qwen3ForCausalLM", "sentence_bert_config.json is a file of sentence-transformers"],
        ),
        (
            {"of": "BertForQuestionAnswering", "beside": "config_sentence_transformers.json"},
            ["BertForQuestionAnswering", "config_sentence_transformers.json is a file of"],
        ),
    ],
)  # fmt: skip
def test_witnesses_that_contradict_each_other_are_all_named(
    written: Written, said: dict[str, Any], named: list[str]
) -> None:
    for word in ["--task", *named]:
        with pytest.raises(ModelError, match=word):
            find_task(written(**said))
    assert find_task(written(**said, task="embedding")) == "embedding"
    assert find_task(written(**said, **{TASK_KEY: "token-classification"})) == "token-classification"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"of": "BertForMultipleChoice"}, "BertForMultipleChoice in config.json is for none of the tasks"),
        (
            {"of": "BertForMaskedLM", "st": "SparseEncoder"},
            "a SparseEncoder of sentence-transformers, ",
        ),
        (
            {"of": "BertForMaskedLM", "modules": ["Transformer", "SpladePooling"]},
            "a SpladePooling of ",
        ),
        ({"of": "BertModel", "st": "ColBERT", "task": "embedding"}, "a ColBERT of .* a vector per token"),
        ({"task": "poetry"}, "task 'poetry' is unknown; choose one of embedding, "),
        ({TASK_KEY: ["embedding"]}, rf"config\.json: {TASK_KEY} \['embedding'\] is unknown; choose one of embedding"),
        ({"st": 5}, r"config_sentence_transformers\.json: model_type is 5; it must be a name"),
    ],
)
def test_what_is_for_no_task_is_refused_by_name(written: Written, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_task(written(**said))


@pytest.mark.parametrize(
    ("said", "task", "evidence"),
    [
        ({"num_labels": 1}, "sequence-classification", "one score"),
        ({"id2label": {"0": "LABEL_0"}}, "sequence-classification", "one score"),
        (
            {"id2label": {"0": "Entailment", "1": "Other"}},
            "sequence-classification",
            "labels are Entailment, Other",
        ),
        (
            {"sentence_transformers": {"version": "4"}},
            "sequence-classification",
            "sentence_transformers in config",
        ),
        ({"sbert_ce_default_activation_function": "x"}, "sequence-classification", "names a CrossEncoder"),
        ({"st": "CrossEncoder", **THREE}, "sequence-classification", "config_sentence_transformers.json names"),
        ({}, "question-answering", "a question in a context"),
        (THREE | {"type_vocab_size": 2}, "sequence-classification", None),
        ({"num_labels": 1}, "token-classification", None),
        ({"num_labels": 1}, "embedding", None),
    ],
)
def test_what_shows_that_a_model_reads_pairs(
    written: Written, said: dict[str, Any], task: str, evidence: str | None
) -> None:
    found = pair_evidence(written(**said), task)
    assert found is None if evidence is None else evidence in (found or "")


def test_only_embedding_models_have_a_pooling(written: Written) -> None:
    """CrossEncoder writes a modules.json with a Transformer alone."""
    directory = written("BertForSequenceClassification", ["Transformer"], st="CrossEncoder")
    assert read_sentences(directory, find_task(directory)).pooling == Pooling()
    with pytest.raises(ModelError, match="the modules are Transformer"):
        read_sentences(directory, "embedding")
