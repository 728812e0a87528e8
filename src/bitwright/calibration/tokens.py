"""Tokenizes a long text piece by piece, so that it needs the memory of one piece.

A tokenizer keeps strings, offsets and masks of all that it is given: some 150 bytes per character, ten times what a
small model itself needs. So a long text is read in pieces that overlap. Tokens depend on what stands near them alone:
where the last tokens of one piece and the first of the next are the same for a while, the one goes over into the other.
"""

from typing import Any

_PIECE = 1 << 17  # characters
_OVERLAP = 1 << 12
_SAME = 16  # tokens in a row that must agree, in id and in place

Token = tuple[int, int, int]  # id, and the characters [begin, end) of the text


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids that `tokenizer(text)` gives, without special tokens.

    A tokenizer that does not tell where its tokens stand gets the text whole, and so does one whose pieces never agree.
    """
    if not getattr(tokenizer, "is_fast", False) or len(text) <= _PIECE + _OVERLAP:
        return _whole(tokenizer, text)
    ids: list[int] = []
    tokens, first = _tokens(tokenizer, text, 0), 0
    for start in range(_PIECE, len(text), _PIECE):
        following = _tokens(tokenizer, text, start)
        met = _meeting([token for token in tokens if token[1] >= start], following)
        if met is None:
            return _whole(tokenizer, text)
        before = sum(token[1] < start for token in tokens) + met[0]
        ids += [token[0] for token in tokens[first:before]]
        tokens, first = following, met[1]
        if start + _PIECE + _OVERLAP >= len(text):
            break
    return ids + [token[0] for token in tokens[first:]]


def _meeting(ends: list[Token], begins: list[Token]) -> tuple[int, int] | None:
    """The index in each list from which both agree for `_SAME` tokens."""
    at = {token: index for index, token in reversed(list(enumerate(begins[: len(ends)])))}
    for index, token in enumerate(ends[:-_SAME]):
        other = at.get(token)
        if other is not None and ends[index : index + _SAME] == begins[other : other + _SAME]:
            return index, other
    return None


def _tokens(tokenizer: Any, text: str, start: int) -> list[Token]:
    piece = text[start : start + _PIECE + _OVERLAP]
    found = tokenizer(piece, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return [
        (id_, start + a, start + b) for id_, (a, b) in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]


def _whole(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
