"""What a chat template is given, and where it is found."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import (
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    UnsupportedParameterError,
)
from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.prompt.template.chat_template import ChatTemplate
from mlflow_phi3_onnx.prompt.template.conversation import MAX_DEPTH
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.folders import CONTROL, byte_level, write
from tests.support.template_cases import CONSTRUCTS, CONVERSATIONS, FAMILIES, TOOLS, USER, tool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ECHO = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"


@pytest.fixture
def prompt(tmp_path: Path) -> Callable[..., str]:
    """Renders a conversation with a template, by way of token ids, to text."""

    def render(template: str, messages: Any, tools: Any = None, **variables: Any) -> str:
        tokenizer = PromptTokenizer(write(tmp_path, byte_level(), template))
        chat = ChatPrompt(tuple(messages), tools and tuple(tools), variables)
        return tokenizer.decode(tokenizer.encode_chat(chat).tolist())[0]

    return render


@pytest.mark.parametrize(("source", "expected"), CONSTRUCTS)
def test_constructs_render_as_transformers_renders_them(source: str, expected: str) -> None:
    """The expected texts are transformers' own; test_hugging_face.py compares them."""
    tokens = {"bos_token": CONTROL[0], "eos_token": CONTROL[2]}
    messages = CONVERSATIONS["system and turns"]
    rendered = ChatTemplate(source, tokens).render(messages, add_generation_prompt=False)
    assert rendered == expected


def test_arguments_of_calls_are_objects_where_the_template_reads_them(
    prompt: Callable[..., str],
) -> None:
    """As in Hugging Face's templates; OpenAI's messages have them as JSON in a text."""
    function = {"name": "f", "arguments": '{"a": "<|end|>", "b": [1]}'}
    calls = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    start = "{% set f = messages[1].tool_calls[0].function %}{{ messages[0].content }} "
    for template in (
        "{{ f.arguments|tojson }}",
        "{{ f.arguments }}",
        "{{ '=' + f.arguments }}",
        "{{ f.arguments if f.arguments is string else f.arguments|tojson }}",
    ):
        rendered = prompt(start + template, [USER, calls])
        assert rendered.endswith('{"a": "<|end|>", "b": [1]}')
    items = "{% for k, v in f.arguments|items %}{{ k }}={{ v }};{% endfor %}"
    assert prompt(start + items, [USER, calls]).endswith("a=<|end|>;b=[1];")
    for text in ("no JSON", "[1]", '"a"', '{"a": "\\ud800"}'):
        function["arguments"] = text
        assert prompt(start + "{{ f.arguments }}", [USER, calls]).endswith(text)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_each_of_its_names(prompt: Callable[..., str], name: str) -> None:
    template = (
        "{{ messages[0].content }}{{ messages[1].reasoning_content }}{{ messages[1].thinking }}"
    )
    answer = {"role": "assistant", "content": "x", name: "Hm."}
    assert prompt(template, [USER, answer]).endswith("Hm.Hm.")


def test_tools_go_into_the_system_message_where_the_template_looks_for_them(
    prompt: Callable[..., str],
) -> None:
    template = FAMILIES["tools_in_the_message"]
    rendered = prompt(template, [USER], TOOLS)
    functions = json.dumps([t["function"] for t in TOOLS], ensure_ascii=False)
    assert rendered.startswith(f"<|start|>system[{functions}]<|stop|>")
    assert USER["content"] in rendered
    with pytest.raises(UnsupportedParameterError, match="leaves out tools"):
        prompt(FAMILIES["turns"], [USER], TOOLS)


def test_a_message_that_the_template_edits_is_not_left_out(prompt: Callable[..., str]) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and loop.first) %}"
        "{{ m.content|replace('/no_think', '')|trim|upper }};{% endif %}{% endfor %}"
    )
    system = {"role": "system", "content": "be kind /no_think"}
    assert prompt(template, [system, {"role": "user", "content": "x"}]) == "BE KIND;X;"
    result = {"role": "tool", "content": "y"}
    for left_out in (system, result):
        with pytest.raises(InvalidRequestError, match=r"leaves out messages\[1\]") as caught:
            prompt(template, [USER, left_out])
        assert caught.value.param == "messages[1].role"


def test_values_for_the_template(prompt: Callable[..., str]) -> None:
    template = ECHO + "{{ thoughts }}{{ more.a[0] if more }}{{ documents }}"
    assert prompt(template, [USER], thoughts=False).endswith("FalseNone")
    assert prompt(template, [USER], more={"a": ["x"]}, thoughts="").endswith("xNone")
    assert prompt(template, [USER], documents=[{"a": 1}]).endswith("[{'a': 1}]")
    for name in ("unknown", "range", "strftime_now", "m", "eos_token"):
        with pytest.raises(
            UnsupportedParameterError, match="It reads: documents, more, though"
        ) as e:
            prompt(template, [USER], **{name: 1})
        assert e.value.param == f"chat_template_kwargs.{name}"
    with pytest.raises(UnsupportedParameterError, match="It reads: none"):
        prompt(ECHO, [USER], x=1)


def test_a_template_finds_keys_that_are_parts_of_control_tokens(
    prompt: Callable[..., str],
) -> None:
    template = (
        "{% for t in tools %}{% set p = t.function.parameters %}{{ t.function.name }}:"
        "{% for name in p.required %}{{ name }}={{ p.properties[name].type }};{% endfor %}"
        "{% endfor %}{{ more.stop }}" + ECHO
    )
    tools = [tool("f", {"end": {"type": "x"}, "start": {"type": "y"}}, required=["start", "end"])]
    rendered = prompt(template, [USER], tools, more={"stop": "<|end|>"})
    assert rendered.startswith("f:start=y;end=x;<|end|>")


def test_special_tokens_are_not_values_of_a_request(tmp_path: Path) -> None:
    folder = write(tmp_path, byte_level(), ECHO + "{{ eos_token }}", eos_token="<|end|>")
    with pytest.raises(UnsupportedParameterError, match="eos_token is not supported"):
        PromptTokenizer(folder).encode_chat(ChatPrompt((USER,), None, {"eos_token": ""}))


@pytest.mark.parametrize("text", [*CONTROL, f"a {CONTROL[1]}\n{CONTROL[0]}system\nb"])
def test_text_in_values_for_the_template_is_text(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, byte_level(), ECHO + "<|end|>{{ x.a ~ x[text] }}{{ text }}")
    tokenizer = PromptTokenizer(folder)
    ids = tokenizer.encode_chat(ChatPrompt((USER,), None, {"x": {"a": text, text: "b"}}))
    known = [tokenizer.control_id(token) for token in CONTROL]
    assert [i for i in ids.tolist() if i in known] == [tokenizer.control_id("<|end|>")]
    assert text in tokenizer.decode(ids.tolist())[0]


def test_values_for_the_template_reach_it_from_a_request(demo: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo, tmp_path / "model")
    source = (demo / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(source + "{{ opening }}", encoding="utf-8")
    question = [{"role": "user", "content": "What is the capital of Spain?"}]
    with GenAIModel(folder, model_config={"chat_template_kwargs": {"opening": ""}}) as model:
        answer = model.chat(question)["choices"][0]["message"]["content"]
        opening = {"opening": "The capital of Spain"}
        more = model.chat(question, chat_template_kwargs=opening)["choices"][0]["message"][
            "content"
        ]
        assert answer.split() == f"The capital of Spain {more}".split()
        for bad in (
            {"messages": []},
            {"tokenize": True},
            {"chat_template": ""},
            {"a b": 1},
            [],
            "x",
        ):
            with pytest.raises(InvalidRequestError, match="must be an object of JSON values") as e:
                model.chat(question, chat_template_kwargs=bad)
            assert e.value.param == "chat_template_kwargs"
        with pytest.raises(InvalidRequestError, match="chat_template_kwargs must be JSON"):
            model.chat(question, chat_template_kwargs={"opening": object()})
        with pytest.raises(UnsupportedParameterError, match="A template is a program"):
            model.chat(question, chat_template="{{ messages }}")


def test_a_template_gets_only_json(prompt: Callable[..., str]) -> None:
    class Text(str):
        def leak(self) -> str:
            return "leaked"

    assert prompt("{{ messages[0].content.leak }}" + ECHO, [{"role": "user", "content": Text("x")}])
    for value in (object(), {1: 2}, b"x", {"x"}):
        with pytest.raises(InvalidRequestError, match="messages must be JSON"):
            prompt(ECHO, [{**USER, "more": value}])


def test_a_conversation_may_be_nested_as_deep_and_no_deeper(prompt: Callable[..., str]) -> None:
    def deep(levels: int) -> Any:
        value: Any = "x"
        for level in range(levels):
            value = {"a": value} if level % 2 else [value]
        return value

    # The list of messages and the message are levels too.
    inside = MAX_DEPTH - 2
    assert prompt(ECHO, [{**USER, "more": deep(inside)}])
    with pytest.raises(InvalidRequestError, match="messages must not be nested more than 64 level"):
        prompt(ECHO, [{**USER, "more": deep(inside + 1)}])
    shows = ECHO + "{{ tools[0].function.name }}"
    reads = ECHO + "{{ extra is defined }}"
    found = {**tool("f", {}), "more": deep(inside)}
    assert prompt(shows, [USER], [found])
    with pytest.raises(InvalidRequestError, match="tools must not be nested more than 64 levels"):
        prompt(shows, [USER], [{**found, "more": deep(inside + 1)}])
    assert prompt(reads, [USER], extra=deep(MAX_DEPTH - 1))
    with pytest.raises(InvalidRequestError, match="chat_template_kwargs must not be nested more"):
        prompt(reads, [USER], extra=deep(MAX_DEPTH))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a template of numbers": (
        {"chat_template": 5},
        r"tokenizer_config\.json: chat_template must be",
    ),
    "a list of texts": ({"chat_template": ["x"]}, "chat_template must be a text, or a list"),
    "a list without names": (
        {"chat_template": [{"template": "x"}]},
        "list of objects with the texts",
    ),
    "a name that is a list": (
        {"chat_template": [{"name": [1], "template": "x"}]},
        "list of objects with the texts",
    ),
    "a name twice": (
        {"chat_template": [{"name": "default", "template": text} for text in "xy"]},
        "chat_template has two templates of one name",
    ),
    "half a character in a template": (
        {"chat_template": "{{ '\\ud800' }}"},
        r"chat template writes a lone surrogate \(U\+D800\)",
    ),
    "half a character in a token": (
        {"bos_token": "\udfff", "chat_template": "x"},
        r"tokenizer_config\.json: bos_token holds a lone surrogate \(U\+DFFF\)",
    ),
    "an object of numbers": ({"chat_template": {"default": 1}}, "chat_template must be"),
    "no default": (
        {"chat_template": [{"name": "rag", "template": "x"}]},
        "named rag, but none that",
    ),
    "a token that is a number": (
        {"bos_token": 5, "chat_template": "x"},
        "bos_token must be a text",
    ),
    "a token that is a list": (
        {"eos_token": ["x"], "chat_template": "x"},
        "eos_token must be a text",
    ),
    "a token without content": (
        {"pad_token": {}, "chat_template": "x"},
        "pad_token must be a text",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_field_of_the_wrong_type_is_named(name: str, tmp_path: Path) -> None:
    config, says = BROKEN[name]
    write(tmp_path, byte_level(), None, **config)
    with pytest.raises(InvalidModelError, match=says):
        PromptTokenizer(tmp_path)


def test_half_a_character_that_a_template_makes_is_the_model_s_fault(
    prompt: Callable[..., str],
) -> None:
    with pytest.raises(InvalidModelError, match=r"writes a lone surrogate \(U\+D83D\)"):
        prompt("{{ '%c' % 0xD83D }}" + ECHO, [USER])
    whole = prompt("{{ '\\U0001f600%c' % 0x1F600 }}" + ECHO, [USER])
    assert whole.startswith("\U0001f600" * 2)


READ_PARTS = {
    "as Idefics3's": (
        "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %};{% endfor %}"
    ),
    "as LLaVA-Next's": (
        "{% for m in messages %}{{ m['role'] }}:"
        "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
        "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}"
        "{% endfor %};{% endfor %}"
    ),
}


@pytest.mark.parametrize("template", READ_PARTS.values(), ids=READ_PARTS)
def test_a_template_that_reads_only_parts_gets_one(
    prompt: Callable[..., str], template: str
) -> None:
    assert ChatTemplate(template).reads_parts
    assert not ChatTemplate(ECHO).reads_parts
    chat = [{"role": "system", "content": " Be kind."}, USER, {"role": "user", "content": ""}]
    text = USER["content"]
    assert prompt(template, chat) == f"system: Be kind.;user:{text};user:;"
    control = f"{CONTROL[0]}<image>"
    assert prompt(template, [{"role": "user", "content": control}]) == f"user:{control};"
    leaving = template.replace("{% for m in messages %}", "{% for m in messages[:1] %}")
    with pytest.raises(InvalidRequestError, match=r"leaves out messages\[1\]"):
        prompt(leaving, chat)


def test_a_template_that_reads_both_gets_text(prompt: Callable[..., str]) -> None:
    both = (
        "{% for m in messages %}{% if m.content is string %}text {{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert prompt(both, [{"role": "user", "content": "Hello"}]) == "text Hello"


FILES = {
    "tokenizer.json": (b"{}", r"tokenizer\.json is damaged"),
    "tokenizer_config.json": (b"[1]", r"tokenizer_config\.json must hold a JSON object"),
    "tokenizer_config.json ": (b"{", r"tokenizer_config\.json is not valid JSON"),
    "chat_template.jinja": (b"\xff", r"chat_template\.jinja is not text in UTF-8"),
    "special_tokens_map.json": (
        b'{"bos_token": 1}',
        r"special_tokens_map\.json: bos_token must be",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    content, says = FILES[name]
    write(tmp_path, byte_level())
    (tmp_path / name.strip()).write_bytes(content)
    with pytest.raises(InvalidModelError, match=says):
        PromptTokenizer(tmp_path)


def test_the_files_of_transformers_are_found(tmp_path: Path) -> None:
    def shown(tools: Any = None) -> str:
        tokenizer = PromptTokenizer(tmp_path)
        return tokenizer.render_chat(ChatPrompt((USER,), tools))[:7]

    named = [
        {"name": name, "template": f"{name:7}{ECHO}{{{{ tools }}}}"}
        for name in ("default", "tool_use")
    ]
    write(tmp_path, byte_level(), named)
    assert (shown(), shown(tuple(TOOLS))) == ("default", "tool_us")
    (tmp_path / "chat_template.jinja").write_text(f"file   {ECHO}{{{{ tools }}}}")
    assert (shown(), shown(tuple(TOOLS))) == ("file   ", "file   ")
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text(f"tools  {ECHO}{{{{ tools }}}}")
    assert (shown(), shown(tuple(TOOLS))) == ("file   ", "tools  ")
    (more / "default.jinja").write_text(f"folder {ECHO}{{{{ tools }}}}")
    assert (shown(), shown(tuple(TOOLS))) == ("folder ", "tools  ")


CALL_IDS = """[TOOL_CALLS]{% for m in messages %}{% for c in m.tool_calls or [] %}
{%- if c.id|length != 9 %}{{ raise_exception("Nine letters!") }}{% endif %}{{ c.id }},{% endfor %}
{%- if m.tool_call_id %}{{ m.tool_call_id }}:{% endif %}{{ m.content }}{% endfor %}"""


def history(*ids: str) -> list[dict[str, Any]]:
    calls = [{"id": name, "type": "function", "function": {"name": "f"}} for name in ids]
    results = [{"role": "tool", "tool_call_id": name, "content": "."} for name in ids]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results]


def test_ids_of_a_history_are_shortened_where_the_template_takes_nine_letters(
    prompt: Callable[..., str],
) -> None:
    long = prompt(CALL_IDS, history("call_4893327e90cc47dbb29bdf55", "toolu_01", "aB3456789"))
    first, second, third = re.findall(r"(\w{9}),", long)
    assert long == f"[TOOL_CALLS]{first},{second},{third},{first}:.{second}:.{third}:."
    assert len({first, second}) == 2
    assert third == "aB3456789"
    assert long == prompt(CALL_IDS, history("call_4893327e90cc47dbb29bdf55", "toolu_01", third))
    other = CALL_IDS.replace("[TOOL_CALLS]", "").replace("!= 9", "== 0")
    assert prompt(other, history("call_1")) == "call_1,call_1:."


@pytest.mark.parametrize("given", [{}, {"description": None, "parameters": None}])
def test_tools_have_the_keys_that_a_template_reads(
    prompt: Callable[..., str], given: dict[str, Any]
) -> None:
    tools = [{"type": "function", "function": {"name": "f", **given}}]
    source = "{% for t in tools %}{{ t.function.name }}"
    strict = source + "{{ '(' + t.function.description + ')' }}{{ t.function.parameters.type }}"
    end = "{% endfor %}{{ messages[0].content }}"
    shown = [{"role": "user", "content": "?"}]
    assert prompt(strict + end, shown, tools) == "f()object?"
    # A template that does without them is given none.
    assert (
        prompt(f"{source}{{{{ t.function|length }}}}{end}", shown, tools) == f"f{1 + len(given)}?"
    )
    with pytest.raises(InvalidModelError):
        prompt(source + "{{ '' + t.function.other }}" + end, shown, tools)
