"""One model of the server: checked at the start, loaded once, unloaded when it is idle."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from mlflow_phi3_onnx.artifact.saved import MLMODEL_FILE, read_saved
from mlflow_phi3_onnx.demo import demo_model_path
from mlflow_phi3_onnx.engine.base import Health, Load
from mlflow_phi3_onnx.engine.options import ServingPolicy
from mlflow_phi3_onnx.errors import CancelledError, GenAIError
from mlflow_phi3_onnx.flavor.load import read_model
from mlflow_phi3_onnx.server.admission import Admission
from mlflow_phi3_onnx.server.errors import ModelUnavailableError
from mlflow_phi3_onnx.sources.local import EXPECTED_PLACES, local_copy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from pathlib import Path

    from mlflow_phi3_onnx.core.tasks import Task
    from mlflow_phi3_onnx.flavor.load import ReadModel
    from mlflow_phi3_onnx.model.native import GenAIModel
    from mlflow_phi3_onnx.server.record import Record
    from mlflow_phi3_onnx.server.settings import ServerSettings

__all__ = ["Served"]

_logger = logging.getLogger(__name__)

_LATER = 5.0
"""Seconds after the server has given a request up that its engine does, where it has not heard."""


class Served:
    """One model of the server.

    Args:
        name: Its id.
        place: Where it is; None for the demo model.
        settings: The server's.
        among: How many models the server has.

    Attributes:
        name: Its id.
        created: When the server took it, in seconds of Unix time.
        admission: Which of its requests are worked on.
        task: What it was saved for; None until it was read.
        context_length: Its context in tokens; None until it was read.
        adapters: The names of its adapters; none until it was read.
        pyfunc: Its settings of a pyfunc.
    """

    def __init__(self, name: str, place: str | None, settings: ServerSettings, among: int) -> None:
        self.name = name
        self.created = int(time.time())
        self.admission = Admission(settings.max_running, settings.max_queue)
        self.task: Task | None = None
        self.context_length: int | None = None
        self.adapters: tuple[str, ...] = ()
        self.pyfunc: Mapping[str, Any] = {}
        self._place = place
        self._config = settings.model_config
        self._most_tokens = settings.max_tokens
        self._policy = ServingPolicy(
            default_loop="auto",
            may_hold_gil=False,
            default_isolation="worker",
            # Requests are refused, and told how long to wait, while the engine is at work.
            niceness=10,
            # The server's own, which has more words, comes first.
            request_deadline=settings.timeout + _LATER,
            models=among,
        )
        self._files = ExitStack()
        self._path: Path | None = None  # of its files, once they are here
        self._loading: Future[GenAIModel] | None = None
        self._changing = threading.Lock()
        self._closed = False
        self._model: GenAIModel | None = None
        self._used = time.monotonic()
        self._deaths = 0  # of engines that were unloaded

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

    def read(self) -> ReadModel:
        """Bring its files here, unless they are, and read and check all but its weights.

        Raises:
            mlflow.exceptions.MlflowException: If there is nothing, or it cannot be loaded.
        """
        if self._path is None:
            place = demo_model_path() if self._place is None else self._place
            with ExitStack() as files:
                expected = f"{EXPECTED_PLACES}, or a model folder"
                self._path, _ = files.enter_context(local_copy(place, expected=expected))
                self._files = files.pop_all()
        found = read_model(self._path, self._settled(self._path))
        self.task, self.context_length = found.task, found.folder.context_length
        self.adapters, self.pyfunc = tuple(found.adapters), found.settings.pyfunc
        return found

    def open(self) -> GenAIModel:
        """Load it, which takes long.

        Raises:
            mlflow.exceptions.MlflowException: If it cannot be loaded.
        """
        if self._model is not None:
            return self._model
        try:
            model = self.read().open(self._policy).model
        except BaseException:
            self._let_go()()
            raise
        with self._changing:
            self._model = model
        if self._closed:
            self._let_go()()
            raise CancelledError("The model is closed.")
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
        """Wait until it is loaded, which goes on for others where a request leaves."""
        if self._model is not None:
            return self._model
        if self._loading is None or self._loading.done():
            self._loading = self._load()
        try:
            return await asyncio.wrap_future(self._loading)
        except MlflowException as error:
            raise ModelUnavailableError(
                f"The model {self.name} cannot be loaded; the server's log says why."
            ) from error

    def _load(self) -> Future[GenAIModel]:
        """Load it in a thread that the end of the process does not wait for."""
        loading: Future[GenAIModel] = Future()
        loading.set_running_or_notify_cancel()  # no waiter's cancellation cancels it

        def load() -> None:
            try:
                loading.set_result(self.open())
            except BaseException as error:  # noqa: BLE001 - whoever waits is told
                if isinstance(error, MlflowException) and not self._closed:
                    _logger.error("%s cannot be loaded: %s", self.name, _said(error))
                loading.set_exception(error)

        threading.Thread(target=load, name="onnx-genai-load", daemon=True).start()
        return loading

    async def unload_if_idle(self, seconds: float) -> None:
        """Free its memory where nobody has asked for so long."""
        idle = time.monotonic() - self._used
        if self._model is not None and not self.admission.running and idle >= seconds:
            _logger.info("%s is unloaded: nobody asked for %.0f s.", self.name, idle)
            await asyncio.to_thread(self._let_go())

    def close(self) -> None:
        """Stop what is running, and free its memory and its files.

        Where it is being loaded, that is done once it is.
        """
        with self._changing:
            self._closed = True
            loading = self._model is None and self._loading and not self._loading.done()
        if not loading:
            self._let_go()()

    def _let_go(self) -> Callable[[], None]:
        """Forget what is loaded at once, and return what frees it."""
        with self._changing:
            self._deaths = self.health.deaths
            model, self._model = self._model, None
            files, self._files, self._path = self._files, ExitStack(), None
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


def _said(error: MlflowException) -> str:
    """What an operator's log may say of an error at load, which no request's text is in."""
    return error.message if isinstance(error, GenAIError) else type(error).__name__
