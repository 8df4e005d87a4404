"""What the server refuses by itself: errors with HTTP statuses that no model gives."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

from mlflow_phi3_onnx.errors import CancelledError, GenAIError, retry_header

__all__ = [
    "BadMethodError",
    "BodyTooLargeError",
    "ClientGoneError",
    "DrainingError",
    "HeadersTooLargeError",
    "HostError",
    "InvalidHTTPError",
    "MediaTypeError",
    "ModelUnavailableError",
    "NoRouteError",
    "QueueFullError",
    "ServerError",
    "SlowBodyError",
    "SlowClientError",
    "TooManyConnectionsError",
    "UnauthorizedError",
    "UnknownModelError",
    "as_server_error",
]


class ServerError(GenAIError):
    """An error of the server's own."""

    http_status: ClassVar[int] = 500
    openai_type = "invalid_request_error"

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.http_status


class InvalidHTTPError(ServerError):
    """What is no request, or could be read as two: nothing after it can be trusted."""

    http_status = 400
    headers = MappingProxyType({"Connection": "close"})


class UnauthorizedError(ServerError):
    """A request without a key that is known."""

    http_status = 401
    openai_type = "authentication_error"
    openai_code = "invalid_api_key"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class HostError(ServerError):
    """A request for another server, as from a page whose name was made to point here."""

    http_status = 403
    openai_code = "host_not_allowed"


class NoRouteError(ServerError):
    """A path that nothing is at."""

    http_status = 404
    openai_code = "unknown_url"


class UnknownModelError(ServerError):
    """A model that is not served."""

    http_status = 404
    openai_code = "model_not_found"


class BadMethodError(ServerError):
    """A method that a path does not take."""

    http_status = 405
    openai_code = "method_not_allowed"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        if allowed:
            self.headers = {"Allow": allowed}


class SlowBodyError(ServerError):
    """A body that did not come in time."""

    http_status = 408
    openai_code = "request_timeout"


class BodyTooLargeError(ServerError):
    """A body that is larger than the server takes."""

    http_status = 413
    openai_code = "request_too_large"


class MediaTypeError(ServerError):
    """A body of a kind that the server does not read."""

    http_status = 415
    openai_code = "unsupported_media_type"


class HeadersTooLargeError(ServerError):
    """Headers that are larger than the server takes."""

    http_status = 431
    openai_code = "headers_too_large"
    headers = MappingProxyType({"Connection": "close"})


class QueueFullError(ServerError):
    """More requests than are worked on and may wait."""

    http_status = 429
    openai_type = "rate_limit_error"
    openai_code = "queue_full"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.headers = retry_header(retry_after)


class TooManyConnectionsError(ServerError):
    """A request on a connection beyond those that the server has room for."""

    http_status = 503
    openai_type = "server_error"
    openai_code = "too_many_connections"
    headers = MappingProxyType({"Retry-After": "1", "Connection": "close"})


class DrainingError(ServerError):
    """A server that is about to end."""

    http_status = 503
    openai_type = "server_error"
    openai_code = "shutting_down"
    headers = MappingProxyType({"Retry-After": "5", "Connection": "close"})


class ModelUnavailableError(ServerError):
    """A model that could not be loaded, or whose engine has died.

    Args:
        message: Which.
        retry_after: Seconds after which it is tried again, where that is known.
    """

    http_status = 503
    openai_type = "server_error"
    openai_code = "model_unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.headers = retry_header(retry_after)


class ClientGoneError(CancelledError):
    """A client that has closed its connection: nobody reads the response."""


class SlowClientError(ClientGoneError):
    """A client that does not read what it asked for."""


def as_server_error(error: BaseException) -> GenAIError:
    """Turn any error into one whose message may be shown to a client."""
    if isinstance(error, GenAIError):
        return error
    return GenAIError(
        f"The server failed ({type(error).__name__}). Its log has the place, with the request's id."
    )
