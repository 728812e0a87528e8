"""Runs a stranger's chat template: as transformers does, but within limits of time and memory. No torch.

jinja2's sandbox keeps a template from the machine, not from running for ever. So whatever a template makes is paid from
an allowance: each turn of a loop or call of a macro, each string, each list. What cannot be paid step by step (a string
repeated or padded very often, a power) is refused before it is computed. The clock is looked at with each payment.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from itertools import chain
from string import Formatter
from time import monotonic
from typing import Any

from jinja2 import Environment, Template, TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 5.0
ALLOWANCE = 1 << 25  # characters, beside `_FOR_EACH` for each character of the messages
_FOR_EACH = 64
_TURN, _ELEMENT = 128, 256  # what a turn of a loop and an element of a list cost, in characters
_MAX_BITS = 4096  # of a product or a power

# Methods and filters whose result can be as long as the sizes of two of their arguments multiplied, and those that make
# as much as a number says.
_MULTIPLYING = frozenset(["replace", "join", "expandtabs", "translate", "indent", "wordwrap", "xmlattr"])
_COUNTING = frozenset(["center", "ljust", "rjust", "zfill", "batch", "slice", "round", "to_bytes"])
_FORMATTING = frozenset(["format", "format_map"])
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*([\d.*]*)")
_WIDE = re.compile(r"\d{4}|[*{]")  # a width of 1000 or more, or one that an argument gives
_WIDTH = 1000


class RefusedError(TemplateError):
    """The template itself refuses the messages (`raise_exception`)."""


class Allowance:
    """What one rendering may still make and how long it may take."""

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

    def afford(self, cost: int) -> None:
        """Raises:
        SecurityError: it would be too large.
        """
        if cost > self.whole:
            raise SecurityError(f"it asks for {cost} characters at once; {self.whole} are allowed")


_allowance: ContextVar[Allowance] = ContextVar("allowance")


@contextmanager
def allowed(size: int) -> Iterator[None]:
    """Give the templates that are compiled and rendered inside an allowance. size: of the messages, in characters."""
    before = _allowance.set(Allowance(size))
    try:
        yield
    finally:
        _allowance.reset(before)


def size_of(value: Any, limit: int) -> int:
    """About how many characters a value has when it is written out; what is over `limit` is not looked at."""
    total, waiting = 0, [value]
    while waiting and total <= limit:
        one = waiting.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, list | tuple | set | frozenset):
            total += _ELEMENT * len(one)
            waiting.extend(one)
        elif isinstance(one, Mapping):
            total += _ELEMENT * len(one)
            waiting.extend(chain(one.keys(), one.values()))
    return total


def compile_template(text: str) -> Template:
    """The compiled template. Call this, and its `render`, inside `allowed`.

    Raises:
        TemplateError: a fault in its syntax, or constants that are too large.
    """
    return _Environment().from_string(text)


class _Generation(Extension):
    """{% generation %}: marks what the model said, for training. Here its content stands as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Callable[[], str]) -> str:
        """What stands between the tags."""
        return caller()


class _Namespace(Namespace):
    """No names with an underscore, as transformers has it. It does not write out what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be the name of a value
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _Dict:
    """`dict` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Paid(NodeTransformer):
    """Puts a payment before each turn of a loop and each call of a macro, and around what operators make unseen."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._paid_body(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._paid_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._paid_body(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenated", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._paid_value(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._paid_value(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._paid_value(node) if node.ctx == "load" else node

    def _paid_value(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:
        if all(isinstance(one, nodes.Const) for one in node.items):
            return node
        self.generic_visit(node)
        return _call("paid", [node], node.lineno)

    def _paid_body(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        constants = sum(len(one.data) for one in node.find_all(nodes.TemplateData))
        constants += sum(len(one.value) for one in node.find_all(nodes.Const) if isinstance(one.value, str))
        self.generic_visit(node)
        turn = _call("turn", [nodes.Const(_TURN + constants)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn).set_lineno(node.lineno))
        return node


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Expr:
    """The call of a function that only the environment has: a template cannot name it."""
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """What a chat template sees, each thing paid for."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_shown
        )  # fmt: skip
        self.filters["tojson"] = _to_json
        self.filters = {name: _paid_filter(name, function) for name, function in self.filters.items()}
        del self.globals["lipsum"]  # makes much text of a small number, and no template needs it
        self.globals |= {
            "raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace,
        }  # fmt: skip
        self.turn, self.paid, self.concatenated = _turn, _paid, _concatenated

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Paid().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator, if it is not too large."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if operator in ("*", "**") and bits > _MAX_BITS:
                raise SecurityError(f"it computes a number of {bits} bits")
        elif operator == "*":
            _allowance.get().afford(_factor(left) * _factor(right))
        elif operator == "%" and isinstance(left, str):
            _check_fields(_percent_fields(left), left, right)
        return _paid(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """What a call gives, if it is not too large."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if owner is not None:
            _check_growth(method.__name__, owner, [*args, *kwargs.values()])
        return _paid(super().call(__context, __obj, *args, **kwargs))


def _paid_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with the mark by which jinja2 hands in its context
    def call(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[1:] if isinstance(args[0], Context | EvalContext | Environment) else args
        others = [*others, *kwargs.values()]
        if name == "format":  # by %, unlike the method
            _check_fields(_percent_fields(str(value)), str(value), others)
        else:
            _check_growth(name, value, others)
        return _paid(function(*args, **kwargs))

    return call


def _paid(value: Any) -> Any:
    """The value, paid for."""
    allowance = _allowance.get()
    cost = size_of(value, allowance.whole)
    allowance.afford(cost)
    allowance.pay(cost if isinstance(value, str) else cost // _ELEMENT)  # a list holds what was paid before
    return value


def _shown(value: Any) -> Any:
    """A value that is written into the text, paid for."""
    allowance = _allowance.get()
    allowance.pay(0 if isinstance(value, Undefined) else size_of(value, allowance.whole))
    return value


def _turn(cost: int) -> None:
    _allowance.get().pay(cost)


def _concatenated(*values: Any) -> str:
    """The operator ~."""
    allowance = _allowance.get()
    allowance.afford(sum(size_of(value, allowance.whole) for value in values))
    return "".join(map(str, values))


def _check_growth(name: str, value: Any, others: list[Any]) -> None:
    """Refuse what a method of a value, or a filter on it, would make too large."""
    if name in _MULTIPLYING:
        _allowance.get().afford(_factor(value) * max(map(_factor, others), default=1))
    elif name in _COUNTING:
        _allowance.get().afford(max((abs(one) for one in others if isinstance(one, int)), default=0))
    elif name in _FORMATTING and isinstance(value, str):
        specs = [spec or "" for _, _, spec, _ in Formatter().parse(value)]
        _check_fields(specs, value, others)


def _percent_fields(text: str) -> list[str]:
    """Of each % of a format, what stands between it and its letter."""
    return [found[1] for found in _PERCENT.finditer(text)]


def _check_fields(specs: list[str], text: str, values: Any) -> None:
    """Refuse a format with a wide field, or with so many that what they show is too large."""
    if any(map(_WIDE.search, specs)):
        raise SecurityError(f"it writes a value into a field of {_WIDTH} characters or more")
    allowance = _allowance.get()
    allowance.afford(len(text) + len(specs) * max(_WIDTH, size_of(values, allowance.whole)))


def _factor(value: Any) -> int:
    """The size of a value, as a factor of another's."""
    if isinstance(value, int):
        return abs(value)
    return max(size_of(value, _allowance.get().whole), 1)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it stores {name!r} in a namespace; names there must not begin with an underscore")


def _refuse(message: Any) -> None:
    raise RefusedError(str(message))


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers writes it: jinja2's own filter escapes HTML."""
    _allowance.get().afford(_factor(value) * (_factor(indent) if indent else 1))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
