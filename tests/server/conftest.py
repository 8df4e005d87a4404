"""One server with the demo model, for all tests that do not change it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.http_server import Running, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running() as served:
        yield served
