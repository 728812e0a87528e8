"""Reads the sentence-transformers files of a model: what happens to texts before it and to vectors after it.

As sentence-transformers 6 reads them, and under the same condition: only where there is a modules.json. A key that is
neither followed nor without effect on outputs is told by name. numpy, no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bitwright.errors import EngineError, ModelError, brief
from bitwright.families.tasks import TaskName, class_of
from bitwright.files.answers import (
    LOGIT_SCORE,
    Answers,
    ChatPairs,
    answers_by_logits,
    chat_in_modalities,
    chat_of,
    read_answers,
)
from bitwright.files.directory import ModelDirectory
from bitwright.files.modules import (
    AFTER_POOLING,
    MODULES_FILE,
    SETTINGS_FILE,
    TRANSFORMER,
    TRANSFORMER_FILES,
    Module,
    check_on_pooled,
    module_config,
    read_modules,
)
from bitwright.files.pooling import Pooling, pooling_of
from bitwright.files.task import TASK_OF_TYPE, pair_scorer

if TYPE_CHECKING:  # a model with no more than a pooling is loaded without these
    from bitwright.files.after_pooling import ReadPickled, Step
    from bitwright.files.layer_mix import LayerMix

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# Keys of a transformer's file -> the values that change nothing here; None: whatever it says.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...] | None] = {
    "unpad_inputs": None,
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
    "transformer_task": ("feature-extraction", "sequence-classification"),
    "modality_config": None,  # looked at apart, as this:
    "module_output_name": ("token_embeddings", "scores"),
    "processing_kwargs": None,
}
# The same of a language model whose logits are scores.
_ANSWERING = {"transformer_task": ("text-generation",), "module_output_name": ("causal_logits",)}
_ARGUMENTS_WITHOUT_EFFECT = {
    "model_kwargs": ("torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "use_safetensors",
                     "low_cpu_mem_usage", "device_map", "revision", "trust_remote_code"),
    "processor_kwargs": ("model_max_length", "use_fast", "padding_side", "revision", "trust_remote_code"),
    "config_kwargs": ("revision", "trust_remote_code", "use_memory_efficient_attention", "unpad_inputs"),
}  # fmt: skip
_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
_SETTINGS = (
    "__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim",
    "activation_fn", "keep_in_fp32_modules",
)  # fmt: skip


class Sentences(NamedTuple):
    """What sentence-transformers does to texts, and for embedding models how it makes one vector from token vectors.

    pooling, steps: of the token vectors, and after them. mix: of the layers' outputs, which takes the place of the last
    one's. max_tokens: a limit that counts instead of the tokenizer's. capped: whether the library cuts texts at
    max_position_embeddings, also where a model has no table of positions: sentence-transformers does, transformers
    alone does not. lower_case: whether texts are lowered first. prompts, default_prompt: texts put before a text, by
    name, and the name of the one that is put there unasked. truncate_dim: values of a vector that are kept. similarity:
    one of `SIMILARITIES`. activation: of a reranker's or a classifier's logits in `predict`, one of
    `after_pooling.ACTIVATIONS`; None where nothing says it. answers: whose logits are the score, if the model has no
    head for it. chat: how texts and pairs are put into the model's chat template, if they are. unknown: keys that are
    not followed, as "file: key".
    """

    pooling: Pooling = Pooling()
    steps: "tuple[Step, ...]" = ()
    mix: "LayerMix | None" = None
    max_tokens: int | None = None
    capped: bool = True
    lower_case: bool = False
    prompts: Mapping[str, str] = {}
    default_prompt: str | None = None
    truncate_dim: int | None = None
    similarity: str = "cosine"
    activation: str | None = None
    answers: Answers | None = None
    chat: ChatPairs | None = None
    unknown: tuple[str, ...] = ()


NO_FILES = Sentences()


def of_cross_encoder(sentences: Sentences) -> bool:
    """Whether only a CrossEncoder gives what the model is meant to: its score is no head's, or it reads chats."""
    return sentences.answers is not None or sentences.chat is not None


def read_sentences(
    directory: ModelDirectory, task: TaskName, *, read_pickled: "ReadPickled | None" = None
) -> Sentences:
    """The settings in the side files of a model.

    read_pickled: reads weights of modules that are no safetensors.

    Raises:
        ModelError: a file that is not what it should be, or that asks for something that is not done here.
        CheckpointError: weights of a module that are damaged. EngineError: such as only torch reads.
    """
    package, modules = directory.package, read_modules(directory.package)
    activation = _activation(directory)
    if task == "text-generation":
        return Sentences()
    answers, unknown = read_answers(directory) if answers_by_logits(directory, task) else (None, [])
    capped = task == "embedding" or modules is not None or pair_scorer(directory, task)
    if modules is None:
        template = _chat_template(directory)
        if task == "embedding" and template:
            _refuse_chat_template(directory, template)
        pooling = Pooling(("lasttoken",)) if pools_by_class(directory) else Pooling()
        chat = chat_of(directory, template, None) if template and pair_scorer(directory, task) else None
        return Sentences(pooling, activation=activation, capped=capped, answers=answers, chat=chat)
    settings = package.object(SETTINGS_FILE, MODULES_FILE) or {}
    _check_follows(directory, settings, task)
    unknown += [f"{SETTINGS_FILE}: {key}" for key in settings if key not in _SETTINGS]
    found = Sentences(activation=activation, answers=answers, **_texts_of(package / SETTINGS_FILE, settings))
    limit, lower_case, chat, more = _transformer(directory, modules, task, answering=answers is not None)
    found = found._replace(max_tokens=limit, lower_case=lower_case, chat=chat)
    unknown += more
    if task != "embedding":
        if answers is None:
            _check_alone(directory, modules, task)
        return found._replace(unknown=tuple(unknown))
    before, pooled, after = _split(directory, modules)
    pooling, more = pooling_of(package, pooled)
    unknown += more
    if after and after[0].kind == "Normalize":  # what the engine has an operator for
        config, more = module_config(package, after[0], ("module_input_name", "module_output_name"))
        check_on_pooled(package, after[0], config)
        pooling, after = pooling._replace(normalize=True), after[1:]
        unknown += more
    found = found._replace(pooling=pooling)
    if before:
        from bitwright.files.layer_mix import layer_mix_of

        mix, more = layer_mix_of(directory, before, read_pickled)
        found, unknown = found._replace(mix=mix), [*unknown, *more]
    if after:
        from bitwright.files.after_pooling import steps_of

        hidden = directory.config.get("hidden_size", directory.config.get("dim"))
        width = len(pooling.modes) * hidden if type(hidden) is int else None
        steps, more = steps_of(package, after, width, read_pickled)
        found, unknown = found._replace(steps=tuple(steps)), [*unknown, *more]
    return found._replace(unknown=tuple(unknown))


def _check_follows(directory: ModelDirectory, settings: Mapping[str, Any], task: TaskName) -> None:
    """Refuse a folder of the Transformer where the library would not look into it: it follows modules.json only as the
    class that the settings name. As another class it reads the package itself, as a model of transformers.
    """
    named = settings.get("model_type", "SentenceTransformer")
    asked = next((kind for kind, of in TASK_OF_TYPE.items() if of == task), named)
    if not directory.is_flat and asked != named:
        raise ModelError(
            f"{directory.package / SETTINGS_FILE}: model_type is {brief(named)}, so a {asked} of "
            f"sentence-transformers, which is for {task}, does not follow {MODULES_FILE}. Give "
            f"{directory.transformer.path}"
        )


def _chat_template(directory: ModelDirectory) -> str:
    """The file that holds a chat template; "" if none does."""
    names = ("chat_template.jinja", "chat_template.json")
    file = next((name for name in names if (directory.transformer / name).is_file()), "")
    settings = directory.transformer.object("tokenizer_config.json") or {}
    return file or ("tokenizer_config.json" if settings.get("chat_template") else "")


def _refuse_chat_template(directory: ModelDirectory, file: str) -> None:
    """Refuse a chat template without a modules.json: the library would put each text into the template."""
    raise ModelError(
        f"{directory.transformer / file}: there is a chat template and no {MODULES_FILE}, so sentence-transformers "
        "would put each text into the template. Bitwright does not. Save the model with "
        "SentenceTransformer(...).save(), or remove the template"
    )


def pools_by_class(directory: ModelDirectory) -> bool:
    """Whether sentence-transformers pools the last token only because config.json names the class of a causal model:
    there is no modules.json. Of all other models without one it pools the mean.
    """
    config = directory.config
    name = class_of(config.get("architectures"), str(directory.path))
    return (
        read_modules(directory.package) is None and name.endswith("ForCausalLM") and bool(config.get("is_causal", True))
    )


def _transformer(
    directory: ModelDirectory, modules: list[Module], task: str, *, answering: bool
) -> tuple[int | None, bool, ChatPairs | None, list[str]]:
    """The `Transformer` module's limit in tokens, whether it lowers texts, how it puts them into a chat template, and
    the keys that are not followed.
    """
    kind = modules[0].kind if modules else "missing"
    if kind != TRANSFORMER:
        raise ModelError(
            f"{directory.package / MODULES_FILE}: the first module is {kind}. Bitwright reads a Transformer, then "
            "Pooling, then Dense, LayerNorm or Normalize"
        )
    folder = directory.transformer
    name = next((name for name in TRANSFORMER_FILES if folder.object(name)), TRANSFORMER_FILES[0])
    config = {_OLD_NAMES.get(key, key): value for key, value in (folder.object(name) or {}).items()}
    unknown, without_effect = [], _WITHOUT_EFFECT | (_ANSWERING if answering else {})
    if answering and "transformer_task" not in config:
        raise ModelError(
            f"{folder / name}: transformer_task is missing; before a {LOGIT_SCORE} it must be 'text-generation'"
        )
    for key, value in config.items():
        if key in ("max_seq_length", "do_lower_case"):
            continue
        if key in _ARGUMENTS_WITHOUT_EFFECT:
            given = value if isinstance(value, dict) else {}
            unknown += [f"{name}: {key}.{inner}" for inner in given if inner not in _ARGUMENTS_WITHOUT_EFFECT[key]]
        elif key not in without_effect:
            unknown.append(f"{name}: {key}")
        elif (allowed := without_effect[key]) is not None and value not in allowed:
            raise ModelError(f"{folder / name}: {key} is {brief(value)}, which Bitwright does not follow")
    modalities, where = config.get("modality_config"), str(folder / name)
    _check_text_only(where, modalities, task)
    chat = chat_in_modalities(directory, where, modalities, config.get("processing_kwargs"))
    arguments = config.get("processor_kwargs")
    arguments = arguments if isinstance(arguments, dict) else {}
    key = "model_max_length" if "model_max_length" in arguments else "max_seq_length"
    limit = arguments.get(key, config.get("max_seq_length"))
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ModelError(
            f"{folder / name}: {key} is {brief(limit)}; it must be a number of tokens, or null for no limit"
        )
    return limit, bool(config.get("do_lower_case", False)), chat, unknown


def _check_text_only(where: str, config: object, task: str) -> None:
    """Refuse files in which texts are not read by `forward`; newer files can name another method."""
    if config is None:
        return
    text = config.get("text") if isinstance(config, dict) else None
    output = text.get("method_output_name") if isinstance(text, dict) else None
    plain = isinstance(text, dict) and text.get("method") == "forward"
    if not plain or output not in ("last_hidden_state", "logits", ["last_hidden_state"], ["logits"]):
        raise ModelError(
            f"{where}: modality_config is {brief(config)}; Bitwright reads only texts, by `forward`, and takes its "
            "last_hidden_state or logits"
        )
    if "message" in config and task == "embedding":  # type: ignore[operator]
        raise ModelError(f"{where}: modality_config puts texts into a chat template, which Bitwright does not follow")


def _split(directory: ModelDirectory, modules: list[Module]) -> tuple[list[Module], Module, list[Module]]:
    """The modules between the transformer and pooling, the pooling module, and the modules after it."""
    kinds = [module.kind for module in modules]
    at = kinds.index("Pooling") if "Pooling" in kinds else 0
    before, after = modules[1:at], modules[at + 1 :]
    odd = [m.kind for m in before if m.kind != "WeightedLayerPooling"][:3]
    odd += [m.kind for m in after if m.kind not in AFTER_POOLING][:3]
    if not at or odd or len(before) > 1:
        raise ModelError(
            f"{directory.package / MODULES_FILE}: the modules are {', '.join(kinds[:9])}. Bitwright runs Transformer, "
            f"then WeightedLayerPooling if there is one, then Pooling, then any of {', '.join(AFTER_POOLING)}. "
            f"Without {', '.join(odd) or 'that order'} the embeddings would differ from the model's own"
        )
    return before, modules[at], after


def _check_alone(directory: ModelDirectory, modules: list[Module], task: str) -> None:
    if len(modules) > 1:
        kinds = ", ".join(module.kind for module in modules[1:9])
        raise ModelError(
            f"{directory.package / MODULES_FILE}: the model is for {task}, and Bitwright cannot run {kinds} after its "
            "transformer"
        )


def _texts_of(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for prompts, dimensions and similarity."""
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ModelError(f"{file}: prompts is {brief(prompts)}; it must hold texts by name")
    prompts = {"query": "", "document": ""} | {name: text or "" for name, text in prompts.items()}
    default, kept = settings.get("default_prompt_name"), settings.get("truncate_dim")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise ModelError(
            f"{file}: default_prompt_name is {brief(default)}, which is not one of the prompts {brief(list(prompts))}"
        )
    if kept is not None and (type(kept) is not int or kept < 1):
        raise ModelError(f"{file}: truncate_dim is {brief(kept)}; it must be a number of values, or null")
    similarity = settings.get("similarity_fn_name")
    return {
        "prompts": prompts,
        "default_prompt": default,
        "truncate_dim": kept,
        "similarity": similarity if similarity in SIMILARITIES else "cosine",
    }


def _activation(directory: ModelDirectory) -> str | None:
    """The function that a CrossEncoder applies to logits: from its own file, else from config.json in new or old
    spelling.
    """
    own = (directory.package.object(SETTINGS_FILE) or {}).get("activation_fn")
    nested = directory.config.get("sentence_transformers")
    given = {
        f"{SETTINGS_FILE}: activation_fn": own,
        "config.json: sentence_transformers.activation_fn": nested.get("activation_fn")
        if isinstance(nested, dict)
        else None,
        "config.json: sbert_ce_default_activation_function": directory.config.get(
            "sbert_ce_default_activation_function"
        ),
    }
    for where, path in given.items():
        if path is not None:
            from bitwright.files.after_pooling import activation_name

            return activation_name(path, f"{directory.path}: {where}")
    return None


def width_of(sentences: Sentences, hidden: int) -> int:
    """The number of values of a text's vector before `truncate_dim`, if token vectors have `hidden` values."""
    widths = [step.width for step in sentences.steps if step.width is not None]
    return widths[-1] if widths else len(sentences.pooling.modes) * hidden


def after_pooling(sentences: Sentences, vectors_BH: np.ndarray) -> np.ndarray:
    """Run the modules after pooling on pooled vectors, float32 (B, values)."""
    for step in sentences.steps:
        vectors_BH = step(vectors_BH)
    return vectors_BH


def engine_pooling(sentences: Sentences) -> tuple[tuple[str, ...] | None, bool]:
    """The pooling that the engine does itself: its modes, and whether it scales to length 1. With modes None the engine
    does not pool, because a prompt's tokens may not count.

    Raises:
        EngineError: a mix of layers, for which it has no operator.
    """
    if sentences.mix is not None:
        raise EngineError("WeightedLayerPooling, a mix of all layers' outputs, has no operator")
    if not sentences.pooling.include_prompt:
        return None, False
    return sentences.pooling.modes, sentences.pooling.normalize
