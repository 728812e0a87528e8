"""One row per family: true of transformers, free of torch, and the only place that knows a family by name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto import tokenization_auto

import bitwright
from bitwright.errors import EngineError, ModelError
from bitwright.families import FAMILIES, architecture_of
from bitwright.families.encoders import ENCODERS
from bitwright.families.row import ConfigKeys, Positions, Setting
from bitwright.families.tasks import TASKS, class_of, task_of, task_of_class

ROOT = Path(bitwright.__file__).parent
# ONNX Runtime's optimizer has names of its own for the shapes of blocks.
# The library's own list of families whose chat templates take plain texts.
ALLOWED = {
    ("runtime/bench_runtimes.py", "bert"),
    ("files/answers.py", "deepseek_v3"),
    ("files/answers.py", "seed_oss"),
}
# Names of sentence-transformers' files have some in them.
ALLOWED |= {
    ("files/modules.py", name) for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
}
# A format of files has the name of the family that it was made for.
ALLOWED |= {
    (path, "bitnet")
    for path in ("checkpoints/bitnet.py", "checkpoints/formats.py", "cli/convert.py", "cli/options.py", "targets.py",
                 "runtime/library_formats.py", "runtime/verify_library.py")
}  # fmt: skip


def test_importing_the_table_brings_neither_torch_nor_numpy() -> None:
    code = "import sys, bitwright.families; sys.exit(bool({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_other_file_knows_a_family_by_name() -> None:
    # GGUF's names of architectures are those of llama.cpp, some of which are ours, too.
    files = [path for path in ROOT.rglob("*.py") if path.parent.name not in ("families", "gguf")]
    found = {
        (str(path.relative_to(ROOT)), node.value)
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in FAMILIES
    }
    assert found == ALLOWED


def test_unknown_model_type_names_the_nearest_and_where_to_add_it() -> None:
    with pytest.raises(ModelError, match=r"'robert' .*did you mean 'roberta'.*encoders\.py"):
        architecture_of("robert")
    with pytest.raises(ModelError, match="known: albert, arcee, bert"):
        architecture_of("bloom")


_TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_defaults_are_those_of_transformers(family: str) -> None:
    config, keys = transformers.AutoConfig.for_model(family).get_text_config(), FAMILIES[family].keys
    settings = (keys.positions, keys.activation, keys.eps, FAMILIES[family].positions.after, *own_settings(family))
    content = config.to_dict()
    named = [of.key for of in (keys.positions, keys.activation) if isinstance(of, Setting)]
    for key in (keys.heads, keys.layers, keys.hidden_size, *named):
        assert key in content
    assert isinstance(keys.activation, Setting) or not {"hidden_act", "activation_function"} & content.keys()
    for setting in settings:
        if isinstance(setting, Setting) and setting.default is not None:
            assert content.get(setting.key, setting.default) == setting.default


def own_settings(family: str) -> list[Setting]:
    head = FAMILIES[family].head
    given = (head.pooling, head.dense and head.dense.activation)
    return [setting for setting in given if isinstance(setting, Setting)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_models_prefix_is_that_of_transformers(family: str) -> None:
    config = type(transformers.AutoConfig.for_model(family))
    assert FAMILIES[family].prefix == transformers.MODEL_MAPPING[config].base_model_prefix


@pytest.mark.parametrize("family", ENCODERS)
def test_the_tokenizer_is_the_class_that_transformers_takes(family: str) -> None:
    as_it_is = family in tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    wanted = tokenization_auto.TOKENIZER_MAPPING_NAMES[family]
    assert FAMILIES[family].tokenizer == (None if as_it_is else wanted)


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("family", ["mpnet", "roberta"])
def test_positions_begin_where_those_of_transformers_do(family: str, padding: int) -> None:
    config = transformers.AutoConfig.for_model(family, **_TINY, pad_token_id=padding)
    model = transformers.AutoModel.from_config(config)
    seen: list[torch.Tensor] = []
    model.embeddings.position_embeddings.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    model(torch.tensor([[7, 8, 9]]))
    assert seen[0].min().item() == FAMILIES[family].positions.first(config.to_dict())


def test_positions_begin_at_zero_or_after_a_token() -> None:
    after = Positions("positions", after=Setting("pad_token_id", 1))
    assert Positions("positions").first({"pad_token_id": 5}) == 0
    assert [after.first(config) for config in ({}, {"pad_token_id": 0}, {"pad_token_id": 5})] == [2, 1, 6]
    for wrong in (None, -1, "1", True):
        with pytest.raises(EngineError, match="but it must be a token id"):
            after.first({"pad_token_id": wrong})


def test_a_row_answers_for_its_roles() -> None:
    row = FAMILIES["distilbert"]
    assert row.linears("qkv") == ("attention.q_lin", "attention.k_lin", "attention.v_lin")
    assert row.linears("ffn") == ("ffn.lin1", "ffn.lin2")
    assert row.keys == ConfigKeys("n_heads", "n_layers", "dim", activation=Setting("activation", "gelu"))
    assert FAMILIES["modernbert"].producer("mlp.Wi") == "mlp_norm"
    assert row.producer("attention.q_lin") is None
    assert FAMILIES["llama"].decodes
    assert not row.decodes


def test_heads_are_named_with_and_without_a_base() -> None:
    assert FAMILIES["bert"].heads("bert.") == ("bert.pooler.dense", "classifier", "qa_outputs")
    assert FAMILIES["deberta-v2"].heads("deberta.") == ("pooler.dense", "classifier", "qa_outputs")
    assert FAMILIES["roberta"].heads("") == (
        "pooler.dense", "classifier.dense", "classifier.out_proj", "classifier", "qa_outputs",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertModel", "embedding"),
        ("BertForMaskedLM", "embedding"),
        ("BertForPreTraining", "embedding"),
        ("RobertaForSequenceClassification", "sequence-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),  # its name ends with "Model", too
        ("Gemma3ForConditionalGeneration", "text-generation"),
        ("BertForMultipleChoice", None),
    ],
)
def test_tasks_of_classes(name: str, task: str | None) -> None:
    assert task_of_class(name) == task
    assert task is None or task in TASKS


@pytest.mark.parametrize("architectures", [None, []])
def test_a_model_without_a_class_is_an_embedding_model(architectures: object) -> None:
    assert task_of(architectures, "here") == "embedding"


def test_the_first_class_counts() -> None:
    assert task_of(["BertForTokenClassification", "BertModel"], "here") == "token-classification"


@pytest.mark.parametrize("value", ["BertModel", {"0": "BertModel"}, 5, [1], [[]]])
def test_no_list_of_names(value: object) -> None:
    with pytest.raises(ModelError, match=r"here: architectures in config\.json is .*it must be a list of class names"):
        class_of(value, "here")


def test_long_values_are_cut() -> None:
    with pytest.raises(ModelError) as raised:
        class_of("x" * 10_000, "here")
    assert len(str(raised.value)) < 300


def test_another_task_says_what_there_is() -> None:
    with pytest.raises(
        ModelError, match=r"here: the class BertForMultipleChoice .* is for none of the tasks embedding, "
    ):
        task_of(["BertForMultipleChoice"], "here")
