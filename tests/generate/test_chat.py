"""Chat templates render as in transformers, and a hostile one ends soon, with an error that names its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bitwright.errors import InputError, ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.generate.chat import ChatTemplates
from tests.families import small_tokenizer

CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
TOOLS = """\
{%- macro described(tool, depth=0) -%}
    {{- '  ' * depth ~ tool.name ~ ': ' ~ (tool.description | default('no words') | trim) }}
    {%- for name, value in tool.parameters.properties.items() %}
        {{- '\\n' ~ '  ' * (depth + 1) ~ name ~ ' = ' ~ value | tojson }}
    {%- endfor %}
{%- endmacro -%}
{%- set ns = namespace(system='', calls=0, seen=[]) %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- if tools %}
    {{- 'Tools:\\n' }}
    {%- for tool in tools %}
        {{- described(tool.function, 1) }}
        {%- if not loop.last %}{{ '\\n--\\n' }}{% endif %}
    {%- endfor %}
    {{- '\\n' ~ tools | tojson(indent=2) }}
{%- endif %}
{%- for message in messages if message.role != 'hidden' %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {%- if message.role == 'comment' %}{% continue %}{% endif %}
    {%- set ns.seen = ns.seen + [message.role] %}
    {%- if message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {%- set ns.calls = ns.calls + 1 %}
            {{- '<call %d>' | format(ns.calls) }}{{ call.function.arguments | tojson }}
        {%- endfor %}
    {%- elif message.content is string %}
        {%- generation %}{{ message.role | upper
            ~ ': ' ~ message.content.strip().replace('#', '+') }}{% endgeneration %}
    {%- else %}
        {{- message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(', ') }}
    {%- endif %}
    {{- '%s/%s' % (loop.index, messages | length) }}{{ "{:>4}|{x}".format(ns.calls, x=loop.revindex) }}
    {%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
{%- endfor %}
{{- ns.system ~ ns.seen | join('+') ~ (messages | map(attribute='role') | unique | list)
    ~ 2 ** 5 ~ 7 % 3 ~ [1, 2] * 2 }}
{%- for document in documents or [] %}{{ document.title }}{% endfor %}
{%- if enable_thinking is defined and enable_thinking %}<think>{% endif %}
{%- if add_generation_prompt %}{{ eos_token ~ 'assistant:' }}{% endif %}
"""
# All that a template may use, a line of each sort.
EVERYTHING = r"""
{%- macro arg(a, esc=True) -%}
 {%- if a is string -%}{{- '<|"|>' + a + '<|"|>' -}}{%- elif a is boolean -%}{{- 'true' if a else 'false' -}}
 {%- elif a is mapping -%}{{- '{' -}}{%- set ns = namespace(f=false) -%}{%- for k, v in a | dictsort -%}{%- if ns.f %},{% endif -%}{%- set ns.f = true -%}{{- k if not esc else '"' ~ k ~ '"' -}}:{{- arg(v, esc=esc) -}}{%- endfor -%}{{- '}' -}}
 {%- elif a is sequence -%}[{%- for i in a -%}{{- arg(i, esc=esc) -}}{%- if not loop.last %},{% endif -%}{%- endfor -%}]{%- else -%}{{- a -}}{%- endif -%}
{%- endmacro -%}
{%- for t in tools -%}{{ arg(t, esc=False) }}|{{ arg(t) }}{%- endfor -%}
{% macro box(n) %}[{{ caller(n) }}]{% endmacro %}{% call(x) box('q') %}zz{{x}}{% endcall %}
{% filter upper %}abc {{ messages[0].content }}{% endfilter %}
{%- for m in messages recursive %}<{{ m.role }}{{ loop.depth }}{% if m.tool_calls %}{{ loop(m.tool_calls) }}{% endif %}>{% else %}none{% endfor %}
{% set user = messages | selectattr("role","equalto","user") | list %}{{ user[-1] == messages[1] }} {{ user | length }} {{ messages.0.get('nope', 3) }} {{ messages[0]['content'][:-3] }} {{ messages[-1:] }}
{% set a, b = 1, [2,3] %}{{ a }}{{ b }}{{ (1,2) }}{{ {'a': a} }}{{ [] }}{{ {} }}{{ () }}{{ -5 % 3 }}{{ 7 // 2 }}{{ 2**10 }}{{ 'a' * 3 }}{{ [1]+[2] }}{{ 1 + 2.5 }}{{ 'x' ~ none ~ undefined_thing ~ 3 }}
{{ "%s has %d (%.2f) %%" % ("a", 3, 2.5) }} {{ "%(a)s" % {'a': 1} }} {{ "{} {:.3f} {x!r:>6} {{}}".format('p', 1234567.891, x='y') }} {{ "{:,}".format(1234567) }} {{ 1234567 | string }} {{ 1700000000 | round(1) }} {{ 12345678 | tojson }}
{{ messages | map(attribute='role') | join(', ') | title }} {{ 'a,b'.split(',') | last }} {{ range(3) | list }} {{ dict(a=1, b=dict(c=2)) | items | list }} {{ ['b','a'] | sort | first }} {{ messages | groupby('role') | length }} {{ 'long text here to wrap' | wordwrap(8) }} {{ 'a\nb' | indent(4) }} {{ 5 | abs }} {{ [3,1] | max }} {{ [1,2,3,4] | batch(2) | list }} {{ 'x' | center(9) }} {{ 'q'.encode() }} {{ cycler('a','b').next() }}{% set j = joiner(',') %}{{ j() }}{{ j() }}
{{ '<b>' | e }} {{ 'abc' | replace('b', '--') }} {{ strftime_now('%Y') }} {{ namespace(a=1).a }} {{ dict.fromkeys([1,2]) }} {{ 'a' in 'abc' }} {{ [1,2] | sum }} {{ '12' | int + 1 }} {{ true }} {{ none }} {{ x is defined }}
{%- for a in [1,2,3,4] if a % 2 == 0 %}{{ loop.index }}{{ loop.previtem }}{{ loop.cycle('o','e') }}{% if loop.changed(a) %}c{% endif %}{% endfor %}
{% generation %}{% set hidden = 3 %}in{{ hidden }}{% endgeneration %}{{ hidden }}
{%- set block %}captured {{ a }}{% endset %}{{ block | trim }}{% with z = 4 %}{{ z }}{% endwith %}{% raw %}{{ raw }}{% endraw %}
"""  # noqa: E501
TALK = [
    {"role": "system", "content": "Be brief. <b> & 'é' 汉字"},
    {"role": "user", "content": "  What is six times seven?  "},
    {"role": "assistant", "content": None, "thinking": "42?", "tool_calls": [
        {"function": {"name": "times", "arguments": {"a": 6, "b": 1234567, "text": "ü <"}}}]},
    {"role": "comment", "content": "nobody reads this"},
    {"role": "tool", "content": [{"type": "text", "text": "42"}, {"type": "image"}, {"type": "text", "text": "ok"}]},
    {"role": "hidden", "content": "nor this"},
    {"role": "assistant", "content": "## Forty-two. "},
]  # fmt: skip
SCHEMAS = [
    {"type": "function", "function": {"name": name, "description": " Multiplies. ", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "enum": [1, 2]}}}}}
    for name in ("times", "plus")
]  # fmt: skip
PLAIN = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello, I am "}]


@pytest.fixture
def model(tmp_path: Path, texts: list[str]) -> Callable[..., Path]:
    """`model(template=…, **settings)`: a directory with a tokenizer and this chat template."""

    def make(template: Any = None, files: dict[str, str] | None = None, **settings: Any) -> Path:
        small_tokenizer(0, texts).save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        file = tmp_path / "tokenizer_config.json"
        known = json.loads(file.read_text()) | {"bos_token": "[CLS]", "eos_token": "[SEP]"} | settings
        file.write_text(json.dumps(known | ({} if template is None else {"chat_template": template})))
        for name, text in (files or {}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(text.encode())
        return tmp_path

    return make


def templates(path: Path) -> ChatTemplates:
    return ChatTemplates(ModelDirectory(path))


def both(path: Path, messages: list[dict[str, Any]], **how: Any) -> tuple[str, str]:
    """What we render, and what transformers does."""
    library = {"add_generation_prompt": not how.get("continue_final_message"), "tokenize": False} | how
    variables, name = library.pop("variables", {}), library.pop("name", None)
    tokenizer = AutoTokenizer.from_pretrained(path)
    want = tokenizer.apply_chat_template(messages, chat_template=name, **library, **variables)
    return templates(path).render(messages, **how), want


@pytest.mark.parametrize("template", [CHATML, TOOLS], ids=["chatml", "tools"])
@pytest.mark.parametrize("messages", [TALK[:2], PLAIN, TALK[1:2] * 5], ids=["system", "plain", "long"])
@pytest.mark.parametrize("how", [{}, {"add_generation_prompt": False}, {"continue_final_message": True}], ids=str)
def test_text_equals_that_of_transformers(
    model: Callable[..., Path], template: str, messages: list[dict[str, Any]], how: dict[str, Any]
) -> None:
    got, want = both(model(template), messages, **how)
    assert got == want
    assert len(got) > 20


def test_tools_documents_and_variables_are_passed_through(model: Callable[..., Path]) -> None:
    got, want = both(
        model(TOOLS), TALK, tools=SCHEMAS, documents=[{"title": "T", "text": "x"}], variables={"enable_thinking": True}
    )
    assert got == want
    for part in (
        "<call 1>",
        '"b": 1234567',
        "<think>42?</think>",
        "42, ok",
        "T<think>[SEP]assistant:",
        "  times: Mult",
    ):
        assert part in got
    assert "nobody" not in got
    got, want = both(model(TOOLS), TALK[1:2] * 9)
    assert got == want
    assert got.count("USER") == 6  # a {% break %}


def test_everything_that_templates_use_is_as_in_transformers(model: Callable[..., Path]) -> None:
    tools = [{"name": "n", "p": {"a": [1, True, "s"], "z": {"q": None}}}]
    calls = [{"role": "call", "function": {"name": "times"}}]
    messages = [*TALK[:2], {"role": "assistant", "content": "y", "tool_calls": calls}]
    got, want = both(model(EVERYTHING), messages, tools=tools)
    assert got == want
    assert "captured 14{{ raw }}" in got


@pytest.mark.parametrize("field", ["content", "reasoning_content", "thinking"])
def test_a_final_message_is_left_open(model: Callable[..., Path], field: str) -> None:
    messages = [*PLAIN[:1], {"role": "assistant", "content": "so, ", "thinking": "first, "}]
    template = "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content | trim }}]{% endfor %}"
    got, want = both(model(template), messages, continue_final_message=field)
    assert got == want
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]
    template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}!{% endfor %}"
    got, want = both(model(template), [{"role": "user", "content": parts}], continue_final_message=True)
    assert got == want == "ab "
    assert parts[1]["text"] == "b "  # ours is a copy


def test_the_files_are_those_that_transformers_reads(model: Callable[..., Path]) -> None:
    listed = [{"name": "default", "template": "plain {{ bos_token }}"}, {"name": "tool_use", "template": "tools"}]
    path = model(listed)
    for how in ({}, {"tools": SCHEMAS}, {"name": "tool_use"}):
        got, want = both(path, PLAIN, **how)
        assert got == want
    path = model(listed, {"chat_template.jinja": "file\r\n{{ eos_token }}\n"})
    got, want = both(path, PLAIN, tools=SCHEMAS)
    assert got == want == "file\n[SEP]"
    path = model(listed, {"chat_templates/rag.jinja": "rag"})
    got, want = both(path, PLAIN, name="rag")
    assert got == want == "rag"
    assert templates(path).templates.keys() == {"default", "rag"}


def test_special_tokens_are_those_of_transformers(model: Callable[..., Path]) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ mask_token }}"
    got, want = both(model(template, eos_token={"content": "[MASK]", "__type": "AddedToken"}), PLAIN)
    assert got == want
    got, want = both(model(template, {"special_tokens_map.json": '{"bos_token": {"content": "[PAD]"}}'}), PLAIN)
    assert got == want


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "a list of at least one message"),
        ("Hi", "a list of at least one message"),
        ({"role": "user"}, "a list of at least one message"),
        (["Hi"], "message 0 is 'Hi'"),
        ([{"role": "user", "content": object()}], "is no JSON data"),
    ],
)
def test_messages_of_a_wrong_form_are_refused(model: Callable[..., Path], messages: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        templates(model(CHATML)).render(messages)


def test_what_cannot_be_asked_is_told(model: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        templates(model()).render(PLAIN)
    made = templates(model(CHATML))
    with pytest.raises(InputError, match="no chat template is called 'rag'; known: default"):
        made.render(PLAIN, name="rag")
    with pytest.raises(InputError, match="tools is"):
        made.render(PLAIN, tools=["times"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="no 'thinking' that could be continued"):
        made.render(PLAIN, continue_final_message="thinking")
    nested: Any = "x"
    for _ in range(200):
        nested = [nested]
    with pytest.raises(InputError, match="more than 100 deep"):
        made.render([{"role": "user", "content": nested}])
    for wrong in ({"a": 1}, [{"name": "default"}], [3], "x" * (1 << 21)):
        with pytest.raises(ModelError, match=r"tokenizer_config\.json: chat_template is"):
            templates(model(wrong))


def test_what_a_template_refuses_is_told(model: Callable[..., Path]) -> None:
    path = model("{{ raise_exception('roles must alternate \x1b[31m') }}")
    with pytest.raises(InputError, match=r"json: the chat template refuses these messages: roles must alternate \\x1b"):
        templates(path).render(PLAIN)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}", "{{ messages[0].content.nothing.at.all }}", "{% include 'x' %}", "{{ 1 / 0 }}",
        "{% import 'x' as y %}", "{{ '%d' % 'x' }}", "{{ none() }}", "{{ messages[0].content | nothing }}",
        "{{ '' .__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ namespace(_x=1) }}", "{{ lipsum(3) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 3 %}", "{{ (" * 3000,
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ cycler.__init__.__globals__ }}",
        "{{ messages | tojson(default=1) }}",
    ],
)  # fmt: skip
def test_a_fault_in_a_template_names_its_file(model: Callable[..., Path], template: str) -> None:
    path = model(files={"chat_template.jinja": template})
    with pytest.raises(ModelError, match=r"chat_template\.jinja: "):
        templates(path).render(PLAIN)


def test_a_hostile_template_names_its_file(model: Callable[..., Path]) -> None:
    path = model(files={"chat_template.jinja": "{{ 'a' * 10 ** 10 }}"})
    with pytest.raises(ModelError, match=r"chat_template\.jinja: the chat template fails on these messages \(Security"):
        templates(path).render(PLAIN)


def test_a_long_conversation_is_allowed(model: Callable[..., Path]) -> None:
    """What one may have today: a million characters in a thousand messages, tools with large numbers."""
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1000)]
    got, want = both(model(CHATML), messages)
    assert got == want
    messages = [{"role": "user", "content": "word " * 200_000}]
    got, want = both(model(TOOLS), messages, tools=SCHEMAS * 20)
    assert got == want
