"""A Spark cluster: a master and two workers, each a process with an executor of its own."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT
from tests.support.spark import (
    LONG,
    MARKS,
    MESSAGES,
    PROMPTS,
    QUESTIONS,
    save,
    session,
    udf,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from mlflow_phi3_onnx.core.tasks import Task

pytestmark = MARKS

WORKERS = 2

# Python's own hook at start: each worker process writes the package's log to a file of its own.
SITE = """
import logging, os

class PerProcess(logging.Handler):
    def emit(self, record):
        with open(os.path.join({folder!r}, str(os.getpid())), "a") as file:
            print(record.getMessage(), file=file)

logger = logging.getLogger("mlflow_phi3_onnx")
logger.setLevel(logging.INFO)
logger.addHandler(PerProcess())
"""


@contextlib.contextmanager
def daemon(log: Path, name: str, *arguments: str) -> Generator[subprocess.Popen[bytes]]:
    """Run one of Spark's servers until the caller is done with it."""
    home = importlib.import_module("pyspark.find_spark_home")._find_spark_home()
    command = [f"{home}/bin/spark-class", f"org.apache.spark.deploy.{name}", *arguments]
    environment = {**os.environ, "SPARK_DAEMON_MEMORY": "256m", "PYSPARK_PYTHON": sys.executable}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def said(log: Path, process: subprocess.Popen[bytes], pattern: str) -> str:
    """Wait until a server's log says something, and return what is in its group."""
    while process.poll() is None:
        if found := re.search(pattern, log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def master(folder: Path) -> Iterator[str]:
    """The address of a cluster of two workers with one core each."""
    here = ("--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
    with contextlib.ExitStack() as stack:
        log = folder / "master.log"
        process = stack.enter_context(daemon(log, "master.Master", *here))
        port = said(log, process, r"Successfully started service 'sparkMaster' on port (\d+)")
        address = f"spark://127.0.0.1:{port}"
        for number in range(WORKERS):
            log = folder / f"worker-{number}.log"
            own = ("--cores", "1", "--memory", "600m", "--work-dir", str(folder / str(number)))
            process = stack.enter_context(daemon(log, "worker.Worker", *here, *own, address))
            said(log, process, r"(Successfully registered with master)")
        yield address


@pytest.fixture(scope="module")
def logs(folder: Path) -> Path:
    """Where each worker process writes this package's log to a file with its number."""
    (folder / "logs").mkdir()
    return folder / "logs"


@pytest.fixture(scope="module")
def spark(folder: Path, master: str, logs: Path) -> Iterator[Any]:
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE.format(folder=str(logs)), encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    conf = {
        "driver_host": "127.0.0.1",
        "driver_bindAddress": "127.0.0.1",
        "executor_memory": "500m",
        "executorEnv_PYTHONPATH": path,
        "default_parallelism": "6",
        # A job begins when both workers are there.
        "scheduler_minRegisteredResourcesRatio": "1.0",
        "scheduler_maxRegisteredResourcesWaitingTime": "120s",
    }
    with session(folder, master, **conf) as spark:
        yield spark


def loads(logs: Path) -> dict[str, int]:
    """Count how often each worker process has loaded a model."""
    lines = {log.name: log.read_text(encoding="utf-8").splitlines() for log in logs.iterdir()}
    loaded = {
        name: [line for line in log if line.startswith("Loaded")] for name, log in lines.items()
    }
    # Spark says how many threads a task may have, by OMP_NUM_THREADS.
    assert all(" 1 threads," in line for found in loaded.values() for line in found)
    return {name: len(found) for name, found in loaded.items()}


@pytest.fixture(scope="module")
def expected(demo: Path) -> dict[str, list[str]]:
    """What each task answers to PROMPTS or QUESTIONS."""
    short = {"temperature": 0, "max_tokens": 5}
    with GenAIModel(demo) as model:
        texts = model.generate(PROMPTS, **short)
        chats = [model.chat([{"role": "user", "content": q}], **short) for q in QUESTIONS]
    contents = [answer["choices"][0]["message"]["content"] for answer in chats]
    return {CHAT: contents, COMPLETIONS: texts, TEXT: texts}


@pytest.mark.parametrize("task", [CHAT, COMPLETIONS, TEXT])
def test_a_cluster_loads_a_model_once_a_worker_and_keeps_every_row_in_its_place(
    spark: Any, logs: Path, folder: Path, demo: Path, task: Task, expected: dict[str, list[str]]
) -> None:
    uri = save(demo, folder / task.replace("/", "-"), task)
    if task == CHAT:
        good = [[("user", question)] for question in QUESTIONS]
        cells = [*good, None, [("king", "Hello")], [("user", LONG)], *good]
        frame = spark.createDataFrame([(cell,) for cell in cells], f"messages {MESSAGES}")
    else:
        cells = [*PROMPTS, None, LONG, *PROMPTS]
        frame = spark.createDataFrame([(cell,) for cell in cells], "prompt string")
    answer = udf(spark, uri, result_type="string", params={"output": "text", "on_error": "row"})
    before = loads(logs)
    first = values(frame, answer(frame.columns[0]))
    bad = len(cells) - 2 * len(expected[task])
    count = len(expected[task])
    assert first[:count] == first[count + bad :] == expected[task]
    codes = [json.loads(text)["error"]["code"] for text in first[count : count + bad]]
    assert codes == [*[None] * (bad - 1), "context_length_exceeded"]
    after = loads(logs)
    assert len(after) == WORKERS
    assert after == {process: before.get(process, 0) + 1 for process in after}
    assert values(frame, answer(frame.columns[0])) == first
    assert loads(logs) == after
