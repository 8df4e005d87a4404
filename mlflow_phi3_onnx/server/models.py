"""The models that are served: found by their ids, loaded once, unloaded when nobody asks."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from mlflow_phi3_onnx.artifact.saved import MLMODEL_FILE, read_saved
from mlflow_phi3_onnx.core.checks import describe_kind, some_of
from mlflow_phi3_onnx.demo import demo_model_path
from mlflow_phi3_onnx.engine.base import Health, Load
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.errors import GenAIError, InvalidRequestError
from mlflow_phi3_onnx.flavor.load import open_model
from mlflow_phi3_onnx.server.admission import Admission
from mlflow_phi3_onnx.server.errors import ModelUnavailableError, UnknownModelError
from mlflow_phi3_onnx.sources.local import EXPECTED_PLACES, local_copy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from mlflow_phi3_onnx.core.tasks import Task
    from mlflow_phi3_onnx.model.native import GenAIModel
    from mlflow_phi3_onnx.server.record import Record
    from mlflow_phi3_onnx.server.settings import ServerSettings

__all__ = ["Chosen", "Registry", "Served", "name_of", "places"]

_logger = logging.getLogger(__name__)

_LATER = 5.0
"""Seconds after the server has given a request up that its engine does, where it has not heard."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_URI_NAME = re.compile(r"models:/([^/@]+)")


class Served:
    """One model of the server.

    Args:
        name: Its id.
        place: Where it is; None for the demo model.
        settings: The server's.

    Attributes:
        name: Its id.
        created: When the server took it, in seconds of Unix time.
        admission: Which of its requests are worked on.
    """

    def __init__(self, name: str, place: str | None, settings: ServerSettings) -> None:
        self.name = name
        self.created = int(time.time())
        self.admission = Admission(settings.max_running, settings.max_queue)
        self._place = place
        self._config = settings.model_config
        self._most_tokens = settings.max_tokens
        self._longest = settings.timeout
        self._files = ExitStack()
        self._loading = asyncio.Lock()
        self._model: GenAIModel | None = None
        self._task: Task | None = None
        self._known: tuple[int, tuple[str, ...]] | None = None
        self._used = time.monotonic()
        self._deaths = 0  # of engines that were unloaded
        self.pyfunc: Mapping[str, Any] = {}

    @property
    def loaded(self) -> bool:
        """Whether it is in memory."""
        return self._model is not None

    @property
    def load(self) -> Load:
        """What its engine has to do."""
        return Load() if self._model is None else self._model.load

    @property
    def health(self) -> Health:
        """How its engine is, with the deaths of those that it had before."""
        now = Health() if self._model is None else self._model.health
        return Health(self._deaths + now.deaths, now.dead)

    @property
    def task(self) -> Task | None:
        """What it was saved for; None until it was loaded."""
        return self._task

    @property
    def context_length(self) -> int | None:
        """Its context in tokens; None until it was loaded."""
        return self._known and self._known[0]

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of its adapters; none until it was loaded."""
        return self._known[1] if self._known else ()

    def open(self) -> GenAIModel:
        """Load it, which takes long.

        Raises:
            mlflow.exceptions.MlflowException: If it cannot be loaded.
        """
        if self._model is not None:
            return self._model
        place = demo_model_path() if self._place is None else self._place
        expected = f"{EXPECTED_PLACES}, or a model folder"
        with ExitStack() as files:
            path, _ = files.enter_context(local_copy(place, expected=expected))
            policy = ServingPolicy(
                default_loop="auto",
                may_hold_gil=False,
                default_isolation="worker",
                # Requests are refused, and told how long to wait, while the engine is at work.
                niceness=10,
                # The server's own, which has more words, comes first.
                request_deadline=self._longest + _LATER,
            )
            opened = open_model(path, self._settled(path), policy)
            self._files = files.pop_all()
        model = opened.model
        self._known = (model.limits.context_length, model.adapters)
        self._model, self._task = model, opened.task
        self.pyfunc = opened.settings.pyfunc
        return model

    @asynccontextmanager
    async def use(self, record: Record) -> AsyncGenerator[GenAIModel]:
        """Wait for a place and for the model, and hold both.

        Raises:
            QueueFullError: If too many wait already.
            ModelUnavailableError: If the model cannot be loaded.
        """
        async with self.admission.place():
            record.queued = record.seconds
            try:
                yield await self._opened()
            finally:
                self._used = time.monotonic()

    async def _opened(self) -> GenAIModel:
        if self._model is not None:
            return self._model
        async with self._loading:
            # A request that goes away does not stop the loading, which others may wait for.
            work = asyncio.ensure_future(asyncio.to_thread(self.open))
            try:
                return await asyncio.shield(work)
            except MlflowException as error:
                _logger.error("%s cannot be loaded: %s", self.name, _said(error))
                raise ModelUnavailableError(
                    f"The model {self.name} cannot be loaded; the server's log says why."
                ) from error
            except asyncio.CancelledError:
                await asyncio.wait({work})
                raise

    async def unload_if_idle(self, seconds: float) -> None:
        """Free its memory where nobody has asked for so long."""
        idle = time.monotonic() - self._used
        if self._model is not None and not self.admission.running and idle >= seconds:
            _logger.info("%s is unloaded: nobody asked for %.0f s.", self.name, idle)
            await asyncio.to_thread(self._let_go())

    def close(self) -> None:
        """Stop what is running, and free its memory and its files."""
        self._let_go()()

    def _let_go(self) -> Callable[[], None]:
        """Forget what is loaded at once, and return what frees it."""
        self._deaths = self.health.deaths
        model, self._model = self._model, None
        files, self._files = self._files, ExitStack()
        if model is not None:
            files.callback(model.close)
        return files.close

    def _settled(self, path: Path) -> dict[str, Any]:
        """Settle the configuration: completions get no more tokens than the server allows."""
        config = dict(self._config)
        if self._most_tokens is None:
            return config
        saved = read_saved(path).config if (path / MLMODEL_FILE).is_file() else {}
        given = {**saved, **config}
        newer = given.get("max_completion_tokens") is not None
        name = "max_completion_tokens" if newer else "max_tokens"
        config[name] = min(given.get(name) or self._most_tokens, self._most_tokens)
        return config


class Chosen:
    """What a request chose: a model, and maybe one of its adapters.

    Attributes:
        served: The model.
        fields: The request's fields without ``model``.
    """

    def __init__(self, registry: Registry, served: Served, fields: dict[str, Any]) -> None:
        self.served = served
        self.fields = fields
        adapter = fields.get("adapter")
        known = isinstance(adapter, str) and adapter in served.adapters
        self.id = registry.id_of(served, adapter if known else None)


class Registry:
    """All models of a server; the first is the one of requests that name none.

    Args:
        places: Where each is, by its id.
        settings: The server's.

    Attributes:
        served: The models, in order.

    Raises:
        InvalidRequestError: If there is none, or an id is none.
    """

    def __init__(self, places: Mapping[str, str | None], settings: ServerSettings) -> None:
        for name in places:
            if not _NAME.fullmatch(name):
                raise InvalidRequestError(
                    f"name: {name!r} cannot be a model's id. It must be 1 to 128 letters, digits,"
                    " dots, hyphens, underscores, colons and slashes, and begin with a letter or"
                    " digit.",
                    param="name",
                )
        self.served = [Served(name, place, settings) for name, place in places.items()]
        self._idle = settings.idle_timeout

    def open(self) -> None:
        """Load all models, one after the other."""
        for served in self.served:
            served.open()

    def close(self) -> None:
        """Stop what is running, and free all memory."""
        for served in self.served:
            served.close()

    def check_room(self) -> None:
        """Check that some model takes a request; which it asks for, only its body says.

        Raises:
            QueueFullError: If all of them have as many as they take.
        """
        if all(served.admission.full for served in self.served):
            self.served[0].admission.check()

    async def watch(self) -> None:
        """Unload models that nobody asks for, for as long as the server runs."""
        while self._idle is not None:
            await asyncio.sleep(min(self._idle / 4, 10))
            for served in self.served:
                await served.unload_if_idle(self._idle)

    def ids(self) -> dict[str, tuple[Served, str | None]]:
        """Return each model and adapter by its id.

        An adapter's id is its name, or ``model:adapter`` where something else has that name.
        """
        found: dict[str, tuple[Served, str | None]] = {
            served.name: (served, None) for served in self.served
        }
        for served in self.served:
            for adapter in served.adapters:
                name = adapter if adapter not in found else f"{served.name}:{adapter}"
                found.setdefault(name, (served, adapter))
        return found

    def id_of(self, served: Served, adapter: str | None) -> str:
        """Return the id of a model, or of one of its adapters."""
        return next(name for name, one in self.ids().items() if one == (served, adapter))

    def named(self, name: str) -> tuple[Served, str | None]:
        """Return the model of an id, and the adapter where it is the id of one.

        Raises:
            UnknownModelError: If there is none.
        """
        ids = self.ids()
        if name not in ids:
            raise UnknownModelError(
                f"There is no such model here. There are: {some_of(list(ids))}.", param="model"
            )
        return ids[name]

    def choose(self, fields: Mapping[str, Any], name: str | None = None) -> Chosen:
        """Find the model that a request asks for.

        Args:
            fields: The request's fields.
            name: The model, where the path says it.

        Raises:
            UnknownModelError: If there is none.
            InvalidRequestError: If ``model`` is no string, or names another adapter than
                ``adapter``.
        """
        rest = {field: value for field, value in fields.items() if field != "model"}
        wanted = fields.get("model")
        if not isinstance(wanted, str | None):
            raise InvalidRequestError(
                f"model must be a string; got {describe_kind(wanted)}.", param="model"
            )
        served, adapter = self.named(self.served[0].name if wanted is None else wanted)
        if name is not None:
            served, adapter = self.named(name)
        if adapter is not None:
            if rest.get("adapter") not in (None, adapter):
                raise InvalidRequestError(
                    "model is the id of an adapter, and adapter names another one. Give one of"
                    " them.",
                    param="adapter",
                )
            rest["adapter"] = adapter
        return Chosen(self, served, rest)


def name_of(place: str | None) -> str:
    """Make the id of a model of where it is."""
    if place is None:
        return "demo"
    if found := _URI_NAME.match(place):
        return re.sub(r"[^A-Za-z0-9._-]", "-", found[1]).lstrip("._-") or "model"
    last = re.split(r"[/\\]", place.rstrip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-")[:128] or "model"


def places(model: str | None, name: str | None, others: Sequence[str]) -> dict[str, str | None]:
    """Put together where each model is, by its id.

    Args:
        model: Where the first is; None for the demo model.
        name: Its id; None for one that is made of where it is.
        others: The others, each as ``id=place``.

    Raises:
        InvalidRequestError: If one has no id or no place, or two have the same id.
    """
    found: dict[str, str | None] = {name or name_of(model): model}
    for other in others:
        key, sign, place = other.partition("=")
        if not (key and sign and place):
            raise InvalidRequestError(
                "-m takes a model's id and its place, as in -m other=models:/name/1.", param="m"
            )
        if key in found:
            raise InvalidRequestError(f"Two models have the id {key!r}.", param="m")
        found[key] = place
    return found


def _said(error: MlflowException) -> str:
    """What an operator's log may say of an error at load, which no request's text is in."""
    return error.message if isinstance(error, GenAIError) else type(error).__name__
