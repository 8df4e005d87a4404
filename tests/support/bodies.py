"""Bodies of HTTP requests as MLflow's server reads them, without a server."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mlflow.pyfunc import scoring_server

__all__ = ["Parsed", "parsed", "posted"]


class Parsed(NamedTuple):
    """What MLflow's server passes to a pyfunc."""

    data: Any
    params: dict[str, Any] | None


def parsed(pyfunc: Any, body: dict[str, Any]) -> Parsed:
    """Read a body as MLflow's server does."""
    schema = pyfunc.metadata.get_input_schema()
    # Its server has no public function for this, and a process of its own for each case is slow.
    read = scoring_server._parse_json_data  # pyright: ignore[reportPrivateUsage]
    found = read(json.dumps(body), pyfunc.metadata, schema)
    return Parsed(found.data, found.params)


def posted(pyfunc: Any, body: dict[str, Any]) -> Any:
    """Predict what MLflow's server makes of a body."""
    data, params = parsed(pyfunc, body)
    return pyfunc.predict(data, params=params)
