"""Several models and adapters in one server, loaded once, when asked for, or no more."""

from __future__ import annotations

import logging
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

import mlflow_phi3_onnx
from mlflow_phi3_onnx import InvalidModelError, InvalidRequestError, SourceNotFoundError
from mlflow_phi3_onnx.errors import GenAIError
from mlflow_phi3_onnx.server import served as served_module
from mlflow_phi3_onnx.server.models import name_of, places
from mlflow_phi3_onnx.server.run import make_server
from mlflow_phi3_onnx.server.settings import ServerSettings
from tests.support.adapted import open_for_adapters, parameters, random_deltas, write_adapter
from tests.support.doors import SPAIN
from tests.support.http_server import Running, in_process, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MADRID = "The capital of Spain is Madrid."


def said(served: Running, **fields: Any) -> str:
    reply = served.chat({"messages": SPAIN, "max_tokens": 12, **fields})
    assert reply.status == 200, reply.body
    return reply.json["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def adapted(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with the adapters warm and cold."""
    folder = tmp_path_factory.mktemp("adapted")
    model = open_for_adapters(demo, folder / "model")
    files = {
        name: write_adapter(folder / f"{name}.onnx_adapter", parameters(random_deltas(demo, seed)))
        for seed, name in enumerate(("warm", "cold"))
    }
    mlflow_phi3_onnx.save_model(model, folder / "saved", adapters=files)
    return folder / "saved"


@pytest.fixture(scope="module")
def three(adapted: Path) -> Iterator[Running]:
    """The demo model, one with adapters, and one more, one of whose adapters is called alike."""
    with running({"demo": None, "a": str(adapted), "cold": str(adapted)}, model_config={}) as one:
        yield one


def test_models_and_adapters_are_listed(three: Running) -> None:
    listed = {card["id"]: card for card in three.get("/v1/models").json["data"]}
    assert list(listed) == ["demo", "a", "cold", "a:cold", "warm", "cold:cold", "cold:warm"]
    assert listed["warm"]["parent"] == listed["a:cold"]["parent"] == "a"
    assert listed["cold:cold"]["root"] == "cold"
    assert "parent" not in listed["a"]
    for name, card in listed.items():
        assert three.get(f"/v1/models/{name}").json == card
        assert (card["max_model_len"], card["task"]) == (4096, "llm/v1/chat")
    names = [one["name"] for one in three.get("/api/2.0/endpoints/").json["endpoints"]]
    assert names == list(listed)


def test_the_model_that_is_asked_answers(three: Running) -> None:
    assert said(three) == said(three, model="demo") == said(three, model="a") == MADRID
    warm = said(three, model="warm")
    assert warm != MADRID
    assert warm == said(three, model="a", adapter="warm") == said(three, model="cold:warm")
    assert said(three, model="a:cold") == said(three, model="cold", adapter="cold") != warm
    reply = three.post("/endpoints/warm/invocations", {"messages": SPAIN, "max_tokens": 12})
    assert reply.json["choices"][0]["message"]["content"] == warm
    for fields in ({"model": "warm"}, {"model": "a", "adapter": "warm"}):
        assert three.chat({"messages": SPAIN, "max_tokens": 1, **fields}).json["model"] == "warm"


def test_models_share_the_memory_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_phi3_onnx.model.start.available_memory", lambda: 6 << 30)
    caplog.set_level(logging.INFO, "mlflow_phi3_onnx")
    inline = {"loop": "slots", "isolation": "inline"}
    with running({"a": None, "b": None, "c": None}, model_config=inline):
        told = re.findall(r"KV cache of .* \(([\d,]+) bytes\)", caplog.text)
    assert len(told) == 3
    assert sum(int(one.replace(",", "")) for one in told) <= 3 << 30


def test_rows_may_name_the_model(three: Running) -> None:
    warm, cold = said(three, model="warm"), said(three, model="a:cold")
    row: dict[str, Any] = {"messages": SPAIN, "max_tokens": 12}

    def asked(*rows: dict[str, Any], **params: Any) -> list[tuple[str, str]]:
        body = {"dataframe_records": [{**row, **one} for one in rows], "params": params}
        answers = three.post("/invocations", body).json["predictions"]
        return [(one["model"], one["choices"][0]["message"]["content"]) for one in answers]

    assert asked({"model": "warm"}, {"model": "warm"}) == [("warm", warm)] * 2
    assert asked({}, model="warm") == [("warm", warm)]
    assert asked({}, {"adapter": "cold"}, model="a") == [("a", MADRID), ("a:cold", cold)]
    assert asked({}, {"adapter": "cold"}, model="a", adapter="warm") == [
        ("warm", warm),
        ("a:cold", cold),
    ]
    assert asked({}) == [("demo", MADRID)]
    for body in (
        {"inputs": [{**row, "model": "warm", "adapter": "cold"}]},
        {"inputs": [row], "params": {"model": "warm", "adapter": "cold"}},
        {"inputs": [row], "params": {"adapter": "warm"}},  # the demo model has none
    ):
        reply = three.post("/invocations", body)
        assert (reply.status, reply.error["param"]) == (400, "adapter")


def test_two_adapters_are_none(three: Running) -> None:
    reply = three.chat({"messages": SPAIN, "model": "warm", "adapter": "cold"})
    assert (reply.status, reply.error["param"]) == (400, "adapter")
    for fields in ({"adapter": "hot"}, {"adapter": "warm"}, {"adapter": 5}):
        reply = three.chat({"messages": SPAIN, **fields})  # the demo model has none
        assert (reply.status, reply.error["param"]) == (400, "adapter")


def test_models_are_loaded_when_they_are_asked_for_and_once(adapted: Path) -> None:
    with running({"demo": None, "a": str(adapted)}, model_config={}, lazy=True) as served:
        cards = {card["id"]: card for card in served.get("/v1/models").json["data"]}
        assert list(cards) == ["demo", "a", "cold", "warm"]
        for card in cards.values():
            told = card["loaded"], card["max_model_len"], card["task"]
            assert told == (False, 4096, "llm/v1/chat")
        assert served.get("/ready").status == 200
        assert said(served, model="warm") != MADRID  # an adapter's id loads its model
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: said(served, model="a"), range(4))) == {MADRID}
        cards = {card["id"]: card for card in served.get("/v1/models").json["data"]}
        assert {name: card["loaded"] for name, card in cards.items()} == {
            "demo": False, "a": True, "warm": True, "cold": True,
        }  # fmt: skip


def test_a_model_that_nobody_asks_for_is_unloaded() -> None:
    with running(idle_timeout=0.2) as served:
        until(lambda: served.metric("model_loaded") == 0)
        assert said(served) == MADRID
        with served.send({"messages": SPAIN, "min_tokens": 4000, "stream": True}) as connection:
            assert connection.recv(16)
            assert served.metric("model_loaded") == 1
        until(lambda: served.metric("model_loaded") == 0)


def test_what_a_model_is_for_is_known_before_it_is_loaded(demo: Path, tmp_path: Path) -> None:
    mlflow_phi3_onnx.save_model(demo, tmp_path / "saved", task="llm/v1/completions")
    with running({"x": str(tmp_path / "saved")}, lazy=True) as served:
        assert served.get("/api/2.0/endpoints/x").json["task"] == "llm/v1/completions"
        assert served.get("/v1/models/x").json["loaded"] is False


def test_a_model_that_cannot_be_loaded(
    demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(demo, tmp_path / "gone")
    with running({"demo": None, "gone": str(tmp_path / "gone")}, lazy=True) as served:
        shutil.rmtree(tmp_path / "gone")
        for _ in range(2):
            reply = served.chat({"model": "gone", "messages": SPAIN})
            assert (reply.status, reply.error["code"]) == (503, "model_unavailable")
            assert str(tmp_path) not in reply.body.decode()
        assert said(served) == MADRID
    assert "gone cannot be loaded: model: there is nothing at the path" in caplog.text


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Holds every load up until it is set, as a slow disk would."""
    gate, read = Event(), served_module.read_model

    def wait_and_read(*given: Any) -> Any:
        if threading.current_thread().name == "onnx-genai-load":
            assert gate.wait(60)
        return read(*given)

    monkeypatch.setattr(served_module, "read_model", wait_and_read)
    yield gate
    gate.set()
    until(lambda: not any(t.name == "onnx-genai-load" for t in threading.enumerate()))


def test_a_request_does_not_wait_longer_for_a_load_than_for_anything(gate: Event) -> None:
    with running(lazy=True, timeout=0.3) as served:
        reply = served.chat({"messages": SPAIN})
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        with served.send({"messages": SPAIN}):
            until(lambda: served.metric("num_requests_running") == 1)
        until(lambda: served.metric("requests_cancelled_total") == 1)
        assert served.metric("num_requests_running") == 0
        assert not served.get("/v1/models/demo").json["loaded"]
        gate.set()  # the load went on
        until(lambda: served.get("/v1/models/demo").json["loaded"])


def test_the_end_does_not_wait_for_a_load(gate: Event, caplog: pytest.LogCaptureFixture) -> None:
    before = len(psutil.Process().children())
    with ThreadPoolExecutor(1) as pool:
        with running(lazy=True, grace_period=0) as served:
            asked = pool.submit(served.chat, {"messages": SPAIN})
            until(lambda: served.metric("num_requests_running") == 1)
            served.server.handle_exit(signal.SIGTERM, None)
            assert asked.result().status == 503
        assert not gate.is_set()
    gate.set()
    until(lambda: not any(t.name == "onnx-genai-load" for t in threading.enumerate()))
    until(lambda: len(psutil.Process().children()) == before)
    assert "cannot be loaded" not in caplog.text


def test_sigterm_within_a_load(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        ThreadPoolExecutor(1) as pool,
        in_process("--lazy", "--grace-period", "0", log=log) as (served, process),
    ):
        asked = pool.submit(served.chat, {"messages": SPAIN, "min_tokens": 4000})
        until(lambda: served.metric("num_requests_running") == 1)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert asked.result().status == 503
        assert not psutil.wait_procs(children, 60)[1]
    assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("lazy", [False, True])
def test_what_cannot_be_loaded_is_told_before_the_start(tmp_path: Path, *, lazy: bool) -> None:
    (tmp_path / "empty").mkdir()
    for place, kind in (
        (tmp_path / "gone", SourceNotFoundError),
        (tmp_path / "empty", InvalidModelError),
    ):
        with pytest.raises(kind):
            make_server({"x": str(place)}, ServerSettings(lazy=lazy))
    for config, says in (
        ('{"temperature": 9}', "model_config: temperature must be"),
        ('{"output": "text"}', "model_config: output is for pyfuncs"),
        ('{"adapter": "x"}', "adapter belongs to a single request"),
    ):
        with pytest.raises(GenAIError, match=says):
            make_server({"x": None}, ServerSettings.check({"model_config": config, "lazy": lazy}))
    with pytest.raises(InvalidRequestError, match="name: 'a b' cannot be a model's id"):
        make_server({"a b": None}, ServerSettings())


@pytest.mark.usefixtures("tracking")
def test_a_registered_model(demo: Path) -> None:
    config = {"max_tokens": 3}
    with mlflow.start_run() as run:
        mlflow_phi3_onnx.log_model(
            demo, name="m", registered_model_name="phi3", model_config=config
        )
    MlflowClient().set_registered_model_alias("phi3", "prod", "1")
    found = {"phi3": "models:/phi3@prod", "run": f"runs:/{run.info.run_id}/m"}
    with running(found, model_config={}) as served:
        assert said(served, max_tokens=None) == "The capital of"
        assert said(served, model="run", max_tokens=4) == "The capital of Spain"
    with running({"phi3": "models:/phi3/1"}, model_config={}, max_tokens=2) as served:
        assert said(served, max_tokens=None) == "The capital"
    with running({"phi3": "models:/phi3/1"}, model_config={}, max_tokens=5) as served:
        assert said(served, max_tokens=None) == "The capital of"


@pytest.mark.parametrize(
    ("place", "name"),
    [(None, "demo"), ("models:/phi3@prod", "phi3"), ("models:/phi 3/2", "phi-3"),
     ("runs:/abc/chat", "chat"), ("/a/b c/", "b-c"), ("x\\y", "y"), ("/", "model"),
     ("._x", "x"), ("models:/m-123", "m-123")],
)  # fmt: skip
def test_the_id_of_a_model_is_made_of_where_it_is(place: str | None, name: str) -> None:
    assert name_of(place) == name


def test_places() -> None:
    assert places(None, None, []) == {"demo": None}
    assert places("x/y", "z", ["a=models:/b=c/1"]) == {"z": "x/y", "a": "models:/b=c/1"}
    for other in ("a", "=b", "a=", "z=b"):
        with pytest.raises(InvalidRequestError):
            places("x/y", "z", [other])
