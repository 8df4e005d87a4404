"""A process that holds one model, and times what it is told to: `python -m benchmarks.beside`.

Programs that compute are measured turn by turn, each in a process of its own, for their threads
and their memory would get in each other's way. A line of JSON comes in, ``["prefill", 32]`` or
``["decode", 4]``, and a line with the tokens per second goes out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.llama import LlamaModel
from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.runtime.machine import available_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Beside", "beside"]

ROWS = 8
CONTEXT = 1024
PROMPT = 8
STEPS = 16
ORDINARY = 2000
"""Ids of ordinary tokens are below this."""


class Beside:
    """A model in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str, size: int) -> float:
        """Return the tokens per second of a prompt of a size, or of so many rows together."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, size]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The process beside has ended.")
        return float(line)


@contextmanager
def beside(kind: str, path: Path) -> Generator[Beside]:
    """Start a process that holds a model.

    Args:
        kind: ``llama``, or a loop.
        path: The GGUF file, or the model folder.
    """
    command = [sys.executable, "-m", "benchmarks.beside", kind, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Beside(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def _llama(path: Path, ids: Callable[[int], list[int]]) -> Callable[[str, int], float]:
    model = LlamaModel(path, available_threads(), ROWS, CONTEXT)

    def measure(what: str, size: int) -> float:
        model.clear()
        if what == "prefill":
            prompt = ids(size)
            start = time.perf_counter()
            model.run([prompt], 0)
            return size / (time.perf_counter() - start)
        rows = [[token] for token in model.run([ids(PROMPT) for _ in range(size)], 0)]
        start = time.perf_counter()
        for step in range(STEPS):
            rows = [[token] for token in model.run(rows, PROMPT + step)]
        return size * STEPS / (time.perf_counter() - start)

    return measure


def _ours(path: Path, loop: str, ids: Callable[[int], list[int]]) -> Callable[[str, int], float]:
    model = GenAIModel(path, model_config={"loop": loop, "max_batch_size": ROWS})

    def seconds(prompts: list[list[int]], tokens: int) -> float:
        start = time.perf_counter()
        answer = model.complete(prompts, max_tokens=tokens)
        assert answer["usage"]["completion_tokens"] == len(prompts) * tokens
        return time.perf_counter() - start

    def measure(what: str, size: int) -> float:
        if what == "prefill":
            return size / seconds([ids(size)], 1)
        short = seconds([ids(PROMPT) for _ in range(size)], 1)
        return size * STEPS / (seconds([ids(PROMPT) for _ in range(size)], 1 + STEPS) - short)

    return measure


def main(kind: str, path: Path) -> None:
    """Load a model, and answer lines until there are no more."""
    random = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return random.integers(300, ORDINARY, count).tolist()

    measure = _llama(path, ids) if kind == "llama" else _ours(path, kind, ids)
    for line in sys.stdin:
        print(measure(*json.loads(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
