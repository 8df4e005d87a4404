"""The records of deployments: one folder and one JSON file for each, private to the user.

::

    <folder>/<name>/record.json     the deployment as it is
    <folder>/<name>/next.json       its next server, while an update starts it
    <folder>/<name>/old.json        its last server, while an update stops it
    <folder>/<name>/<start>.log     what a server wrote
    <folder>/.<name>.lock           held while a command changes the deployment
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlflow_phi3_onnx.deployments.process import ProcessId
from mlflow_phi3_onnx.errors import DeploymentError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Generator

    from mlflow_phi3_onnx.core.tasks import Task

FOLDER_VARIABLE = "MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR"
CURRENT = "record"
NEXT = "next"
OLD = "old"

_VERSION = 1
_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - these are read, not bound


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: A name or an IP address; ``0.0.0.0`` and ``::`` mean every network.
        port: 1 to 65535.
    """

    host: str
    port: int

    @property
    def url(self) -> str:
        """The URL that this machine reaches the server by, without a slash at its end."""
        host = _WILDCARDS.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Recipe:
    """What to serve and how: all that a start of the server needs, now or later.

    Attributes:
        model_uri: The model, as the user named it.
        flavor: The flavor to serve it by.
        config: The config keys that were given, checked.
        cwd: The folder of the command that named the model. Relative paths, in the model's URI as
            in a tracking URI, mean what they meant there.
        tracking_uri: Where that command tracked. It may hold a password: never shown.
        registry_uri: Where that command looked for registered models. Never shown either.
        task: The task of a model of this package; empty for others.
    """

    model_uri: str
    flavor: str
    config: dict[str, Any]
    cwd: str
    tracking_uri: str
    registry_uri: str
    task: Task | Literal[""] = ""


@dataclass(frozen=True)
class Record:
    """One deployment and its server process.

    Attributes:
        name: The name of the deployment.
        recipe: What is served.
        address: Where.
        process: The server process.
        marker: What marks the process and its descendants; a new one for every start.
        log: The file that the server writes to.
        scratch: The server's folder for temporary files, gone when the server is.
        request_timeout: Seconds after which the server gives a request up.
        created: When the deployment was created, ISO 8601 in UTC.
        started: When this server was started, ISO 8601 in UTC.
        ready: Whether the server has been seen to answer.
    """

    name: str
    recipe: Recipe
    address: Address
    process: ProcessId
    marker: str
    log: str
    scratch: str
    request_timeout: int
    created: str
    started: str
    ready: bool


class Store:
    """The folder of all records.

    The environment variable ``MLFLOW_PHI3_ONNX_DEPLOYMENTS_DIR`` names it; else it is in the user's
    folder for state.
    """

    def __init__(self) -> None:
        self.folder = _folder().absolute()

    def names(self) -> list[str]:
        """The names of all deployments, sorted."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{CURRENT}.json"))

    def read(self, name: str, slot: str = CURRENT) -> Record | None:
        """Read a record, or None where there is none.

        Raises:
            DeploymentError: The record is damaged, or another version of this package wrote it.
        """
        path = self._path(name, slot)
        try:
            return _from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise DeploymentError(
                f"The record of deployment {name!r} cannot be read ({type(error).__name__}): it "
                "is damaged, or another version of this package wrote it. If its server runs, "
                f"stop it by hand; then remove the folder {path.parent}."
            ) from None

    def write(self, record: Record, slot: str = CURRENT) -> None:
        """Write a record at once: a reader sees the one before or this one, never a part.

        The caller holds the lock.
        """
        path = self._path(record.name, slot)
        temporary = path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"version": _VERSION, **asdict(record)}, file, indent=2)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # still there if something failed

    def remove(self, name: str, slot: str) -> None:
        """Remove one record, if it is there."""
        self._path(name, slot).unlink(missing_ok=True)

    def remove_all(self, name: str) -> None:
        """Remove the deployment's folder: records and logs."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def remove_logs(self, name: str, keep: str = "") -> None:
        """Remove the logs of servers that were, except the one at a path."""
        for path in (self.folder / name).glob("*.log"):
            if path != Path(keep):
                path.unlink(missing_ok=True)

    def new_log(self, name: str, marker: str) -> Path:
        """The path of a log for a server that is about to start, in a folder that exists."""
        _make_private(self.folder / name)
        return self.folder / name / f"{marker}.log"

    @contextlib.contextmanager
    def lock(self, name: str) -> Generator[None]:
        """Keep other commands from changing a deployment meanwhile.

        The system gives the lock back when the command dies, so none is ever left behind.

        Raises:
            DeploymentError: Another command holds it.
        """
        _make_private(self.folder)
        path = self.folder / f".{name}.lock"
        while True:
            # The lock ends when the file is closed.
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)) as file:
                if not _try_lock(file.fileno()):
                    raise DeploymentError(
                        f"Another command is changing deployment {name!r} at this moment: try "
                        "again when it has ended.",
                        error_code="RESOURCE_CONFLICT",
                    )
                # Its last owner may have removed it meanwhile; a lock on it would be none.
                if not _is_at(path, file.fileno()):
                    continue
                try:
                    yield
                finally:
                    # Removed while it is held: whoever waits for this file sees that it is gone.
                    with contextlib.suppress(OSError):
                        path.unlink()
                return

    def _path(self, name: str, slot: str) -> Path:
        return self.folder / name / f"{slot}.json"


def _folder() -> Path:
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given)
    if os.name == "nt":
        state = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mlflow-phi3-onnx" / "deployments"


def _make_private(folder: Path) -> None:
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DeploymentError(
            f"The folder {folder} for the state of deployments cannot be made: {error.strerror}. "
            f"{FOLDER_VARIABLE} names another."
        ) from None


def _from_json(document: dict[str, Any]) -> Record:
    fields = dict(document)
    if fields.pop("version") != _VERSION:
        raise ValueError("version")
    fields["recipe"] = Recipe(**fields["recipe"])
    fields["address"] = Address(**fields["address"])
    fields["process"] = ProcessId(**fields["process"])
    return Record(**fields)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second is how Windows says "held"
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
