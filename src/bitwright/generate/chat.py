"""A conversation as the text that a model was trained on: its chat template, as transformers renders it. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError, ModelError, brief, foreign
from bitwright.files.directory import ModelDirectory
from bitwright.files.reading import read_bytes

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]

SETTINGS_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER = "tokenizer_config.json", "chat_template.jinja", "chat_templates"
MAX_TEMPLATE = 1 << 20  # bytes: the longest of a published model has a thirtieth of it
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Names under which a message holds what the model thought. Templates read the first; gpt-oss's reads the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "
_DEEPEST = 100  # lists in lists, in messages and tools


class ChatTemplates:
    """The chat templates of a model: most have one, some further ones by name.

    templates: name ("default", "tool_use", …) -> (text, the file that holds it). special: what a template knows as
    bos_token and so on.
    """

    def __init__(self, directory: ModelDirectory) -> None:
        """Raises:
        ModelError: a file that cannot be read, or holds something else.
        """
        self.path = directory.path
        self.templates = _templates(directory)
        self.special = _special_tokens(directory)
        self._compiled: dict[str, Template] = {}

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None, name: str | None = None,
        add_generation_prompt: bool = True, continue_final_message: bool | str = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """The text of a conversation, as `apply_chat_template(tokenize=False)` gives it.

        Args:
            messages: {"role": …, "content": …} each. tools: JSON schemas. documents: {"title": …, "text": …} each.
            name: of the template; default: "tool_use" if there are tools and such a template, else "default".
            add_generation_prompt: end with the beginning of an answer (transformers leaves it out by default).
            continue_final_message: leave the last message open instead, for the model to continue: True for its
                content, or the name of another field.
            variables: what else the template may ask for, such as enable_thinking.

        Raises:
            InputError: messages or tools of a wrong form, or that the template refuses; a name that there is not.
            ModelError: no template, or one that fails or wants too much; the message names its file.
        """
        name, text, where = self._chosen(name, tools is not None)
        chat = _plain_messages(messages)
        known: dict[str, Any] = {
            "tools": _plain_objects("tools", tools), "documents": _plain_objects("documents", documents),
            **self.special, **_plain(dict(variables or {}), "variables"),
        }  # fmt: skip
        if not continue_final_message:
            return self._rendered(name, chat, known | {"add_generation_prompt": add_generation_prompt})
        field = continue_final_message if isinstance(continue_final_message, str) else "content"
        final = _open_final(chat, field, text, where)
        rendered = self._rendered(name, chat, known | {"add_generation_prompt": False})
        if final.strip() not in rendered or _OPEN_END.strip() not in rendered:
            raise InputError(f"{where}: the chat template leaves out the final message, which is to be continued")
        place = rendered.rindex(_OPEN_END.strip())
        spaced = rendered.startswith(_OPEN_END, place)  # else the template trims what it is given
        return rendered[:place] if spaced else rendered[:place].rstrip()

    def _chosen(self, name: str | None, tools: bool) -> tuple[str, str, Path]:
        """(name, text, file) of the template that is asked for."""
        if not self.templates:
            raise ModelError(
                f"{self.path}: the model has no chat template, neither in {SETTINGS_FILE} nor in {TEMPLATE_FILE}; give "
                "the whole prompt as text"
            )
        name = name or ("tool_use" if tools and "tool_use" in self.templates else "default")
        if name not in self.templates:
            raise InputError(f"{self.path}: no chat template is called {name!r}; known: {', '.join(self.templates)}")
        return (name, *self.templates[name])

    def _rendered(self, name: str, chat: list[dict[str, Any]], known: dict[str, Any]) -> str:
        from jinja2 import TemplateSyntaxError  # 30 ms, which a program without chats need not wait for

        from bitwright.generate.allowance import allowed, size_of
        from bitwright.generate.sandbox import RefusedError, compile_template

        text, where = self.templates[name]
        with foreign(f"{where}: the chat template fails on these messages", ModelError):
            try:
                with allowed(size_of([chat, list(known.values())], 1 << 40)):
                    if name not in self._compiled:
                        self._compiled[name] = compile_template(text)
                    return self._compiled[name].render(messages=chat, **known)
            except RefusedError as error:
                raise InputError(f"{where}: the chat template refuses these messages: {error}") from None
            except TemplateSyntaxError as error:
                raise ModelError(f"{where}: line {error.lineno} of the chat template: {error.message}") from None


def _templates(directory: ModelDirectory) -> dict[str, tuple[str, Path]]:
    """The templates by name. As in transformers files of their own count alone, if there are any."""
    found = {}
    file = directory.transformer / TEMPLATE_FILE
    if file.is_file():
        found["default"] = (_template_text(file), file)
    for other in sorted((directory.transformer / TEMPLATE_FOLDER).glob("*.jinja")):
        found[other.name.removesuffix(".jinja")] = (_template_text(other), other)
    if found:
        return found
    file = directory.transformer / SETTINGS_FILE
    value = (directory.transformer.object(SETTINGS_FILE) or {}).get("chat_template")
    named = value if isinstance(value, list) else [] if value is None else [{"name": "default", "template": value}]
    for one in named:
        text = one.get("template") if isinstance(one, dict) else None
        if not isinstance(text, str) or not isinstance(one.get("name"), str) or len(text) > MAX_TEMPLATE:
            raise ModelError(
                f"{file}: chat_template is {brief(value)}; it must be a text of at most {MAX_TEMPLATE} characters, or "
                'a list of {"name": …, "template": …}'
            )
        found[one["name"]] = (text, file)
    return found


def _template_text(file: Path) -> str:
    try:
        # transformers reads it in text mode, where every end of a line becomes \n
        return read_bytes(file, MAX_TEMPLATE).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file}: this is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from None


def _special_tokens(directory: ModelDirectory) -> dict[str, str]:
    """bos_token and so on, as far as the side files name them; those of special_tokens_map.json count where
    tokenizer_config.json does not list the added tokens, as in transformers.
    """
    settings = directory.transformer.object(SETTINGS_FILE) or {}
    older = {} if "added_tokens_decoder" in settings else directory.transformer.object("special_tokens_map.json") or {}
    found = {}
    for key in _SPECIAL:
        token = older.get(key, settings.get(key))
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[key] = content
    return found


def _plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A copy of plain data, without values that are None: interfaces write them, and templates fail on them."""
    if isinstance(messages, str | Mapping) or not messages:
        raise InputError('a conversation is a list of at least one message, {"role": "user", "content": "…"}')
    made = []
    for number, message in enumerate(_plain(list(messages), "messages")):
        if not isinstance(message, dict):
            raise InputError(f'message {number} is {brief(message)}; it must be {{"role": …, "content": …}}')
        message = {key: value for key, value in message.items() if value is not None}
        thought = next((message[key] for key in _REASONING if message.get(key) is not None), None)
        if thought is not None:
            message = {"thinking": thought} | message | {"reasoning_content": thought}
        made.append(message)
    return made


def _plain_objects(what: str, values: Sequence[Mapping[str, Any]] | None) -> Any:
    if values is None:
        return None
    if isinstance(values, str | Mapping) or not all(isinstance(value, Mapping) for value in values):
        raise InputError(f"{what} is {brief(values)}; it must be a list of JSON objects")
    return _plain(list(values), what)


def _plain(value: Any, what: str, depth: int = _DEEPEST) -> Any:
    """A copy of JSON data, so that a template gets no object with methods of its own.

    Raises:
        InputError: something else than JSON data, or nested deeper than a model can have learnt.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if not depth:
        raise InputError(f"{what}: lists and objects are nested more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        return {_plain(key, what, depth - 1): _plain(item, what, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        made = [_plain(item, what, depth - 1) for item in value]
        return tuple(made) if isinstance(value, tuple) else made
    raise InputError(f"{what}: {brief(value)} is no JSON data; give text, numbers, lists and objects")


def _open_final(chat: list[dict[str, Any]], field: str, template: str, where: Path) -> str:
    """Mark the end of the last message. Mutates it. Gives what it says."""
    final = chat[-1].get(field)
    fields = [key for key in _REASONING if chat[-1].get(key) == final] if field in _REASONING else [field]
    if final is None or not any(key in template for key in fields):
        raise InputError(f"{where}: the final message or the chat template has no {field!r} that could be continued")
    if isinstance(final, list):
        block = next((one for one in reversed(final) if isinstance(one, dict) and "text" in one), None)
        if block is None:
            raise InputError("the final message holds no text that could be continued")
        final = block["text"]
        block["text"] = f"{final}{_OPEN_END}"
        return str(final)
    for key in fields:
        chat[-1][key] = f"{final}{_OPEN_END}"
    return str(final)
