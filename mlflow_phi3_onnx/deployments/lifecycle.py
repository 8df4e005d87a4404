"""Starting, watching and stopping the server of a deployment."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import socket
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlflow_phi3_onnx.deployments import process, server
from mlflow_phi3_onnx.deployments.arguments import setting
from mlflow_phi3_onnx.deployments.store import CURRENT, NEXT, OLD, Address, Record
from mlflow_phi3_onnx.errors import DeploymentError

if TYPE_CHECKING:
    import subprocess

    from mlflow_phi3_onnx.deployments.store import Recipe, Store

Status = Literal["running", "starting", "unresponsive", "dead"]

_POLL_S = 0.1
_SCRATCH_PREFIX = "mlflow-phi3-onnx-"


def status(record: Record) -> Status:
    """The state of a deployment's server, as ``get_deployment`` explains it."""
    if not process.is_running(record.process):
        return "dead"
    if server.is_healthy(record.address):
        return "running"
    return "unresponsive" if record.ready else "starting"


def launch(store: Store, name: str, recipe: Recipe, replaced: Record | None = None) -> Record:
    """Start a server, record it, and wait until it answers.

    Whatever ends the wait early, Ctrl-C too, also stops the server and removes its record. The
    log stays. The record of a server that replaces another is the deployment's next one. The
    caller holds the deployment's lock.

    Raises:
        DeploymentError: The address is taken, or the server ended or did not answer in time. The
            message has the end of its log.
    """
    slot = NEXT if replaced else CURRENT
    address = _choose_address(recipe)
    marker = uuid.uuid4().hex
    log = store.new_log(name, marker)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX))
    try:
        identity, child = process.start(
            server.command(recipe, address, name),
            env=server.environment(recipe, scratch),
            cwd=Path(recipe.cwd),
            log=log,
            marker=marker,
        )
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise DeploymentError(
            f"The server of deployment {name!r} cannot be started: {error}."
        ) from None
    started = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    record = Record(
        name=name,
        recipe=recipe,
        address=address,
        process=identity,
        marker=marker,
        log=str(log),
        scratch=str(scratch),
        request_timeout=server.request_timeout(recipe.config),
        created=replaced.created if replaced else started,
        started=started,
        ready=False,
    )
    try:
        store.write(record, slot)
        _wait(record, child)
        record = replace(record, ready=True)
        store.write(record, slot)
    except BaseException:
        halt(record)
        store.remove(name, slot)
        raise
    return record


def halt(record: Record) -> None:
    """Stop a deployment's server, if it still runs, and its children; remove its temporary files.

    Raises:
        DeploymentError: The system does not let us stop it.
    """
    left = process.stop(record.process, record.marker)
    if left:
        raise DeploymentError(
            f"Deployment {record.name!r} still has processes that cannot be stopped: "
            f"{', '.join(map(str, left))}. Do they belong to another user?"
        )
    if Path(record.scratch).name.startswith(_SCRATCH_PREFIX):
        shutil.rmtree(record.scratch, ignore_errors=True)


def recover(store: Store, name: str) -> None:
    """Clear away what a command that was killed while it updated the deployment left behind.

    The caller holds the deployment's lock.
    """
    current = store.read(name)
    for slot in (NEXT, OLD):
        if spare := store.read(name, slot):
            if current is None or spare.marker != current.marker:
                halt(spare)
            store.remove(name, slot)


def swap(store: Store, old: Record, recipe: Recipe) -> Record:
    """Replace a deployment's server by one that serves a new recipe.

    The old server goes when the new one answers. Where both need the same port, it goes before,
    and is started again if the new one fails. The caller holds the deployment's lock.

    Raises:
        DeploymentError: The new server did not start; the deployment is what it was.
    """
    in_place = recipe.config.get("port") == old.address.port
    was_running = process.is_running(old.process)
    if in_place:
        halt(old)
    try:
        new = launch(store, old.name, recipe, old)
    except BaseException as error:
        if in_place and was_running:
            _restore(store, old, error)
        raise
    _promote(store, old, new)
    return new


def _restore(store: Store, old: Record, error: BaseException) -> None:
    """Start the server again that had to go for one that failed."""
    recipe = replace(old.recipe, config={**old.recipe.config, "port": old.address.port})
    try:
        again = launch(store, old.name, recipe, old)
    except DeploymentError as second:
        raise DeploymentError(
            f"{error} The server before it could not be started again either, so deployment "
            f"{old.name!r} is dead: {second}"
        ) from error
    _promote(store, old, replace(again, recipe=old.recipe))


def _promote(store: Store, old: Record, new: Record) -> None:
    """Make the record of a next server the deployment's own, and end the old server.

    At any moment the records on disk name every server that may run.
    """
    store.write(old, OLD)
    store.write(new)
    recover(store, new.name)
    store.remove_logs(new.name, keep=new.log)


def _choose_address(recipe: Recipe) -> Address:
    """The address that a config asks for, with a free port where it asks for none."""
    host, port = (setting(recipe.config, name) for name in ("host", "port"))
    try:
        return Address(host, _bindable(host, port or 0))
    except OSError as error:
        place = f"host {host!r}" if port is None else f"port {port} of host {host!r}"
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise DeploymentError(
            f"A server cannot listen on {place}: {reason}. The deployment config's 'host' and "
            "'port' choose another."
        ) from None


def _bindable(host: str, port: int) -> int:
    """The port, or a free one for 0, if a server could listen there now; else an OSError."""
    family, kind, protocol, _, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do, so that a port whose last server has just ended counts as free. On
        # Windows the option would let two servers share a port.
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(place)
        return int(probe.getsockname()[1])


def _wait(record: Record, child: subprocess.Popen[bytes]) -> None:
    """Wait until the server of a record answers."""
    patience: float = setting(record.recipe.config, "startup_timeout")
    deadline = time.monotonic() + patience
    # Another server may have taken the port between our look at it and the server's: then its
    # answers are not ours.
    while not (
        server.is_healthy(record.address)
        and process.is_listening(record.process, record.marker, record.address.port)
    ):
        code = child.poll()
        if code is not None:
            raise _failure(record, f"ended with exit code {code} before it answered")
        if time.monotonic() > deadline:
            raise _failure(
                record,
                f"did not answer within {patience:g} s (the deployment config's 'startup_timeout')",
            )
        time.sleep(_POLL_S)


def _failure(record: Record, what: str) -> DeploymentError:
    end = server.explain(Path(record.log))
    return DeploymentError(
        f"The server of deployment {record.name!r} {what}. Its log is {record.log}"
        + (f"; at its end:\n{end}" if end else ", and it is empty.")
    )
