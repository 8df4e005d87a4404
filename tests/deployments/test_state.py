"""Processes and records: recognised, stopped, recovered. No server, no model."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from mlflow_phi3_onnx.deployments import OnnxGenAIDeploymentClient, lifecycle, process, server
from mlflow_phi3_onnx.deployments.store import NEXT, OLD, Address, Recipe, Record, Store
from mlflow_phi3_onnx.errors import DeploymentError, UnsupportedParameterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLEEP = "import time; time.sleep(600)"
LISTEN = """
import socket, time
server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
client = socket.create_connection(("127.0.0.1", port))
print(port, client.getsockname()[1], flush=True)
time.sleep(600)
"""
# A parent that refuses to end when it is asked, and its child.
STUBBORN = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR", str(tmp_path / "state"))
    return Store()


@pytest.fixture
def client(store: Store) -> OnnxGenAIDeploymentClient:
    assert store.names() == []
    return OnnxGenAIDeploymentClient("onnx-genai")


@pytest.fixture
def stranger() -> Iterator[psutil.Process]:
    """A process that is no server of ours."""
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def start(store: Store, name: str, code: str = SLEEP) -> Record:
    marker = uuid.uuid4().hex
    log = store.new_log(name, marker)
    identity, _ = process.start(
        [sys.executable, "-c", code], env=os.environ, cwd=store.folder, log=log, marker=marker
    )
    return Record(
        name=name,
        recipe=Recipe("models:/m-1", "python_function", {}, str(store.folder), "", ""),
        address=Address("127.0.0.1", 9),
        process=identity,
        marker=marker,
        log=str(log),
        scratch=str(store.folder / "none"),
        request_timeout=1,
        created="2026-01-01T00:00:00+00:00",
        started="2026-01-01T00:00:00+00:00",
        ready=True,
    )


def test_a_reused_pid_is_a_dead_deployment_and_nothing_is_killed(
    store: Store, client: OnnxGenAIDeploymentClient, stranger: psutil.Process
) -> None:
    record = start(store, "reused")
    real = psutil.Process(record.process.pid)
    reused = process.ProcessId(stranger.pid, stranger.create_time() - 3600)
    store.write(replace(record, process=reused))

    assert client.get_deployment("reused")["status"] == "dead"
    client.delete_deployment("reused")

    assert stranger.is_running()
    assert real.is_running()
    assert process.stop(record.process, record.marker) == []


def test_who_listens_on_a_port_is_known(
    store: Store, until: Callable[[Callable[[], object]], None], stranger: psutil.Process
) -> None:
    record = start(store, "listener", LISTEN)
    until(lambda: Path(record.log).read_text().strip())
    port, outgoing = map(int, Path(record.log).read_text().split())
    other = process.ProcessId(stranger.pid, stranger.create_time())

    assert process.is_listening(record.process, record.marker, port)
    assert not process.is_listening(record.process, record.marker, port - 1)
    assert not process.is_listening(record.process, record.marker, outgoing)
    assert not process.is_listening(other, "no-marker", port)
    assert process.stop(record.process, record.marker) == []


def test_a_whole_tree_is_stopped_although_it_refuses(
    store: Store, until: Callable[[Callable[[], object]], None]
) -> None:
    record = start(store, "stubborn", STUBBORN)
    until(lambda: Path(record.log).read_text())
    child = int(Path(record.log).read_text())
    assert process.is_running(record.process)

    assert process.stop(record.process, record.marker, grace=0.2) == []

    assert not process.is_running(record.process)
    until(lambda: not psutil.pid_exists(record.process.pid))  # no zombie of this process
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_children_of_a_killed_server_are_stopped(
    store: Store,
    client: OnnxGenAIDeploymentClient,
    until: Callable[[Callable[[], object]], None],
) -> None:
    record = start(store, "orphans", STUBBORN)
    store.write(record)
    until(lambda: Path(record.log).read_text())
    child = psutil.Process(int(Path(record.log).read_text()))
    psutil.Process(record.process.pid).kill()
    until(lambda: client.get_deployment("orphans")["status"] == "dead")
    assert child.is_running()

    client.delete_deployment("orphans")

    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_only_temporary_files_of_our_own_are_removed(
    store: Store, client: OnnxGenAIDeploymentClient, tmp_path: Path
) -> None:
    for name, stays in (("mlflow-phi3-onnx-x", False), ("precious", True)):
        (tmp_path / name).mkdir()
        store.write(replace(start(store, name), scratch=str(tmp_path / name)))
        client.delete_deployment(name)
        assert (tmp_path / name).exists() == stays


def test_another_server_s_answer_is_not_that_of_ours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken the port between our look at it and our server's, which then ends."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    with (
        HTTPServer(("127.0.0.1", 0), Healthy) as other,
        ThreadPoolExecutor(1) as pool,
        contextlib.ExitStack() as ending,
    ):
        pool.submit(other.serve_forever, 0.02)
        ending.callback(other.shutdown)
        taken = Address("127.0.0.1", other.server_address[1])
        monkeypatch.setattr(lifecycle, "_choose_address", lambda _: taken)
        ends = "import time; time.sleep(0.5); raise SystemExit(3)"
        monkeypatch.setattr(server, "command", lambda *_: [sys.executable, "-c", ends])
        recipe = Recipe("models:/m-1", "python_function", {}, str(store.folder.parent), "", "")
        with pytest.raises(DeploymentError, match="ended with exit code 3 before it answered"):
            lifecycle.launch(store, "late", recipe)
    assert store.names() == []


@pytest.mark.parametrize("slot", [NEXT, OLD])
def test_what_a_killed_update_left_is_cleared_away(
    store: Store, client: OnnxGenAIDeploymentClient, slot: str
) -> None:
    current, spare = start(store, "half"), start(store, "half")
    store.write(current)
    store.write(spare, slot)

    client.delete_deployment("half")

    assert not process.is_running(current.process)
    assert not process.is_running(spare.process)
    assert not (store.folder / "half").exists()


def test_a_server_that_listens_nowhere_is_an_error_without_the_inputs(
    store: Store, client: OnnxGenAIDeploymentClient
) -> None:
    store.write(start(store, "deaf"))
    with pytest.raises(DeploymentError, match=r"unresponsive.*accepts no connections") as caught:
        client.predict("deaf", {"prompt": "What is the capital of Spain?"})
    assert caught.value.error_code == "TEMPORARILY_UNAVAILABLE"
    assert "Spain" not in str(caught.value)
    client.delete_deployment("deaf")


def test_an_update_that_cannot_start_leaves_the_deployment_as_it_was(
    store: Store, client: OnnxGenAIDeploymentClient
) -> None:
    record = start(store, "moved")
    gone = str(store.folder / "gone")
    store.write(replace(record, recipe=replace(record.recipe, cwd=gone)))
    before = client.get_deployment("moved")

    with pytest.raises(DeploymentError, match=f"cannot be started: .*{gone}"):
        client.update_deployment("moved")

    assert client.get_deployment("moved") == before
    assert process.is_running(record.process)
    client.delete_deployment("moved")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104 - read, not bound
        ("::", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_urls_that_this_machine_can_reach(host: str, url: str) -> None:
    assert Address(host, 80).url == url


def test_a_held_lock_refuses_and_leaves_no_file(
    store: Store, client: OnnxGenAIDeploymentClient
) -> None:
    with store.lock("busy"), pytest.raises(DeploymentError, match="Another command") as caught:
        client.delete_deployment("busy")
    assert caught.value.error_code == "RESOURCE_CONFLICT"
    assert list(store.folder.iterdir()) == []
    client.delete_deployment("busy")


def test_a_lock_has_one_holder_however_many_come_and_go(store: Store) -> None:
    """Its file is removed and made again all the time; a lock on a removed one would be none."""
    held: list[int] = []
    end = time.monotonic() + 1

    def come_and_go(each: int) -> int:
        took = 0
        while time.monotonic() < end:
            with contextlib.suppress(DeploymentError), store.lock("busy"):
                held.append(each)
                time.sleep(0)
                assert held == [each]
                held.remove(each)
                took += 1
        return took

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(come_and_go, range(4))) > 4


def test_damaged_records_are_listed_and_not_touched(
    store: Store, client: OnnxGenAIDeploymentClient
) -> None:
    for name, text in (("cut", "{"), ("later", '{"version": 2}')):
        store.new_log(name, "log")
        (store.folder / name / "record.json").write_text(text)
    assert [each["status"] for each in client.list_deployments()] == ["unreadable"] * 2
    with pytest.raises(DeploymentError, match="by hand"):
        client.delete_deployment("cut")
    assert store.names() == ["cut", "later"]


def test_a_state_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR", str(tmp_path / "file" / "state"))
    with pytest.raises(DeploymentError, match="MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR"):
        OnnxGenAIDeploymentClient("onnx-genai").delete_deployment("any")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps state elsewhere")
def test_state_is_kept_where_users_expect_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert Store().folder == tmp_path / ".local" / "state" / "mlflow-phi3-onnx" / "deployments"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "x"))
    assert Store().folder == tmp_path / "x" / "mlflow-phi3-onnx" / "deployments"


def test_what_mlflow_s_server_cannot_is_refused_with_the_reason(
    store: Store, client: OnnxGenAIDeploymentClient
) -> None:
    request = {"messages": [{"role": "user", "content": "hi"}]}
    record = start(store, "other")
    of_ours = replace(record.recipe, task="llm/v1/chat", config={"env_manager": "uv"})
    for recipe, why in ((record.recipe, "no flavor"), (of_ours, "env_manager is not local")):
        store.write(replace(record, recipe=recipe))
        for call in (
            lambda: client.get_endpoint("other"),
            lambda: client.predict(endpoint="other", inputs=request),
            lambda: client.predict_stream("other", request),
        ):
            with pytest.raises(UnsupportedParameterError, match=why):
                call()
        assert client.list_endpoints() == []
        assert server.command(recipe, record.address, "other")[1:4] == ["-m", "mlflow", "models"]
    client.delete_deployment("other")


def test_a_stream_that_ends_before_its_end_is_an_error(
    store: Store, client: OnnxGenAIDeploymentClient
) -> None:
    class Breaking(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()
            self.wfile.write(b': waiting\n\ndata: {"said": "A"}\n\n')

    record = start(store, "breaks")
    with (
        HTTPServer(("127.0.0.1", 0), Breaking) as other,
        ThreadPoolExecutor(1) as pool,
        contextlib.ExitStack() as ending,
    ):
        pool.submit(other.serve_forever, 0.02)
        ending.callback(other.shutdown)
        address = Address("127.0.0.1", other.server_address[1])
        recipe = replace(record.recipe, task="llm/v1/chat")
        store.write(replace(record, address=address, recipe=recipe))
        chunks = client.predict_stream("breaks", {"messages": []})
        assert next(chunks) == {"said": "A"}
        with pytest.raises(DeploymentError, match="broke the connection"):
            next(chunks)
    client.delete_deployment("breaks")
