"""No mutation of a folder's documents ends in anything but an answer or an error of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.worker import DOCUMENTS

ROOT = Path(__file__).parents[2]
MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "60"))
MEGABYTES = 1024
SECONDS_PER_CASE = 30
"""A bound on hanging, not on speed: on a quiet machine none takes five."""


def run(document: str, first: int, count: int, folder: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "tests/fuzz/worker.py", document, str(first), str(count), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = worker.communicate(timeout=60 + count * SECONDS_PER_CASE)
    except subprocess.TimeoutExpired:
        worker.kill()
        out, err = worker.communicate()
    lines = [json.loads(line) for line in out.splitlines()]
    ends = [line for line in lines if "ends" in line]
    assert worker.returncode == 0, f"{lines[-1:]}: {err[-2000:]}"
    assert [line["ends"] for line in ends] == list(range(first, first + count))
    assert [line for line in ends if line["outcome"].startswith("FOREIGN")] == []
    assert max(line["megabytes"] for line in ends) < MEGABYTES
    # The mutations do something, and not the same each time.
    assert len({line["outcome"] for line in ends}) > 1


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_mutations(document: str, tmp_path: Path) -> None:
    run(document, 0, MUTATIONS, tmp_path)
