"""Runs a stranger's chat template: as transformers does, but within limits of time and memory. No torch.

jinja2's sandbox keeps a template from the machine, not from running for ever. So here a template pays for what it makes
(`allowance.py`): the compiler puts a payment before each turn of a loop and each call of a macro, and the environment
looks at what operators, calls and filters are given, and at what they give.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import wraps
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

from bitwright.generate.allowance import allowance

_TURN = 128  # what a turn of a loop costs, in characters, beside the constants that it may write


class RefusedError(TemplateError):
    """The template itself refuses the messages (`raise_exception`)."""


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

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _call("paid", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

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
        allowance().afford_operator(operator, left, right)
        return _paid(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """What a call gives, if it is not too large."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if owner is not None:
            allowance().afford_call(method.__name__, owner, [*args, *kwargs.values()])
        return _paid(super().call(__context, __obj, *args, **kwargs))


def _paid_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with the mark by which jinja2 hands in its context
    def call(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[1:] if isinstance(args[0], Context | EvalContext | Environment) else args
        others = [*others, *kwargs.values()]
        if name == "format":  # by %, unlike the method
            allowance().afford_percent(str(value), others)
        else:
            allowance().afford_call(name, value, others)
        return _paid(function(*args, **kwargs))

    return call


def _paid(value: Any) -> Any:
    return allowance().pay_for(value)


def _shown(value: Any) -> Any:
    """A value that is written into the text, paid for."""
    allowance().pay(0 if isinstance(value, Undefined) else allowance().size(value))
    return value


def _turn(cost: int) -> None:
    allowance().pay(cost)


def _concatenated(*values: Any) -> str:
    """The operator ~."""
    allowance().afford(sum(map(allowance().size, values)))
    return "".join(map(str, values))


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
    allowance().afford_json(value, indent, separators)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
