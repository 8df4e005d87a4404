"""The client class that MLflow calls, and the function beside it."""

# pyright: reportIncompatibleMethodOverride=false
# The methods of MLflow's base class have no bodies, so they seem to return nothing.

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow.deployments.base import BaseDeploymentClient

from mlflow_phi3_onnx.deployments import lifecycle, process, server
from mlflow_phi3_onnx.deployments.arguments import (
    TARGET,
    check_config,
    check_name,
    check_speaks_openai,
    check_target,
    make_recipe,
    merge,
    one_name,
    refuse_endpoint,
    speaks_openai,
    with_config,
)
from mlflow_phi3_onnx.deployments.descriptions import (
    dead,
    describe,
    describe_endpoint,
    no_answer,
)
from mlflow_phi3_onnx.deployments.store import Record, Store
from mlflow_phi3_onnx.errors import (
    DeploymentError,
    InvalidRequestError,
    UnsupportedParameterError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from mlflow.deployments import PredictionsResponse


class OnnxGenAIDeploymentClient(BaseDeploymentClient):
    """Deployments as server processes of this machine and user.

    A deployment outlives the command or interpreter that made it, and every later one finds it.
    Records and logs are kept in the folder that ``MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR`` names, else
    in the user's folder for state (``$XDG_STATE_HOME``, ``~/.local/state`` or
    ``%LOCALAPPDATA%``, then ``mlflow-phi3-onnx/deployments``).

    Args:
        target_uri: ``onnx-genai``, ``onnx-genai:/`` or ``onnx-genai://local``.

    Raises:
        InvalidRequestError: The target URI says more than that.
    """

    def __init__(self, target_uri: str) -> None:
        check_target(target_uri)
        super().__init__(target_uri)
        self._store = Store()

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Start a server for a model and wait until it answers.

        Args:
            name: The deployment: 1 to 63 letters, digits, dots, hyphens and underscores, the
                first one a letter or digit.
            model_uri: A model that has the ``python_function`` flavor.
            flavor: ``mlflow_phi3_onnx`` or ``python_function``. Both are served the same way.
                Default: the first of them that the model has.
            config: See ``mlflow deployments help -t onnx-genai``.
            endpoint: Not supported.

        Returns:
            The deployment, as ``get_deployment`` describes it.

        Raises:
            InvalidRequestError: An argument is not what it must be.
            InvalidModelError: The model cannot be read, or lacks the flavor.
            DeploymentError: The name is in use (``RESOURCE_ALREADY_EXISTS``), or the server did
                not start; then neither a process nor a record is left.
        """
        check_name(name, endpoint)
        given = check_config(config)
        with self._store.lock(name):
            if existing := self._store.read(name):
                raise DeploymentError(
                    f"Deployment {name!r} already exists ({lifecycle.status(existing)}). Update it "
                    "or delete it first.",
                    error_code="RESOURCE_ALREADY_EXISTS",
                )
            recipe = make_recipe(model_uri, flavor, merge({}, given))
            lifecycle.recover(self._store, name)
            self._store.remove_logs(name)
            return describe(lifecycle.launch(self._store, name, recipe))

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Replace a deployment's server, or start it again where it is dead.

        The new server must answer before the old one is stopped. Only where both need the same
        port is the old one stopped first; it is started again if the new one fails. Without a
        ``port`` in its config the deployment moves to a new port.

        Args:
            name: The deployment.
            model_uri: A new model. Default: the one it has.
            flavor: As in ``create_deployment``; only with a ``model_uri``.
            config: The keys to change. None or an empty text puts a key back to its default.
            endpoint: Not supported.

        Returns:
            The deployment, as ``get_deployment`` describes it.

        Raises:
            InvalidRequestError: An argument is not what it must be.
            InvalidModelError: The new model cannot be read, or lacks the flavor.
            DeploymentError: There is no such deployment (``RESOURCE_DOES_NOT_EXIST``), or the new
                server did not start; then the deployment is what it was.
        """
        check_name(name, endpoint)
        changes = check_config(config)
        if flavor is not None and model_uri is None:
            raise InvalidRequestError(
                "A flavor can only be updated together with a model_uri.", param="flavor"
            )
        self._read(name)
        with self._store.lock(name):
            old = self._read(name)
            lifecycle.recover(self._store, name)
            merged = merge(old.recipe.config, changes)
            if model_uri is None:
                recipe = with_config(old.recipe, merged)
            else:
                recipe = make_recipe(model_uri, flavor, merged)
            return describe(lifecycle.swap(self._store, old, recipe))

    def delete_deployment(
        self,
        name: str,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> None:
        """Stop a deployment's server with all its processes, and remove its record and logs.

        That there is no such deployment is no error, as MLflow asks of its targets.

        Args:
            name: The deployment.
            config: Not supported.
            endpoint: Not supported.

        Raises:
            InvalidRequestError: An argument is not what it must be.
            DeploymentError: The server cannot be stopped; the record stays.
        """
        check_name(name, endpoint)
        if config:
            raise UnsupportedParameterError("delete takes no config.", param="config")
        with self._store.lock(name):
            lifecycle.recover(self._store, name)
            if record := self._store.read(name):
                lifecycle.halt(record)
            self._store.remove_all(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """All deployments of this user, sorted by name, as ``get_deployment`` describes them.

        One whose record is damaged has the status ``unreadable`` and the reason under ``error``.

        Args:
            endpoint: Not supported.

        Raises:
            InvalidRequestError: An endpoint was given.
        """
        refuse_endpoint(endpoint)
        deployments: list[dict[str, Any]] = []
        for name in self._store.names():
            try:
                if record := self._store.read(name):  # else it has gone meanwhile
                    deployments.append(describe(record))
            except DeploymentError as error:
                deployments.append({"name": name, "status": "unreadable", "error": str(error)})
        return deployments

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Describe one deployment.

        Args:
            name: The deployment.
            endpoint: Not supported.

        Returns:
            A dict with ``name``; ``status`` (``running``; ``starting``, which has not answered
            yet; ``unresponsive``, which has answered and does not now; ``dead``); ``model_uri``;
            ``flavor``; ``url``; ``host``; ``port``; ``pid``; ``config`` (the keys that were
            given); ``created`` and ``started`` (ISO 8601, UTC); and ``log``, a path.

        Raises:
            InvalidRequestError: An argument is not what it must be.
            DeploymentError: There is no such deployment (``RESOURCE_DOES_NOT_EXIST``).
        """
        check_name(name, endpoint)
        return describe(self._read(name))

    def predict(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> PredictionsResponse | dict[str, Any]:
        """Send inputs to a deployment.

        Args:
            deployment_name: The deployment.
            inputs: A request (a dict with ``messages``, ``prompt`` or ``input``) or a scoring
                payload (a dict with ``dataframe_split``, ``dataframe_records``, ``instances`` or
                ``inputs``), both sent as they are; a DataFrame with a request per row; a list of
                requests or of values; an array; a text. Of an endpoint: one request, a dict with
                ``messages`` or ``prompt``.
            endpoint: The deployment, in place of ``deployment_name``, to get OpenAI's object.

        Returns:
            The model's answers under the key ``predictions``; from an endpoint, the one answer.

        Raises:
            InvalidRequestError: An argument is not what it must be, or the server refused it.
            GenAIError: The server failed; the error has its message and error code.
            UnsupportedParameterError: The endpoint's server is MLflow's, which is none.
            DeploymentError: There is no such deployment (``RESOURCE_DOES_NOT_EXIST``), or its
                server is dead or gives no answer.
        """
        # It imports pandas, which no other command needs.
        from mlflow_phi3_onnx.deployments import payload

        record = self._running(deployment_name, endpoint)
        if endpoint is None:
            path, sent, read = server.PREDICT_PATH, payload.to_payload(inputs), payload.to_response
        else:
            check_speaks_openai(record.name, record.recipe)
            path = server.endpoint_path(record.name)
            sent, read = payload.to_request(inputs), payload.to_object
        try:
            status, body = server.score(
                record.address, json.dumps(sent).encode(), record.request_timeout, path
            )
        except OSError as error:
            raise no_answer(record, error) from None
        if status != 200:
            raise payload.to_error(status, body, sent, record.request_timeout)
        return read(body)

    def predict_stream(
        self,
        deployment_name: str | None = None,
        inputs: Any = None,
        endpoint: str | None = None,
    ) -> Generator[dict[str, Any]]:
        """Send a request to a deployment, and yield OpenAI's chunks as they come.

        The request is sent when the first chunk is asked for. Closing the generator stops it.

        Args:
            deployment_name: The deployment.
            inputs: One request, a dict with ``messages`` or ``prompt``.
            endpoint: The deployment, in place of ``deployment_name``.

        Raises:
            InvalidRequestError: An argument is not what it must be, or the server refused it.
            GenAIError: The server failed; the error has its message and error code.
            UnsupportedParameterError: The deployment's server is MLflow's, which cannot stream.
            DeploymentError: There is no such deployment (``RESOURCE_DOES_NOT_EXIST``), or its
                server is dead or gives no answer.
        """
        from mlflow_phi3_onnx.deployments import payload

        record = self._running(deployment_name, endpoint)
        check_speaks_openai(record.name, record.recipe)
        return self._chunks(record, payload.to_request(inputs, stream=True))

    def _chunks(self, record: Record, sent: dict[str, Any]) -> Generator[dict[str, Any]]:
        from mlflow_phi3_onnx.deployments.payload import to_error, to_object

        body, timeout = json.dumps(sent).encode(), record.request_timeout
        path = server.endpoint_path(record.name)
        try:
            with server.stream(record.address, body, timeout, path) as (status, told, events):
                if status != 200:
                    raise to_error(status, told, sent, timeout)
                for event in events:
                    yield to_object(event)
        except OSError as error:
            raise no_answer(record, error) from None

    def list_endpoints(self) -> list[dict[str, Any]]:
        """Describe the deployments that can be asked as endpoints, whether they run or not."""
        listed = [
            record for name in self._store.names() if (record := self._known(name)) is not None
        ]
        return [describe_endpoint(record) for record in listed if speaks_openai(record.recipe)]

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        """Describe a deployment as an endpoint: MLflow asks for it before it sends a request.

        Args:
            endpoint: The deployment.

        Returns:
            A dict, whose keys are attributes too, with ``name``; ``task`` and ``endpoint_type``
            (``llm/v1/chat`` or ``llm/v1/completions``); ``model``; ``endpoint_url``; and
            ``limit``, which is None.

        Raises:
            InvalidRequestError: The name cannot be a deployment's.
            UnsupportedParameterError: The deployment's server is MLflow's, which is no endpoint.
            DeploymentError: There is no such deployment (``RESOURCE_DOES_NOT_EXIST``).
        """
        check_name(endpoint, None)
        record = self._read(endpoint)
        check_speaks_openai(endpoint, record.recipe)
        return describe_endpoint(record)

    def _running(self, deployment_name: str | None, endpoint: str | None) -> Record:
        """The record of the deployment that is asked for, whose server runs."""
        record = self._read(one_name(deployment_name, endpoint))
        if not process.is_running(record.process):
            raise dead(record)
        return record

    def _known(self, name: str) -> Record | None:
        """The record of a deployment, or None where it cannot be read."""
        try:
            return self._store.read(name)
        except DeploymentError:
            return None

    def _read(self, name: str) -> Record:
        record = self._store.read(name)
        if record is None:
            names = ", ".join(self._store.names()) or "none"
            raise DeploymentError(
                f"There is no deployment {name!r}. Deployments that exist: {names}.",
                error_code="RESOURCE_DOES_NOT_EXIST",
            )
        return record


def run_local(
    name: str,
    model_uri: str,
    flavor: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Create a deployment and print where it listens.

    Deployments of this target are local anyway, so it can be managed like any other. Arguments
    and errors are those of ``OnnxGenAIDeploymentClient.create_deployment``.
    """
    client = OnnxGenAIDeploymentClient(TARGET)
    deployment = client.create_deployment(name, model_uri, flavor, config)
    print(f"Deployment {name} listens at {deployment['url']}{server.PREDICT_PATH}")
    print(f"Stop it with: mlflow deployments delete -t {TARGET} --name {name}")
