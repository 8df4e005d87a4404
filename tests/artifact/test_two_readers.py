"""onnxruntime-genai reads in genai_config.json what was checked, and nothing else."""

from __future__ import annotations

import importlib
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlflow_phi3_onnx import InvalidModelError
from mlflow_phi3_onnx.artifact.genai_config import CONFIG_FILE, read_config
from tests.support.mutations import mutate_json

_genai: Any = importlib.import_module("onnxruntime_genai")

pytestmark = pytest.mark.skipif(
    not hasattr(_genai.GeneratorParams, "get_search_options"),
    reason="this onnxruntime-genai does not tell what it has read",
)

INSERTED = (
    *(
        '"top_k": 7,',
        '"top_k": 1, "top_k": 2,',
        '"search": {"top_k": 3},',
        "/* x */",
        "// x\n",
        ",",
    ),
    *("}", "{", "\x00", "\ufeff", "\\u0041", " \t\r\n", "null", '"x": NaN,', "'top_k': 4,", "0"),
)
NUMBERS = (
    *("7", "-0", "007", "+7", "0x7", "7.0", "7.5", "7e0", "70E-1", ".7", "7.", "1e999", "NaN"),
    *("Infinity", "9007199254740993", "2147483648", "true", '"7"', "7_0", "1" + "0" * 400),
)


def changed(text: str, rng: random.Random) -> bytes:
    """Change the document: its values, or how it is written."""
    match rng.randrange(4):
        case 0:
            return mutate_json(text, rng)
        case 1:
            places = [match.start() for match in re.finditer(r'[{}",\n]', text)]
            place = rng.choice(places) + rng.randrange(2)
            return (text[:place] + rng.choice(INSERTED) + text[place:]).encode()
        case 2:
            return (text + rng.choice(("x", "{}", "\x00", "//", " \n", text))).encode()
        case _:
            numbers = list(re.finditer(r"-?\d+(\.\d+)?", text))
            number = rng.choice(numbers)
            return (text[: number.start()] + rng.choice(NUMBERS) + text[number.end() :]).encode()


def native(folder: Path) -> tuple[dict[str, Any], list[int]] | None:
    """What onnxruntime-genai has read, or None where it refuses."""
    try:
        model = _genai.Model(_genai.Config(str(folder)))
    except (RuntimeError, UnicodeDecodeError):
        return None
    search = _genai.GeneratorParams(model).get_search_options()
    return search, list(_genai.Tokenizer(model).eos_token_ids)


def compare(demo: Path, folder: Path, seeds: range) -> int:
    """Compare what both read of changed documents; return how many both take."""
    file = folder / CONFIG_FILE
    text = (demo / CONFIG_FILE).read_text("utf-8")
    both = 0
    for seed in seeds:
        content = changed(text, random.Random(seed))  # noqa: S311 - it picks changes
        file.write_bytes(content)
        try:
            ours = read_config(folder)
        except InvalidModelError:
            continue
        theirs = native(folder)
        if theirs is None:
            continue
        both += 1
        search, ends = theirs
        for name, value in ours.search.items():
            assert search[name] == pytest.approx(value), (seed, name, content)
        if "max_length" not in ours.search:
            assert search["max_length"] == ours.context_length, (seed, content)
        assert sorted(ends) == sorted(ours.eos_token_ids + ours.unknown_eos_ids), (seed, content)
    return both


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo model."""
    return Path(shutil.copytree(demo, tmp_path / "model"))


def test_what_both_take_is_the_same(demo: Path, folder: Path) -> None:
    assert compare(demo, folder, range(150)) > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_both_take_is_the_same_many_times(demo: Path, folder: Path) -> None:
    assert compare(demo, folder, range(1000, 6000)) > 300


@pytest.mark.parametrize(
    "written",
    ['"top_k": 50, "top_k": 7', '"top_k": 7 // 50', '"top_k": NaN', '"top_k": 1e999'],
)
def test_what_could_be_read_otherwise_is_refused(demo: Path, folder: Path, written: str) -> None:
    text = (demo / CONFIG_FILE).read_text("utf-8")
    (folder / CONFIG_FILE).write_text(text.replace('"top_k": 50', written))
    with pytest.raises(InvalidModelError, match=CONFIG_FILE):
        read_config(folder)
    (folder / CONFIG_FILE).write_text(text + "x")
    with pytest.raises(InvalidModelError, match=CONFIG_FILE):
        read_config(folder)
