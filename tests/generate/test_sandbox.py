"""A hostile template ends soon: it makes no more, and takes no longer, than it may."""

import time
from typing import Any

import pytest
from jinja2 import TemplateError

from bitwright.generate.allowance import ALLOWANCE, ELEMENT, allowed, size_of
from bitwright.generate.sandbox import compile_template

MESSAGES = [{"role": "user", "content": "Hi"}]
LARGE = "{% set ns = namespace(s='abcdefgh', l=[1], n=2) %}"
ATTACKS = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a' * 999999999 }}",
    "{{ [1] * 999999999 }}",
    "{{ 10 ** (10 ** 8) }}",
    "{{ 'a' | center(10 ** 9) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ ('a\n' * 100000) | indent(100000) }}",
    "{{ ('\t' * 100000).expandtabs(100000) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('b' * 100000).join('a' * 100000) }}",
    "{{ range(99999) | join('b' * 100000) }}",
    "{{ range(99999) | map('string') | join('b' * 100000) }}",
    "{{ dict.fromkeys(range(9999)).keys() | join('b' * 100000) }}",
    "{{ range(9999) | list | tojson(separators=('b' * 100000, 'b')) }}",
    "{{ '%999999999d'.encode() % 1 }}",
    "{{ '%(a%b)999999999d' % {'a%b': 1} }}",
    "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "{{ ('%(' * 200000) % {} }}",
    "{{ ('a' * 1000000) | wordwrap(1) }}",
    "{{ ('<!---->' * 100000) | striptags }}",
    "{{ ('a.' * 1000000) | urlize }}",
    "{{ (5).from_bytes(('a' * 1000000).encode(), 'big') // 3 }}",
    "{% macro m(s, n) %}{{ m(s[1:], n + 1) if n < 200 }}{% endmacro %}{{ m('a' * 1000000, 0) }}",
    LARGE + "{% block a %}{% set ns.n = ns.n + 1 %}{% if ns.n < 99 %}{{ self.a() }}{{ self.a() }}{% endif %}"
    "{% set ns.n = ns.n - 1 %}{% endblock %}",
    "{{ (range(90000) | list) | join('b' * 100000) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 999999999) }}",
    "{{ ('{0:>999}' * 100000).format(1) }}",
    "{{ '{x:>999999999}'.format_map({'x': 1}) }}",
    "{{ (5).to_bytes(1000000000, 'big') }}",
    "{{ ('a'.encode() * 100000).replace('a'.encode(), 'b'.encode() * 100000) }}",
    "{{ 'a'.encode().ljust(1000000000) }}",
    "{{ 5 | round(1000000000, 'ceil') }}",
    "{{ [1] | batch(1000000000, 2) | list }}",
    "{{ messages | tojson(indent=100000000) }}",
    "{% filter center(1000000000) %}a{% endfilter %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    LARGE + "{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    LARGE + "{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    LARGE + "{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    LARGE + "{% for i in range(99) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    LARGE + "{% for i in range(99) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}{{ ns.l | tojson }}",
    LARGE + "{% for i in range(99) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ ns.l == ns.l }}",
    LARGE + "{% for i in range(99) %}{% set ns.l = dict(a=ns.l, b=ns.l) %}{% endfor %}{{ ns.l }}",
    LARGE + "{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    LARGE + "{% for i in range(99) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(90) }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "{% for i in range(99999) %}" + "x" * 100000 + "{% endfor %}",
    "{% for i in range(99999) %}{{ '" + "x" * 100000 + "' }}{% endfor %}",
    "{% set s = 'x' * 100000 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "{% set s = 'x' * 100000 %}{% for i in range(99999) %}{% set t = s | upper %}{% endfor %}",
]


def rendered(template: str, size: int = 0, **known: Any) -> str:
    with allowed(size):
        return compile_template(template).render(messages=MESSAGES, **known)


@pytest.mark.parametrize("template", ATTACKS, ids=lambda text: text[:60] + text[-20:])
def test_a_hostile_template_ends_soon(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.generate.allowance.MAX_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.raises(
        (TemplateError, ValueError, RecursionError), match=r"it (makes|asks for|takes|writes)|recursion"
    ):
        rendered(template)
    assert time.monotonic() - start < 5


def test_the_clock_ends_what_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.generate.allowance.MAX_SECONDS", 0.05)
    with pytest.raises(TemplateError, match="it takes longer than"):
        rendered("{% set l = range(9999) | list %}{% for i in range(99999) %}{% if -1 in l %}{% endif %}{% endfor %}")


def test_long_messages_may_make_more() -> None:
    template = "{% for i in range(30) %}{% set t = text | upper %}{% endfor %}done"
    text = "x" * 1_000_000
    with pytest.raises(TemplateError, match="it makes more than"):
        rendered(template, 0, text=text)
    assert rendered(template, len(text), text=text) == "done"


def test_a_template_may_use_large_numbers() -> None:
    number = 10**12
    written = rendered(
        "{{ n }} {{ n | tojson }} {{ '%d' % n }} {{ '{:,}'.format(n) }} {{ n * n }} {{ n | round }}", n=number
    )
    assert written == f"{number} {number} {number} {number:,} {number * number} {number}"


def test_names_of_namespaces_are_watched() -> None:
    for template in ("{{ namespace(_x=1) }}", "{% set ns = namespace() %}{% set ns._x = 1 %}"):
        with pytest.raises(TemplateError, match="must not begin with an underscore"):
            rendered(template)


@pytest.mark.parametrize(
    ("value", "characters", "elements"),
    [("abc", 3, 0), (["a", ["b", "cd"]], 4, 4), ({"a": {"b": "c"}}, 3, 2), ({"a": 1}.keys(), 1, 1), ((), 0, 0),
     (5, 0, 0), (b"ab", 2, 0)],
)  # fmt: skip
def test_sizes_count_characters_and_elements(value: Any, characters: int, elements: int) -> None:
    assert size_of(value, ALLOWANCE) == characters + ELEMENT * elements


def test_the_size_of_what_is_shared_is_looked_at_up_to_the_limit() -> None:
    value: list[Any] = []
    for _ in range(99):
        value = [value, value]
    start = time.monotonic()
    assert size_of(value, ALLOWANCE) > ALLOWANCE
    assert time.monotonic() - start < 2
