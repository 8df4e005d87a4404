"""What it costs to run the model in a process of its own, and what it saves to share one."""

from __future__ import annotations

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import mlflow_phi3_onnx
from benchmarks.results import Row, Side, ratio_row
from benchmarks.subject import LOOPS, Scale, Subject
from benchmarks.timing import timed
from mlflow_phi3_onnx.evaluation.load.turns import interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_phi3_onnx import GenAIModel

__all__ = ["shared_memory", "worker"]

CALLERS = (1, 8)
PROMPT_TOKENS = 16
ANSWER_TOKENS = 64
PROCESSES = 4
SIDES = ("worker", "inline")


def worker(scale: Scale) -> Iterator[Row]:
    """Compare completions of a worker process with those of this one, whole and streamed."""
    subjects = {"demo": Subject("demo"), scale.wide()[0].name: scale.wide()[0]}
    for subject in subjects.values():
        for loop in LOOPS:
            with ExitStack() as stack:
                models = {
                    side: stack.enter_context(subject.native(loop, isolation=side))
                    for side in SIDES
                }
                for callers in scale.pick(CALLERS, CALLERS[:1]):
                    for stream in (True, False):
                        yield _compare(scale, subject, loop, models, callers, stream=stream)


def _compare(
    scale: Scale,
    subject: Subject,
    loop: str,
    models: dict[str, GenAIModel],
    callers: int,
    *,
    stream: bool,
) -> Row:
    count = scale.pick(ANSWER_TOKENS, 8)
    rounds = scale.pick(8 if subject.name == "demo" else 1, 1)

    def run(model: GenAIModel, turn: int) -> tuple[float, float]:
        """Return the microseconds that a token of each caller takes, and all processors' work."""
        prompts = [
            subject.prompts.text(PROMPT_TOKENS, "worker", turn, number)
            for number in range(callers * rounds)
        ]
        ask = partial(_ask, model, subject.length(count), stream)
        processes = _processes(model)
        before = _worked(processes)
        with ThreadPoolExecutor(callers) as pool:
            seconds = timed(lambda: list(pool.map(ask, prompts)))
        tokens = rounds * count
        return 1e6 * seconds / tokens, 1e6 * (_worked(processes) - before) / (callers * tokens)

    sides = {side: partial(run, models[side]) for side in SIDES}
    results = interleaved(sides, scale.pick(3, 1) * scale.repeats)
    times = {side: [one for one, _ in results[side]] for side in SIDES}
    form = "streamed" if stream else "whole"
    return ratio_row(
        f"worker-{form}",
        f"`{loop}`, {subject.name}, {callers} caller{'s' * (callers > 1)}",
        Side("worker", "µs/token", times["worker"]),
        Side("inline", "µs/token", times["inline"]),
        {f"{side}_processor_us": sorted(work for _, work in results[side]) for side in SIDES},
    )


def _ask(model: GenAIModel, length: dict[str, int], stream: bool, prompt: str) -> None:
    if stream:
        for _ in model.stream_complete(prompt, **length):
            pass
    else:
        model.complete(prompt, **length)


def _processes(model: GenAIModel) -> list[psutil.Process]:
    """List the processes that work for a model."""
    engine: Any = model._engine  # noqa: SLF001  # type: ignore[attr-defined] - it has no public name
    own = [psutil.Process()]
    return [*own, psutil.Process(engine.facts["pid"])] if hasattr(engine, "facts") else own


def _worked(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for p in processes for times in [p.cpu_times()])


def shared_memory(scale: Scale) -> Iterator[Row]:
    """Compare the memory of processes that share a worker with that of as many that do not.

    It is the proportional set size, where the system tells it: of a page of memory that several
    processes have, each has its share.
    """
    subject = scale.wide()[0]
    count = scale.pick(PROCESSES, 2)
    held = {isolation: _held(subject, isolation, count) for isolation in ("shared", "inline")}
    yield ratio_row(
        "shared-memory",
        f"{count} processes, {subject.name}",
        Side("shared", "MB", [sum(held["shared"])]),
        Side("inline", "MB", [sum(held["inline"])]),
        {f"{isolation}_mb": sizes for isolation, sizes in held.items()},
    )


def _held(subject: Subject, isolation: str, count: int) -> list[float]:
    """Return what each process holds once it has answered, and then their worker, in MB."""
    spawn = multiprocessing.get_context("spawn")
    # MLflow puts the code of each artifact first; it has this package, without the demo model.
    sys.path.insert(0, str(Path(mlflow_phi3_onnx.__file__).parents[1]))
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for _ in range(count)
        ]
        found = [pool.submit(_answer, subject.name, isolation) for pool in pools]
        pairs = [future.result() for future in found]
        pids = [*(own for own, _ in pairs), *(theirs for _, theirs in pairs)]
        time.sleep(1)
        return [_size(psutil.Process(pid)) for pid in dict.fromkeys(pids) if pid]


_kept: list[Any] = []


def _answer(name: str, isolation: str) -> tuple[int, int]:
    """Load a model, keep it, let it answer, and return this process's id and its worker's."""
    subject = Subject(name)
    model = subject.native("slots", isolation=isolation)
    _kept.append(model)
    model.complete(subject.prompts.text(PROMPT_TOKENS, "memory"), **subject.length(8))
    processes = _processes(model)
    return processes[0].pid, processes[-1].pid if len(processes) > 1 else 0


def _size(process: psutil.Process) -> float:
    info: Any = process.memory_full_info()
    return getattr(info, "pss", info.rss) / 1e6
