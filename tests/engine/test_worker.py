"""Models whose engine runs in a process of its own: crashes, ends, starts, and who shares it."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from mlflow_phi3_onnx import (
    CancelledError,
    EngineDeadError,
    GenAIModel,
    GenerationTimeoutError,
    InvalidModelError,
    InvalidRequestError,
)
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.engine.worker import remote
from tests.support.doors import SPAIN
from tests.support.engines import until

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

STORY = [{"role": "user", "content": "Tell me a long story."}]
UNIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no Unix sockets")
BOTH = pytest.mark.parametrize("isolation", ["worker", pytest.param("shared", marks=UNIX)])

PROGRAM = """
import sys
print("run")
from mlflow_phi3_onnx import GenAIModel
model = GenAIModel(sys.argv[1], model_config={"isolation": sys.argv[2], "loop": "slots"})
print(model._engine.facts["pid"], model.generate("The capital of Spain is"), flush=True)
sys.stdin.read()
"""
"""A script without a guard for its main module; it goes on until its input ends."""


def facts(model: GenAIModel) -> dict[str, Any]:
    engine: Any = model._engine
    return engine.facts


def process_of(model: GenAIModel) -> psutil.Process:
    return psutil.Process(facts(model)["pid"])


def has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more; one that nobody has waited for is a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def begin(stream: Iterator[Any]) -> None:
    """Read a stream until the first of its tokens."""
    for _ in range(2):
        next(stream)


@pytest.fixture(autouse=True)
def private(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own for sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="w-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@contextlib.contextmanager
def program(folder: Path, isolation: str) -> Generator[tuple[subprocess.Popen[str], int, str]]:
    """Run the program until it has answered, and yield it, its worker's id and its answer."""
    command = [sys.executable, "-c", PROGRAM, str(folder), isolation]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "run\n"
            pid, _, answer = running.stdout.readline().partition(" ")
            yield running, int(pid), answer
        finally:
            running.kill()


@BOTH
@pytest.mark.parametrize("loop", ["genai", "slots"])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signals")
def test_a_crash_fails_what_is_inside_and_the_next_request_succeeds(
    demo: Path, loop: str, isolation: str, caplog: pytest.LogCaptureFixture
) -> None:
    with GenAIModel(demo, model_config={"loop": loop, "isolation": isolation}) as model:
        expected = model.chat(SPAIN)["choices"]
        first = process_of(model)
        streams = [model.stream_chat(STORY, min_tokens=3000) for _ in range(3)]
        for stream in streams:
            begin(stream)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(model.generate, "Once", min_tokens=3000)
            until(lambda: len(model._engine._jobs) == 4)  # type: ignore[attr-defined] - below
            first.kill()
            for inside in (*(lambda s=s: list(s) for s in streams), whole.result):
                with pytest.raises(EngineDeadError, match="with this request inside") as caught:
                    inside()
                assert caught.value.status == 503
                assert caught.value.to_openai()["error"]["code"] == "engine_dead"
                assert ("killed by SIGKILL" in caught.value.message) == (isolation == "worker")
        assert model.chat(SPAIN)["choices"] == expected
        assert process_of(model).pid != first.pid
        assert "worker process has ended" in caplog.text
    until(lambda: has_ended(first))


@pytest.mark.skipif(not hasattr(signal, "SIGSEGV"), reason="Windows has no such signals")
def test_a_fault_of_native_code_is_named(demo: Path) -> None:
    with GenAIModel(demo, model_config={"isolation": "worker"}) as model:
        stream = model.stream_chat(STORY, min_tokens=3000)
        next(stream)
        process_of(model).send_signal(signal.SIGSEGV)
        with pytest.raises(EngineDeadError, match="killed by SIGSEGV"):
            list(stream)


@BOTH
def test_a_worker_ends_with_the_last_process_that_uses_it_however_that_ends(
    demo: Path, isolation: str
) -> None:
    with (
        program(demo, isolation) as (one, pid, answer),
        program(demo, isolation) as (other, also, _),
    ):
        assert answer == " Madrid.\n"
        assert (also == pid) == (isolation == "shared")
        workers = psutil.Process(pid), psutil.Process(also)
        one.kill()
        one.wait()
        if isolation == "worker":
            until(lambda: has_ended(workers[0]))
        assert not has_ended(workers[1])
        assert other.stdin is not None
        other.stdin.close()
        other.wait(20)
        for worker in workers:
            until(lambda worker=worker: has_ended(worker))


def test_without_the_system_s_help_a_worker_ends_by_its_connection(demo: Path) -> None:
    """As on systems that kill no process with its parent: here the parent does not end at all."""
    model = GenAIModel(demo, model_config={"isolation": "worker"})
    process = process_of(model)
    engine: Any = model._engine
    engine._worker.connection.close()
    until(lambda: has_ended(process))
    model.close()


@BOTH
def test_a_main_module_without_a_guard_runs_once(
    demo: Path, isolation: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, str(script), str(demo), isolation]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=True, timeout=60)
    first, answer = done.stdout.splitlines()
    assert first == "run"
    assert answer.endswith(" Madrid.")


def broken(demo: Path, target: Path) -> Path:
    shutil.copytree(demo, target)
    with (target / "model.onnx.data").open("r+b") as file:
        file.truncate(100)
    return target


@BOTH
@pytest.mark.parametrize(
    "config",
    [
        {"kv_cache_memory": 1},
        {"loop": "slots", "session_options": {"enable_profiling": False}},
        {"provider_options": {"a": "b"}},
    ],
)
def test_what_cannot_be_loaded_is_refused_in_the_same_words(
    demo: Path, isolation: str, config: dict[str, Any]
) -> None:
    seen: list[tuple[type[Exception], str, str | None]] = []
    for chosen in ("inline", isolation):
        with pytest.raises(InvalidRequestError) as caught:
            GenAIModel(demo, model_config={**config, "isolation": chosen})
        seen.append((type(caught.value), caught.value.message, caught.value.param))
    assert seen[0] == seen[1]


def test_a_model_that_is_damaged_later_fails_the_next_start(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    with GenAIModel(folder, model_config={"isolation": "worker"}) as model:
        with (folder / "model.onnx").open("r+b") as file:
            file.truncate(100)
        process_of(model).kill()
        until(lambda: model._engine.deaths == 1)  # type: ignore[attr-defined] - below
        for _ in range(2):
            with pytest.raises(InvalidModelError, match="not a whole ONNX model"):
                model.generate("The capital of Spain is")
        shutil.copy(demo / "model.onnx", folder)
        assert model.generate("The capital of Spain is") == " Madrid."


def test_a_worker_that_dies_while_it_loads(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_phi3_onnx.model.isolation._ENTRY", "no_such_module")
    with pytest.raises(EngineDeadError, match=r"while it loaded the model \(exit code 1\)"):
        GenAIModel(demo, model_config={"isolation": "worker"})


def test_an_interpreter_that_is_not_there(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(EngineDeadError, match=r"cannot be started: No such file or directory\."):
        GenAIModel(demo, model_config={"isolation": "worker"})


@BOTH
def test_closing_ends_what_runs(demo: Path, isolation: str) -> None:
    model = GenAIModel(demo, model_config={"isolation": isolation})
    process = process_of(model)
    stream = model.stream_chat(STORY, min_tokens=3000)
    begin(stream)
    model.close()
    model.close()
    with pytest.raises(CancelledError, match="was closed"):
        list(stream)
    with pytest.raises(CancelledError, match="is closed"):
        model.chat(STORY)
    until(lambda: has_ended(process))


def test_a_model_that_nobody_holds_is_freed(demo: Path) -> None:
    model = GenAIModel(demo, model_config={"isolation": "worker"})
    process, engine = process_of(model), weakref.ref(model._engine)
    del model
    gc.collect()
    until(lambda: engine() is None)
    assert has_ended(process)


def test_a_copy_has_a_worker_of_its_own(demo: Path) -> None:
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(GenAIModel(demo, model_config={"isolation": "worker"}))
        copy = stack.enter_context(pickle.loads(pickle.dumps(model)))  # noqa: S301 - just made
        assert process_of(copy).pid != process_of(model).pid
        assert copy.generate("The capital of Spain is") == " Madrid."


@pytest.mark.parametrize("niceness", [0, 3])
def test_a_worker_stands_back_as_far_as_it_is_told(demo: Path, niceness: int) -> None:
    config = {"isolation": "worker", "intra_op_num_threads": 2}
    with GenAIModel(demo, model_config=config, policy=ServingPolicy(niceness=niceness)) as model:
        threads = psutil.Process(process_of(model).pid).threads()
        found = {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in threads}
    assert len(threads) > 2
    assert found == {min(os.getpriority(os.PRIO_PROCESS, 0) + niceness, 19)}


def test_a_worker_does_not_load_mlflow(demo: Path) -> None:
    with GenAIModel(demo, model_config={"isolation": "worker"}) as model:
        maps = Path(f"/proc/{process_of(model).pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "pandas" not in maps


def test_the_log_of_a_worker_is_written_here(demo: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlflow_phi3_onnx")
    config = {"isolation": "worker", "intra_op_num_threads": 1, "loop": "slots"}
    GenAIModel(demo, model_config=config).close()
    (record,) = [r for r in caplog.records if r.name == "mlflow_phi3_onnx.model.start"]
    assert record.getMessage().startswith("Loaded phi3 in ")
    assert "slots loop, cpu, 1 threads" in record.getMessage()


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="Windows has no such signals")
def test_what_is_sent_to_a_whole_group_of_processes_leaves_a_worker_alone(demo: Path) -> None:
    with GenAIModel(demo, model_config={"isolation": "worker"}) as model:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process_of(model).send_signal(number)
        assert model.generate("The capital of Spain is") == " Madrid."
        assert model._engine.deaths == 0  # type: ignore[attr-defined] - below


def test_nothing_is_left_of_requests_that_are_done(demo: Path) -> None:
    with GenAIModel(demo, model_config={"isolation": "worker", "loop": "slots"}) as model:
        process, sizes = process_of(model), list[int]()
        for _ in range(3):
            for number in range(100):
                model.chat(SPAIN, max_tokens=8, temperature=1, logprobs=True, seed=number)
                stream = model.stream_chat(SPAIN, choice=["Madrid", f"Rome {number % 3}"])
                begin(stream)
                stream.close()
            sizes.append(process.memory_info().rss)
        engine: Any = model._engine
        assert (engine._jobs, engine._requests) == ({}, {})
        assert sizes[2] - sizes[1] < 8 << 20


@UNIX
def test_the_same_model_with_the_same_settings_is_shared_and_nothing_else(
    demo: Path, tmp_path: Path, private: Path
) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    shared: dict[str, Any] = {"isolation": "shared", "intra_op_num_threads": 1}
    with contextlib.ExitStack() as stack:

        def load(**config: Any) -> int:
            loaded = GenAIModel(folder, model_config={**shared, **config})
            return facts(stack.enter_context(loaded))["pid"]

        first = load()
        assert load(temperature=0.5) == first
        assert load(max_batch_size=2) != first
        assert load(isolation="worker") != first
        (folder / "tokenizer.json").touch()
        assert load() != first
        assert len(list(private.glob("*/*.sock"))) == 3
    until(lambda: not list(private.glob("*/*.sock")))


@UNIX
def test_one_that_leaves_a_shared_worker_takes_its_work_along(demo: Path) -> None:
    config = {"isolation": "shared", "loop": "slots"}
    with GenAIModel(demo, model_config=config) as stays:
        leaves = GenAIModel(demo, model_config=config)
        stream, other = (m.stream_chat(STORY, min_tokens=300) for m in (leaves, stays))
        for running in (stream, other):
            begin(running)
        leaves.close()
        with pytest.raises(CancelledError):
            list(stream)
        assert len(list(other)) > 200
        assert facts(stays) == {**facts(leaves)}


@UNIX
@pytest.mark.parametrize("removed", ["socket", "folder"])
def test_a_shared_worker_whose_socket_is_gone_still_ends(
    demo: Path, private: Path, removed: str
) -> None:
    """As the end of a session removes its folder, or a cleaner old files."""
    config = {"isolation": "shared"}
    with GenAIModel(demo, model_config=config) as model:
        process = process_of(model)
        (socket,) = private.glob("*/*.sock")
        if removed == "socket":
            socket.unlink()
        else:
            shutil.rmtree(socket.parent)
        with GenAIModel(demo, model_config=config) as other:
            assert process_of(other).pid != process.pid
            assert model.generate("The capital of Spain is") == " Madrid."
        until(lambda: not socket.exists())
    until(lambda: has_ended(process))


@UNIX
@pytest.mark.parametrize("removed", ["nothing", "socket", "folder"])
def test_a_shared_worker_that_is_killed_takes_no_connection_while_it_dies(
    demo: Path, private: Path, removed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"isolation": "shared"}
    there: list[bool] = []

    def kill(pid: int, number: int, end: Any = os.kill) -> None:
        there.append(socket.exists())
        end(pid, number)

    with GenAIModel(demo, model_config=config) as model, contextlib.ExitStack() as stack:
        process, engine = process_of(model), model._engine
        (socket,) = private.glob("*/*.sock")
        others = None
        if removed == "socket":  # another worker has its place now
            socket.unlink()
            stack.enter_context(GenAIModel(demo, model_config=config))
            others = socket.stat().st_ino
        elif removed == "folder":
            shutil.rmtree(socket.parent)
        monkeypatch.setattr(os, "kill", kill)
        engine._worker.kill(process.pid)  # type: ignore[attr-defined] - no public name has it
        until(lambda: has_ended(process))
        assert there == [others is not None]
        if others is not None:
            assert socket.stat().st_ino == others


@UNIX
def test_a_folder_that_others_can_enter_is_refused(demo: Path, private: Path) -> None:
    GenAIModel(demo, model_config={"isolation": "shared"}).close()
    (folder,) = private.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o711)
    with pytest.raises(InvalidRequestError, match="others can enter") as caught:
        GenAIModel(demo, model_config={"isolation": "shared"})
    assert caught.value.param == "isolation"


@UNIX
def test_a_socket_that_cannot_be_is_refused(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(InvalidRequestError, match="TMPDIR names another folder") as caught:
        GenAIModel(demo, model_config={"isolation": "shared"})
    assert caught.value.param == "isolation"


@BOTH
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows has no such signals")
def test_a_stopped_worker_fails_requests_at_their_timeout_and_is_left_to_others(
    demo: Path, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "GRACE_S", 0.1)
    config = {"isolation": isolation, "loop": "slots"}
    with GenAIModel(demo, model_config=config) as model, ThreadPoolExecutor(1) as pool:
        worker = process_of(model)
        inside = model.stream_chat(STORY, min_tokens=3000, timeout=2)
        begin(inside)
        worker.suspend()
        try:
            waiting = pool.submit(model.chat, SPAIN)  # for as long as it takes
            with pytest.raises(GenerationTimeoutError, match="timeout was over"):
                list(inside)
            with pytest.raises(GenerationTimeoutError, match="does not answer"):
                model.chat(SPAIN, timeout=0.1)
            assert not waiting.done()
        finally:
            worker.resume()
        assert waiting.result()["choices"]
        assert process_of(model).pid == worker.pid
        assert model.health.deaths == 0
        until(lambda: model.load.running == 0)
