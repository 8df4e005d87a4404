"""Templates render as transformers renders them. Needs the ``export`` extra."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIError, InvalidModelError
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.core.request import ChatPrompt
from mlflow_phi3_onnx.openai.parse import parse_request
from mlflow_phi3_onnx.prompt.template.files import load_template
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from tests.support.folders import CONTROL, byte_level, write
from tests.support.template_cases import CONSTRUCTS, CONVERSATIONS, FAMILIES, TOOLS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="the comparison needs transformers, of the export extra",
    ),
]

VARIABLES: dict[str, dict[str, Any]] = {
    "headers": {"date_string": "1 Jan", "builtin_tools": ["notebook", "search", "weather"]},
    "thinking": {"enable_thinking": False},
    "macros": {"enable_thinking": False, "python_tools": True},
    "documents": {"documents": [{"title": "a one", "text": "x"}, {"title": "b", "text": "é"}]},
}


def tokenizers(folder: Path, template: Any, **config: Any) -> tuple[Any, PromptTokenizer]:
    """Transformers' tokenizer and ours, of one folder."""
    import transformers

    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": CONTROL[2], **config}
    write(folder, byte_level(), template, **config)
    return transformers.AutoTokenizer.from_pretrained(folder), PromptTokenizer(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, PromptTokenizer]:
    folder = tmp_path_factory.mktemp("family")
    return request.param, *tokenizers(folder, FAMILIES[request.param], bos_token=CONTROL[0])


def cases(name: str) -> list[tuple[Any, dict[str, Any]]]:
    """The tools and variables that a family's conversations are rendered with."""
    tools = [None] if name == "tools_in_the_message" else [None, TOOLS]
    return [(t, variables) for t in tools for variables in [{}, VARIABLES.get(name, {})]]


def as_openai_has_them(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the arguments of calls as JSON in a text."""
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return messages


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_conversations_have_the_ids_that_transformers_gives_them(
    family: tuple[str, Any, PromptTokenizer], conversation: str
) -> None:
    name, theirs, ours = family
    messages = CONVERSATIONS[conversation]
    for tools, variables in cases(name):
        expected = shown(theirs, messages, tools, **variables)
        for written in (messages, as_openai_has_them(messages)):
            chat = ChatPrompt(tuple(written), tools and tuple(tools), variables)
            ids = encoded(ours, chat)
            if expected is None:
                assert isinstance(ids, str)
            elif isinstance(ids, str):
                assert "leaves out" in ids
            else:
                assert ids == theirs(expected, add_special_tokens=False)["input_ids"]


def shown(theirs: Any, messages: Any, tools: Any = None, **more: Any) -> str | None:
    """What transformers makes of a conversation; None where it fails."""
    more = {"add_generation_prompt": True, **more}
    try:
        return theirs.apply_chat_template(messages, tools=tools, tokenize=False, **more)
    except Exception:  # noqa: BLE001 - a template may fail in any way
        return None


def encoded(ours: PromptTokenizer, chat: ChatPrompt) -> list[int] | str:
    """The ids of a conversation, or why there are none."""
    try:
        return ours.encode_chat(chat).tolist()
    except GenAIError as error:
        return error.message


def render(folder: Path, messages: Any, tools: Any = None) -> str:
    template = load_template(folder)
    assert template is not None
    return template.render(messages, tools=tools, add_generation_prompt=False)


@pytest.mark.parametrize(("source", "expected"), CONSTRUCTS)
def test_constructs_render_as_is_expected_of_us(source: str, expected: str, tmp_path: Path) -> None:
    theirs, _ = tokenizers(tmp_path, source, bos_token=CONTROL[0])
    messages = CONVERSATIONS["system and turns"]
    assert shown(theirs, messages, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{% raw %}{{ x }}{% endraw %}{# a note #}\r\nb\r\n\n",
        "{{ strftime_now('%Y') }}{{ strftime_now('%%z=%z%Z') }}",
        "{{ tools|tojson(indent=4) }}{{ tools|length if tools else 'none' }}",
        "{{ messages|tojson }}{{ messages }}{{ tools }}",
    ],
)
def test_more_constructs_render_alike(source: str, tmp_path: Path) -> None:
    theirs, _ = tokenizers(tmp_path, source)
    messages = CONVERSATIONS["calls"]
    for tools in (None, TOOLS):
        expected = shown(theirs, messages, tools, add_generation_prompt=False)
        assert render(tmp_path, messages, tools) == expected


NAMED = [{"name": name, "template": f"list {name}"} for name in ("default", "tool_use", "other")]
PLACES: dict[str, tuple[Any, list[str]]] = {
    "a text": ("text", []),
    "a list": (NAMED, []),
    "a list without tool_use": (NAMED[::2], []),
    "an object": ({"default": "object", "tool_use": "object for tools"}, []),
    "a file": (None, ["chat_template.jinja"]),
    "a file over a text": ("text", ["chat_template.jinja"]),
    "a file over a list": (NAMED, ["chat_template.jinja"]),
    "files": (
        "text",
        ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"],
    ),
    "files named": (
        NAMED,
        ["additional_chat_templates/default.jinja", "additional_chat_templates/tool_use.jinja"],
    ),
    "a folder that replaces the file": (
        None,
        ["chat_template.jinja", "additional_chat_templates/default.jinja"],
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_templates_are_found_where_transformers_finds_them(place: str, tmp_path: Path) -> None:
    config, files = PLACES[place]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(f"file {file}", encoding="utf-8")
    theirs, _ = tokenizers(tmp_path, config)
    for tools in (None, TOOLS):
        messages = CONVERSATIONS["a question"]
        assert render(tmp_path, messages, tools) == shown(theirs, messages, tools)


@pytest.mark.parametrize(
    ("config", "legacy"),
    [
        (
            {"bos_token": "<|start|>", "eos_token": {"content": "<|end|>", "__type": "AddedToken"}},
            {},
        ),
        ({"bos_token": "<|start|>", "mask_token": "<|end|>", "pad_token": None}, {}),
        (
            {"bos_token": "<|start|>"},
            {"bos_token": "<|end|>", "cls_token": {"content": "<|stop|>"}},
        ),
        ({"bos_token": "<|start|>", "added_tokens_decoder": {}}, {"bos_token": "<|end|>"}),
    ],
)
def test_special_tokens_are_those_of_transformers(
    config: dict[str, Any], legacy: dict[str, Any], tmp_path: Path
) -> None:
    names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]
    source = "".join(f"{{{{ {name}_token|default('-') }}}} " for name in names)
    if legacy:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(legacy), encoding="utf-8")
    theirs, _ = tokenizers(tmp_path, source, **{"eos_token": None, **config})
    messages = CONVERSATIONS["a question"]
    assert render(tmp_path, messages) == shown(theirs, messages)


def test_tools_go_where_the_template_looks_for_them(tmp_path: Path) -> None:
    theirs, ours = tokenizers(tmp_path, FAMILIES["tools_in_the_message"])
    described = json.dumps([t["function"] for t in TOOLS], ensure_ascii=False)
    for name in ("a question", "system and turns"):
        messages = [dict(message) for message in CONVERSATIONS[name]]
        chat = ChatPrompt(tuple(messages), tuple(TOOLS))
        if messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": ""})
        messages[0]["tools"] = described
        expected = shown(theirs, messages)
        assert encoded(ours, chat) == theirs(expected, add_special_tokens=False)["input_ids"]


def test_parts_are_joined_as_templates_of_parts_join_them(tmp_path: Path) -> None:
    theirs, ours = tokenizers(
        tmp_path,
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}",
    )
    parts = [{"type": "text", "text": text} for text in ("What is ", "the capital\n", " of Spain?")]
    messages = [{"role": "user", "content": parts}]
    (chat,) = parse_request({"messages": messages}, "llm/v1/chat").prompts
    assert isinstance(chat, ChatPrompt)
    expected = theirs(shown(theirs, messages), add_special_tokens=False)["input_ids"]
    assert encoded(ours, chat) == expected


def test_the_advice_for_a_missing_tokenizer_makes_one(demo: Path, tmp_path: Path) -> None:
    model = shutil.copytree(demo, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    byte_level().model.save(str(checkpoint))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copy(checkpoint / "vocab.json", model)
    with pytest.raises(InvalidModelError, match=r"no tokenizer\.json, only vocab\.json") as caught:
        read_folder(model)
    command = caught.value.message.partition("python -c ")[2].strip('"')
    command = command.replace("CHECKPOINT", str(checkpoint)).replace("MODEL_FOLDER", str(model))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, env=environment
    )
    assert PromptTokenizer(model).encode("The capital").size
