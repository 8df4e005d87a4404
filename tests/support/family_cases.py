"""Tool calls in the forms of families that write no plain JSON after a mark.

Each case is told as the text that a model wrote, the text that is left of it, and the calls.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.support.tool_cases import tool

KINDS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "ok": {"type": "boolean"},
        "o": {"type": "object"},
        "l": {"type": "array"},
        "none": {"type": "null"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"type": ["string", "integer"]},
        "code": {"$ref": "#/$defs/code"},
        "pick": {"enum": ["1", "2"]},
        "any": {},
    },
    "$defs": {"code": {"type": "string"}},
}
TOOLS = [tool("f", KINDS), tool("g"), tool("get_weather", KINDS)]


class Case(NamedTuple):
    """What a model wrote in a form, and what is in it."""

    form: str
    text: str
    content: str
    calls: list[tuple[str, str]]


PARIS = ("f", '{"city": "Paris"}')
G = ("g", "{}")


def qwen(*arguments: tuple[str, str], name: str = "f") -> str:
    """Write a call as Qwen3-Coder does."""
    inside = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments)
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


def glm(*arguments: tuple[str, str], name: str = "f", line: str = "\n") -> str:
    """Write a call as GLM does."""
    pairs = [f"<arg_key>{k}</arg_key>{line}<arg_value>{v}</arg_value>{line}" for k, v in arguments]
    return f"<tool_call>{name}{line}{''.join(pairs)}</tool_call>"


def gemma(text: str) -> str:
    """Write a text as Gemma 4 does."""
    return f'<|"|>{text}<|"|>'


def before(text: str, end: str) -> str:
    """Cut a text before the last place where it has another."""
    return text[: text.rindex(end)]


Q = "qwen3_coder"

QWEN = [
    Case(Q, qwen(("city", "Paris")), "", [PARIS]),
    Case(Q, f"Sure.\n{qwen(('city', 'Paris'))}\n{qwen(name='g')}\n", "Sure.\n", [PARIS, G]),
    Case(Q, qwen(("city", "Paris")).replace("\n", ""), "", [PARIS]),
    # A value is what its parameter says; what does not parse is a text.
    Case(Q, qwen(("n", "5"), ("x", "1.50")), "", [("f", '{"n": 5, "x": 1.50}')]),
    Case(Q, qwen(("n", "five"), ("ok", "True")), "", [("f", '{"n": "five", "ok": true}')]),
    Case(Q, qwen(("city", "5"), ("pick", "1")), "", [("f", '{"city": "5", "pick": "1"}')]),
    Case(
        Q,
        qwen(("code", "7"), ("none", "None")),
        "",
        [("f", '{"code": "7", "none": null}')],
    ),
    Case(Q, qwen(("maybe", "null")), "", [("f", '{"maybe": null}')]),
    Case(
        Q,
        qwen(("maybe", "5"), ("either", "5")),
        "",
        [("f", '{"maybe": "5", "either": 5}')],
    ),
    Case(Q, qwen(("o", '{"a": [1, "b"]}')), "", [("f", '{"o": {"a": [1, "b"]}}')]),
    Case(
        Q,
        qwen(("o", "{'a': None}"), ("l", "[]")),
        "",
        [("f", '{"o": {"a": null}, "l": []}')],
    ),
    Case(Q, qwen(("o", "{a")), "", [("f", '{"o": "{a"}')]),
    Case(
        Q,
        qwen(("unknown", "x"), ("any", "[1]")),
        "",
        [("f", '{"unknown": "x", "any": [1]}')],
    ),
    Case(Q, qwen(("any", '"a"')), "", [("f", '{"any": "\\"a\\""}')]),
    Case(Q, qwen(("city", "")), "", [("f", '{"city": ""}')]),
    Case(Q, qwen(("city", "\n a\n\n")), "", [("f", '{"city": "\\n a\\n\\n"}')]),
    Case(Q, qwen(("city", 'é😀"\\n<b>')), "", [("f", '{"city": "é😀\\"\\\\n<b>"}')]),
    # A text may hold the tags themselves.
    Case(Q, qwen(("city", "a</parameter>b")), "", [("f", '{"city": "a</parameter>b"}')]),
    Case(
        Q,
        qwen(("city", "</parameter>\n</parameter>")),
        "",
        [("f", '{"city": "</parameter>\\n</parameter>"}')],
    ),
    Case(
        Q,
        qwen(("city", "</param</parameter")),
        "",
        [("f", '{"city": "</param</parameter"}')],
    ),
    Case(
        Q,
        qwen(("city", "<tool_call><function=g></tool_call>")),
        "",
        [("f", '{"city": "<tool_call><function=g></tool_call>"}')],
    ),
    Case(Q, qwen(("l", '["</parameter>"]')), "", [("f", '{"l": ["</parameter>"]}')]),
    # Marks that models forget.
    Case(Q, qwen(("city", "Paris")).removeprefix("<tool_call>\n"), "", [PARIS]),
    Case(Q, "Hm. " + qwen(("city", "Paris"))[12:-13] + " Bye.", "Hm.  Bye.", [PARIS]),
    Case(Q, qwen(("city", "Paris")).replace("</function>\n", ""), "", [PARIS]),
    Case(
        Q,
        '<tool_call><function=f>{"city": "Paris"}</function></tool_call>',
        "",
        [PARIS],
    ),
    # No calls.
    Case(Q, qwen(("city", "Paris"), name="h"), qwen(("city", "Paris"), name="h"), []),
    Case(
        Q,
        qwen(name="g").replace("<function=g>", "<function=g x>"),
        qwen(name="g").replace("<function=g>", "<function=g x>"),
        [],
    ),
    Case(
        Q,
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call>',
        [],
    ),
    Case(Q, "1 < 2 <function <functio", "1 < 2 <function <functio", []),
    # Broken, and cut.
    Case(Q, "<tool_call><function=f>?</tool_call> x", " x", [("f", "?")]),
    Case(Q, before(qwen(("city", "Paris")), "n>"), "", [("f", '{"city": "Paris')]),
    Case(
        "qwen3_coder",
        before(qwen(("city", "Paris")), "ameter>\n</f"),
        "",
        [("f", '{"city": "Paris')],
    ),
    Case(Q, before(qwen(("n", "512")), "2"), "", [("f", "")]),
    Case(Q, before(qwen(("city", "a"), ("n", "512")), "2"), "", [("f", '{"city": "a"')]),
]
GLM = [
    Case("glm4", glm(("city", "Paris")), "", [PARIS]),
    Case("glm4", glm(("city", "Paris"), line=""), "", [PARIS]),
    Case("glm4", f"Sure. {glm(('city', 'Paris'))}\n{glm(name='g')}", "Sure. ", [PARIS, G]),
    Case("glm4", "<tool_call>g</tool_call>", "", [G]),
    Case("glm4", glm(("n", "12"), ("ok", "false")), "", [("f", '{"n": 12, "ok": false}')]),
    Case("glm4", glm(("l", '["a", {"b": 1}]')), "", [("f", '{"l": ["a", {"b": 1}]}')]),
    Case("glm4", glm(("city", ' "é"\n ')), "", [("f", '{"city": " \\"é\\"\\n "}')]),
    Case("glm4", glm(("city", "</arg_value>")), "", [("f", '{"city": "</arg_value>"}')]),
    Case("glm4", glm(("city", "</tool_call>")), "", [("f", '{"city": "</tool_call>"}')]),
    Case(
        "glm4",
        glm(("city", "<arg_key>n</arg_key>")),
        "",
        [("f", '{"city": "<arg_key>n</arg_key>"}')],
    ),
    Case(
        "glm4", glm(("pick", "2"), ("maybe", "null")), "", [("f", '{"pick": "2", "maybe": null}')]
    ),
    Case("glm4", glm(name="h"), glm(name="h"), []),
    Case("glm4", glm(name="ff"), glm(name="ff"), []),
    Case("glm4", "<tool_call>f()</tool_call>", "<tool_call>f()</tool_call>", []),
    Case("glm4", "<tool_call>f", "<tool_call>f", []),
    Case("glm4", "<tool_call>f\n<arg_key>city", "", [("f", "")]),
    Case(
        "glm4",
        "<tool_call>f\n<arg_key>city</arg_key>x</tool_call>!",
        "!",
        [("f", "city</arg_key>x")],
    ),
    Case("glm4", before(glm(("city", "Paris")), "l>"), "", [("f", '{"city": "Paris')]),
    Case("glm4", before(glm(("city", "Paris")), "rg_value>\n</t"), "", [("f", '{"city": "Paris')]),
]
MISTRAL = [
    Case(
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"city": "Paris"}, "id": "x"}]',
        "",
        [PARIS],
    ),
    Case("mistral", '[TOOL_CALLS][{"name": "g", "arguments": {}}, {"name": "g"}]', "", [G, G]),
    Case("mistral", '[TOOL_CALLS]f[ARGS]{"city": "Paris"}', "", [PARIS]),
    Case(
        "mistral",
        'Sure.[TOOL_CALLS]f[ARGS]{"city": "Paris"}[TOOL_CALLS]g[ARGS]{}',
        "Sure.",
        [PARIS, G],
    ),
    Case("mistral", '[TOOL_CALLS]f{"city": "Paris"}', "", [PARIS]),
    Case("mistral", '[TOOL_CALLS]f[CALL_ID]aB3456789[ARGS]{"city": "Paris"}', "", [PARIS]),
    Case(
        "mistral",
        '[TOOL_CALLS]get_weather[ARGS]{"é": "[TOOL_CALLS]"}',
        "",
        [("get_weather", '{"é": "[TOOL_CALLS]"}')],
    ),
    Case("mistral", '[TOOL_CALLS]f[ARGS] "{\\"n\\": 1}"', "", [("f", '{"n": 1}')]),
    Case("mistral", '[TOOL_CALLS]f[ARGS]{"n": 1} Done.', " Done.", [("f", '{"n": 1}')]),
    Case("mistral", "[TOOL_CALLS]g[ARGS]{} \n", "", [G]),
    Case("mistral", "[TOOL_CALLS]h[ARGS]{}", "[TOOL_CALLS]h[ARGS]{}", []),
    Case("mistral", "[TOOL_CALLS]fg[ARGS]{}", "[TOOL_CALLS]fg[ARGS]{}", []),
    Case("mistral", "[TOOL_CALLS]f[CALL_ID]1{}", "[TOOL_CALLS]f[CALL_ID]1{}", []),
    Case("mistral", "[TOOL_CALL [TOOL_CALLS", "[TOOL_CALL [TOOL_CALLS", []),
    Case("mistral", "[1] [TOOL_CALLS] is a mark", "[1] [TOOL_CALLS] is a mark", []),
    Case("mistral", '[TOOL_CALLS]f[ARGS]{"n": tru', "", [("f", '{"n": tru')]),
    Case("mistral", '[TOOL_CALLS]f[ARGS]{"n": x} y', "", [("f", '{"n": x} y')]),
    Case("mistral", "[TOOL_CALLS]f[ARG", "[TOOL_CALLS]f[ARG", []),
]
GEMMA = [
    Case("gemma4", f"<|tool_call>call:f{{city:{gemma('Paris')}}}<tool_call|>", "", [PARIS]),
    Case(
        "gemma4",
        f"Sure.<|tool_call>call:f{{city:{gemma('Paris')}}}<tool_call|><|tool_call>call:g{{}}<tool_call|>",
        "Sure.",
        [PARIS, G],
    ),
    Case(
        "gemma4",
        "<|tool_call>call:f{n:5,x:-1.5e3,ok:true,none:None}<tool_call|>",
        "",
        [("f", '{"n": 5, "x": -1.5e3, "ok": true, "none": null}')],
    ),
    Case(
        "gemma4",
        f"<|tool_call>call:f{{o:{{a:[1,{gemma('b')},{{}}]}},l:[]}}<tool_call|>",
        "",
        [("f", '{"o": {"a": [1, "b", {}]}, "l": []}')],
    ),
    Case(
        "gemma4",
        f"<|tool_call>call:f{{city:{gemma('a}, n:1 <tool_call|> é')}}}<tool_call|>",
        "",
        [("f", '{"city": "a}, n:1 <tool_call|> é"}')],
    ),
    Case(
        "gemma4",
        f"<|tool_call>call:f{{city:{gemma('<|<|')}}}<tool_call|>",
        "",
        [("f", '{"city": "<|<|"}')],
    ),
    Case(
        "gemma4",
        "<|tool_call>call:f{ city : New York , n : 1 }<tool_call|>",
        "",
        [("f", '{"city": "New York", "n": 1}')],
    ),
    Case(
        "gemma4",
        f"<|tool_call>call:f{{{gemma('a b')}:{gemma('')}}}<tool_call|>",
        "",
        [("f", '{"a b": ""}')],
    ),
    Case(
        "gemma4",
        f"<|tool_call>call:f{{city:{gemma(chr(92) + 'n' + chr(10))}}}<tool_call|>",
        "",
        [("f", '{"city": "\\\\n\\n"}')],
    ),
    Case("gemma4", '<|tool_call>call:f{"city":"Paris"}<tool_call|>', "", [PARIS]),
    Case("gemma4", f"<|tool_call>call:f{{city:{gemma('Paris')}}}", "", [PARIS]),
    Case("gemma4", "<|tool_call>call:h{}<tool_call|>", "<|tool_call>call:h{}<tool_call|>", []),
    Case("gemma4", "<|tool_call>call:f", "<|tool_call>call:f", []),
    Case("gemma4", "<|tool_call>f(1)<tool_call|>", "<|tool_call>f(1)<tool_call|>", []),
    Case("gemma4", "<|tool_call>call:f{n:[1}<tool_call|> x", " x", [("f", '{"n": [1}')]),
    Case("gemma4", "<|tool_call>call:f{n:12", "", [("f", '{"n": ')]),
    Case("gemma4", '<|tool_call>call:f{city:<|"|>Par', "", [("f", '{"city": "Par')]),
    Case("gemma4", '<|tool_call>call:f{city:<|"|>Par<|"', "", [("f", '{"city": "Par')]),
]


def python(text: str, arguments: str, *, name: str = "f") -> list[Case]:
    """Make the cases of a call as Python writes it, in both forms."""
    calls = [(name, arguments)]
    return [
        Case("lfm2", f"Sure. <|tool_call_start|>[{text}]<|tool_call_end|>", "Sure. ", calls),
        Case("pythonic", f"\n[{text}]\n", "", calls),
    ]


PYTHON = [
    *python("f(city='Paris')", '{"city": "Paris"}'),
    *python('f( city = "Paris" , )', '{"city": "Paris"}'),
    *python("get_weather()", "{}", name="get_weather"),
    *python("f(n=-5, x=.5, ok=True, none=None)", '{"n": -5, "x": 0.5, "ok": true, "none": null}'),
    *python("f(n=0x1F, x=1_000, l=[007])", '{"n": 31, "x": 1000, "l": [7]}'),
    *python("f(o={'a': [1, {}], \"b\": {1: 2}})", '{"o": {"a": [1, {}], "b": {"1": 2}}}'),
    *python('f(o={"a": true, "b": null}, l=[1,])', '{"o": {"a": true, "b": null}, "l": [1]}'),
    # Escapes of Python, and quotes that models forget to escape.
    *python(r"f(city='\'\n\\\x41é\U0001F600\d\/')", r'{"city": "' + r"'\n\\Aé😀\\d/" + '"}'),
    *python(r"f(city='\ud83d\ude00\ud800')", r'{"city": "\ud83d\ude00\ud800"}'),
    *python("f(city='it's (a) \"b\"')", '{"city": "it\'s (a) \\"b\\""}'),
    *python("f(city='a\nb', n=1)", '{"city": "a\\nb", "n": 1}'),
    *python("f(city='''a'b''', maybe='')", '{"city": "a\'b", "maybe": ""}'),
    *python("f(city=']), g()', l=['[', \"{\"])", '{"city": "]), g()", "l": ["[", "{"]}'),
    *python("f(city=Paris, maybe=2024-01-01)", '{"city": "Paris", "maybe": "2024-01-01"}'),
    Case(
        "lfm2", "<|tool_call_start|>[f(city='Paris'), g()]<|tool_call_end|>Now.", "Now.", [PARIS, G]
    ),
    Case("lfm2", "<|tool_call_start|>f(city='Paris')<|tool_call_end|>", "", [PARIS]),
    Case(
        "lfm2",
        '<|tool_call_start|>[{"name": "f", "arguments": {"city": "Paris"}}]<|tool_call_end|>',
        "",
        [PARIS],
    ),
    Case("pythonic", "[f(city='Paris'), g()]", "", [PARIS, G]),
    Case("pythonic", "<|python_start|>[g()]<|python_end|>", "", [G]),
    # Nothing is evaluated, and what is no literal is no argument.
    Case(
        "lfm2",
        "<|tool_call_start|>[f(city=g(1))]<|tool_call_end|>.",
        ".",
        [("f", '{"city": g(1))]')],
    ),
    Case("lfm2", "<|tool_call_start|>[f(n=1, 2)]<|tool_call_end|>", "", [("f", '{"n": 1, 2)]')]),
    Case("lfm2", "<|tool_call_start|>[f(n=[1)]<|tool_call_end|>", "", [("f", '{"n": [1)]')]),
    *(
        Case(form, text, text, [])
        for form, text in [
            ("pythonic", "[f(1)]"),
            ("pythonic", "[f(*a)]"),
            ("pythonic", "[f(n==1)]"),
            ("pythonic", "[f(x) is a function]"),
            ("pythonic", "[f(the n=1)]"),
            ("pythonic", "[h(n=1)]"),
            ("pythonic", "[1, 2]"),
            ("pythonic", "It is [f(n=1)]"),
            ("pythonic", "[f(n="),
            ("lfm2", "<|tool_call_start|>[h(n=1)]<|tool_call_end|>"),
            ("lfm2", "<|tool_call_start|>[f"),
            ("lfm2", "<|tool_call_st"),
        ]
    ),
    Case("pythonic", "[f(n=12", "", [("f", '{"n": ')]),
    Case("pythonic", "[f(city='Par", "", [("f", '{"city": "Par')]),
    Case("pythonic", "[f(city='Par\\u00", "", [("f", '{"city": "Par')]),
    Case("pythonic", "[f(city='Paris', n", "", [("f", '{"city": "Paris"')]),
    Case("pythonic", "[f(city='Paris'), g(n", "[f(city='Paris'), g(n", [])._replace(
        content=" g(n", calls=[PARIS]
    ),
]
FUNCTOOLS = [
    Case("functools", 'functools[{"name": "f", "arguments": {"city": "Paris"}}]', "", [PARIS]),
    Case(
        "functools",
        'Sure. functools[{"name": "g", "arguments": {}}, {"name": "g"}]',
        "Sure. ",
        [G, G],
    ),
    Case("functools", "import functools\nfunctools[0]", "import functools\nfunctools[0]", []),
    Case("functools", 'functools[{"name": "h"}]', 'functools[{"name": "h"}]', []),
    Case("functools", "funfunctoolfunctools", "funfunctoolfunctools", []),
    Case(
        "functools",
        'functools[{"name": "f", "arguments": {"city": "Par',
        "",
        [("f", '{"city": "Par')],
    ),
]
CASES = [*QWEN, *GLM, *MISTRAL, *GEMMA, *PYTHON, *FUNCTOOLS]
