"""MLflow's server on a small machine."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mlflow_phi3_onnx
from benchmarks.serving import server
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
