"""A chat template is a program: it ends, stays in its sandbox, and tells nothing."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from mlflow_phi3_onnx import GenAIError, InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.prompt.template import metering
from mlflow_phi3_onnx.prompt.template.chat_template import ChatTemplate
from tests.support.template_cases import FAMILIES

PRIVATE = "my number is 4929"


def render(source: str, **fields: Any) -> str:
    return ChatTemplate(source).render([{"role": "user", "content": PRIVATE, **fields}])


@pytest.fixture
def less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small budget: whatever overspends it overspends every larger one, but later."""
    monkeypatch.setattr(metering, "MAX_WORK", 1 << 20)


def grow(start: str, step: str, turns: int = 99, end: str = "") -> str:
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range({turns}) %}}"
        f"{{% set ns.x = {step} %}}{{% endfor %}}{end}"
    )


LONG = "{% for i in range(99999) %}"
END = "{% endfor %}"
TWINS = (
    "{% set ns = namespace(x='x', y='x') %}{% for i in range(60) %}"
    "{% set ns.x = (ns.x, ns.x) %}{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
)
"""Two values that are small in memory, and as text have two letters to the power of sixty."""

ENDLESS = {
    "loops that write nothing": LONG * 2 + END * 2,
    "loops that pass over all": f"{LONG}{{% for j in range(99999) if false %}}{END}{END}",
    "a recursive loop": "{% for x in range(90) recursive %}"
    "{% if loop.depth < 90 %}{{ loop(range(90)) }}{% endif %}{% endfor %}",
    "macros that call themselves twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
    "{% endif %}{% endmacro %}{{ f(100) }}",
    "blocks": f"{LONG}{{{{ self.b() }}}}{END}{{% block b %}}{'{% if a %}{% endif %}' * 99}"
    "{% endblock %}",
    "calls": f"{{% macro f() %}}{{% endmacro %}}{LONG}{{{{ f(*range(99999)) }}}}{END}",
    "straight code in a loop": LONG + "{% if a %}{% endif %}" * 50 + END,
    "the template's own text": LONG + "x" * 9999 + END,
    "text in a variable": LONG + "{% set y %}" + "x" * 9999 + "{% endset %}" + END,
    "a long list in a loop": LONG + "{% set y = [" + "0," * 999 + "] %}" + END,
    "filters over ranges": LONG + "{% set y = range(99999)|select('none')|list %}" + END,
    "comparisons": "{% set a = 'x' * 99999 %}{% set b = 'x' * 99999 %}"
    + LONG
    + "{% if a == b %}{% endif %}"
    + END,
    "searches": "{% set a = 'x' * 99999 %}{% set b = 'x' * 999 %}"
    + LONG
    + "{% if b in a %}{% endif %}"
    + END,
    "slices": "{% set a = 'x' * 99999 %}" + LONG + "{% set b = a[1:] %}" + END,
    "sorting": LONG + "{% set y = range(999)|sort %}" + END,
    "splitting": LONG + "{% set y = ('a ' * 999).split() %}" + END,
    "writing the time": LONG + "{{ strftime_now('%c' * 99) }}" + END,
    "keys of one hash": "{{ range(0, (2**61 - 1) * 99999, 2**61 - 1)|unique|list }}",
    "pairs of one hash": "{{ dict.fromkeys(range(0, (2**61 - 1) * 99999, 2**61 - 1)) }}",
    "more after a negative width": "{{ 'a'|center(-10**15) }}" + LONG * 2 + END * 2,
    "slices without end": "{{ []|slice(10**9)|list }}",
}
LARGE = {
    "text times a number": "{{ 'x' * 10**9 }}",
    "a number times text": "{{ 10**9 * 'x' }}",
    "a list times a number": "{{ ([0] * 10**9)|length }}",
    "a power": "{{ 10 ** (10**9) }}",
    "powers": grow("3", "ns.x * ns.x"),
    "a long number": "{% set n = ('1' * 99999)|int(base=2) %}{{ n * n }}",
    "the width of %": "{{ '%09999999999d' % 1 }}",
    "the precision of %": "{{ '%.999999999f' % 1.5 }}",
    "a computed width of %": "{{ '%*d' % (10**9, 1) }}",
    "the width of a format, in other digits": "{{ '{:٩٩٩٩٩٩٩٩٩}'.format(1) }}",
    "the width of a named %": "{{ '%(a(b))999999999d' % {'a(b)': 1} }}",
    "the width of a format filter": "{{ '%999999999d'|format(1) }}",
    "the width of a format": "{{ '{:999999999}'.format(1) }}",
    "a computed width of a format": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "the width of a format of a mapping": "{{ '{a:>999999999}'.format_map({'a': 1}) }}",
    "a format that repeats": "{{ ('{0}' * 9999).format('x' * 9999) }}",
    "a % that repeats": "{{ ('%(a)s' * 9999) % {'a': 'x' * 9999} }}",
    "center": "{{ 'a'|center(10**9) }}",
    "center, computed by the compiler": "{{ ('x'|center(10**9))|length }}",
    "str.center": "{{ 'a'.center(10**9) }}",
    "str.ljust": "{{ 'a'.ljust(10**9) }}",
    "str.zfill": "{{ 'a'.zfill(10**9) }}",
    "indent": "{{ ('a\\n' * 999)|indent(10**6) }}",
    "replace": "{{ ('a' * 9999)|replace('a', 'b' * 9999) }}",
    "str.replace": "{{ ('a' * 9999).replace('', 'b' * 9999) }}",
    "join": "{{ range(9999)|join('x' * 9999) }}",
    "join of attributes": "{{ ''.join(([{'a': 'x' * 9999}] * 9999)|map(attribute='a')) }}",
    "str.join": "{{ ('x' * 9999).join(['a'] * 9999) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "round": "{{ 5|round(-10**9) }}",
    "JSON's indent": "{{ [1]|tojson(indent=10**9) }}",
    "JSON's separators": "{{ ([1] * 999)|tojson(separators=('x' * 9999, ':')) }}",
    "doubling with ~": grow("'x'", "ns.x ~ ns.x"),
    "doubling with +": grow("'x'", "ns.x + ns.x"),
    "doubling a list": grow("[1]", "ns.x + ns.x"),
    "doubling with blocks": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set y %}"
    "{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubling with a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
    + grow("'x'", "f(ns.x)"),
    "doubling by escaping": grow("'&'", "ns.x|forceescape|string|replace('amp', '&&')"),
    "a list of itself twice": grow("'x'", "[ns.x, ns.x]", end="{{ ns.x }}"),
    "a list of itself twice, as JSON": grow("'x'", "[ns.x, ns.x]", 60, "{{ ns.x|tojson }}"),
    "such lists, compared": TWINS + "{{ ns.x == ns.y }}",
    "such lists, searched": TWINS + "{{ ns.x in [ns.y] }}",
    "such lists, tested": TWINS + "{{ ns.x is eq(ns.y) }}",
    "such lists, as keys": TWINS + "{{ {ns.x: 1} }}",
    "such lists, looked up": TWINS + "{{ {}[ns.x] }}",
    "such lists, as an attribute's name": TWINS + "{{ 'x'|attr(ns.x) }}",
    "such lists, as the name of items' attribute": TWINS
    + "{{ messages|map(attribute=ns.x)|list }}",
    "such lists, as a filter's name": TWINS + "{{ messages|map(ns.x)|list }}",
    "such lists, as a test's name": TWINS + "{{ messages|selectattr('role', ns.x)|list }}",
    "such lists, looked up among filters": TWINS + "{{ ns.x is filter }}",
    "such lists, looked up among tests": TWINS + "{{ ns.x is test }}",
    "such lists, as a refusal": TWINS + "{{ raise_exception(ns.x) }}",
    "such lists, got": TWINS + "{{ {}.get(ns.x) }}",
    "such lists, sorted": TWINS + "{{ [ns.x, ns.y]|sort }}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "deep lists": grow("[]", "[ns.x]", 9999, "{{ ns.x }}"),
}


@pytest.mark.usefixtures("less_work")
@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_a_template_that_asks_for_too_much_is_stopped(name: str) -> None:
    with pytest.raises(InvalidModelError, match=r"loops without end, or makes too much.*line 1"):
        render({**ENDLESS, **LARGE}[name])


@pytest.mark.parametrize("name", ["loops that write nothing", "doubling with ~"])
def test_the_budget_itself_is_soon_spent(name: str) -> None:
    with pytest.raises(InvalidModelError, match="loops without end"):
        render({**ENDLESS, **LARGE}[name])


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        grow("[1]", "ns.x|map('upper')", 9999, "{{ ns.x|list }}"),
    ],
)
def test_endless_recursion_is_an_error(source: str) -> None:
    with pytest.raises(InvalidModelError, match=r"fails on these messages.*RecursionError"):
        render(source)


def test_a_long_chain_of_iterators_is_freed() -> None:
    assert render(grow("[1]", "ns.x|map('upper')", 20_000)) == ""


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('_' ~ '_class_' ~ '_') }}",
    "{% for c in ().__class__.__base__.__subclasses__() %}{% if 'warning' in c.__name__ %}"
    "{{ c()._module.__builtins__['__import__']('os').popen('id').read() }}{% endif %}{% endfor %}",
    "{{ [messages]|map('attr', '__class__')|first }}",
    "{{ messages|map(attribute='__class__')|first }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__globals__ }}",
    "{{ dict.__class__ }}",
    "{{ range.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{% block b %}{{ self.b._context }}{% endblock %}",
    "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "{% macro f() %}{{ caller._environment }}{% endmacro %}{% call f() %}{% endcall %}",
    "{% for i in [1] %}{{ loop._iterator }}{% endfor %}",
    "{{ (messages|map('upper')).gi_frame }}",
    "{{ (messages|map('upper'))._items }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "{{ '{0[role].__class__}'.format(messages[0]) }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ ('{0.__class__}'|safe).format('') }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ('{0.__class__}'|attr('format'))('') }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{{ {}.fromkeys([1]) }}",
    "{{ 'a'.encode() }}",
    "{{ 'a'.translate({97: 'b'}) }}",
    "{{ 1 .to_bytes(9, 'big') }}",
    "{{ messages.__reduce_ex__(2) }}",
    "{{ namespace(__class__=1) }}",
    "{{ namespace({'_x': 1}) }}",
    "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "{{ messages[0].items().mapping }}",
    "{{ [[1], [2]]|sum(start=[]) }}",
    "{{ raise_exception }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_leads_out_of_the_sandbox(source: str) -> None:
    """What is forbidden is undefined: it writes nothing, and whoever uses it further fails."""
    messages = [{"role": "user", "content": "x"}]
    with contextlib.suppress(InvalidModelError):
        assert ChatTemplate(source).render(messages) == ""
    assert messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "source", ["{% include 'x' %}", "{% import '/etc/passwd' as x %}", "{% extends messages %}"]
)
def test_there_are_no_other_templates(source: str) -> None:
    with pytest.raises(InvalidModelError, match="fails on these messages"):
        render(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("\n{% if %}", r"not valid Jinja \(line 2\)"),
        ("a\n\n{{ 'x'|urlize }}", r"line 3\): No filter named 'urlize'"),
        ("{{ 'x'|wordwrap(1) }}", "No filter named"),
        ("{{ 'x'|take a step }}", "not valid Jinja"),
        ("{{ x is odd_one }}", "No test named"),
        ("{% do x %}", "unknown tag 'do'"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "too complex"),
        ("{{ 1" + "+1" * 9999 + " }}", "too complex"),
        ("{% for i in [1] %}" * 50 + END * 50, "too complex"),
        ("{{ " + "9" * 5000 + " }}", "too complex"),
        ("x" * 300_000, "300,000 characters; at most 262,144"),
    ],
)
def test_what_cannot_be_compiled_is_refused(source: str, says: str) -> None:
    with pytest.raises(InvalidModelError, match=says):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ {}[messages[0].content].x }}",
        "{{ none[messages[0].content].x }}",
        "{{ messages[0].content|tojson(cls=1) }}",
        "{{ messages[0].content % 1 }}",
        "{{ (messages[0].content ~ '{')|attr('format')() }}",
        "{{ strftime_now(messages[0].content + 1) }}",
        "{{ raise_exception(messages[0].content) }}",
        "{{ raise_exception('no: ' ~ messages[0].content) }}",
    ],
)
def test_an_error_holds_no_message(source: str) -> None:
    with pytest.raises(GenAIError) as caught:
        render(source)
    assert "4929" not in caught.value.message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_error_says_where_the_template_fails() -> None:
    with pytest.raises(InvalidModelError, match=r"\(line 3: UndefinedError\)"):
        render("a\n{% if true %}\n{{ nothing.at_all }}{% endif %}")


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("'only user messages'", ": only user messages"),
        ("'unknown role: ' + messages[0].role", ": unknown role: ..."),
        ("messages[0].role ~ ' is unknown'", "."),
    ],
)
def test_a_template_may_refuse(argument: str, told: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        render("{{ raise_exception(" + argument + ") }}")
    assert caught.value.message == f"The model's chat template refuses these messages{told}"
    assert caught.value.param == "messages"


@pytest.mark.parametrize("family", ["headers", "thinking", "turns", "documents"])
@pytest.mark.parametrize(("count", "size"), [(2_000, 300), (3, 1_000_000)])
def test_ordinary_templates_have_more_than_they_need(family: str, count: int, size: int) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "x" * size} for i in range(count)]
    assert len(ChatTemplate(FAMILIES[family]).render(messages)) > count * size
