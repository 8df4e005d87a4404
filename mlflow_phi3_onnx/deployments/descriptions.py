"""What is told of deployments: the target's help, what they are, and how they fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow.utils import AttrDict

from mlflow_phi3_onnx.core.options import help_text
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS
from mlflow_phi3_onnx.deployments import lifecycle, server
from mlflow_phi3_onnx.deployments.arguments import OPTIONS, TARGET
from mlflow_phi3_onnx.deployments.store import FOLDER_VARIABLE, Store
from mlflow_phi3_onnx.errors import DeploymentError

if TYPE_CHECKING:
    from mlflow_phi3_onnx.deployments.store import Record


def target_help() -> str:
    """The text of ``mlflow deployments help -t onnx-genai``."""
    return f"""\
Target {TARGET}: serve a logged model from a process of this machine that lives on.

Target URI: {TARGET}   ({TARGET}:/ and {TARGET}://local mean the same)

A deployment runs this package's server, with OpenAI's API and MLflow's routes, until it is
deleted. Where env_manager is not local, and for models of other flavors, it runs MLflow's own
server, which has only {server.PREDICT_PATH} and {server.HEALTH_PATH}. A deployment that died, or
that a restart of the machine ended, is started again by an update.
Records and logs: {Store().folder}
({FOLDER_VARIABLE} names another folder.)

Config (-C key=value, or the config dict of the Python client):
{help_text(OPTIONS)}

At an update, an empty value puts a key back to its default. To delete a deployment that does not
exist is no error.

Examples:
  mlflow deployments create -t {TARGET} --name phi3 -m models:/phi3/1 -C port=5001
  mlflow deployments list -t {TARGET}
  mlflow deployments get -t {TARGET} --name phi3
  mlflow deployments predict -t {TARGET} --name phi3 -I requests.json
  mlflow deployments update -t {TARGET} --name phi3 -m models:/phi3/2
  mlflow deployments delete -t {TARGET} --name phi3

requests.json is a file that you write: a list with one request per item, because MLflow reads it
as a table. A request has the fields of the model's task, here of llm/v1/chat:
  [{{"messages": [{{"role": "user", "content": "What is the capital of Spain?"}}]}}]
"""


def describe(record: Record) -> dict[str, Any]:
    """What is told of a deployment."""
    return {
        "name": record.name,
        "status": lifecycle.status(record),
        "model_uri": record.recipe.model_uri,
        "flavor": record.recipe.flavor,
        "url": record.address.url,
        "host": record.address.host,
        "port": record.address.port,
        "pid": record.process.pid,
        "config": dict(record.recipe.config),
        "created": record.created,
        "started": record.started,
        "log": record.log,
    }


def describe_endpoint(record: Record) -> dict[str, Any]:
    """What is told of a deployment as an endpoint; MLflow reads keys and attributes."""
    task = CHAT if record.recipe.task == CHAT else COMPLETIONS
    return AttrDict(
        name=record.name,
        task=task,
        endpoint_type=task,
        model={"name": record.recipe.model_uri, "provider": TARGET},
        endpoint_url=record.address.url + server.endpoint_path(record.name),
        limit=None,
    )


def dead(record: Record) -> DeploymentError:
    """The error where a deployment's server has ended."""
    return DeploymentError(
        f"Deployment {record.name!r} is dead: its server has ended. Start it again with "
        f"`mlflow deployments update -t {TARGET} --name {record.name}`, or delete it. Its log is "
        f"{record.log}"
    )


def no_answer(record: Record, error: OSError) -> DeploymentError:
    """The error where a deployment's server gave no whole answer."""
    state = lifecycle.status(record)
    if state == "dead":
        return dead(record)
    what = "broke the connection"
    if isinstance(error, TimeoutError):
        what = "gave no answer in time"
    elif isinstance(error, ConnectionRefusedError):
        what = "accepts no connections"
    return DeploymentError(
        f"The server of deployment {record.name!r} ({state}, {record.address.url}) {what}. Its "
        f"log is {record.log}",
        error_code="TEMPORARILY_UNAVAILABLE",
    )
