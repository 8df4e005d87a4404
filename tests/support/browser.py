"""A Chromium without a window, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["chromium"]

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium() -> Generator[Any]:
    """Run a browser; without the browser extra or a Chromium, the test is skipped.

    The variable CHROMIUM names the program, if it is not found by one of its usual names.
    """
    module = pytest.importorskip("playwright.sync_api", reason="needs the browser extra")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("there is no Chromium")
    with module.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program)
        yield found
        found.close()
