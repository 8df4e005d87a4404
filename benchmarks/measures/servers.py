"""This package's server: against its native API, with several clients, and beside llama.cpp's."""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.llama import llama_file
from benchmarks.models import MODELS
from benchmarks.results import Compared, Row, Side, ratio_row
from benchmarks.serving import running
from benchmarks.subject import LOOPS, Scale, Subject
from mlflow_phi3_onnx.evaluation.load.exchange import Exchange, summarize
from mlflow_phi3_onnx.evaluation.load.generators import closed_loop
from mlflow_phi3_onnx.evaluation.load.side import NativeSide
from mlflow_phi3_onnx.evaluation.load.turns import WARM_UP, interleaved, paired
from mlflow_phi3_onnx.evaluation.load.url_side import URLSide
from mlflow_phi3_onnx.evaluation.side import Place
from mlflow_phi3_onnx.runtime.machine import available_threads

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from benchmarks.raw import RawModel
    from mlflow_phi3_onnx.evaluation.load.side import LoadSide

__all__ = ["LLAMA_SERVER", "served_clients", "served_token", "servers"]

LLAMA_SERVER = "LLAMA_SERVER"
"""Names llama.cpp's own server, a program that is built from its sources."""

CLIENTS = 8
PROMPT_TOKENS = 32
ANSWER_TOKENS = 64
ALONE = 2
"""How many requests one client sends in a turn."""

CONTEXT = 1024
TIMEOUT = 300.0
FORM = "Q4_0"


def served_token(scale: Scale) -> Iterator[Row]:
    """Compare a streamed token of the server with one of the native API: the times per token."""
    subject = scale.wide()[0]
    for loop in scale.pick(LOOPS, LOOPS[-1:]):
        with subject.native(loop) as model, _served(subject, loop) as server:
            native = NativeSide(model, Place(subject.name))
            sides = {"served": server, "native": native}
            turns = {
                name: partial(_load, scale, subject, side, 1, ("token", name))
                for name, side in sides.items()
            }
            results = interleaved(turns, scale.pick(2, 1) * scale.repeats)
        times = {name: [_per_token(one) for one in loads] for name, loads in results.items()}
        yield ratio_row(
            "served-token",
            f"`{loop}`, {subject.name}",
            Side("served", "µs/token", times["served"]),
            Side("native", "µs/token", times["native"]),
            {f"{name}_first_token_ms": [_first(one) for one in results[name]] for name in sides},
        )


def served_clients(scale: Scale) -> Iterator[Row | Compared]:
    """Compare eight clients with one; beside them, what the processor makes of eight rows."""
    for subject in scale.wide():
        raw, short = subject.raw_with_our_threads(), subject.prompts.text(8, "short")
        steps = scale.pick(8, 2)
        with _served(subject, "slots") as server:
            results = interleaved(
                {
                    "many": partial(_throughput, scale, subject, server, CLIENTS),
                    "one": partial(_throughput, scale, subject, server, 1),
                    f"decode {CLIENTS}": partial(_decode, raw, short, CLIENTS, steps),
                    "decode 1": partial(_decode, raw, short, 1, steps),
                },
                scale.pick(3, 1),
            )
        rows = [results[f"decode {CLIENTS}"], results["decode 1"]]
        yield ratio_row(
            "served-clients",
            f"`slots`, {subject.name}",
            Side(f"{CLIENTS} clients", "tokens/s", results["many"]),
            Side("1 client", "tokens/s", results["one"]),
            {"processor_ratio": statistics.median(paired(*rows))},
        )
        names = ("decode 1", f"decode {CLIENTS}")
        samples = {name: results[name] for name in names}
        yield Compared(f"onnxruntime-genai's generator, {subject.name}", samples)


def servers(scale: Scale) -> Iterator[Compared]:
    """Give the same load to this package's server and to those of llama.cpp, turn by turn."""
    name = scale.pick(scale.models[0], "tiny-int4")
    subject = Subject(name)
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        sides: dict[str, LoadSide] = {
            f"this package, {name}": stack.enter_context(_served(subject, "slots"))
        }
        for program, command in _llama_servers(name).items():
            # llama-server is healthy once its model is loaded; the other has no such path.
            health = "/v1/models" if "llama_cpp.server" in command else "/health"
            sides[f"{program}, {FORM}"] = stack.enter_context(_running(command, health))
        for clients in (1, CLIENTS):
            turns = {
                program: partial(_load, scale, subject, side, clients, (program, clients))
                for program, side in sides.items()
            }
            for program, loads in interleaved(turns, scale.pick(3, 1)).items():
                samples = found.setdefault(program, {})
                samples[f"tokens/s {clients}"] = [_speed(one) for one in loads]
                samples[f"first {clients}"] = [_first(one) for one in loads]
    for program, samples in found.items():
        yield Compared(program, samples)


def _llama_servers(name: str) -> dict[str, list[str]]:
    """Return the command lines of llama.cpp's servers that are here, and say which are not."""
    commands: dict[str, list[str]] = {}
    if importlib.util.find_spec("llama_cpp") is None:
        print("    llama.cpp is left out: the extra bench-llama is not installed", flush=True)
        return commands
    file, threads = str(llama_file(MODELS[name].checkpoint, FORM)), str(available_threads())
    python = [sys.executable, "-m", "llama_cpp.server", "--model", file, "--port", "{port}"]
    python += ["--n_ctx", str(CONTEXT), "--n_threads", threads, "--n_threads_batch", threads]
    # By default it breaks a stream off when the next request comes.
    commands["llama-cpp-python"] = [*python, "--interrupt_requests", "false"]
    if program := os.environ.get(LLAMA_SERVER):
        own = [program, "--model", file, "--port", "{port}", "--parallel", str(CLIENTS)]
        own += ["--ctx-size", str(CLIENTS * CONTEXT), "--threads", threads]
        commands["llama-server"] = [*own, "--threads-batch", threads, "--no-webui"]
    else:
        print(f"    llama-server is left out: {LLAMA_SERVER} does not name it", flush=True)
    return commands


@contextmanager
def _served(subject: Subject, loop: str) -> Generator[LoadSide]:
    """Serve a model with this package's server, in a process of its own."""
    command = [sys.executable, "-m", "mlflow_phi3_onnx.cli", "serve", "--port", "{port}"]
    command += ["--model-config", f'{{"loop": "{loop}"}}', "--name", subject.name]
    with _running([*command, str(subject.folder)], "/health") as side:
        yield side


@contextmanager
def _running(command: list[str], health: str) -> Generator[LoadSide]:
    with (
        tempfile.TemporaryDirectory() as work,
        running(command, health, Path(work)) as (url, _),
    ):
        yield URLSide(f"{url}/v1", None, TIMEOUT, "url")


def _load(
    scale: Scale, subject: Subject, side: LoadSide, clients: int, seed: object, turn: int
) -> list[Exchange]:
    """Send a request of each client, or some of one; to warm up, one of each."""
    requests = scale.pick(ALONE, 1) if clients == 1 and turn != WARM_UP else clients
    prompts = [
        subject.prompts.text(PROMPT_TOKENS, "servers", seed, turn, number)
        for number in range(requests)
    ]
    found = closed_loop(side, prompts, scale.pick(ANSWER_TOKENS, 8), callers=clients)
    if failures := summarize(found).failures:
        raise ValueError(f"{side.label} failed: {failures}.")
    return found


def _speed(load: list[Exchange]) -> float:
    """Return tokens per second. These models never end a completion, so it has all of them."""
    return sum(one.asked_tokens for one in load) / summarize(load).seconds


def _throughput(scale: Scale, subject: Subject, side: LoadSide, clients: int, turn: int) -> float:
    return _speed(_load(scale, subject, side, clients, ("clients", clients), turn))


def _first(load: list[Exchange]) -> float:
    """Return the median time to first token, in ms."""
    spread = summarize(load).ttft_ms
    assert spread is not None
    return spread.p50


def _per_token(load: list[Exchange]) -> float:
    """Return the median time per output token, in µs."""
    spread = summarize(load).tpot_ms
    assert spread is not None
    return 1e3 * spread.p50


def _decode(raw: RawModel, prompt: str, rows: int, steps: int, _: int) -> float:
    return raw.speeds(prompt, rows, steps)[1]
