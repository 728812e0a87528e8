"""Pairs of texts in a model's chat template, as sentence-transformers' CrossEncoder puts them there: two messages, of
the roles query and document; a text alone is one of the role user. Imports no torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitwright.errors import InputError
from bitwright.files.answers import ChatPairs
from bitwright.generate.chat import ChatTemplates
from bitwright.runtime.items import Tokens

if TYPE_CHECKING:
    from bitwright.runtime.model import Model

_ROLES = ("query", "document")
# A text that a template shows is in its result: another one gives another result. Of other lengths, too, for those that
# cut.
_PROBE, _OTHER = "alpha", "charlie bravo"
# What a template has that takes a message's content as a list of parts.
_OF_PARTS = ("content[0]", ".type", "'type'", '"type"', "message.content[")
# Two fillers without a common end.
_FILLERS = ("0", "1 2 3 4")


def read_in_chat(
    model: "Model", chat: ChatPairs, first: list[str], second: list[str] | None, prompt: str, *, limit: int | None
) -> Tokens:
    """The tokens of pairs, or of texts, in the template. prompt: the first message, of the role system.

    A text that is cut to `limit` loses its end, and then ends with the tokens that the template puts at the end: the
    model answers there.

    Raises:
        InputError: a template that leaves one of the texts out. ModelError: as `ChatTemplates.render`.
    """
    render = _Renderer(model.templates, chat, prompt)
    texts = [(text,) for text in first] if second is None else list(zip(first, second, strict=True))
    render.check(1 if second is None else 2)
    tokens = model.read([render(pair) for pair in texts], None, typed=False, limit=limit, special=False)
    if limit is None or not chat.restores or all(len(ids) < limit for ids in tokens.ids):
        return tokens
    a, b = model.read(
        [render((x,) * len(texts[0])) for x in _FILLERS], None, typed=False, limit=None, special=False
    ).ids
    suffix = _common_end(a, b)
    return tokens._replace(ids=[_ending(ids, suffix) if len(ids) >= limit else ids for ids in tokens.ids])


def in_chat(model: "Model", items: Sequence[Any]) -> list[str]:
    """Texts or pairs as they stand in the template of a model that has one for them, with its default prompt."""
    assert model.sentences.chat is not None, "texts of this model go into no template"
    sentences = model.sentences
    prompt = "" if sentences.default_prompt is None else sentences.prompts[sentences.default_prompt]
    render = _Renderer(model.templates, model.sentences.chat, prompt)
    return [render((item,) if isinstance(item, str) else item) for item in items]


class _Renderer:
    def __init__(self, templates: ChatTemplates | None, chat: ChatPairs, prompt: str) -> None:
        assert templates is not None, "a model whose texts go into a template has it"
        self._templates, self._chat = templates, chat
        structured = chat.structured
        if structured is None:
            text = templates.templates["default"][0] if set(templates.templates) == {"default"} else ""
            structured = not text or any(part in text for part in _OF_PARTS)
        self._structured = structured
        self._before = [self._message("system", prompt)] if prompt else []

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._structured else text}

    def __call__(self, texts: Sequence[str]) -> str:
        roles = _ROLES if len(texts) == 2 else ("user",)
        messages = [self._message(role, text) for role, text in zip(roles, texts, strict=True)]
        return self._templates.render(
            [*self._before, *messages],
            add_generation_prompt=self._chat.generates,
            variables=self._chat.variables,
        )

    def check(self, count: int) -> None:
        """Raises:
        InputError: the template leaves one of so many texts out.
        """
        plain = self([_PROBE] * count)
        for i in range(count):
            if self([_OTHER if i == j else _PROBE for j in range(count)]) == plain:
                role = _ROLES[i] if count == 2 else "user"
                (_, where), *_ = self._templates.templates.values()
                raise InputError(
                    f"{where}: the chat template leaves out the message of the role {role!r}, so the score would not "
                    f"depend on its text. {'This model reads pairs' if count == 1 else 'Give a template that has both'}"
                )


def _common_end(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The tokens at which both end; none if one is the end of the other, because then nothing in it is text."""
    count = next((i for i, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)) if x != y), 0)
    return list(a[len(a) - count :]) if count else []


def _ending(ids: list[int], suffix: list[int]) -> list[int]:
    kept = min(len(suffix), len(ids))
    return ids[: len(ids) - kept] + suffix[len(suffix) - kept :]
