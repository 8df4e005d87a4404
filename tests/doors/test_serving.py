"""``mlflow models serve`` in a process of its own, and requests to its ``/invocations``."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient

import mlflow_phi3_onnx
from tests.support.servers import Server, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

CANARY = "canary-2718281"

PROMPT = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
ANSWER = "The capital of Spain is Madrid."
RAW = f" {ANSWER}"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Iterator[Path]:
    """A folder with a store, in which the demo model is registered once for each task."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        for task in ("llm/v1/chat", "llm/v1/completions", "text-generation"):
            name = task.rpartition("/")[2]
            mlflow_phi3_onnx.log_model(demo, name=name, task=task, registered_model_name=name)
            MlflowClient().set_registered_model_alias(name, "champion", "1")
        yield folder
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type] - None restores the default


@pytest.fixture(scope="module")
def chat(registered: Path) -> Iterator[Server]:
    yield from serve(registered, "chat")


@pytest.fixture(scope="module")
def completions(registered: Path) -> Iterator[Server]:
    yield from serve(registered, "completions")


@pytest.fixture(scope="module")
def text(registered: Path) -> Iterator[Server]:
    yield from serve(registered, "text-generation")


def content(response: Any) -> str:
    return response["choices"][0]["message"]["content"]


def split(**columns: Any) -> dict[str, Any]:
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return {"dataframe_split": {"columns": list(columns), "data": rows}}


def test_chat_payloads_four_at_a_time(chat: Server) -> None:
    countries = {"Spain": "Madrid", "France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}

    def ask(country: str) -> tuple[int, Any]:
        message = {"role": "user", "content": f"What is the capital of {country}?"}
        return chat.post({"messages": [message]})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, list(countries) * 4))
    for country, (status, body) in zip(list(countries) * 4, answers, strict=True):
        assert status == 200
        assert content(body[0]) == f"The capital of {country} is {countries[country]}."
        assert body[0]["object"] == "chat.completion"


def test_short_answers_do_not_wait_for_a_long_one(chat: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(chat.post, {"messages": SPAIN, "min_tokens": 2500})
        answered = 0
        while not long.done():
            _, body = chat.post({"messages": SPAIN})
            answered += content(body[0]) == ANSWER
    assert long.result()[0] == 200
    # If they took turns, one might come before it, and one that waited for it would be the last.
    assert answered > 2


def test_chat_options_in_the_payload(chat: Server) -> None:
    status, body = chat.post(
        {
            "messages": SPAIN,
            "model": "phi3",
            "stop": ["Spain"],
            "max_tokens": 5.0,
            "temperature": 0,
            "n": 2,
            "stream": False,
        }
    )
    assert status == 200
    assert [choice["message"]["content"] for choice in body[0]["choices"]] == [
        "The capital of "
    ] * 2


def test_a_data_frame_of_chats(chat: Server) -> None:
    status, body = chat.post(split(messages=[SPAIN, SPAIN], max_tokens=[2, None]))
    assert status == 200
    assert [content(row) for row in body["predictions"]] == ["The capital", ANSWER]


def test_prompts_four_at_a_time(text: Server) -> None:
    payloads = [{"prompt": PROMPT}, split(prompt=[PROMPT, PROMPT])] * 4
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(text.post, payloads))
    assert answers == [(200, [RAW]), (200, {"predictions": [RAW, RAW]})] * 4


@pytest.fixture(scope="module")
def prompts(demo: Path) -> dict[str, Any]:
    """Prompts in each form that completions take."""
    texts = [PROMPT, "The capital of Italy is"]
    with mlflow_phi3_onnx.GenAIModel(demo) as model:
        ids = [model.tokenize(text) for text in texts]
    return {"a string": PROMPT, "strings": texts, "ids": ids[0], "lists of ids": ids}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("a string", [RAW]),
        ("strings", [RAW, " Rome."]),
        ("ids", [RAW]),
        ("lists of ids", [RAW, " Rome."]),
    ],
)
@pytest.mark.parametrize("payload", ["openai", "inputs", "split", "records"])
def test_prompts_of_completions_in_all_forms(
    completions: Server, prompts: dict[str, Any], payload: str, form: str, expected: list[str]
) -> None:
    prompt = prompts[form]
    if (payload, form) == ("inputs", "lists of ids"):
        pytest.skip("of unequal lengths, they are refused by MLflow: see the next test")
    fields = {"prompt": prompt, "max_tokens": 20}
    status, body = completions.post(
        {
            "openai": fields,
            "inputs": {"inputs": [fields]},
            "split": split(prompt=[prompt], max_tokens=[20]),
            "records": {"dataframe_records": [fields]},
        }[payload]
    )
    assert status == 200, body
    (response,) = body if payload == "openai" else body["predictions"]
    assert [choice["text"] for choice in response["choices"]] == expected


def test_mlflow_makes_arrays_of_inputs_so_lists_of_one_length(
    completions: Server, prompts: dict[str, Any]
) -> None:
    first, second = prompts["lists of ids"]
    status, body = completions.post({"inputs": [{"prompt": [first, second]}]})
    assert status == 400
    assert "inhomogeneous" in body["message"]
    status, body = completions.post({"inputs": [{"prompt": [first, first]}]})
    assert [choice["text"] for choice in body["predictions"][0]["choices"]] == [RAW, RAW]


def test_a_data_frame_of_prompts_in_mixed_forms(
    completions: Server, prompts: dict[str, Any]
) -> None:
    status, body = completions.post(split(prompt=list(prompts.values())))
    assert status == 200
    assert [len(row["choices"]) for row in body["predictions"]] == [1, 2, 1, 2]


def test_scores_are_valid_json(completions: Server) -> None:
    scored = {"prompt": [PROMPT, "x"], "echo": True, "logprobs": 1, "max_tokens": 0}
    status, body = completions.post(scored)
    assert status == 200
    first = [choice["logprobs"]["token_logprobs"][0] for choice in body[0]["choices"]]
    assert first == [None, None]


def test_a_bad_prompt_is_named_and_not_quoted(completions: Server) -> None:
    status, body = completions.post({"prompt": [CANARY, 5]})
    assert status == 400
    assert "prompt[1] must be a string, as prompt[0] is; got 5" in body["message"]
    assert CANARY not in json.dumps(body)


def test_params_of_a_prompt(text: Server) -> None:
    status, body = text.post({"prompt": PROMPT, "max_tokens": 3, "stop": [" of"]})
    assert (status, body) == (200, [" The capital"])
    status, body = text.post({**split(prompt=[PROMPT]), "params": {"max_tokens": 2}})
    assert (status, body) == (200, {"predictions": [" The capital"]})


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"temperature": 7}, "temperature must be a number from 0 to 2; got 7"),
        ({"audio": {}}, "audio is not supported"),
        ({"stream": True}, "stream is true"),
        ({"max_tokens": 9999}, "maximum context length is 4,096"),
    ],
)
def test_bad_requests_are_400_and_quote_nothing(
    chat: Server, extra: dict[str, Any], says: str
) -> None:
    status, body = chat.post({"messages": [{"role": "user", "content": CANARY}], **extra})
    assert status == 400
    assert says in body["message"]
    assert body["error_code"] == "INVALID_PARAMETER_VALUE"
    assert CANARY not in json.dumps(body)


def test_the_server_log_holds_no_prompt(chat: Server) -> None:
    chat.post({"messages": [{"role": "user", "content": CANARY}]})
    chat.post({"messages": [{"role": "user", "content": CANARY}], "temperature": 7})
    assert CANARY not in chat.log.read_text()


@pytest.mark.parametrize(
    ("body", "quoted", "logged"),
    [
        ({"temperature": 7}, False, "Refused a request: InvalidRequestError, temperature."),
        ({"max_tokens": "many"}, True, ""),
        ({"messages": CANARY}, True, ""),
    ],
)
def test_what_mlflow_refuses_it_quotes_and_does_not_log(
    chat: Server, body: dict[str, Any], quoted: bool, logged: str
) -> None:
    before = len(chat.log.read_text())
    status, answer = chat.post({"messages": [{"role": "user", "content": CANARY}], **body})
    assert status == 400
    assert (CANARY in answer["message"]) == quoted
    lines = chat.log.read_text()[before:]
    assert CANARY not in lines
    assert logged in lines
    assert ("Refused a request" in lines) == bool(logged)
