"""A language model as a reranker: its scores are logits of answers ("yes" and "no") after a pair of texts.

As sentence-transformers' CrossEncoder builds it: of a `LogitScore` module, or of any language model. No torch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bitwright.errors import ModelError, brief
from bitwright.families.tasks import class_of
from bitwright.files.directory import ModelDirectory
from bitwright.files.modules import MODULES_FILE, Module, module_config, read_modules

LOGIT_SCORE = "LogitScore"
_READS = "causal_logits"
_WORDS = ("yes", "no")  # where no module names others


class Answers(NamedTuple):
    """score = logit(yes) − logit(no) of the token after the last; no None: logit(yes) alone."""

    yes: int
    no: int | None

    def score(self, logits_BV: Any) -> Any:
        """(B, 1) of the logits after each text, an array of numpy or torch."""
        yes_B1 = logits_BV[:, self.yes : self.yes + 1]
        return yes_B1 if self.no is None else yes_B1 - logits_BV[:, self.no : self.no + 1]


class ChatPairs(NamedTuple):
    """How a pair becomes one text: two messages, of the roles query and document, in the model's chat template.

    structured: whether a message's content is a list of parts; None: as the template looks. variables: what the
    template may ask for. generates: whether the beginning of an answer follows. restores: whether a text that is cut
    ends as the template does.
    """

    structured: bool | None = None
    variables: Mapping[str, Any] = {}
    generates: bool = False
    restores: bool = True


# Families whose templates take texts as contents, whatever they look like.
_FLAT = frozenset({"apertus", "deepseek_v3", "gpt_oss", "seed_oss"})
# Options of the library's `apply_chat_template` that are no variables of a template.
_OPTIONS = frozenset({
    "chat_template", "continue_final_message", "documents", "max_length", "padding", "return_assistant_tokens_mask",
    "return_dict", "return_tensors", "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip


def answers_by_logits(directory: ModelDirectory, task: str) -> bool:
    """Whether the scores of a model are logits of a language model: modules.json has a LogitScore; or there is no
    modules.json, config.json names the class of a language model, and the weights hold no classifier's head.
    """
    if task != "sequence-classification":
        return False
    modules = read_modules(directory.package)
    if modules is not None:
        return any(module.kind == LOGIT_SCORE for module in modules)
    name = class_of(directory.config.get("architectures"), str(directory.path))
    return name.endswith("ForCausalLM") and bool(directory.shapes) and "score.weight" not in directory.shapes


def read_answers(directory: ModelDirectory) -> tuple[Answers, list[str]]:
    """The answers of such a model, and keys of the module's file that are not followed.

    Raises:
        ModelError: modules in another order; tokens that the model does not have.
    """
    modules = read_modules(directory.package)
    if modules is None:
        return Answers(*(_token(directory, word) for word in _WORDS)), []
    file = directory.package / MODULES_FILE
    kinds = [module.kind for module in modules]
    if kinds != ["Transformer", LOGIT_SCORE]:
        raise ModelError(f"{file}: the modules are {', '.join(kinds[:9])}; Bitwright runs Transformer, {LOGIT_SCORE}")
    module = modules[1]
    config, unknown = module_config(directory.package, module, ("true_token_id", "false_token_id", "module_input_name"))
    if config.get("module_input_name", _READS) != _READS:
        where = directory.package / module.file("config.json")
        raise ModelError(
            f"{where}: module_input_name is {brief(config['module_input_name'])}; Bitwright takes {_READS} alone"
        )
    yes = _checked(directory, module, "true_token_id", config.get("true_token_id"))
    no = config.get("false_token_id")
    return Answers(yes, None if no is None else _checked(directory, module, "false_token_id", no)), unknown


def chat_of(directory: ModelDirectory, where: str, processing: object) -> ChatPairs:
    """What a transformer's file says of chat templates in processing_kwargs. where: that file, for messages.

    Raises:
        ModelError: settings that Bitwright does not follow.
    """
    structured = False if directory.config.get("model_type") in _FLAT else None
    given = {} if processing is None else processing
    if not isinstance(given, dict) or given.keys() - {"chat_template"} or not isinstance(
        variables := given.get("chat_template", {}), dict
    ):  # fmt: skip
        raise ModelError(
            f"{where}: processing_kwargs is {brief(processing)}; Bitwright follows only variables of the chat template"
        )
    if odd := sorted(variables.keys() & _OPTIONS):
        raise ModelError(f"{where}: processing_kwargs: chat_template: {odd[0]} is not followed by Bitwright")
    own = ("add_generation_prompt", "restore_suffix")
    return ChatPairs(
        structured,
        {key: value for key, value in variables.items() if key not in own},
        bool(variables.get("add_generation_prompt", False)),
        bool(variables.get("restore_suffix", True)),
    )


def chat_in_modalities(directory: ModelDirectory, where: str, config: object, processing: object) -> ChatPairs | None:
    """How pairs become messages as modality_config of a transformer's file says; None if they become none.

    Raises:
        ModelError: as `chat_of`, or messages of another format.
    """
    message = config.get("message") if isinstance(config, dict) else None
    if message is None:
        if processing not in (None, {}):
            raise ModelError(f"{where}: processing_kwargs is {brief(processing)}, which Bitwright does not follow")
        return None
    formats = {"flat": False, "structured": True, "auto": None}
    how = message.get("format", "auto") if isinstance(message, dict) else None
    if not isinstance(how, str) or how not in formats or message.get("method") != "forward":
        raise ModelError(f"{where}: modality_config: message is {brief(message)}, which Bitwright does not follow")
    chat = chat_of(directory, where, processing)
    return chat if how == "auto" else chat._replace(structured=formats[how])


def _token(directory: ModelDirectory, word: str) -> int:
    """The id of a word that is one token.

    Raises:
        ModelError: it is none.
    """
    from bitwright.files.tokenizer import open_tokenizer

    opened = open_tokenizer(directory)
    found = None if opened is None else opened.tokenizer.token_to_id(word)
    if found is None:
        raise ModelError(
            f"{directory.path}: the model's class is a language model's, so its scores as a reranker are logits of "
            f"{' and '.join(map(repr, _WORDS))}, but its tokenizer has no token {word!r}. Name other tokens with a "
            f"{LOGIT_SCORE} in {MODULES_FILE}, or give a model with a classifier's head"
        )
    return int(found)


def _checked(directory: ModelDirectory, module: Module, key: str, value: Any) -> int:
    vocabulary = directory.config.get("vocab_size")
    if type(value) is not int or not 0 <= value < (vocabulary if type(vocabulary) is int else 1 << 31):
        file = directory.package / module.file("config.json")
        raise ModelError(
            f"{file}: {key} is {brief(value)}; it must be a token id, from 0 to vocab_size = {vocabulary} − 1"
        )
    return value
