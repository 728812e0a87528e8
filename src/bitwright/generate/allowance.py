"""What a stranger's chat template may cost: characters that it makes, and time. No torch.

Each thing that is made is paid for. What would be large at once (a text repeated or padded very often, a power) is
refused before it is made. The clock is looked at with each payment.
"""

import re
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from string import Formatter
from time import monotonic
from typing import Any

from jinja2.exceptions import SecurityError

MAX_SECONDS = 5.0
ALLOWANCE = 1 << 24  # characters, beside `_FOR_EACH` for each character of the messages
_FOR_EACH = 32
ELEMENT = 256  # what an element of a list costs, in characters
_MAX_BITS = 4096  # of a number

# Methods and filters whose result can be as long as the sizes of two of their arguments multiplied; that make as much
# as a number says; that take time by the square of a text's length.
_MULTIPLYING = frozenset(["replace", "join", "expandtabs", "translate", "indent", "xmlattr"])
_COUNTING = frozenset(["center", "ljust", "rjust", "zfill", "batch", "slice", "round", "to_bytes"])
_SLOW = frozenset(["wordwrap", "striptags", "urlize"])
_FORMATTING = frozenset(["format", "format_map"])
_PERCENT = re.compile(r"%%|%(?:(?P<key>\([^()]{0,60})(?P<end>\))?)?[-+ #0]*(?P<field>[\d.*]*)")
_WIDE = re.compile(r"\d{4}|[*{]")  # a width of 1000 or more, or one that an argument gives
_WIDTH = 1000


class Allowance:
    """What one rendering may still make, and until when. whole: all of it, and the most that may be made at once."""

    def __init__(self, size: int) -> None:
        """size: of the messages, in characters."""
        self.whole = self.left = ALLOWANCE + _FOR_EACH * size
        self.until = monotonic() + MAX_SECONDS

    def pay(self, cost: int) -> None:
        """Raises:
        SecurityError: nothing is left, or the time is over.
        """
        self.left -= cost
        if self.left < 0:
            raise SecurityError(f"it makes more than {self.whole} characters, far more than the messages have")
        if monotonic() > self.until:
            raise SecurityError(f"it takes longer than {MAX_SECONDS:g} seconds")

    def pay_for(self, value: Any) -> Any:
        """The value, paid for. A list costs little beside what it holds, which was paid before."""
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise SecurityError(f"it makes a number of {value.bit_length()} bits")
        cost = self.size(value)
        self.afford(cost)
        self.pay(cost if isinstance(value, str | bytes) else cost // ELEMENT)
        return value

    def afford(self, cost: int) -> None:
        """Raises:
        SecurityError: what costs so much would be too large.
        """
        if cost > self.whole:
            raise SecurityError(f"it asks for {cost} characters at once; {self.whole} are allowed")

    def afford_operator(self, operator: str, left: Any, right: Any) -> None:
        """Refuse an operator whose result would be too large."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if operator in ("*", "**") and bits > _MAX_BITS:
                raise SecurityError(f"it makes a number of {bits} bits")
        elif operator == "*":
            self.afford(self._factor(left) * self._factor(right))
        elif operator == "%" and isinstance(left, str | bytes):
            self.afford_percent(left if isinstance(left, str) else left.decode("latin-1"), right)

    def afford_call(self, name: str, value: Any, others: Sequence[Any]) -> None:
        """Refuse what a method of a value, or a filter on it, would make too large, or would take too long for."""
        if name in _MULTIPLYING:
            self.afford(self._factor(value) * max(map(self._factor, others), default=1))
        elif name in _COUNTING:
            self.afford(ELEMENT * max((abs(one) for one in others if isinstance(one, int)), default=0))
        elif name in _SLOW:
            self.afford(self._factor(value) ** 2)
        elif name in _FORMATTING and isinstance(value, str):
            self._afford_fields([spec or "" for _, _, spec, _ in Formatter().parse(value)], value, others)

    def afford_percent(self, text: str, values: Any) -> None:
        """Refuse a format of the operator %, if its result would be too large."""
        found = [one for one in _PERCENT.finditer(text) if one[0] != "%%"]
        unclear = any(one["key"] and not one["end"] for one in found)  # a key may hold parentheses
        self._afford_fields(["*"] if unclear else [one["field"] for one in found], text, values)

    def afford_json(self, value: Any, indent: Any, separators: Any) -> None:
        """Refuse JSON that would be too large."""
        between = self._factor(indent or 1) + sum(map(len, separators or ()))
        self.afford(max(self.size(value), 1) * between)

    def size(self, value: Any) -> int:
        """`size_of`, up to all that is allowed."""
        return size_of(value, self.whole)

    def _afford_fields(self, fields: list[str], text: str, values: Any) -> None:
        """fields: what a format says of how each value is written."""
        if any(map(_WIDE.search, fields)):
            raise SecurityError(f"it writes a value into a field of {_WIDTH} characters or more")
        self.afford(len(text) + len(fields) * max(_WIDTH, self.size(values)))

    def _factor(self, value: Any) -> int:
        """The size of a value, as a factor of another's."""
        if isinstance(value, int):
            return abs(value)
        unknown = isinstance(value, Iterator | range)  # as long as a list may be
        return self.whole // ELEMENT if unknown else max(self.size(value), 1)


_current: ContextVar[Allowance] = ContextVar("allowance")


@contextmanager
def allowed(size: int) -> Iterator[None]:
    """Give the templates that are compiled and rendered inside an allowance. size: of the messages, in characters."""
    before = _current.set(Allowance(size))
    try:
        yield
    finally:
        _current.reset(before)


def allowance() -> Allowance:
    """That of the rendering under way."""
    return _current.get()


def size_of(value: Any, limit: int) -> int:
    """About how many characters a value has when it is written out; what is over `limit` is not looked at."""
    total, waiting = 0, [value]
    while waiting and total <= limit:
        one = waiting.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            total += ELEMENT * len(one)
            waiting.extend(chain(one.keys(), one.values()))
        elif isinstance(one, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
            total += ELEMENT * len(one)
            waiting.extend(one)
    return total
