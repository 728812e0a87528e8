"""JSON of files that others wrote."""

import json
from collections.abc import Callable
from typing import Any


def parse_json(content: bytes | str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse UTF-8 JSON whose strings are text.

    pairs: makes an object of its keys and values; by default a dict.

    Raises:
        ValueError: it is not JSON, not UTF-8, or one of its strings cannot be written as UTF-8 (`check_text`).
        RecursionError: it is nested too deeply.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    value = json.loads(text, object_pairs_hook=pairs)
    if "\\u" in text:  # only an escape can make what UTF-8 cannot hold
        check_text(value)
    return value


def check_text(value: Any) -> None:
    """Check that the strings of parsed data are text: JSON and YAML can spell half of a surrogate pair, which no file
    and no terminal can hold.

    Raises:
        ValueError: one is not.
    """
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"a string holds {ascii(half)[1:-1]}, half of a surrogate pair, which is no text") from None
