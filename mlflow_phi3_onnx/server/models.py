"""The models that are served: found by their ids, and by those of their adapters."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import describe_kind, some_of
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.server.errors import UnknownModelError
from mlflow_phi3_onnx.server.served import Served

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow_phi3_onnx.server.settings import ServerSettings

__all__ = ["Chosen", "Registry", "name_of", "places"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_URI_NAME = re.compile(r"models:/([^/@]+)")


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
        self.served = [Served(name, place, settings, len(places)) for name, place in places.items()]
        self._idle = settings.idle_timeout
        self._lazy = settings.lazy

    def open(self) -> None:
        """Load all models, one after the other; where they are lazy, only read and check them.

        Raises:
            mlflow.exceptions.MlflowException: If one cannot be loaded.
        """
        for served in self.served:
            if self._lazy:
                served.read().check()
            else:
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
