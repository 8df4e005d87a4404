"""The documentation's Python runs in a notebook, too."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from tests.support.pages import PROGRAMS, ROOT, blocks, without_registry
from tests.support.spark import MARKS as NEEDS_SPARK

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

IN_A_NOTEBOOK = re.compile(r"^( *).+  # in a notebook: (.+)$", re.MULTILINE)


@pytest.mark.parametrize(
    "page",
    [*PROGRAMS, "docs/clouds.md", pytest.param("docs/spark.md", marks=NEEDS_SPARK)],
)
def test_a_page_runs_in_a_notebook_too(page: str, tmp_path: Path) -> None:
    """A cell for each block. An event loop is running there, in which ``asyncio.run`` fails."""
    new: Any = nbformat.v4
    cells = [
        new.new_code_cell(IN_A_NOTEBOOK.sub(r"\1\2", block))
        for block in blocks("python", (ROOT / page).read_text(encoding="utf-8"))
    ]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "page.ipynb")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "refresh_notebook.py"), "page.ipynb"],
        # The kernel of this interpreter, not another one of the user.
        env={
            **without_registry(),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
