"""What may be set of the server: one table for its flags, its checks and its documentation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import (
    Check,
    allows,
    boolean,
    integer,
    json_object,
    number,
    one_of,
    string,
)
from mlflow_phi3_onnx.core.options import Option, read, table
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor.serving import KEYS_VARIABLE
from mlflow_phi3_onnx.grammar.schema_bounds import MAX_CHARACTERS, MAX_DEPTH
from mlflow_phi3_onnx.openai.fields import MAX_BIASES, MAX_STOPS, MAX_TOOLS
from mlflow_phi3_onnx.openai.parameters import MAX_CHOICES
from mlflow_phi3_onnx.openai.prompts import MAX_MESSAGES
from mlflow_phi3_onnx.openai.responses_api.history import MAX_BYTES, MAX_RESPONSES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OPTIONS", "ServerSettings"]

"""Holds the server's keys, separated by blanks."""

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Checked settings of a server; the table describes each field."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: str | None = None
    open_metrics: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    lazy: bool = False
    idle_timeout: float | None = None
    model_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_running: int = 32
    max_queue: int = 128
    max_connections: int = 900
    timeout: float = 600.0
    grace_period: float = 30.0
    max_body_bytes: int = 4 * _MIB
    max_header_bytes: int = 16384
    receive_timeout: float = 30.0
    send_timeout: float = 30.0
    stream_buffer: int = 1024
    keepalive_interval: float = 15.0
    max_tokens: int | None = None
    max_messages: int = MAX_MESSAGES
    max_tools: int = MAX_TOOLS
    max_n: int = MAX_CHOICES
    max_stop: int = MAX_STOPS
    max_logit_bias: int = MAX_BIASES
    max_schema_chars: int = MAX_CHARACTERS
    max_schema_depth: int = MAX_DEPTH
    max_stored_responses: int = MAX_RESPONSES
    max_stored_bytes: int = MAX_BYTES
    log_level: str = "info"
    trace: bool = False
    trace_content: bool = False

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> ServerSettings:
        """Check settings, as texts or as what they are.

        Raises:
            InvalidRequestError: If one is not what it may be.
            UnsupportedParameterError: If one is not known.
        """
        settings = cls(**read(OPTIONS, values, "a setting of the server", shown=True))
        if (settings.tls_cert is None) != (settings.tls_key is None):
            raise InvalidRequestError(
                "tls_cert and tls_key belong together; give both, or none.", param="tls_key"
            )
        if settings.trace_content and not settings.trace:
            raise InvalidRequestError(
                "trace_content says what traces hold, so it needs trace. Give both, or none.",
                param="trace_content",
            )
        return settings


@allows("a string that is not blank")
def _text(value: Any) -> str:
    if not string(value).strip():
        raise ValueError
    return value.strip()


@allows("origins such as https://chat.example.com, separated by commas, or *")
def _origins(value: Any) -> tuple[str, ...]:
    origins = tuple(filter(None, (origin.strip() for origin in string(value).split(","))))
    if not origins or not all(o == "*" or o.startswith(("http://", "https://")) for o in origins):
        raise ValueError
    return origins


@allows("names or addresses without ports, separated by commas")
def _hosts(value: Any) -> tuple[str, ...]:
    hosts = tuple(filter(None, (host.strip().strip("[]") for host in string(value).split(","))))
    if not hosts or any("/" in host for host in hosts):
        raise ValueError
    return hosts


_DEFAULTS = {one.name: one.default for one in fields(ServerSettings)}


def _option(name: str, about: str, check: Check[Any], otherwise: str = "{}") -> Option:
    typed = check not in (_text, _origins, _hosts) and not check.choices
    default = _DEFAULTS[name] if isinstance(_DEFAULTS[name], int | float | str) else None
    return Option(name, about, check, default, otherwise, from_text=typed)


_seconds = partial(number, 0, above=True)
_file = partial(_option, check=_text)

OPTIONS = table(
    _option("host", "The address to listen on.", _text),
    _option("port", "The port to listen on; 0 takes a free one.", integer(0, 65535)),
    _file(
        "api_key_file",
        "A file of keys, one a line; a request must bring one of them. Lines that begin with # are"
        " left out.",
        otherwise=f"the keys in {KEYS_VARIABLE}, separated by blanks, if any",
    ),
    _option("open_metrics", "Whether /metrics can be read without a key.", boolean),
    _file("tls_cert", "A file with the certificate chain, in PEM form; makes it HTTPS."),
    _file("tls_key", "The file with its private key, in PEM form."),
    _option(
        "cors_origins",
        "The web sites whose pages may call the server from a browser.",
        _origins,
    ),
    _option(
        "allowed_hosts",
        "The names in the header Host that the server may be asked for by, against pages that have"
        " their own name point to it (DNS rebinding).",
        _hosts,
        "this machine's own on a loopback address without a key, else any",
    ),
    _option(
        "lazy",
        "Whether models are loaded when they are first asked for, and not before the start.",
        boolean,
    ),
    _option(
        "idle_timeout",
        "Seconds without a request after which a model is unloaded. The next request loads it.",
        _seconds(),
        "never",
    ),
    _option(
        "model_config",
        "Replaces values of every model's own model_config, by key.",
        json_object,
        "the models' own",
    ),
    _option(
        "max_running",
        "The most requests of one model that are worked on at once. How many sequences are computed"
        " together is model_config's max_batch_size.",
        integer(1, 4096),
    ),
    _option(
        "max_queue",
        "The most requests of one model that wait for that; the next is refused with 429.",
        integer(0, 1_000_000),
    ),
    _option(
        "max_connections",
        "The most connections that are open at once; a request on another is refused with 503. The"
        " system's limit of open files must be higher.",
        integer(1, 1_000_000),
    ),
    _option(
        "timeout",
        "Seconds after which a request is given up, its time in the queue included.",
        _seconds(),
    ),
    _option(
        "grace_period",
        "Seconds that running requests have to finish after SIGTERM; then they are cancelled.",
        number(0, 86400),
    ),
    _option("max_body_bytes", "The largest body of a request, in bytes.", integer(1024, bits=64)),
    _option(
        "max_header_bytes",
        "The most bytes of a request's first line and headers together.",
        integer(1024, _MIB),
    ),
    _option(
        "receive_timeout",
        "Seconds that a client may take to send its headers, and again for the body.",
        _seconds(),
    ),
    _option(
        "send_timeout",
        "Seconds without progress after which a client that does not read is cut off.",
        _seconds(),
    ),
    _option(
        "stream_buffer",
        "How many chunks of a stream are kept for a client that reads slowly; one that falls"
        " further behind is cut off.",
        integer(1, 1_000_000),
    ),
    _option(
        "keepalive_interval",
        "Seconds without a chunk after which a stream gets a comment, so that nothing in between"
        " takes it for dead.",
        _seconds(),
    ),
    _option(
        "max_tokens",
        "The most tokens of a completion. A request may ask for no more, and gets no more where it"
        " says nothing.",
        integer(1),
        "what the context holds",
    ),
    _option("max_messages", "The most messages of a request.", integer(1, MAX_MESSAGES)),
    _option("max_tools", "The most tools of a request.", integer(0, MAX_TOOLS)),
    _option("max_n", "The most completions of a prompt.", integer(1, MAX_CHOICES)),
    _option("max_stop", "The most stop sequences of a request.", integer(0, MAX_STOPS)),
    _option("max_logit_bias", "The most token ids in logit_bias.", integer(0, MAX_BIASES)),
    _option(
        "max_schema_chars",
        "The most characters of a JSON schema, in response_format or a tool.",
        integer(2, MAX_CHARACTERS),
    ),
    _option(
        "max_schema_depth", "The most levels of nesting in such a schema.", integer(1, MAX_DEPTH)
    ),
    _option(
        "max_stored_responses",
        "The most responses whose conversations are kept for previous_response_id; 0 keeps none.",
        integer(0, 1_000_000),
    ),
    _option(
        "max_stored_bytes",
        "The most bytes of JSON that they may have together.",
        integer(0, bits=64),
    ),
    _option(
        "log_level",
        "What the log tells: debug, info or warning; each request has a line at info.",
        one_of("debug", "info", "warning"),
    ),
    _option(
        "trace",
        "Whether each request is written as a trace to MLflow: its times, token counts and"
        " parameters, and nothing that it says. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say"
        " where to.",
        boolean,
    ),
    _option(
        "trace_content",
        "Whether traces hold what users write and the model answers too.",
        boolean,
    ),
)
"""The settings of the server, by name."""
