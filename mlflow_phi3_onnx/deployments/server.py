"""What a deployment serves with: this package's server, or MLflow's own.

The only module that knows which server runs: its command line, its environment and
its URLs. How its process is kept is the business of ``process`` and ``store``.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import sysconfig
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT

from mlflow_phi3_onnx.deployments.arguments import setting, speaks_openai
from mlflow_phi3_onnx.flavor.serving import KEYS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path

    from mlflow_phi3_onnx.deployments.store import Address, Recipe

PREDICT_PATH = "/invocations"
HEALTH_PATH = "/health"

_DATA = b"data:"
_DONE = b"[DONE]"

# The server answers its own timeout; the margin leaves it the time to.
_ANSWER_MARGIN_S = 5.0
# Less than what a stop waits before it kills.
_GRACE_S = 8
_HEALTH_TIMEOUT_S = 2.0
_EXPLANATION_LINES = 12
_EXPLANATION_CHARACTERS = 4000


def command(recipe: Recipe, address: Address, name: str) -> list[str]:
    """The command line that serves a recipe at an address, by the name of its deployment."""
    line = [f"--host={address.host}", f"--port={address.port}"]
    line += [f"--timeout={request_timeout(recipe.config)}"]
    if speaks_openai(recipe):
        line += [f"--name={name}", f"--grace-period={_GRACE_S}"]
        if "model_config" in recipe.config:
            line += [f"--model-config={json.dumps(recipe.config['model_config'])}"]
        serve = [sys.executable, "-m", "mlflow_phi3_onnx.cli", "serve"]
        return [*serve, *line, "--", recipe.model_uri]
    line += [f"--model-uri={recipe.model_uri}"]
    line += [f"--env-manager={setting(recipe.config, 'env_manager')}"]
    if "workers" in recipe.config:
        line += [f"--workers={recipe.config['workers']}"]
    return [sys.executable, "-m", "mlflow", "models", "serve", *line]


def environment(recipe: Recipe, scratch: Path) -> dict[str, str]:
    """The whole environment of the server: the caller's, and what the recipe adds.

    The server's temporary files go to the folder ``scratch``: MLflow leaves copies of the model.
    Keys for this package's server are in the caller's environment, if anywhere.
    """
    env = dict(os.environ)
    env["MLFLOW_TRACKING_URI"] = recipe.tracking_uri
    env["MLFLOW_REGISTRY_URI"] = recipe.registry_uri
    # MLflow starts "uvicorn" by its bare name: it must be the one of this interpreter, also
    # where the environment was never activated.
    scripts = sysconfig.get_path("scripts")
    env["PATH"] = os.pathsep.join(part for part in (scripts, env.get("PATH")) if part)
    env.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)))
    if "model_config" in recipe.config and not speaks_openai(recipe):
        env["SERVING_MODEL_CONFIG"] = json.dumps(recipe.config["model_config"])
    return env


def explain(log: Path) -> str:
    """The lines at the end of a server's log that say why it failed, or nothing.

    MLflow's server ends a failure with two tracebacks. Their frames, which are indented, would
    bury what happened.
    """
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    said = [line for line in text.splitlines() if line and not line[0].isspace()]
    return "\n".join(said[-_EXPLANATION_LINES:])[-_EXPLANATION_CHARACTERS:]


def request_timeout(config: Mapping[str, Any]) -> int:
    """Whole seconds after which the server gives a request up."""
    return config.get("timeout", MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get())


def is_healthy(address: Address) -> bool:
    """Whether the server has loaded its model and answers."""
    try:
        with _asked(address, "GET", HEALTH_PATH, _HEALTH_TIMEOUT_S) as response:
            return response.status == 200
    except OSError:
        return False


def endpoint_path(name: str) -> str:
    """Where this package's server answers one request as OpenAI does."""
    return f"/endpoints/{name}/invocations"


def score(
    address: Address, body: bytes, timeout: int, path: str = PREDICT_PATH
) -> tuple[int, bytes]:
    """Send a payload and return the HTTP status and the body of what comes back.

    Args:
        address: Where the server listens.
        body: The payload in JSON.
        timeout: The server's limit for one request, in seconds.
        path: Where to.

    Raises:
        OSError: There is no connection, or it broke, or the time is over (TimeoutError).
    """
    with _asked(address, "POST", path, timeout + _ANSWER_MARGIN_S, body) as response:
        return response.status, response.read()


@contextmanager
def stream(
    address: Address, body: bytes, timeout: int, path: str
) -> Generator[tuple[int, bytes, Iterator[bytes]]]:
    """Send a payload, and hold the connection on which events come back.

    Args:
        address: Where the server listens.
        body: The payload in JSON.
        timeout: The server's limit for one request, in seconds.
        path: Where to.

    Yields:
        The HTTP status; the body, where that is not 200; and the data of each event, where it is.

    Raises:
        OSError: As :func:`score`, and where the stream ends before its end.
    """
    with _asked(address, "POST", path, timeout + _ANSWER_MARGIN_S, body) as response:
        told = b"" if response.status == 200 else response.read()
        yield response.status, told, _events(response)


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the data of events until the one that says that there are no more."""
    for line in iter(response.readline, b""):
        if line.startswith(_DATA):
            data = line.removeprefix(_DATA).strip()
            if data == _DONE:
                return
            yield data
    raise ConnectionError("the stream has no end")


@contextmanager
def _asked(
    address: Address, method: str, path: str, timeout: float, body: bytes | None = None
) -> Generator[http.client.HTTPResponse]:
    """Send a request straight to the address, whatever proxies the environment names."""
    place = address.url.removeprefix("http://")
    connection = http.client.HTTPConnection(place, timeout=timeout)
    headers = {} if body is None else {"Content-Type": "application/json"}
    if keys := os.environ.get(KEYS_VARIABLE, "").split():
        headers["Authorization"] = f"Bearer {keys[0]}"
    with closing(connection):
        try:
            connection.request(method, path, body=body, headers=headers)
            yield connection.getresponse()
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer is not HTTP ({type(error).__name__})") from error
