"""Loading: real models, the task, limits; and what must be refused rather than filled in, guessed or unpickled."""

import importlib.util
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright.errors import BitwrightError, CheckpointError, ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.sentences import NO_FILES
from bitwright.models.build import load_tokenizer
from bitwright.models.load import load_model
from bitwright.runtime.generic_model import float_model

Tensors = dict[str, Tensor]


@pytest.fixture
def copy(tiny_model, tmp_path) -> Callable[..., Path]:
    """A copy of a tiny model, with its tensors and its config.json changed."""

    def make(
        task: str = "embedding", tensors: Callable[[Tensors], Any] | None = None, family: str = "bert", **config: Any
    ) -> Path:
        path = Path(shutil.copytree(tiny_model(family, task), tmp_path / "model"))
        if tensors is not None:
            weights = load_file(path / "model.safetensors")
            tensors(weights)
            save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        content = json.loads((path / "config.json").read_text()) | config
        (path / "config.json").write_text(json.dumps(content))
        return path

    return make


def test_real_model(minilm_dir, capfd):
    loaded = load_model(minilm_dir)
    assert (loaded.task, loaded.path, loaded.name) == ("embedding", minilm_dir, str(minilm_dir))
    assert not loaded.model.training
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert loaded.tokenizer("Hello")["input_ids"] == [101, 7592, 102]
    assert loaded.max_tokens == 256  # its sentence_bert_config.json; the positions would allow 512
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("task", ["embedding", "sequence-classification", "token-classification", "question-answering"])
def test_task_comes_from_the_config(tiny_model, task):
    assert load_model(tiny_model("roberta", task)).task == task


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining", None])
def test_what_was_only_pretrained_is_an_embedding_model(copy, name):
    assert load_model(copy(architectures=name and [name])).task == "embedding"


def test_a_class_for_another_task_is_refused_unless_the_task_is_given(copy):
    path = copy(architectures=["BertForMultipleChoice"])
    with pytest.raises(ModelError, match=r"BertForMultipleChoice in config\.json is for none of the tasks embedding, "):
        load_model(path)
    assert load_model(path, task="embedding").task == "embedding"
    with pytest.raises(ModelError, match="task 'poetry' is unknown; choose one of embedding, "):
        load_model(path, task="poetry")


def test_dtype(tiny_model):
    assert load_model(tiny_model("bert"), dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize(("family", "positions"), [("bert", 66), ("roberta", 64), ("mpnet", 64), ("modernbert", 66)])
def test_max_tokens_is_what_the_model_can_really_take(tiny_model, family, positions):
    loaded = load_model(tiny_model(family))
    assert loaded.max_tokens == 64  # the tokenizer's
    loaded.tokenizer.model_max_length = int(1e30)
    assert loaded.max_tokens == positions
    loaded.model(input_ids=torch.full((1, positions), 7))
    if family == "roberta":
        with pytest.raises((IndexError, RuntimeError)):
            loaded.model(input_ids=torch.full((1, positions + 1), 7))


def test_a_bin_loads_as_safetensors_do(copy):
    path = copy()
    want = load_model(path).model.state_dict()
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    got = load_model(path).model.state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_real_albert_bin_of_rxnmapper_loads_without_a_tokenizer():
    spec = importlib.util.find_spec("rxnmapper")
    if spec is None or spec.origin is None:
        pytest.skip("the package rxnmapper is not installed")
    path = next(Path(spec.origin).parent.glob("models/transformers/albert*"))
    # A vocab.txt is all it has; ALBERT's tokenizer reads other files and would come out empty.
    loaded = load_model(path)
    assert loaded.tokenizer is None
    assert "AlbertTokenizer needs spiece.model or tokenizer.json" in str(loaded.tokenizer_problem)
    assert (loaded.task, loaded.max_tokens) == ("embedding", 512)
    with torch.no_grad():
        assert loaded.model(input_ids=torch.tensor([[12, 24, 44, 13]])).last_hidden_state.shape == (1, 4, 256)


class Payload:
    """Unpickled without care, this leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_bin_is_executed(copy, tmp_path, zipped):
    path = copy()
    (path / "model.safetensors").unlink()
    torch.save({"a": Payload(tmp_path / "trace")}, path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: this is not a plain file of tensors"):
        load_model(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02", pickle.dumps([1, 2], 2), pickle.dumps({"a": 1}, 2), b"PK\x03\x04rest"]
)
def test_a_bin_that_is_not_tensors_is_refused(copy, content):
    path = copy()
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: this (is not a plain file|file holds a)"):
        load_model(path)


def test_every_truncation_of_a_bin_is_refused(copy):
    path = copy()
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    whole = (path / "pytorch_model.bin").read_bytes()
    for part in range(10):
        (path / "pytorch_model.bin").write_bytes(whole[: len(whole) * part // 10])
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            load_model(path)


def pop(*names: str) -> Callable[[Tensors], None]:
    return lambda tensors: [tensors.pop(name) for name in names] and None


def test_missing_weights_are_listed(copy):
    names = ("encoder.layer.0.output.dense.bias", "encoder.layer.1.output.dense.weight")
    with pytest.raises(ModelError, match=rf"the weights lack {names[0]}, {names[1]}, which config.json"):
        load_model(copy(tensors=pop(*names)))


def test_more_blocks_than_the_config_says(copy):
    with pytest.raises(ModelError, match=r"hold encoder\.layer\.1\..* and 13 more, but config.json has no place"):
        load_model(copy(num_hidden_layers=1))


def test_fewer_blocks_than_the_config_says(copy):
    with pytest.raises(ModelError, match=r"the weights lack encoder\.layer\.2\..* and 13 more"):
        load_model(copy(num_hidden_layers=3))


def test_a_shape_that_differs_is_told_with_both(copy):
    with pytest.raises(
        ModelError,
        match=r"intermediate\.dense\.weight is \(64, 32\) in the weights, but config.json asks for \(48, 32\)",
    ):
        load_model(copy(intermediate_size=48))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_numbers_are_counted(copy, value):
    def spoil(tensors: Tensors) -> None:
        tensors["encoder.layer.1.output.dense.weight"][3, :2] = value

    with pytest.raises(ModelError, match=r"encoder\.layer\.1\.output\.dense\.weight: 2 of 2048 values are NaN"):
        load_model(copy(tensors=spoil))


def test_values_that_do_not_fit_the_type_are_counted(copy):
    def enlarge(tensors: Tensors) -> None:
        tensors["pooler.dense.bias"][0] = 1e6

    path = copy(tensors=enlarge)
    load_model(path)
    with pytest.raises(ModelError, match=r"pooler\.dense\.bias: 1 of 32 values are NaN .* as torch\.float16"):
        load_model(path, dtype=torch.float16)


@pytest.mark.parametrize("family", ["bert", "albert", "mpnet"])
def test_a_pooler_that_is_not_there_is_not_invented(copy, family):
    names = {"albert": ("pooler.weight", "pooler.bias")}.get(family, ("pooler.dense.weight", "pooler.dense.bias"))
    loaded = load_model(copy(tensors=pop(*names), family=family))
    assert not [name for name in loaded.model.state_dict() if "pooler" in name]
    with torch.no_grad():
        assert loaded.model(input_ids=torch.tensor([[7, 8]])).last_hidden_state.shape == (1, 2, 32)


HEADLESS = {
    "BertForSequenceClassification": r"classifier\.bias, classifier\.weight",
    "BertForTokenClassification": r"classifier\.bias, classifier\.weight",
    "BertForQuestionAnswering": r"qa_outputs\.bias, qa_outputs\.weight",
}


@pytest.mark.parametrize("name", HEADLESS)
def test_a_head_that_is_not_there_is_not_invented(copy, name):
    path = copy(architectures=[name])
    with pytest.raises(ModelError, match=rf"lack {HEADLESS[name]}, .* random. Give the fine-tuned .* task='embedding'"):
        load_model(path)
    assert load_model(path, task="embedding").task == "embedding"


def test_a_classifier_whose_pooler_is_not_there_is_refused(copy):
    path = copy("sequence-classification", tensors=pop("bert.pooler.dense.weight"))
    with pytest.raises(ModelError, match=r"the weights lack bert\.pooler\.dense\.weight, .* random"):
        load_model(path)


CODE = """
from transformers import BertModel
class Theirs(BertModel):
    pass
open(__file__ + ".ran", "w").close()
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_a_class_that_came_with_the_model_is_neither_replaced_nor_quantized(copy, trusted, monkeypatch, tmp_path):
    """transformers takes its own BertModel unless the code is trusted, and says nothing."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = copy(auto_map={"AutoModel": "modeling_theirs.Theirs"})
    (directory / "modeling_theirs.py").write_text(CODE)
    wanted = r"Theirs has its own code \(modeling_theirs\.py\)" if trusted else r"auto_map = .*--trust-remote-code"
    with pytest.raises(ModelError, match=wanted):
        load_model(directory, trust_remote_code=trusted)
    assert bool(list((tmp_path / "modules").rglob("*.ran"))) == trusted


@pytest.mark.parametrize("value", ["BertModel", {"0": "BertModel"}, 5, [1]])
def test_architectures_that_are_no_list_of_names(copy, value):
    path = copy(architectures=value)
    with pytest.raises(ModelError, match=r"architectures in config\.json is .*; it must be a list of class names"):
        load_model(path)


def as_sentences(path: Path) -> Path:
    """A model with the files of sentence-transformers, without which that reads none of them."""
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[128]", "this file must hold a JSON object"),
        ('{"max_seq_length": "many"}', "max_seq_length is 'many'; it must be a number of tokens"),
        ('{"max_seq_length": 12.5}', r"max_seq_length is 12\.5; it must be a number of tokens"),
        ('{"max_seq_length": true}', "max_seq_length is True; it must be a number of tokens"),
        ('{"max_seq_length": 0}', "max_seq_length is 0; it must be a number of tokens"),
    ],
)
def test_a_sentence_config_that_is_none_is_named(copy, content, message):
    path = as_sentences(copy())
    (path / "sentence_bert_config.json").write_text(content)
    with pytest.raises(ModelError, match=rf"sentence_bert_config\.json: {message}"):
        _ = load_model(path).max_tokens


def test_a_sentence_config_without_a_length_sets_no_limit(copy):
    path = as_sentences(copy())
    before = load_model(path).max_tokens
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": null, "do_lower_case": false}')
    assert load_model(path).max_tokens == before


def test_a_tokenizer_that_works_has_no_problem(tiny_model):
    assert load_model(tiny_model("bert")).tokenizer_problem is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:500], r"tokenizer\.json: cannot be read as JSON \(Unterminated string"),
        (lambda text: "", r"tokenizer\.json: cannot be read as JSON"),
        (lambda text: "[]", r"tokenizer\.json: this file must hold a JSON object"),
        (lambda text: "{}", r"the tokenizer cannot be built \(KeyError: 'added_tokens'\)"),
        (lambda text: text.replace('"WordPiece"', '"Sorcery"'), r"the tokenizer cannot be built \(Exception: "),
    ],
)
def test_a_tokenizer_that_cannot_be_built_says_why(copy, damage, message):
    path = copy()
    file = path / "tokenizer.json"
    file.write_text(damage(file.read_text()))
    loaded = load_model(path)
    assert loaded.tokenizer is None
    assert re.match(rf"{re.escape(str(path))}.*{message}", loaded.tokenizer_problem)


def test_a_model_to_be_filled_tells_its_tokenizer_problem_too(copy):
    path = copy()
    (path / "tokenizer_config.json").write_text("{")
    tokenizer, problem = load_tokenizer(ModelDirectory(path), False, NO_FILES)
    assert tokenizer is None
    assert problem is not None
    assert problem.startswith(f"{path / 'tokenizer_config.json'}: cannot be read as JSON")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "does not know model_type 'mamba'"),
        ({"model_type": "bart"}, "did you mean 'bert'"),
        ({"num_attention_heads": 5}, "transformers cannot build this model: .*32.*5"),
        ({"hidden_size": "wide"}, "transformers cannot build this model: .*hidden_size"),
        ({"hidden_act": "wobble"}, "transformers cannot build this model: .*wobble"),
        ({"num_attention_heads": 0}, "transformers cannot build this model: "),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"quantization_config": {"quant_method": "bitwright"}}, "already quantized"),
    ],
)
def test_a_config_that_cannot_be_built_is_one_line(copy, config, message):
    path = copy(**config)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_truncated_safetensors_are_refused_before_transformers_sees_them(copy):
    path = copy()
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the tensors need .*truncated"):
        load_model(path)


# What fuzzing found: each ended in an exception that was not ours.
@pytest.mark.parametrize(
    ("file", "says", "message"),
    [
        ("tokenizer_config.json", {"model_max_length": "dynamic"}, "model_max_length is 'dynamic'"),
        ("tokenizer_config.json", {"model_max_length": [1]}, r"model_max_length is \[1\]"),
        ("config.json", {"encoder": {"a": 1}, "is_encoder_decoder": True}, None),
        ("config.json", {"text_config": {"a": 1}}, None),
        ("config.json", {"return_dict": False}, None),
        ("config.json", {"output_hidden_states": True, "torchscript": True}, None),
        ("config.json", {"chunk_size_feed_forward": "a"}, "cannot run this model|cannot build this model"),
        ("config.json", {"layer_norm_eps": {"a": {"b": ["c"] * 3000}}}, "cannot build this model"),
    ],
)
def test_odd_side_files_end_in_a_result_or_an_error_of_ours(copy, file, says, message):
    path = copy()
    before = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(before | says))
    with pytest.raises(ModelError, match=message) if message else suppress(BitwrightError):
        assert float_model(load_model(path)).encode([[2, 5, 3], [2, 3]], batch_size=2).shape == (2, 32)


def test_token_types_of_a_family_without_them_may_be_anything(copy):
    path = copy(family="mpnet", type_vocab_size="many")
    assert float_model(load_model(path)).n_types == 1


def test_infinity_is_no_limit_of_tokens(copy):
    path = copy()
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": float("inf")}))
    assert load_model(path).max_tokens == 66


def test_a_mask_is_made_whatever_a_tokenizer_calls_its_inputs(copy):
    path = copy()
    expected = float_model(load_model(path)).encode(["a", "a b c"])
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"model_input_names": ["input_ids"]}))
    assert (float_model(load_model(path)).encode(["a", "a b c"]) == expected).all()
