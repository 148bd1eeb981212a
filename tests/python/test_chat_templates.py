# ruff: noqa: E501 (templates are easier to read and to compare as one line each)
"""Chat templates against transformers: the same text, or a refusal by name; never another text."""

import itertools
import os
import random
import threading
import time

import jinja2
import pytest
from exlora import Engine, ExloraError, Request, Tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")

#: What an error says where exlora refuses what Jinja2 does.
REFUSALS = ("not supported", "cannot be printed", "too large", "too deeply", "too much", "takes too", "has ended")

CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def tokenizer(quill):
    return Tokenizer(quill)


def oracle(source, chat=CHAT, tools=None, documents=None, **kwargs):
    """The text that transformers renders, or the error."""
    chat = [{key: value for key, value in message.items() if value is not None} for message in chat]
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [chat], chat_template=source, tools=tools, documents=documents, **kwargs
        )
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        AssertionError,
        # Jinja2 compiles to Python, whose compiler refuses `0[:]`.
        SyntaxError,
        jinja2.TemplateError,
    ) as error:
        return None, f"{type(error).__name__}: {error}"
    return rendered[0], None


def compare(tokenizer, source, chat=CHAT, *, may_refuse=False, **kwargs):
    """Whether both render the same; with `may_refuse`, exlora may also say that it does not support this."""
    want, error = oracle(source, chat, **kwargs)
    add = kwargs.pop("add_generation_prompt", False)
    refused = None
    try:
        got = tokenizer.apply_chat_template(chat, add, chat_template=source, **kwargs)
    except ExloraError as caught:
        refused = caught
    if refused is not None:
        assert refused.code == "chat_template_failed", refused
        if want is not None:
            assert may_refuse, (source, "transformers:", want, "exlora:", str(refused))
            assert any(reason in str(refused) for reason in REFUSALS), (source, want, str(refused))
        return False
    assert got == want, (source, "transformers:", want, error, "exlora:", got)
    return True


#: Values of every type, as expressions.
VALUES = [
    "0", "1", "-7", "10**20", "2.0", "-1.5", "1e20", "1e-7", "0.1 + 0.2", "1e16", "123456789.0", "true", "false", "none", "missing",
    "''", "'a'", "'Hello, World'", "' \\t x y  \\n'", "'ünï Σς ß'", "'a,b,,c'", "'line\\r\\nother\\x0bthird\\n'", "'{x} %s <&\\'\"'",
    "'12'", "' -1_0 '", "'1.5e3'", "'日本 語'", "'ab' * 3", "[]", "[1, 2, 3]", "[3, 1, 2.5, true]", "['b', 'A', 'a']",
    "[[1, 'x'], [0, 'y']]", "[{'k': 2, 'n': {'m': 'z'}}, {'k': 1}]", "[none, '', 0, 'x']", "()", "(1,)", "(2, 1)", "{}",
    "{'b': 1, 'A': 2}", "{1: 'one', none: 2, true: 3, 1.5: 4}", "{'a': [1, {'b': none}]}", "range(5)", "range(10, 0, -3)",
    "{'a': 1}.items()", "{'a': 1}.keys()", "[1, 2]|map('string')", "('x' if false)", "['it\\'s', \"q\\\"\", '\\\\', '\\n\\x7f\\xa0é']",
    "'x'|safe", "messages[0]", "messages",
]  # fmt: skip

FILTERS = [
    "abs", "attr('items')", "attr('x')", "batch(2)|list", "batch(2, 'f')|list", "batch(linecount=3, fill_with=0)|list", "capitalize",
    "center(9)", "center(width=4)", "count", "d", "d('z')", "default('z', true)", "default(default_value=1, boolean=false)",
    "dictsort", "dictsort(true)", "dictsort(by='value')", "dictsort(false, 'key', true)", "e", "escape", "filesizeformat",
    "filesizeformat(true)", "first", "float", "float(2.5)", "float(default='x')", "format(1)", "format(x='v')", "groupby(0)",
    "groupby('k')", "groupby('k', default=0)|length", "indent", "indent(2, true)", "indent(width='>', blank=true)", "int",
    "int(7)", "int(default=3, base=16)", "int(0, 2)", "items|list", "join", "join(', ')", "join(d='-', attribute='k')", "join(attribute=0)",
    "last", "length", "list", "lower", "map('upper')|list", "map(attribute='k')|list", "map(attribute='n.m', default='q')|list",
    "map('default', 'q')|list", "max", "max(attribute='k')", "min", "min(case_sensitive=true)", "reject|list", "reject('none')|list",
    "rejectattr('k', 'eq', 1)|list", "replace('a', 'b')", "replace('', '-')", "replace('l', 'L', 1)", "replace(old=1, new=2)",
    "reverse", "reverse|list", "round", "round(1)", "round(2, 'floor')", "round(method='ceil')", "round(precision=-1)", "safe",
    "select|list", "select('odd')|list", "select('gt', 1)|list", "select('in', [1, 'a'])|list", "selectattr('k')|list",
    "selectattr('k', '>', 1)|list", "slice(2)|list", "slice(3, 'f')|list", "sort", "sort(true)", "sort(reverse=true, case_sensitive=true)",
    "sort(attribute='k')", "sort(attribute='1,0')", "string", "sum", "sum(attribute='k')", "sum(start=1.5)", "title", "tojson",
    "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(separators=(',', ':'), sort_keys=true)", "tojson(indent='--')",
    "tojson(indent=0)", "trim", "trim('aH')", "trim(chars=' x')", "truncate(5)", "truncate(5, true, '..', 0)", "truncate(length=4)",
    "unique|list", "unique(true)|list", "unique(attribute='k')|list", "upper", "urlencode", "wordcount",
]  # fmt: skip

TESTS = [
    "boolean", "callable", "defined", "divisibleby 2", "divisibleby(num=3)", "eq 1", "equalto('a')", "escaped", "even", "false", "filter",
    "float", "ge 1", "gt('a')", "greaterthan 2", "in [1, 'a', 2.0]", "in 'Hello, World a'", "integer", "iterable", "le 1", "lessthan 3",
    "lower", "lt(1)", "mapping", "ne none", "none", "not none", "number", "odd", "sameas none", "sameas true", "sequence", "string", "test",
    "true", "undefined", "upper", "not defined",
]  # fmt: skip

METHODS = [
    "capitalize()", "casefold()", "center(7)", "center(8, '*')", "count('a')", "count('l', 3)", "count('')", "endswith('d')",
    "endswith(('x', 'a'))", "expandtabs()", "expandtabs(tabsize=3)", "find('l')", "find('l', 4, -2)", "find('')", "format(1, x=2)",
    "format_map({'x': 5})", "index('a')", "isalnum()", "isalpha()", "isascii()", "isdecimal()", "isdigit()", "isidentifier()", "islower()",
    "isnumeric()", "isprintable()", "isspace()", "istitle()", "isupper()", "join(['x', 'y'])", "ljust(4, '.')", "lower()", "lstrip()",
    "lstrip('aH')", "partition(',')", "removeprefix('a')", "removesuffix('d')", "replace('l', 'LL', 2)", "replace('', '-')",
    "rfind('l')", "rindex('a')", "rjust(14)", "rpartition(', ')", "rsplit()", "rsplit(None, 1)", "rsplit(',', 1)", "rsplit(maxsplit=1)",
    "rstrip()", "split()", "split(',')", "split(',', 1)", "split(sep=' ', maxsplit=1)", "split(maxsplit=1)", "splitlines()",
    "splitlines(true)", "splitlines(keepends=true)", "startswith('a')", "startswith('ell', 1)", "strip()", "strip('Hd')", "swapcase()",
    "title()", "upper()", "zfill(6)", "copy()", "get('b')", "get('z', 0)", "items()", "items()|list", "keys()", "values()|list",
    "append(1)", "pop()", "update({})", "clear", "count(1)", "index(2)", "index(9)", "index(1, 1)", "items", "nothing", "nothing()",
    "real", "is_integer()", "__class__", "_x",
]  # fmt: skip

SUBSCRIPTS = [
    "[0]", "[-1]", "[5]", "['a']", "['b']", "[1.0]", "[true]", "[none]", "[[]]", ".b", ".items", ".0", "[:]", "[1:]", "[:-1]", "[::-1]",
    "[::2]", "[-2::-1]", "[3:1]", "[1:10:3]", "[::0]", "['x':]", "['items']",
]  # fmt: skip

OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]


def forms(value):
    """Every single operation on a value."""
    yield f"{value}"
    yield from (f"[{value}]", f"not {value}", f"-({value})", f"+({value})", f"1 if {value} else 2")
    yield from (f"({value})|{one}" for one in FILTERS)
    yield from (f"({value}) is {one}" for one in TESTS)
    yield from (f"({value}).{one}" for one in METHODS)
    yield from (f"({value}){one}" for one in SUBSCRIPTS)


def every_form():
    """Single operations on every value, and every operator between every two."""
    yield from itertools.chain.from_iterable(map(forms, VALUES))
    for left, operator, right in itertools.product(VALUES, OPERATORS, VALUES):
        yield f"({left}) {operator} ({right})"


def sampled(step):
    """One form of `step`, spread over all of them."""
    chosen = random.Random(1)
    return [form for form in every_form() if chosen.random() < 1 / step]


def check_forms(tokenizer, all_forms):
    rendered, wrong = 0, []
    for form in all_forms:
        try:
            rendered += compare(tokenizer, f"{{{{ {form} }}}}", may_refuse=True)
        except AssertionError as error:
            wrong.append(str(error)[:400])
    assert not wrong, "\n".join([f"{len(wrong)} of {len(all_forms)}:", *wrong[:100]])
    assert rendered > len(all_forms) / 3, rendered


def test_expressions_render_as_in_jinja2(tokenizer):
    check_forms(tokenizer, sampled(40))


@pytest.mark.slow
def test_many_expressions_render_as_in_jinja2(tokenizer):
    # All 64,000 would take Jinja2 ten minutes to compile.
    check_forms(tokenizer, sampled(10))


#: Statements, scopes, loops, macros, whitespace, and what reports and public templates use.
TEMPLATES = [
    "{% for c in 'abc' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.nextitem }}{{ loop.previtem }} {% endfor %}",
    "{% for k in {'x': 1, 'y': 2} %}{{ loop.revindex }}{{ loop.revindex0 }}{{ k }}{{ loop.first }}{{ loop.depth }} {% endfor %}",
    "{% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% for x in [1, 2, 3]|map('string') %}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}{% for x in [] %}{% else %}none{% endfor %}",
    "{% for x in range(6) if x is odd %}{{ loop.index }}:{{ x }}{{ loop.length }} {% else %}-{% endfor %}",
    "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% elif x > 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in [[1, [2]], [3, []]] recursive %}{{ loop.depth }}{{ x if x is integer else loop(x) }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }} {{ ns }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set a.b = 1 %}", "{% set a, b = 1, 2 %}{{ b }}{{ a }}",
    "{% set (a, (b, c)) = (1, (2, 3)) %}{{ a + b + c }}", "{% set a, b = [1] %}", "{% set x %}a {{ 1 }}{% endset %}[{{ x }}]",
    "{% set x | upper | trim %} a {% endset %}[{{ x }}]", "{% if true %}{% set y = 1 %}{% endif %}{{ y }}",
    "{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% filter upper %}a{{ 'b' }}{% endfilter %}",
    "{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, c=5) }}{{ m() }}{{ m }}{{ m.name }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(x) %}<{{ caller(x) }}>{% endmacro %}{% call(y) m(3) %}{{ y }}!{% endcall %}",
    "{% macro m() %}{{ x }}{% endmacro %}{% set x = 5 %}{{ m() }}", "{% macro m(n) %}{{ n }}{{ m(n - 1) if n }}{% endmacro %}{{ m(9) }}",
    "{% macro m() %}{% if caller %}{{ caller() }}{% endif %}{% endmacro %}{{ m() }}{% call m() %}x{% endcall %}",
    "{% set j = joiner('; ') %}{% for x in 'ab' %}{{ j() }}{{ x }}{% endfor %}{{ j.used }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
    "{{ dict(a=1, b=[2]) }}{{ dict([('x', 1)], y=2) }}{{ dict({'a': 1}, a=2) }}{{ dict.fromkeys }}", "{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}",
    "{{ 'a' 'b' \"c\" }}{{ -1|abs }}{{ -2**2 }}{{ 2**3**2 }}{{ not 1 == 2 }}{{ 1 + 2 ~ 3 * 4 }}", "{{ (1, 2) }}{{ 1, 2 }}{{ () }}",
    "{{ 0x1F }}{{ 0b11 }}{{ 0o17 }}{{ 1_000 }}{{ 1.5e3 }}{{ 1e-5 }}{{ 'a\\u00e9\\x41\\101\\\n b' }}",
    "{%- if true -%}  a  {%- endif +%}\n b\n  {%- set x = 1 %}\n\n{# c #}\n  {% if x %}\n  y\n  {% endif %}\n{{ 1 }}\n\n",
    "   {% if true %}  \n x {%+ if true %} y{% endif %}\n  {%- endif %}\n\n", "a\r\nb\rc\n", "{{ 'x' -}}\n\n  y {{- 'z' }}",
    "{% raw %}{{ x }}{% endraw %}{%- raw -%} a {%- endraw %}\nb", "{# a #}b{#- c -#} d", "x\n{#+ c +#}\ny", "{% raw %} {% endraw", "{# x",
    "{% generation %}a{% set g = 1 %}{% endgeneration %}{{ g }}", "a {%- generation %} b {%- endgeneration -%} c",
    "{{ strftime_now('%d %b %Y|%A %a %B %-d %-m|%y %j|%F|%w %u %U %W %V %G %D|100%%') }}", "{{ strftime_now('%x %c') }}",
    "{% print 1, 'a' %}", "{{ 'a' if false }}{{ ('b' if true) }}", "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ [1, 2, 3]|map('multiply', 2)|list }}", "{{ x|nothing }}", "{% if false %}{{ x|nothing }}{% endif %}a", "{{ 1 is nothing }}",
    "{% block a %}x{% endblock %}", "{% include 'a' %}", "{% do 1 %}", "{{ raise_exception('no') }}", "{{ lipsum }}", "{{ undefined_one.x }}",
    "{{ messages[0].x.y }}", "{{ messages[9].x }}", "{{ [].x }}{{ {}.x }}{{ none.x }}{{ ''.x }}", "{{ undefined_one() }}", "{{ 'a'() }}",
    "{{ '%s-%d' % ('a', 5) }}{{ '%5.2f|%-5s|%05d|%+d|%x|%%|%r' % (3.14159, 'ab', 42, 7, 255, 'q') }}", "{{ '%(a)s' % {'a': 1} }}",
    "{{ '%s' % 'a' }}{{ '%s %s' % ('a',) }}", "{{ 'a' % 1 }}", "{{ '%g %g %e' % (1e10, 0.0001, 12345.678) }}{{ '%s' % [1] }}",
    "{{ '{:>6}|{:<6}|{:^6}|{:*^7}|{:06.2f}|{:,}|{:+}|{:x}|{:#x}|{:e}|{:%}'.format('a', 'b', 'c', 'd', 3.14159, 1234567, 5, 255, 255, 1.5, 0.25) }}",
    "{{ '{0}{1}{0}{a}{b[k]}{{}}{!r}'.format(1, 2, a=3, b={'k': 4}) }}", "{{ '{a}{b[k]}{{}}{c!r}'.format(a=3, b={'k': 4}, c='x') }}",
    "{{ {'a': 1}.items }}", "{{ 'yes' if {'a': 1}.items }}", "{{ {'items': [1]}.items is callable }}{{ {'items': [1]}['items'] }}",
    "{% set x = [1] %}{{ x.append(2) }}", "{% set g = [1, 2]|map('string') %}{{ g|first }}{{ g|list }}{{ g|list }}",
    "{{ [3, 1, 2]|sort|reverse|list }}{{ 'abc'|reverse }}{{ 'cab'|sort }}{{ {'b': 1, 'a': 2}|sort }}{{ 'aAb'|unique|list }}",
    "{% for grouper, list in [{'k': 1}, {'k': 2}, {'k': 1}]|groupby('k') %}{{ grouper }}{{ list }}{% endfor %}",
    "{% for g in [{'k': 1}, {'k': 1}]|groupby('k') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}", "{{ [1, [2]] == [1, [2.0]] }}",
    "{{ 1.0 }}{{ 1e20 }}{{ 1e15 }}{{ 123456789012345678 }}{{ 0.1 }}{{ 1/3 }}{{ 7//2 }}{{ -7//2 }}{{ -7%3 }}{{ 7.5//2 }}{{ 2**-1 }}",
    "{{ 'ÄÖ'|lower }}{{ 'straße'|upper }}{{ 'ΑΣ'|lower }}{{ 'ǆ'|upper }}{{ 'İ'|lower|length }}{{ 'ﬁ'|upper }}",
    "{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{{ loop }}", "{% for loop in [1] %}{% endfor %}",
    "{{ messages|map(attribute='role')|join(',') }}", "{{ range(3)|list }}{{ range(3) }}{{ range(1, 9, 2)[1] }}{{ 4 in range(0, 9, 2) }}",
    "{% if messages is string %}a{% elif messages is sequence %}b{% endif %}{{ 'a' is sequence }}{{ {} is sequence }}{{ 1 is sequence }}",
]  # fmt: skip


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_render_as_in_jinja2(tokenizer, source):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    compare(tokenizer, source, chat, may_refuse=True)


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": [1.5, None, "ü"]}}}

CHATS = {
    "plain": CHAT,
    "null content": [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "5"},
    ],
    "no content": [
        *CHAT,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image"}, {"type": "text", "text": " x"}]}
    ],
    "an object": [*CHAT, {"role": "tool", "name": "n", "content": {"temp": 5, "deep": [[{"a": None}]]}}],
    "reasoning": [*CHAT, {"role": "assistant", "thinking": "why", "content": "so"}],
    "another order": [{"content": "c", "zz": True, "role": "user", "name": None}],
    "no role": [{"content": 5}],
}

CHAT_SOURCE = (
    "{%- for m in messages %}<|{{ m.role }}|>{%- if m.content is string %}{{ m.content }}"
    "{%- elif m.content is mapping %}{{ m.content | tojson }}{%- elif m.content is iterable and m.content is not none %}"
    "{%- for part in m.content %}{%- if part.type == 'text' %}{{ part.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{%- for c in m.tool_calls or [] %}\n{{ c.function | tojson }}{{ c.function.arguments.items() | list }}{%- endfor %}"
    "{{ m }}{{ m.reasoning_content }}{{ m.thinking }}\n{%- endfor %}{{ tools | tojson }}{{ documents }}{{ enable_thinking }}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("name", CHATS)
def test_messages_of_any_shape_render_as_in_transformers(tokenizer, name):
    assert compare(tokenizer, CHAT_SOURCE, CHATS[name])
    extras = {"tools": [CALL], "documents": [{"title": "t"}], "enable_thinking": False, "add_generation_prompt": True}
    assert compare(tokenizer, CHAT_SOURCE, CHATS[name], **extras)


CONTINUABLE = [
    *CHATS.values(),
    [*CHAT, {"role": "assistant", "content": "So "}],
    [*CHAT, {"role": "assistant", "content": " \n"}],
    [*CHAT, {"role": "assistant", "content": "hi"}],
    [*CHAT, {"role": "assistant", "reasoning": "why ", "content": "so"}],
    [
        *CHAT,
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}, {"type": "image"}],
        },
    ],
    [*CHAT, {"role": "assistant", "content": [{"type": "image"}]}],
]

CONTINUING = [
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>{{ m.content if m.content is string else m.content|map(attribute='text')|join }}</>{% endfor %}",
    "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content | upper }}{% endfor %}",
    "{{ messages[0].content }}",
    "nothing",
]


@pytest.mark.parametrize("field", [True, "content", "reasoning_content", "thinking"])
@pytest.mark.parametrize("source", CONTINUING)
def test_the_final_message_is_continued_as_in_transformers(tokenizer, source, field):
    for chat in CONTINUABLE:
        want, _ = oracle(source, chat, continue_final_message=field)
        try:
            got = tokenizer.apply_chat_template(chat, chat_template=source, continue_final_message=field)
        except ExloraError:
            got = None
        assert got == want, (chat, source, field)


def test_continuing_and_starting_an_answer_exclude_each_other(tokenizer):
    with pytest.raises(ExloraError, match="cannot be used together"):
        tokenizer.apply_chat_template(CHAT, True, continue_final_message=True)


def test_requests_take_what_the_template_takes(quill):
    engine = Engine(quill)
    template = (
        "{{ tools[0].name if tools }}{{ enable_thinking }}{{ messages[-1].content }}{{ '>' if add_generation_prompt }}"
    )
    extras = {
        "tools": [{"name": "f"}],
        "chat_template": template,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    prompts = []
    for options in (extras, {**extras, "add_generation_prompt": False}, {**extras, "continue_final_message": True}):
        text = engine.tokenizer.apply_chat_template(CHAT, **options)
        assert text == engine.tokenizer.apply_chat_template(
            CHAT,
            **{key: value for key, value in options.items() if key != "chat_template_kwargs"},
            enable_thinking=False,
        )
        prompts.append(text)
        ids = engine.tokenizer.encode(text, add_special_tokens=False)
        out = engine.generate(CHAT, max_new_tokens=1, **options)
        assert out.usage.prompt_tokens == len(ids)
        both = engine.generate([CHAT, CHAT], max_new_tokens=1, **options)
        assert [one.usage.prompt_tokens for one in both] == [len(ids)] * 2
        request = Request(CHAT, **options)
        assert Request(**request.to_dict()) == request
        assert request.tools == [{"name": "f"}]
    assert prompts == ["fFalsehi>", "fFalsehi", "fFalsehi"]
    each = engine.generate(
        [CHAT, CHAT], max_new_tokens=1, tools=[[{"name": "a long name"}], None], chat_template=template
    )
    assert each[0].usage.prompt_tokens > each[1].usage.prompt_tokens
    with pytest.raises(ExloraError, match="need chat messages"):
        engine.generate("text", tools=[{"name": "f"}])
    with pytest.raises(TypeError, match="not a function"):
        engine.generate(CHAT, tools=[print])


def test_values_that_are_no_json_are_placeholders_as_in_transformers(tokenizer):
    chat = [{"role": "user", "content": [{"type": "image", "image": object(), "n": (1, 2), "size": 5}]}]
    got = tokenizer.apply_chat_template(
        chat, False, chat_template="{{ messages[0].content[0].image }}{{ messages[0].content[0].size }}"
    )
    assert got == oracle("{{ messages[0].content[0].image }}{{ messages[0].content[0].size }}", chat)[0]
    deep = None
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ExloraError, match="deep"):
        tokenizer.apply_chat_template([{"role": "user", "content": deep}])
    for wrong in ("text", {"role": "user"}, [1], 5):
        with pytest.raises((ExloraError, TypeError)):
            tokenizer.apply_chat_template(wrong)
    with pytest.raises(TypeError, match="tokenize"):
        tokenizer.apply_chat_template(CHAT, tokenize=True)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT)


def test_other_threads_run_while_a_chat_is_rendered(tokenizer):
    ticks = []
    done = threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.005)

    thread = threading.Thread(target=tick)
    thread.start()
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    try:
        with pytest.raises(ExloraError, match=r"too many steps|too much memory"):
            tokenizer.apply_chat_template(CHAT, chat_template=endless)
    finally:
        done.set()
        thread.join()
    assert len(ticks) > 5


NAMES = st.sampled_from(VALUES)


@st.composite
def expressions(draw, depth=3):
    """Expressions that combine every operation."""
    if depth == 0:
        return draw(NAMES)
    inner = expressions(depth - 1)
    kind = draw(st.integers(0, 6))
    if kind == 0:
        return draw(NAMES)
    one = f"({draw(inner)})"
    if kind == 1:
        return f"{one}|{draw(st.sampled_from(FILTERS))}"
    if kind == 2:
        return f"{one} is {draw(st.sampled_from(TESTS))}"
    if kind == 3:
        return f"{one}.{draw(st.sampled_from(METHODS))}"
    if kind == 4:
        return f"{one}{draw(st.sampled_from(SUBSCRIPTS))}"
    if kind == 5:
        return f"[{one}, {draw(inner)}]"
    return f"{one} {draw(st.sampled_from(OPERATORS))} ({draw(inner)})"


@pytest.mark.property
@given(expressions())
@settings(
    max_examples=2000 if os.environ.get("EXLORA_HYPOTHESIS") == "slow" else 300,
    deadline=None,
    # The same expressions in each run: what Jinja2 does with the oddest of them is not all followed yet.
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_combined_expressions_render_as_in_jinja2(tokenizer, expression):
    compare(tokenizer, f"{{{{ {expression} }}}}", may_refuse=True)
