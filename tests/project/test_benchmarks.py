"""The benchmarks' own parts: their models are what they say, and every measure runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.__main__ import main
from benchmarks.measures import MEASURES
from benchmarks.measures.servers import LLAMA_SERVER
from benchmarks.models import VOCABULARY, can_build, model_folder
from benchmarks.report import DOCS, PAGES, page, published, rows, table
from benchmarks.results import TARGETS
from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

needs_builder = pytest.mark.skipif(
    not can_build(), reason="building a model needs the export extra"
)


@pytest.fixture(scope="module", params=["tiny-fp32", "tiny-int4"])
def tiny(request: pytest.FixtureRequest) -> Path:
    return model_folder(request.param)


@pytest.mark.export
@needs_builder
def test_answers_of_built_models_are_as_long_as_asked(tiny: Path, loop: str) -> None:
    with GenAIModel(tiny, model_config={"loop": loop}) as model:
        assert model.limits.vocab_size == VOCABULARY
        sampled: dict[str, Any] = {"temperature": 1.0, "seed": 1}
        for options in ({}, sampled):
            choice = model.complete("The capital of Spain is", max_tokens=200, **options)
            assert choice["usage"]["completion_tokens"] == 200
            assert len(set(choice["choices"][0]["text"].split())) > 20


@pytest.mark.export
@needs_builder
def test_prompts_of_built_models_are_those_of_the_demo_model(tiny: Path, demo: Path) -> None:
    wide, narrow = PromptTokenizer(tiny), PromptTokenizer(demo)
    for text in ("The capital of Spain is Madrid.", "¿Qué? 你好 😀"):
        ids = wide.encode(text).tolist()
        assert ids == narrow.encode(text).tolist()
        assert wide.decode(ids) == narrow.decode(ids)
    assert wide.encode("<|end|>").tolist() == [VOCABULARY - 9]


SERVERS = ("clients", "ping", "overload", "served-token", "served-clients")

# Servers take longer to start than all the rest, and building takes the export extra.
SLOW = {*SERVERS, "servers", "transformers", "conversion", "llama"}


def check(folder: Path, names: Sequence[str]) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert list(report["measures"]) == [name for name in MEASURES if name in names]
    assert report["environment"]["packages"]["onnxruntime-genai"]
    assert (folder / "report.svg").stat().st_size > 1000
    lines = list(rows(report))
    assert len(table(report).splitlines()) == 2 + len(lines)
    for row in lines:
        target = TARGETS[row["target"]]
        assert row["met"] == target.met(row["figure"]["median"])
        assert row["figure"]["low"] <= row["figure"]["median"] <= row["figure"]["high"]
        assert all(row[side]["samples"] for side in ("ours", "reference"))
        assert row["ours"]["median"] != row["reference"]["median"]


@pytest.mark.export
@needs_builder
def test_every_measure_in_one_process_runs(tmp_path: Path) -> None:
    names = [name for name in MEASURES if name not in SLOW]
    assert main(["--quick", "--results", str(tmp_path), "--only", *names]) == 0
    check(tmp_path, names)


def test_what_is_measured_is_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--results", str(tmp_path), "--only", "processor"]
    main(arguments)
    before = (tmp_path / "processor.json").read_bytes()
    main(arguments)
    assert (tmp_path / "processor.json").read_bytes() == before
    assert "is there already" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["measures"]["processor"]


@pytest.mark.export
@needs_builder
def test_a_server_is_measured_from_another_process(tmp_path: Path) -> None:
    assert main(["--quick", "--results", str(tmp_path), "--only", *SERVERS]) == 0
    check(tmp_path, SERVERS)


@pytest.mark.export
@needs_builder
def test_servers_that_are_not_here_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LLAMA_SERVER, raising=False)
    assert main(["--quick", "--results", str(tmp_path), "--only", "servers"]) == 0
    shown = capsys.readouterr().out
    assert "is left out" in shown
    assert "tokens/s, clients: 8" in shown
    (ours, *_) = json.loads((tmp_path / "servers.json").read_text(encoding="utf-8"))["rows"]
    assert ours["program"] == "this package, tiny-int4"
    assert {what: len(samples) for what, samples in ours["samples"].items()} == dict.fromkeys(
        ("tokens/s 1", "first 1", "tokens/s 8", "first 8"), 1
    )


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_show_the_published_figures(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == page(written, published()), "run python -m benchmarks.report"
