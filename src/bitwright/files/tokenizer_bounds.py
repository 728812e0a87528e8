"""Limits what an untrusted tokenizer may cost per text. It checks tokenizer.json before the tokenizer reads a text.

The library bounds none of it: a normalizer may make a million characters of one, a WordPiece look at a word in cubic
time, a pattern be tried in exponentially many ways.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bitwright.errors import EngineError, brief

_MOST_GROWN = 100  # characters that one may become, or pieces that a text is put together of
_MOST_PARTS = 100  # of normalizers, of pre-tokenizers: each goes over the whole text
_LONGEST_PIECE = 512  # characters of a Unigram piece: at each place of a text all that begin there are looked at
_LONGEST_WORD = 1000  # characters of a word that WordPiece takes apart, in cubic time
# Of a pattern: repeats without an end (or with a far one) that one way through it may have, and choices. Published
# patterns have no more than two repeats, which match different letters.
_MOST_REPEATS, _MOST_CHOICES, _FAR, _LONGEST_PATTERN = 2, 12, 16, 1 << 16

_UNREAD = re.compile(r"\(\?(#|[a-z]*x)|\\[gQ]")
_REPEAT = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")


def check_growth(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that could make very much out of a short text, or take very long for it.

    content: of tokenizer.json, or those of its parts that are known. Parts of the wrong types are left to the library.

    Raises:
        EngineError: what it may do, and the limit.
    """
    for key, inside, check in _CHECKS:
        parts = [part for part in _leaves(content.get(key), inside) if "type" in part]
        if len(parts) > _MOST_PARTS:
            raise EngineError(f"{file}: the {key} has {len(parts)} parts, more than {_MOST_PARTS}")
        check(file, parts)
    model = content.get("model")
    if isinstance(model, dict):
        _check_model(file, model)


def _check_normalizer(file: Path, parts: list[dict[str, Any]]) -> None:
    grown, prepended = 1, 0
    for part in parts:
        kind = part["type"]
        if kind == "Replace":
            pattern = part.get("pattern")
            found = pattern.get("String") if isinstance(pattern, dict) else None
            shortest = max(len(found), 1) if isinstance(found, str) else 1
            grown *= max(1, -(-len(str(part.get("content", ""))) // shortest))
        elif kind == "ByteLevel":
            grown *= 2
        elif kind == "Precompiled":
            grown *= _longest_entry(part.get("precompiled_charsmap"))
        elif kind == "Prepend":
            prepended += len(str(part.get("prepend", "")))
    if grown > _MOST_GROWN:
        raise EngineError(f"{file}: the normalizer can turn one character into {grown}, more than {_MOST_GROWN}")
    if prepended > _MOST_GROWN:
        raise EngineError(f"{file}: the normalizer prepends {prepended} characters, more than {_MOST_GROWN}")
    _check_patterns(file, parts)


def _check_pre_tokenizer(file: Path, parts: list[dict[str, Any]]) -> None:
    levels = sum(part["type"] == "ByteLevel" for part in parts)
    if 2**levels > _MOST_GROWN:  # each makes two characters of one that is not ASCII
        raise EngineError(f"{file}: the pre_tokenizer has ByteLevel {levels} times, and each can double a text")
    _check_patterns(file, parts)


def _check_post_processor(file: Path, parts: list[dict[str, Any]]) -> None:
    for part in parts:
        tokens = part.get("special_tokens")
        known = tokens.values() if isinstance(tokens, dict) else ()
        lists = [
            part.get("single"),
            part.get("pair"),
            *(token.get("ids") for token in known if isinstance(token, dict)),
        ]
        for pieces in lists:
            if isinstance(pieces, list) and len(pieces) > _MOST_GROWN:
                raise EngineError(f"{file}: the post_processor joins {len(pieces)} pieces, more than {_MOST_GROWN}")


# Part of tokenizer.json, the key of its parts where it is a sequence of them, and how they are checked.
_CHECKS: tuple[tuple[str, str, Callable[[Path, list[dict[str, Any]]], None]], ...] = (
    ("normalizer", "normalizers", _check_normalizer),
    ("pre_tokenizer", "pretokenizers", _check_pre_tokenizer),
    ("post_processor", "processors", _check_post_processor),
)


def _check_model(file: Path, model: dict[str, Any]) -> None:
    length = model.get("max_input_chars_per_word")
    if isinstance(length, int) and length > _LONGEST_WORD:
        raise EngineError(
            f"{file}: max_input_chars_per_word is {length}; more than {_LONGEST_WORD} would take too long"
        )
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        longest = max((len(p[0]) for p in vocabulary if isinstance(p, list) and p and isinstance(p[0], str)), default=0)
        if longest > _LONGEST_PIECE:
            raise EngineError(
                f"{file}: a piece has {longest} characters; Unigram takes too long with more than {_LONGEST_PIECE}"
            )


def _leaves(part: Any, inside: str) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer, or all parts of a sequence."""
    waiting = [part]
    while waiting:
        if isinstance(taken := waiting.pop(), dict):
            yield taken
            inner = taken.get(inside)
            waiting += inner if isinstance(inner, list) else []


def _longest_entry(charsmap: Any) -> int:
    """The length of the longest text that SentencePiece's table writes for one character.

    It is the size of a trie (4 bytes), the trie, and the texts, each ended by a zero byte.
    """
    import base64  # few tokenizers have one

    try:
        table = base64.b64decode(charsmap, validate=True)
    except (TypeError, ValueError):
        return 1  # the library refuses it
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(len(text.decode("utf-8", "replace")) for text in texts.split(b"\0"))


def _check_patterns(file: Path, parts: list[dict[str, Any]]) -> None:
    for part in parts:
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(regex, str) and (fault := pattern_fault(regex)):
            raise EngineError(f"{file}: the pattern {brief(regex)} could take for ever on a text: {fault}")


def pattern_fault(regex: str) -> str:
    """Why a tokenizer's pattern could match in too many ways; "" if it could not."""
    if len(regex) > _LONGEST_PATTERN:
        return f"it has {len(regex)} characters"
    if _UNREAD.search(regex):
        return "it has comments or the flag x, or it calls itself"
    # (repeats, choices) of the branches of each open group: of those that ended the most, and of the one under way.
    ended, under_way = [(0, 0)], [(0, 0)]
    has_branches, last, place = [False], (0, 0), 0
    while place < len(regex):
        letter, before = regex[place], last
        last, place = (0, 0), place + 1
        if letter == "\\":
            place += 1
            if regex[place - 1 : place] in ("p", "P", "x") and regex[place : place + 1] == "{":
                place = regex.find("}", place) + 1 or len(regex)
        elif letter == "[":
            place = _end_of_class(regex, place)
        elif letter == "(":
            ended.append((0, 0))
            under_way.append((0, 0))
            has_branches.append(False)
            if regex.startswith("?", place):
                place += 1
            continue
        elif letter == "|":
            ended[-1], under_way[-1], has_branches[-1] = _most(ended[-1], under_way[-1]), (0, 0), True
        elif letter == ")" and len(ended) > 1:
            last = _most(ended.pop(), under_way.pop())
            last = (last[0], last[1] + has_branches.pop())
            under_way[-1] = _sum(under_way[-1], last)
        elif found := _REPEAT.match(regex, place - 1):
            place = found.end()
            far = letter in "*+" or (letter == "{" and bool(found[2]) and int(found[3] or _FAR) >= _FAR)
            if letter == "{" and any(len(number or "") > 6 for number in found.groups()):
                return "it repeats something very often"
            if letter != "?" and before != (0, 0):
                return "a repeated part holds repeats or alternatives"
            under_way[-1] = _sum(under_way[-1], (int(far), int(not far and (letter == "?" or bool(found[2])))))
            last = (1, 0)  # to repeat a repeat is a fault; but "?" and "+" after one say how it is tried
            if regex[place : place + 1] in ("?", "+") and letter in "*+?":
                place += 1
    repeats, choices = _most(ended[0], under_way[0])
    if repeats > _MOST_REPEATS or choices > _MOST_CHOICES:
        return f"it has {repeats} repeats and {choices} choices in a row"
    return ""


def _end_of_class(regex: str, place: int) -> int:
    """The end of the character class that begins before `place`; in this dialect classes may hold classes."""
    depth, first = 1, True
    while place < len(regex) and depth:
        letter = regex[place]
        if first and letter in "^]":
            first = letter == "^"
        elif letter == "\\":
            place, first = place + 1, False
        else:
            depth, first = depth + {"[": 1, "]": -1}.get(letter, 0), letter == "["
        place += 1
    return place


def _most(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), max(one[1], other[1])


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
