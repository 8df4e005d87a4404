"""What a deployment serves: MLflow's own scoring server.

The only module that knows which server runs: its command line, its environment and
its URLs. How its process is kept is the business of ``process`` and ``store``.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import sysconfig
from contextlib import closing
from typing import TYPE_CHECKING, Any

from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT

from mlflow_phi3_onnx.deployments.arguments import setting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlflow_phi3_onnx.deployments.store import Address, Recipe

PREDICT_PATH = "/invocations"
HEALTH_PATH = "/health"

# The server answers its own timeout; the margin leaves it the time to.
_ANSWER_MARGIN_S = 5.0
_HEALTH_TIMEOUT_S = 2.0
_EXPLANATION_LINES = 12
_EXPLANATION_CHARACTERS = 4000


def command(recipe: Recipe, address: Address) -> list[str]:
    """The command line that serves a recipe at an address."""
    line = [sys.executable, "-m", "mlflow", "models", "serve"]
    line += [f"--model-uri={recipe.model_uri}"]
    line += [f"--host={address.host}", f"--port={address.port}"]
    line += [f"--env-manager={setting(recipe.config, 'env_manager')}"]
    line += [f"--timeout={request_timeout(recipe.config)}"]
    if "workers" in recipe.config:
        line += [f"--workers={recipe.config['workers']}"]
    return line


def environment(recipe: Recipe, scratch: Path) -> dict[str, str]:
    """The whole environment of the server: the caller's, and what the recipe adds.

    The server's temporary files go to the folder ``scratch``: MLflow leaves copies of the model.
    """
    env = dict(os.environ)
    env["MLFLOW_TRACKING_URI"] = recipe.tracking_uri
    env["MLFLOW_REGISTRY_URI"] = recipe.registry_uri
    # MLflow starts "uvicorn" by its bare name: it must be the one of this interpreter, also
    # where the environment was never activated.
    scripts = sysconfig.get_path("scripts")
    env["PATH"] = os.pathsep.join(part for part in (scripts, env.get("PATH")) if part)
    env.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)))
    if "model_config" in recipe.config:
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
        return _request(address, "GET", HEALTH_PATH, _HEALTH_TIMEOUT_S)[0] == 200
    except OSError:
        return False


def score(address: Address, body: bytes, timeout: int) -> tuple[int, bytes]:
    """Send a scoring payload and return the HTTP status and the body of what comes back.

    Args:
        address: Where the server listens.
        body: The payload in JSON.
        timeout: The server's limit for one request, in seconds.

    Raises:
        OSError: There is no connection, or it broke, or the time is over (TimeoutError).
    """
    return _request(address, "POST", PREDICT_PATH, timeout + _ANSWER_MARGIN_S, body)


def _request(
    address: Address, method: str, path: str, timeout: float, body: bytes | None = None
) -> tuple[int, bytes]:
    """Send a request straight to the address, whatever proxies the environment names."""
    place = address.url.removeprefix("http://")
    connection = http.client.HTTPConnection(place, timeout=timeout)
    headers = {} if body is None else {"Content-Type": "application/json"}
    with closing(connection):
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer is not HTTP ({type(error).__name__})") from error
