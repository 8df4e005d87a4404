"""Other clients of OpenAI's API; they need the clients extra."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from tests.support.http_server import running, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.http_server import Running

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

QUESTION = "What is the capital of Spain?"
MADRID = "The capital of Spain is Madrid."


class Capital(BaseModel):
    """What is asked for in structured outputs."""

    model_config = ConfigDict(extra="forbid")
    country: Literal["Spain", "Peru"]
    large: bool


@pytest.fixture(scope="module")
def chat(server: Running) -> Any:
    module = pytest.importorskip("langchain_openai")
    return module.ChatOpenAI(model="demo", base_url=f"{server.url}/v1", api_key="x", max_tokens=60)


def test_langchain_chats(chat: Any) -> None:
    assert chat.invoke(QUESTION).content == MADRID
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == MADRID
    answers = chat.batch([QUESTION, [("system", "Answer."), ("human", QUESTION)]])
    assert answers[0].content == MADRID
    assert answers[0].usage_metadata["input_tokens"] == 10
    assert len(answers) == 2


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_objects(chat: Any, method: str) -> None:
    assert isinstance(chat.with_structured_output(Capital, method=method).invoke(QUESTION), Capital)


def test_langchain_calls_tools(chat: Any) -> None:
    answer = chat.bind_tools([Capital], tool_choice="any").invoke(QUESTION)
    assert answer.tool_calls[0]["name"] == "Capital"


def test_langchain_completes(server: Running) -> None:
    module = pytest.importorskip("langchain_openai")
    model = module.OpenAI(model="demo", base_url=f"{server.url}/v1", api_key="x", max_tokens=2)
    assert model.invoke("The capital of Spain is", temperature=0) == " Madrid."


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm(server: Running, provider: str) -> None:
    litellm = pytest.importorskip("litellm")
    asked = {
        "model": f"{provider}/demo",
        "api_base": f"{server.url}/v1",
        "api_key": "x",
        "messages": [{"role": "user", "content": QUESTION}],
    }
    assert litellm.completion(**asked).choices[0].message.content == MADRID
    chunks = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == MADRID
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": f"{provider}/other"})


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """OpenAI's client for Node, installed once into this user's cache."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    folder = Path.home() / ".cache" / "mlflow-phi3-onnx" / "node"
    found = folder / "node_modules" / "openai" / "package.json"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "openai"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "node_modules"


def test_openai_for_node(server: Running, node_modules: Path) -> None:
    script = Path(__file__).with_name("openai_client.cjs")
    done = subprocess.run(
        ["node", str(script), server.url, QUESTION],
        env={**os.environ, "NODE_PATH": str(node_modules), "NO_PROXY": "*"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    found = json.loads(done.stdout)
    call = found.pop("tool")
    assert call["name"] == "capital_of"
    for text in (call["arguments"], found.pop("structured")):
        assert json.loads(text)["country"] in ("Spain", "Peru")
    assert found == {
        "models": ["demo"],
        **dict.fromkeys(("chat", "stream", "final", "response", "events"), MADRID),
        "completion": " Madrid.",
        "unknown": ["NotFoundError", 404, "model_not_found", "model"],
        "bad": ["BadRequestError", 400, None, "temperature"],
    }
    until(lambda: server.metric("num_requests_running") == 0)  # of the stream that it left


@pytest.fixture(scope="module")
def quick() -> Iterator[Running]:
    with running(max_tokens=4, timeout=5, max_body_bytes=65536) as served:
        yield served


@pytest.mark.slow
def test_nothing_that_schemathesis_makes_of_the_document_fails(quick: Running) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    document = quick.get("/openapi.json").json
    schema = schemathesis.openapi.from_dict(document)
    statuses: set[int] = set()
    settings = hypothesis.settings(
        max_examples=40, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            response = case.call(base_url=quick.url, timeout=60)
            statuses.add(response.status_code)
            late = response.status_code == 504  # the request's own timeout, which may be any
            assert late or response.status_code < 500, (case.path, response.text)
            if response.status_code >= 400:
                assert set(json.loads(response.text)) == {"error"}

        ask()
    assert {200, 400, 404} <= statuses


def test_the_document_is_valid(server: Running) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(server.get("/openapi.json").json)
