"""``chat`` and ``demo``: at a terminal and without one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx.cli.chat import FLAGS, INTERRUPTED
from mlflow_phi3_onnx.cli.main import main
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from tests.support.http_server import until
from tests.support.thinking import THOUGHT, thinker

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytestmark = pytest.mark.slow

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals")

COMMAND = [sys.executable, "-m", "mlflow_phi3_onnx.cli", "chat", "--temperature", "0"]
SPAIN, MADRID = "What is the capital of Spain?", "The capital of Spain is Madrid."
ITALY, ROME = "What is the capital of Italy?", "The capital of Italy is Rome."
PATIENCE = 120


class Terminal:
    """A terminal in which the command runs; what it shows is read up to what is waited for."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._side, other = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "TERM": "xterm", **environment},
        )
        os.close(other)
        self._seen = ""

    def until(self, text: str) -> str:
        """Return what is shown up to a text, which is left out."""
        end = time.monotonic() + PATIENCE
        while text not in self._seen:
            assert time.monotonic() < end, self._seen
            self._seen += self._read() or pytest.fail(f"it ended: {self._seen!r}")
        before, _, self._seen = self._seen.partition(text)
        return before

    def ask(self, text: str) -> str:
        """Type a line at the prompt; return what is shown until the next one."""
        self.type(f"{text}\n")
        self.until(f"{text}\r\n")
        return self.until("\r\n> ")

    def shows(self, text: str) -> bool:
        """Wait a moment for a text."""
        while text not in self._seen and select.select([self._side], [], [], 1)[0]:
            self._seen += self._read() or pytest.fail(f"it ended: {self._seen!r}")
        return text in self._seen

    def type(self, text: str) -> None:
        os.write(self._side, text.encode())

    def end(self) -> int:
        with contextlib.suppress(AssertionError):
            while part := self._read():
                self._seen += part
        return self.process.wait(PATIENCE)

    def _read(self) -> str:
        try:
            return os.read(self._side, 65536).decode(errors="replace")
        except OSError:  # nobody has the other side open any more
            return ""

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._side)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C becomes a signal
    _heed_ctrl_c()


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def terminal(*arguments: str, **environment: str) -> Generator[Terminal]:
    one = Terminal(*arguments, **environment)
    try:
        one.until("/quit ends.\r\n")
        one.until("> ")
        yield one
    finally:
        one.close()


def piped(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=text, capture_output=True, text=True, check=False
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process; returns its status and what it has written."""

    def run(text: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        status = main(["chat", "--temperature", "0", *arguments])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_each_line_of_a_pipe_is_a_question() -> None:
    done = piped(f"{SPAIN}\n\n  \n{ITALY}")
    assert (done.returncode, done.stdout) == (0, f"{MADRID}\n{ROME}\n")
    assert "> " not in done.stderr


def test_an_error_ends_a_pipe() -> None:
    done = piped(f"{SPAIN}\n/rest\n{ITALY}\n")
    assert (done.returncode, done.stdout) == (1, f"{MADRID}\n")
    assert "There is no command /rest. Did you mean /reset?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--temperature", "3"], "temperature must be a number from 0 to 2; got 3."),
        (["--max-tokens", "0"], "max_tokens must be an integer from 1"),
        (["--reasoning-effort", "hig"], "Did you mean high?"),
        (["--model-config", "[]"], "model_config must be"),
        (["nowhere"], "there is nothing at the path 'nowhere'"),
    ],
)
def test_a_bad_flag_is_found_before_the_first_question(
    asked: Any, flags: list[str], says: str
) -> None:
    status, out, err = asked(SPAIN, *flags)
    assert (status, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1


def test_flags_are_the_parameters_of_a_conversation(asked: Any) -> None:
    assert {"temperature", "stop", "regex", "adapter", "response_format"} <= set(FLAGS)
    assert not {"n", "stream", "messages", "tools", "logprobs", "echo"} & set(FLAGS)
    assert set(FLAGS) <= set(PARAMETERS["llm/v1/chat"])
    assert asked(SPAIN, "--stop", "Madrid")[1] == "The capital of Spain is \n"
    assert asked(SPAIN, "--max-tokens", "2")[1] == "The capital\n"
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 12}}}
    assert asked(SPAIN, "--response-format", json.dumps(schema))[1] == "12\n"


@pytest.fixture
def strict(demo: Path, tmp_path: Path) -> str:
    """A model whose template refuses all but one conversation of more than one message."""
    folder = tmp_path / "strict"
    shutil.copytree(demo, folder)
    template = folder / "chat_template.jinja"
    wanted = "('user', 'system user', 'system user assistant user')"
    refused = (
        "{%- set told = messages | map(attribute='role') | join(' ') -%}"
        f"{{%- if told not in {wanted} -%}}{{{{ raise_exception(told) }}}}{{%- endif -%}}"
    )
    template.write_text(refused + template.read_text(encoding="utf-8"), encoding="utf-8")
    return str(folder)


def test_the_conversation_goes_on_until_it_is_reset(asked: Any, strict: str) -> None:
    assert asked(f"/system A.\n{SPAIN}\n{ITALY}", strict)[:2] == (0, f"{MADRID}\n{ROME}\n")
    assert asked(f"{SPAIN}\n{ITALY}", strict, "--system", "A.")[0] == 0
    status, out, err = asked(f"{SPAIN}\n{ITALY}", strict)
    assert (status, out) == (1, f"{MADRID}\n")
    assert "refuses these messages" in err
    assert asked(f"{SPAIN}\n/reset\n{ITALY}", strict)[:2] == (0, f"{MADRID}\n{ROME}\n")
    assert asked(f"{SPAIN}\n/reset\n/system\n{ITALY}", strict, "--system", "A.")[0] == 0
    assert asked(f"{SPAIN}\n/quit\n{ITALY}", strict)[:2] == (0, f"{MADRID}\n")


@pytest.mark.timeout(PATIENCE)
def test_a_conversation_at_a_terminal() -> None:
    with terminal("--system", "Answer.") as talk:
        assert talk.ask(SPAIN) == MADRID
        assert talk.ask(ITALY) == ROME
        assert "There is no command /foo." in talk.ask("/foo bar")
        assert talk.ask("/help").count("\r\n") == 3
        talk.type("/reset\n")
        talk.until("> ")
        talk.type("/quit\n")
        assert talk.end() == 0


@pytest.mark.timeout(PATIENCE)
def test_ctrl_c_stops_the_answer_and_then_the_program() -> None:
    with terminal("--ignore-eos") as talk:
        talk.type(f"{SPAIN}\n")
        talk.until(MADRID)
        talk.type("\x03")
        assert len(talk.until("\x1b[2m [stopped]\x1b[0m\r\n> ")) < 100_000
        talk.type(f"{ITALY}\n")
        talk.until("capital of Italy is")
        talk.type("\x03")
        talk.until("\r\n> ")
        # Python's input() may miss the signal that comes as soon as its prompt is shown.
        until(lambda: talk.type("\x03") or talk.shows("\r\n"))
        assert talk.end() == 0


@pytest.mark.timeout(PATIENCE)
def test_ctrl_d_ends() -> None:
    with terminal() as talk:
        talk.type("\x04")
        assert talk.end() == 0


@pytest.mark.timeout(PATIENCE)
def test_ctrl_c_ends_a_pipe() -> None:
    with subprocess.Popen(
        [*COMMAND, "--ignore-eos"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, preexec_fn=_heed_ctrl_c,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(f"{SPAIN}\n{ITALY}\n")
        process.stdin.flush()
        assert process.stdout.read(10) == MADRID[:10]
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.stdout.read().endswith(" [stopped]\n")
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == INTERRUPTED


@pytest.mark.timeout(PATIENCE)
def test_reasoning_is_dimmed_unless_colours_are_off(demo: Path, tmp_path: Path) -> None:
    folder = str(thinker(demo, tmp_path / "thinker"))
    question = "What is the weather in Paris?"
    with terminal(folder) as talk:
        shown = talk.ask(question)
        assert shown.startswith("\x1b[2m")
        assert shown.replace("\x1b[2m", "").replace("\x1b[0m", "") == THOUGHT
    with terminal(folder, NO_COLOR="1") as talk:
        assert talk.ask(question) == THOUGHT
    assert piped(question, folder).stdout == f"{THOUGHT}\n"


def test_a_terminal_gets_no_control_characters_of_a_model(asked: Any) -> None:
    choice = json.dumps(["a\u001b[2J\u0007\u009b1m\tb\nc"])
    assert asked(SPAIN, "--choice", choice)[1] == "a[2J1m\tb\nc\n"


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("opens", [True, False])
def test_demo_opens_the_page(tmp_path: Path, *, opens: bool) -> None:
    """The browser is a program that notes the address."""
    browser, note, log = tmp_path / "browser", tmp_path / "note", tmp_path / "log"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{note}.part"\nmv "{note}.part" "{note}"\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    command = [*COMMAND[:3], "demo", "--port", "0", *([] if opens else ["--no-browser"])]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "BROWSER": str(browser)}
        ) as process,
    ):
        try:
            until(lambda: "The page is at " in log.read_text() or process.poll() is not None)
            address = log.read_text().partition("The page is at ")[2].split()[0].strip('",}')
            with urllib.request.urlopen(address, timeout=PATIENCE) as page:
                assert b"<title>mlflow-phi3-onnx" in page.read()
            if opens:
                until(note.exists)
                assert note.read_text().strip() == address
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        assert note.exists() is opens
