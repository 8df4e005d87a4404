"""No request, through any door, ends in anything but an answer or an error of ours."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from mlflow_phi3_onnx import GenAIError, GenAIModel
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, Task
from mlflow_phi3_onnx.flavor.rows import rows
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from tests.support.mutations import VALUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CANARY = "CANARY7f3a"
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
GOOD: dict[str, tuple[Any, ...]] = {
    "messages": ([{"role": "user", "content": f"{CANARY} Capital of Spain?"}],),
    "prompt": (f"{CANARY} The capital of", ["a", "b"], [1, 2, 3]),
    "max_tokens": (1, 3, 8),
    "temperature": (0, 0.7, 2),
    "top_p": (0.1, 1.0),
    "n": (1, 2, 3),
    "seed": (1, 2**31 - 1),
    "stop": ("a", ["x", "yz"]),
    "logprobs": (True, 1),
    "regex": ("[a-z]{3}", "(a|b)*"),
    "tools": ([WEATHER],),
    "tool_choice": ("auto", "required", "none"),
    "response_format": ({"type": "json_object"}, {"type": "text"}),
    "logit_bias": ({"5": 2.5}, {"7": -100}),
    "min_tokens": (0, 2),
    "echo": (True, False),
}
MORE = ({"role": "tool"}, [{"type": "text", "text": CANARY}], [[{}]], {"type": "json_schema"})


def request(rng: random.Random, task: Task) -> dict[str, Any]:
    """Make a request: mostly right, and then with something wrong in it."""
    names = list(PARAMETERS[task])
    asked: dict[str, Any] = {"max_tokens": 4, "timeout": 20}
    prompt = "messages" if task == CHAT else "prompt"
    asked[prompt] = rng.choice(GOOD[prompt])
    for name in rng.sample(names, rng.choice((0, 1, 2, 4))):
        good = GOOD.get(name, VALUES)
        asked[name] = rng.choice(good if rng.random() < 0.6 else (*VALUES, *MORE))
    if rng.random() < 0.2:
        asked[rng.choice((*names, prompt, CANARY))] = rng.choice((*VALUES, *MORE))
    return asked


def native(model: GenAIModel, task: Task, asked: dict[str, Any]) -> Any:
    (answer,) = model.run(task, [asked])
    return answer


def stream(model: GenAIModel, task: Task, asked: dict[str, Any]) -> Any:
    return list(model.run_stream(task, asked))


def frame(model: GenAIModel, task: Task, asked: dict[str, Any]) -> Any:
    requests = rows(pd.DataFrame([asked, asked]), task)
    return model.run(task, requests)


DOORS: tuple[Callable[[GenAIModel, Task, dict[str, Any]], Any], ...] = (native, stream, frame)


def fuzz(model: GenAIModel, seed: int, count: int) -> Counter[str]:
    """Send requests, and return how often each thing came of it."""
    outcomes: Counter[str] = Counter()
    for number in range(seed, seed + count):
        rng = random.Random(number)  # noqa: S311 - it picks requests
        task, door = rng.choice(ALL_TASKS), rng.choice(DOORS)
        asked = request(rng, task)
        try:
            door(model, task, asked)
        except GenAIError as error:
            outcome = type(error).__name__
            # A name that is no parameter's is quoted, and no text.
            if CANARY in error.message.replace(f"{CANARY} is not", ""):
                pytest.fail(f"request {number}, {asked!r}, is quoted: {error.message}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
            pytest.fail(f"request {number}, {asked!r}: {error!r}")
        else:
            outcome = "answered"
        outcomes[outcome] += 1
    return outcomes


@pytest.fixture(params=["genai", "slots"])
def model(request: pytest.FixtureRequest, demo: Path) -> Iterator[GenAIModel]:
    """The demo model in one of the loops."""
    with GenAIModel(demo, model_config={"loop": request.param}) as made:
        yield made


def check(model: GenAIModel, seed: int, count: int) -> None:
    asked = {"messages": GOOD["messages"][0], "max_tokens": 12}
    before = native(model, CHAT, asked)["choices"]
    outcomes = fuzz(model, seed, count)
    assert native(model, CHAT, asked)["choices"] == before
    assert min(outcomes["answered"], outcomes["InvalidRequestError"]) > count / 20, outcomes


def test_some_requests(model: GenAIModel) -> None:
    check(model, 0, 150)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_requests(model: GenAIModel) -> None:
    check(model, 1000, 1000)
