"""The examples for Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from benchmarks.serving import HTTP, running
from mlflow_phi3_onnx import save_model

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the ray extra"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
CAPITALS = {"Spain": "Madrid", "France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}


def test_a_data_set_is_answered_but_for_its_bad_row(demo: Path, tmp_path: Path) -> None:
    save_model(demo, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "ray_data.py"), str(tmp_path / "model")],
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused = "messages[0].role must be one of system, developer, user, assistant, tool"
    expected = [f"The capital of {country} is {city}." for country, city in CAPITALS.items()]
    assert sorted(done.stdout.splitlines()) == sorted(
        [*expected, f"Refused: {refused}; got something else."]
    )


@pytest.fixture(scope="module")
def url(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ray")
    save_model(demo, folder / "model")
    command = [sys.executable, str(EXAMPLES / "ray_serve.py"), str(folder / "model"), "{port}"]
    with running(command, "/openapi.json", folder, **QUIET) as (address, _):
        yield f"{address}/v1"


def asked(country: str) -> list[Any]:
    return [{"role": "user", "content": f"What is the capital of {country}?"}]


def test_openais_clients_are_answered_together(url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)

    def ask(country: str) -> str | None:
        answer = client.chat.completions.create(model="phi3", messages=asked(country))
        return answer.choices[0].message.content

    countries = list(CAPITALS) * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, countries))
    assert answers == [f"The capital of {each} is {CAPITALS[each]}." for each in countries]
    chunks = client.chat.completions.create(model="phi3", messages=asked("Spain"), stream=True)
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert len(deltas) > 3
    assert "".join(deltas) == "The capital of Spain is Madrid."
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="temperature must be a number") as caught:
            client.chat.completions.create(
                model="phi3", messages=asked("Spain"), temperature=9, stream=stream
            )
        assert caught.value.param == "temperature"


@pytest.mark.parametrize("body", [b"[", b"[1]", b"", b"\xff", b"[" * 100_000])
def test_what_is_no_request_is_refused(url: str, body: bytes) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        HTTP.open(urllib.request.Request(f"{url}/chat/completions", body), timeout=60)
    with caught.value as error:
        assert error.code == 400
        assert json.load(error)["error"]["type"] == "invalid_request_error"
