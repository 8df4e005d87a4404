"""One server with the demo model, for all tests that do not change it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from openai import OpenAI

from tests.support.http_server import Running, make_certificate, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running() as served:
        yield served


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate for 127.0.0.1 and its key, as settings."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0) as one:
        yield one
