"""Text of control tokens is text, in every field of a conversation and with every template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.prompt.control_text import Fragments
from mlflow_phi3_onnx.prompt.template.chat_template import ChatTemplate
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Family(NamedTuple):
    """Models of one kind: their control tokens, and a template with constructs that theirs have."""

    control: str
    template: str


CHATML = Family(
    "<|im_start|> <|im_end|> <tool_call> </tool_call> <tool_response> </tool_response>",
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer with <tool_call>{"name": ...}</tool_call>.<|im_end|>\n{% endif %}'
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.tool_call_id }}"
    "{{ m.content }}\n</tool_response>"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.name %}{{ m.name + ': ' }}{% endif %}{{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{{ \'{"name": "\' ~ c.function.name ~ \'", "arguments": \' }}'
    "{% set a = c.function.arguments %}{{ a if a is string else a | tojson }}{{ '}' }}\n"
    "</tool_call>{{ c.id }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
)
LLAMA = Family(
    "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|>",
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>"
    "{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{% if loop.first and tools %}{{ tools | tojson(indent=4) }}\n{% endif %}"
    "{{ m.name | default('') }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<|python_tag|>{{ c.function.name }}("
    "{% if c.function.arguments is mapping %}{% for k, v in c.function.arguments.items() %}"
    "{{ k ~ '=\"' ~ v ~ '\"' }}{% endfor %}{% else %}{{ c.function.arguments }}{% endif %}"
    "){% endfor %}<|eom_id|>{% else %}{{ m.content }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
)
XML = Family(
    "<|im_start|> <|im_end|> <tool_call> </tool_call> <s> </s> [INST]",
    "<s>{% for tool in tools or [] %}<function>\n<name>{{ tool.function.name }}</name>"
    "{% for k, v in tool.function.items() %}\n{{ '<' ~ k ~ '>' ~ v ~ '</' ~ k ~ '>' }}{% endfor %}"
    "\n</function>{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n[{{ m.name }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call><function={{ c.function.name }}>"
    "{% if c.function.arguments is mapping %}{% for k, v in c.function.arguments.items() %}"
    "<{{ k }}>{{ v }}</{{ k }}>{% endfor %}{% else %}{{ c.function.arguments }}{% endif %}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}",
)
FAMILIES = {"ChatML": CHATML, "Llama": LLAMA, "XML": XML}


def make(family: Family, folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    tokenizer.add_tokens(
        [AddedToken(t, special=i < 3) for i, t in enumerate(family.control.split())]
    )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": family.template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


class Subject(NamedTuple):
    """A tokenizer with its template, and its control tokens by id."""

    tokenizer: PromptTokenizer
    control: dict[int, str]

    def control_of(self, messages: Any, tools: Any = None) -> list[str]:
        """Return the control tokens of the prompt that a request becomes, by their ids."""
        return [self.control[i] for i in self.ids(messages, tools) if i in self.control]

    def ids(self, messages: Any, tools: Any = None) -> list[int]:
        fields = {"messages": messages, **({"tools": tools} if tools else {})}
        (prompt,) = parse_request(fields, "llm/v1/chat").prompts
        assert isinstance(prompt, ChatPrompt)
        return self.tokenizer.encode_chat(prompt).tolist()

    def text(self, ids: list[int]) -> str:
        detokenizer = self.tokenizer.detokenizer(keep_control=True)
        return "".join([*map(detokenizer.add, ids), detokenizer.flush()])


@pytest.fixture(scope="module", params=["Phi", *FAMILIES])
def subject(
    demo: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Subject:
    folder = demo
    if request.param != "Phi":
        folder = make(FAMILIES[request.param], tmp_path_factory.mktemp("family") / request.param)
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return Subject(PromptTokenizer(folder), {t["id"]: t["content"] for t in added})


QUESTION = {"role": "user", "content": "x"}
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


def message(role: str, **fields: Any) -> Callable[[str], tuple[Any, Any]]:
    """A conversation in which one message has a text in its fields, where they say ``@``."""

    def build(text: str) -> tuple[Any, Any]:
        return [QUESTION, put({"role": role, "content": "y", **fields}, text), QUESTION], None

    return build


def called(function: Any, **fields: Any) -> Callable[[str], tuple[Any, Any]]:
    call = {"id": "1", "type": "function", "function": function, **fields}
    result = {"role": "tool", "tool_call_id": "1", "content": "z"}

    def build(text: str) -> tuple[Any, Any]:
        calls = {"role": "assistant", "content": None, "tool_calls": [put(call, text)]}
        return [QUESTION, calls, result], None

    return build


def defined(**fields: Any) -> Callable[[str], tuple[Any, Any]]:
    def build(text: str) -> tuple[Any, Any]:
        return [QUESTION], [{"type": "function", "function": put({**TOOL, **fields}, text)}]

    return build


def put(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return value.replace("@", text)
    if isinstance(value, dict):
        return {put(k, text): put(v, text) for k, v in value.items()}
    return [put(item, text) for item in value] if isinstance(value, list) else value


ROLES = ["system", "developer", "user", "assistant", "tool"]
FIELDS = {
    **{f"{role}: content": message(role, content="a@b") for role in ROLES},
    **{f"{role}: content alone": message(role, content="@") for role in ROLES},
    **{
        f"{role}: parts": message(role, content=[{"type": "text", "text": t} for t in "a@b"])
        for role in ROLES
    },
    **{f"{role}: name": message(role, name="@") for role in ROLES},
    **{f"{role}: another field": message(role, more={"@": ["@"]}) for role in ROLES},
    "tool: tool_call_id": message("tool", tool_call_id="@"),
    "assistant: refusal": message("assistant", refusal="@"),
    "call: id": called({"name": "f", "arguments": "{}"}, id="@"),
    "call: name": called({"name": "@", "arguments": "{}"}),
    "call: arguments, a string": called({"name": "f", "arguments": '{"a": "@", "@": 1}'}),
    "call: arguments, no JSON": called({"name": "f", "arguments": "@"}),
    "call: arguments, an object": called({"name": "f", "arguments": {"a": "@", "@": ["@"]}}),
    "tool: name": defined(name="@"),
    "tool: description": defined(description="@"),
    "tool: parameter": defined(parameters={"type": "object", "properties": {"@": {}}}),
    "tool: parameter's description": defined(
        parameters={"properties": {"a": {"description": "@"}}}
    ),
    "tool: enum": defined(parameters={"properties": {"a": {"enum": ["@", "b"]}}}),
    "tool: required": defined(parameters={"properties": {}, "required": ["@"]}),
    "tool: another field": defined(**{"@": "@", "more": {"@": "@"}}),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_control_token_in_a_field_is_text(subject: Subject, field: str) -> None:
    build = FIELDS[field]
    harmless = subject.control_of(*build("harmless"))
    shows = "harmless" in subject.text(subject.ids(*build("harmless")))
    for token in subject.control.values():
        for attack in (token, f"{token}\n{token}", f"{token[:3]}{token}{token[3:]}", f" {token} "):
            assert subject.control_of(*build(attack)) == harmless
        assert not shows or f"a{token}b" in subject.text(subject.ids(*build(f"a{token}b")))


def parts_of(token: str) -> list[tuple[str, str]]:
    return [(token[:n], token[n:]) for n in range(len(token) + 1)]


def test_parts_of_a_control_token_in_fields_side_by_side_are_text(subject: Subject) -> None:
    def build(first: str, second: str) -> list[Any]:
        function = {"name": second, "arguments": {first: second, second: first}}
        call = {"id": first, "type": "function", "function": function}
        return [
            {"role": "user", "name": first, "content": second},
            {"role": "assistant", "content": first, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": first, "content": second},
        ]

    harmless = subject.control_of(build("h", "i"))
    for token in subject.control.values():
        for first, second in parts_of(token):
            assert subject.control_of(build(first, second)) == harmless
            assert subject.control_of(build(f"a{first}", f"{second}b")) == harmless


def test_what_a_template_puts_between_brackets_makes_no_control_token(subject: Subject) -> None:
    names = ["harmless", "s", "/s", "INST", "tool_call", "/tool_call", "|im_end|", " |im_end|\n"]
    names += [token[1:-1] for token in subject.control.values()]
    seen: set[tuple[str, ...]] = set()
    for name in names:
        function = {**TOOL, "name": name, name: {name: name}}
        call = {"function": {"name": name, "arguments": {name: name}}}
        messages = [
            {"role": "user", "name": name, "content": name},
            {"role": "assistant", "content": "y", "tool_calls": [call]},
        ]
        seen.add(tuple(subject.control_of(messages, [{"type": "function", "function": function}])))
    assert len(seen) == 1


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_texts_change_the_control_tokens_of_a_prompt(
    subject: Subject, data: st.DataObject
) -> None:
    tokens = [*subject.control.values()]
    parts = st.sampled_from(tokens).flatmap(
        lambda token: st.tuples(st.integers(0, len(token)), st.integers(0, len(token))).map(
            lambda cut: token[min(cut) : max(cut)]
        )
    )
    texts = st.lists(parts | st.sampled_from(["a", " ", "\n", "\ue000", "<", "|>"]), max_size=4)
    text = texts.map("".join)

    def build(text: st.SearchStrategy[str]) -> tuple[Any, Any]:
        draw = data.draw
        call = {"id": draw(text), "function": {"name": draw(text), "arguments": draw(text)}}
        messages = [
            {"role": "user", "name": draw(text), "content": draw(text)},
            {"role": "assistant", "content": draw(text), "tool_calls": [call]},
            {"role": "tool", "tool_call_id": draw(text), "content": draw(text)},
        ]
        function = {**TOOL, "name": draw(text) or "f", "description": draw(text)}
        return messages, [{"type": "function", "function": function}]

    assert subject.control_of(*build(text)) == subject.control_of(*build(st.just("a")))


def test_a_text_that_looks_like_a_stand_in_stays_as_it_is(subject: Subject) -> None:
    """Private-use characters and their escapes, beside a text that is hidden."""
    for token in subject.control.values():
        for mark in ("\ue000", r"\ue000", "\ue001", r"\ue001", r"\uE000"):
            text = f"a{token}b{mark}0{mark}c"
            assert text in subject.text(subject.ids([{"role": "user", "content": text}]))


@pytest.mark.parametrize(
    ("text", "edges"),
    [
        ("|end|>", (6, 0)),
        ("  |end|>\n", (9, 0)),
        ("\n |end|> x", (8, 0)),
        ("x <|e\t ", (0, 5)),
        (" > x <| ", (2, 3)),
        ("<|end|>", (0, 0)),
        ("<|end|> x", (0, 0)),
        (" x ", (0, 0)),
        (" \n", (0, 0)),
        ("", (0, 0)),
        ("end", (3, 0)),
        ("name", (0, 0)),
    ],
)
def test_the_parts_of_tokens_at_a_text_s_edges_are_measured_with_the_white_space_around(
    text: str, edges: tuple[int, int]
) -> None:
    assert Fragments(["<|end|>", "<|name|>"]).edges(text) == edges


@pytest.mark.parametrize("family", FAMILIES)
def test_text_that_only_resembles_a_control_token_costs_nothing(
    family: str, tmp_path: Path
) -> None:
    """A prompt has the ids of its text, as with Hugging Face's tokenizer."""
    folder = make(FAMILIES[family], tmp_path)
    ours = PromptTokenizer(folder)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = ChatTemplate(FAMILIES[family].template)
    for text in ["> quoted", "1 <", "a", "<|", "im_start", "tool_call", "user", "|>", "s > t <"]:
        messages = ({"role": "user", "content": text}, {"role": "assistant", "content": text})
        rendered = template.render(messages)
        expected = theirs.encode(rendered, add_special_tokens=False).ids
        assert ours.encode_chat(ChatPrompt(messages)).tolist() == expected
