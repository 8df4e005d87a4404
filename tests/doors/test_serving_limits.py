"""MLflow's server: on a small machine, under a prompt, at its timeout, and with several workers."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mlflow_phi3_onnx
from benchmarks.serving import HTTP, server
from tests.support.http_server import until
from tests.support.servers import Server

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = pytest.mark.slow

SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]


@pytest.fixture(scope="module")
def model(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, saved for chats."""
    path = tmp_path_factory.mktemp("saved") / "chat"
    mlflow_phi3_onnx.save_model(demo, path)
    return path


def ask(server: Server, **fields: Any) -> tuple[int, Any]:
    return server.post({"messages": SPAIN, **fields})


GROUPS = {"cpu": {"cpu.cfs_period_us": 100_000, "cpu.cfs_quota_us": 50_000}}
GROUPS["memory"] = {"memory.limit_in_bytes": 600_000_000}


@contextmanager
def groups() -> Generator[list[Path]]:
    """Make control groups of half a processor and 600 MB, where the machine lets us."""
    made: list[Path] = []
    try:
        for controller, limits in GROUPS.items():
            group = Path("/sys/fs/cgroup") / controller / f"mlflow-phi3-onnx-serving-{os.getpid()}"
            try:
                group.mkdir()
                made.append(group)
                for name, value in limits.items():
                    (group / name).write_text(str(value))
            except OSError:
                pytest.skip("control groups of version 1 cannot be made here")
        yield made
    finally:
        for group in made:
            _remove(group)


def _remove(group: Path) -> None:
    """Remove a group once the last of its processes has ended."""
    deadline = time.monotonic() + 30
    while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    group.rmdir()


# Python runs a module of this name at every start: so the server enters the groups by itself.
ENTER = """
import os
for group in os.environ["TEST_CGROUPS"].split(os.pathsep):
    with open(os.path.join(group, "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_half_a_processor_and_600_mb_serve_16_callers(model: Path, tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(ENTER)
    with groups() as made:
        environment = {
            "TEST_CGROUPS": os.pathsep.join(map(str, made)),
            "PYTHONPATH": f"{tmp_path / 'path'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        with server(str(model), tmp_path, **environment) as (url, log):
            assert " 1 threads, KV cache " in log.read_text()
            served = Server(url, log)
            with ThreadPoolExecutor(16) as callers:
                answers = list(callers.map(lambda _: ask(served, max_tokens=30), range(16)))
            assert {status for status, _ in answers} == {200}
            used = (made[1] / "memory.max_usage_in_bytes").read_text()
            assert 0 < int(used) <= 600_000_000
            assert "Madrid" in str(answers)


def test_it_is_alive_in_a_prefill_and_stops_work_at_its_timeout(demo: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat"
    mlflow_phi3_onnx.save_model(demo, saved, model_config={"max_batch_size": 1})
    long = [{"role": "user", "content": "Please think of it. " * 300}]
    with (
        server(str(saved), tmp_path, MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT="5") as (url, log),
        ThreadPoolExecutor(1) as pool,
    ):
        served = Server(url, log)
        working = pool.submit(served.post, {"messages": long, "min_tokens": 2400})
        pings = 0
        while not working.done():
            with HTTP.open(f"{url}/ping", timeout=60) as response:
                pings += response.status == 200
        assert pings > 5
        status, _ = working.result()
        assert status == 504
        # There is one place in the batch, so this waits for whatever goes on.
        status, answer = ask(served, max_tokens=8)
        assert (status, "Madrid" in str(answer)) == (200, True)


@pytest.mark.skipif(sys.platform != "linux", reason="the system's list of sockets is Linux's")
def test_its_workers_share_one_model(demo: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat"
    mlflow_phi3_onnx.save_model(demo, saved, model_config={"isolation": "shared"})
    with tempfile.TemporaryDirectory() as sockets:  # a short path, as sockets must have
        environment = {"MLFLOW_MODELS_WORKERS": "3", "XDG_RUNTIME_DIR": sockets}
        with server(str(saved), tmp_path, **environment) as (url, log):
            served = Server(url, log)
            with ThreadPoolExecutor(8) as callers:
                answers = list(callers.map(lambda _: ask(served, max_tokens=20), range(24)))
            assert {status for status, _ in answers} == {200}
            assert all("Madrid" in str(answer) for _, answer in answers)
            (path,) = Path(sockets).glob("*/*.sock")
            until(lambda: Path("/proc/net/unix").read_text().count(str(path)) == 1 + 3)
        until(lambda: not path.exists())
