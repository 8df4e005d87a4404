"""``mlflow-phi3-onnx chat``."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from contextlib import ExitStack, aclosing, suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from mlflow_phi3_onnx.cli.flags import add_flags, given_flags
from mlflow_phi3_onnx.core.checks import did_you_mean
from mlflow_phi3_onnx.core.options import read, table
from mlflow_phi3_onnx.core.tasks import CHAT
from mlflow_phi3_onnx.demo import demo_model_path
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor.load import read_model
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.server.settings import OPTIONS as SERVER_OPTIONS
from mlflow_phi3_onnx.sources.local import EXPECTED_PLACES, local_copy

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from mlflow_phi3_onnx.model.native import GenAIModel

__all__ = ["configure"]

COMMANDS = {
    "/system": "/system TEXT gives the model a system prompt, /system alone none",
    "/reset": "/reset forgets the conversation, but not the system prompt",
    "/help": "/help lists the commands",
    "/quit": "/quit ends",
}

FLAGS = table(
    *(
        replace(option, from_text=option.check.type != "text")
        for option in PARAMETERS[CHAT].values()
        # What may hold for a whole conversation; it is shown one completion of.
        if (option.configurable or option.name == "adapter") and option.name != "n"
    )
)
CONFIG = table(replace(SERVER_OPTIONS["model_config"], otherwise="the model's own"))

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C has ended."""

# A terminal acts on control characters, and a model may write them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def configure(parser: ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.description = (
        "Talk to a model. Ctrl-C stops an answer, and at the prompt it ends the program, as Ctrl-D"
        f" does. {'; '.join(COMMANDS.values())}. Without a terminal, each line of the input is a"
        " question."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a models:/ or runs:/ URI, a saved model, a model folder; by default the demo model",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system prompt; by default none")
    add_flags(parser, {**FLAGS, **CONFIG})
    parser.set_defaults(run=_run)


def _run(options: Namespace) -> None:
    given = given_flags(options, FLAGS)
    read(FLAGS, given, "a parameter", shown=True)
    values = {name: FLAGS[name].meant(value) for name, value in given.items()}
    adapter = {name: values.pop(name) for name in ("adapter",) if name in values}
    config = read(CONFIG, given_flags(options, CONFIG), "a setting", shown=True)
    place = demo_model_path() if options.model is None else options.model
    interactive = sys.stdin.isatty()
    try:
        with ExitStack() as held:
            expected = f"{EXPECTED_PLACES}, or a model folder"
            path, _ = held.enter_context(local_copy(place, expected=expected))
            policy = ServingPolicy(default_loop="auto")
            settled = {**config.get("model_config", {}), **values}
            opened = read_model(path, settled).open(policy)
            model = held.enter_context(opened.model)
            talk = _Talk(model, options.system, adapter)
            for line in _typed() if interactive else _piped():
                try:
                    stopped = talk.take(line)
                except MlflowException as error:
                    if not interactive:
                        raise
                    print(error.message, file=sys.stderr)
                else:
                    if stopped and not interactive:
                        raise KeyboardInterrupt
                if talk.over:
                    break
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _piped() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")


def _typed() -> Iterator[str]:
    """Yield what is typed, until Ctrl-D or Ctrl-C."""
    with suppress(ImportError):
        import_module("readline")  # input() edits lines with it, and remembers them
    print(f"{'; '.join(COMMANDS.values())}.", file=sys.stderr)
    while True:
        try:
            if sys.stdout.isatty():
                line = input("> ")
            else:  # what is written to a file is the answers
                print("> ", end="", file=sys.stderr, flush=True)
                line = input()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        yield line


class _Talk:
    """A conversation with a model.

    Args:
        model: The model.
        system: The system prompt.
        params: Parameters of every request.
    """

    def __init__(self, model: GenAIModel, system: str | None, params: dict[str, Any]) -> None:
        self.over = False
        self._model = model
        self._system = system
        self._params = {**params, "n": 1}
        self._turns: list[dict[str, str]] = []
        self._wrote = False
        self._dims = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def take(self, line: str) -> bool:
        """Do a command or answer a question; return whether the answer was stopped.

        Raises:
            mlflow.exceptions.MlflowException: If it cannot be done; the conversation is as before.
        """
        if line.startswith("/"):
            self._do(*line.split(maxsplit=1))
            return False
        return bool(line.strip()) and self._answer(line)

    def _do(self, command: str, text: str = "") -> None:
        if command not in COMMANDS:
            raise InvalidRequestError(
                f"There is no command {command[:20]}.{did_you_mean(command, COMMANDS)} A question"
                f" that begins with / needs a blank before it. {'; '.join(COMMANDS.values())}."
            )
        if command == "/system":
            self._system = text
        elif command == "/reset":
            self._turns.clear()
        elif command == "/help":
            print("\n".join(COMMANDS.values()))
        else:
            self.over = True

    def _answer(self, question: str) -> bool:
        system = [{"role": "system", "content": self._system}] if self._system else []
        asked = {"role": "user", "content": question}
        parts: list[str] = []
        self._wrote = False
        try:
            stopped = asyncio.run(self._stream([*system, *self._turns, asked], parts))
        except MlflowException:
            print(end="\n" if self._wrote else "", flush=True)
            raise
        print(flush=True)
        if answer := "".join(parts):
            self._turns += [asked, {"role": "assistant", "content": answer}]
        return stopped

    async def _stream(self, messages: list[dict[str, str]], parts: list[str]) -> bool:
        """Write an answer as it comes; return whether Ctrl-C has stopped it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(task.cancel))
        thinks = False
        try:
            async with aclosing(self._model.astream_chat(messages, **self._params)) as chunks:
                async for chunk in chunks:
                    for choice in chunk["choices"]:
                        thought = choice["delta"].get("reasoning_content")
                        text = choice["delta"].get("content")
                        if thought:
                            self._write(thought, dim=True)
                            thinks = True
                        if text:
                            self._write("\n" * 2 * thinks + text)
                            thinks = False
                            parts.append(text)
        except asyncio.CancelledError:
            self._write(" [stopped]", dim=True)
            return True
        finally:
            signal.signal(signal.SIGINT, before)
        return False

    def _write(self, text: str, *, dim: bool = False) -> None:
        self._wrote = True
        text = _CONTROL.sub("", text)
        print(f"{_DIM}{text}{_PLAIN}" if dim and self._dims else text, end="", flush=True)
