"""A load test as a whole, through the command: its table, its files, its run, and its refusals."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from jsonschema import validate
from mlflow import MlflowClient
from mlflow.artifacts import load_dict, load_image, load_text

import mlflow_phi3_onnx
from benchmarks.models import MODELS, can_build, checkpoint_folder
from mlflow_phi3_onnx.cli.main import main
from mlflow_phi3_onnx.evaluation.load.exchange import Summary
from mlflow_phi3_onnx.evaluation.load.plan import Plan
from mlflow_phi3_onnx.evaluation.load.run import COMPARED, LoadTest, run_load_test, run_sides
from mlflow_phi3_onnx.evaluation.load.side import WORDS
from mlflow_phi3_onnx.evaluation.load.tracking import metrics_of
from tests.support.http_server import running
from tests.support.loads import ScriptedSide

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

Captured = pytest.CaptureFixture[str]

LENGTHS = ["--prompt-tokens", "24", "--completion-tokens", "8"]
SMALL = [*LENGTHS, "--requests", "4", "--rounds", "2", "--seed", "3"]

NUMBER = {"type": "number"}
SPREAD = {
    "type": ["object", "null"],
    "properties": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), NUMBER),
    "required": ["mean", "p50", "p90", "p95", "p99", "max"],
    "additionalProperties": False,
}
FIGURES = {name: SPREAD if name.endswith("_ms") else {} for name in Summary.__dataclass_fields__}
EACH = ("due", "sent", "asked_tokens", "prompt_tokens", "completion_tokens", "error")
REQUEST = {
    "type": "object",
    "required": [*EACH, "ttft_ms", "e2el_ms"],
    "properties": {key: {} for key in [*EACH, "ttft_ms", "e2el_ms"]},
    "additionalProperties": False,
}
ROUND = {
    "type": "object",
    "properties": {**FIGURES, "each_request": {"type": "array", "items": REQUEST}},
    "required": [*FIGURES, "each_request"],
    "additionalProperties": False,
}
SIDE = {
    "type": "object",
    "properties": {
        "all_rounds": {"type": "object", "properties": FIGURES, "required": list(FIGURES)},
        "rounds": {"type": "array", "items": ROUND, "minItems": 1},
    },
    "required": ["all_rounds", "rounds"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "required": ["schema", "version", "date", "machine", "plan", "sides", "loads"],
    "properties": {
        "schema": {"const": 1},
        "loads": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    *("callers", "rate", "prompt_tokens", "completion_tokens", "prefix_tokens"),
                    *("sides", "ratios"),
                ],
                "properties": {"sides": {"type": "object", "additionalProperties": SIDE}},
            },
        },
    },
}


def read(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    validate(found, SCHEMA)
    return found


def test_a_sweep_gives_every_load_the_lengths_that_were_asked(
    tmp_path: Path, capsys: Captured
) -> None:
    arguments = [*SMALL, "--concurrency", "1,2", "--rate", "50", "--prefix-tokens", "0,16"]
    given = [*arguments, "--goodput", "ttft:60000", "--no-log", "--output", str(tmp_path)]
    assert main(["bench", *given]) == 0
    shown = capsys.readouterr().out
    assert shown.count("24+8, 16 shared") == 3
    assert "goodput" in shown
    found = read(tmp_path)
    loads = [(one["callers"], one["rate"], one["prefix_tokens"]) for one in found["loads"]]
    loads_of_each = [(1, None), (2, None), (None, 50)]
    assert loads == [(*load, shared) for shared in (0, 16) for load in loads_of_each]
    for one in found["loads"]:
        (side,) = one["sides"].values()
        assert [len(r["each_request"]) for r in side["rounds"]] == [4, 4]
        for request in (request for r in side["rounds"] for request in r["each_request"]):
            assert request["error"] is None
            assert (request["prompt_tokens"], request["completion_tokens"]) == (24, 8)
            assert request["sent"] >= request["due"]
        whole = side["all_rounds"]
        assert (whole["requests"], whole["short"], whole["failures"]) == (8, 0, {})
        assert whole["goodput"] == pytest.approx(whole["request_throughput"])
        assert one["ratios"] == {}
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.txt").read_text(encoding="utf-8").strip() in shown


@pytest.mark.usefixtures("tracking")
def test_the_demo_model_beside_its_server_is_a_run(
    demo: Path, capsys: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mlflow_phi3_onnx")
    logged = mlflow_phi3_onnx.log_model(demo, name="model")
    with running() as served:
        url = f"{served.url}/v1"
        given = [logged.model_uri, "--compare", url, "--concurrency", "1,2", *SMALL]
        assert main(["bench", *given]) == 0
    shown = capsys.readouterr().out
    assert "output_throughput of model / compare" in shown
    (run,) = [
        one
        for one in mlflow.search_runs(output_format="list", search_all_experiments=True)
        if one.info.run_name == "bench"
    ]
    assert f"Logged as run {run.info.run_id}." in shown
    params = run.data.params
    assert (params["concurrency"], params["seed"], params["rounds"]) == ("1,2", "3", "2")
    assert logged.model_uri in params["model"]
    assert params["compare"] == f"demo at {url}"
    for name in ("concurrency_1", "concurrency_2"):
        assert run.data.metrics[f"{name}/requests"] == 8
        assert run.data.metrics[f"{name}/ttft_ms_p50"] > 0
        assert run.data.metrics[f"compare/{name}/output_throughput"] > 0
        assert all(run.data.metrics[f"ratio/{name}/{figure}"] > 0 for figure in COMPARED)
    inputs = MlflowClient().get_run(run.info.run_id).inputs
    assert inputs
    assert [one.model_id for one in inputs.model_inputs] == [logged.model_id]
    files = {one.path for one in MlflowClient().list_artifacts(run.info.run_id)}
    assert files == {"results.json", "table.txt", "plot.png"}
    found = load_dict(f"runs:/{run.info.run_id}/results.json")
    validate(found, SCHEMA)
    assert load_image(f"runs:/{run.info.run_id}/plot.png").size[0] > 500
    texts = [json.dumps(found), load_text(f"runs:/{run.info.run_id}/table.txt"), caplog.text]
    for text in (*texts, str(params), str(run.data.metrics)):
        assert not any(f"{a} {b}" in text for a in WORDS[:20] for b in WORDS)
    for one in found["loads"]:
        ours, theirs = one["sides"]["model"], one["sides"]["compare"]
        speeds = [s["rounds"][0]["output_throughput"] for s in (ours, theirs)]
        ratio = one["ratios"]["output_throughput"]
        assert ratio["samples"][0] == pytest.approx(speeds[0] / speeds[1])
        assert ratio["low"] <= ratio["median"] <= ratio["high"]


@pytest.mark.usefixtures("tracking")
def test_a_run_that_is_active_gets_the_results() -> None:
    with mlflow.start_run() as run:
        assert main(["bench", *SMALL, "--concurrency", "1"]) == 0
        assert mlflow.active_run() is not None
    found = MlflowClient().get_run(run.info.run_id)
    assert found.data.metrics["concurrency_1/requests"] == 8


def test_failed_requests_are_counted_and_tell_in_the_status(
    tmp_path: Path, capsys: Captured
) -> None:
    with running(max_running=1, max_queue=0) as served:
        given = [f"{served.url}/v1", "--concurrency", "4", "--requests", "8", "--rounds", "1"]
        given += [*LENGTHS, "--no-log", "--output", str(tmp_path)]
        assert main(["bench", *given]) == 1
    side = read(tmp_path)["loads"][0]["sides"]["model"]["all_rounds"]
    failed = side["failures"]["HTTP 429"]
    assert 0 < failed < 8
    assert side["completion_tokens"] == 8 * (8 - failed)
    shown = capsys.readouterr()
    assert f"Failed: HTTP 429: {failed}." in shown.out
    assert f"error: {failed} of 8 requests failed." in shown.err


def run_scripted(**plan: Any) -> tuple[LoadTest, dict[str, ScriptedSide]]:
    sides = {"model": ScriptedSide(), "compare": ScriptedSide()}
    return run_sides(sides, Plan.check(plan)), sides


def test_no_prompt_comes_twice_and_sides_get_the_same_arrivals() -> None:
    test, sides = run_scripted(rate=500, requests=5, rounds=3, concurrency="2")
    sent = [prompt for side in sides.values() for prompt in side.prompts]
    assert len(sent) == len(set(map(str, sent)))
    assert len(sent) == 2 * (2 * 3 * 5 + 3 + 1)  # and those that warm up
    (opened,) = [one for one in test.measured if one.point.rate]
    dues = {
        name: [[one.due for one in load] for load in rounds]
        for name, rounds in opened.rounds.items()
    }
    assert dues["model"] == dues["compare"]
    assert dues["model"][0] != dues["model"][1]
    again, _ = run_scripted(rate=500, requests=5, rounds=1, seed=test.plan.seed, concurrency="2")
    (same,) = [one for one in again.measured if one.point.rate]
    assert [one.due for one in same.rounds["model"][0]] == dues["model"][0]


def test_seeds_are_drawn_where_none_is_given() -> None:
    drawn = {run_scripted(requests=1, rounds=1, concurrency="1")[0].plan.seed for _ in range(3)}
    assert len(drawn) == 3


def test_a_load_ends_with_its_time() -> None:
    test, sides = run_scripted(rate="100", requests=10_000, rounds=1, seconds=0.05, seed=1)
    (one,) = test.measured
    assert one.summary("model").requests < 50
    assert all(request.due < 0.05 for request in one.rounds["model"][0])
    assert len(sides["model"].prompts) < 60


BAD = {
    "no list": (["--concurrency", "1,x"], "concurrency must be an integer from 1 to 1,024, or"),
    "twice": (["--concurrency", "2,2"], "concurrency must be"),
    "no rate": (["--rate", "0"], "rate must be a number above 0"),
    "no goal": (["--goodput", "speed:5"], "goodput must be goals such as ttft:500"),
    "no time": (["--goodput", "ttft:-5"], "goodput must be goals"),
    "all shared": (["--prefix-tokens", "128"], "prefix_tokens must be less than prompt_tokens"),
    "nothing there": (["nowhere"], "model: there is nothing at the path 'nowhere'"),
    "too long": (["--prompt-tokens", "900000"], "maximum context length"),
    "an id of a folder": (["--model-id", "a"], "model_id is not for a model that is loaded here"),
    "a config of a URL": (
        ["http://127.0.0.1:1/v1", "--model-config", '{"loop": "slots"}'],
        "model_config is not for a URL",
    ),
    "more callers than requests": (
        ["--concurrency", "8", "--requests", "1"],
        "requests must be at least concurrency; got 1 and 8",
    ),
    "no seed": (["--seed", "9" * 30], "seed must be an integer from 0 to 9223372036854775807"),
    "nobody to compare with": (["--compare-id", "a"], "compare_id and compare_config are for a"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_run_is_refused_in_one_line(
    capsys: Captured, arguments: list[str], says: str
) -> None:
    assert main(["bench", "--no-log", *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("mlflow-phi3-onnx: error: ")
    assert says in shown.err
    assert shown.err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("")
    given = ["nowhere", "--no-log", "--output", str(tmp_path / "file")]
    assert main(["bench", *given]) == 1  # before the model is looked for
    assert "output: the results cannot be written there" in capsys.readouterr().err


@pytest.mark.usefixtures("tracking")
def test_where_no_run_can_be_logged_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert main(["bench", "nowhere"]) == 1
    assert "No run can be logged: " in capsys.readouterr().err


@pytest.mark.usefixtures("tracking")
def test_files_that_cannot_be_written_leave_the_run(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "results.json").mkdir()
    given = [*SMALL, "--concurrency", "1", "--output", str(tmp_path)]
    assert main(["bench", *given]) == 1
    shown = capsys.readouterr()
    assert "Logged as run" in shown.out
    assert "cannot be written" in shown.err


def test_a_load_without_a_request_is_an_error(capsys: Captured) -> None:
    given = [*SMALL, "--concurrency", "1", "--seconds", "1e-9", "--no-log"]
    assert main(["bench", *given]) == 1
    assert "No request was sent in the loads 1 at once (24+8)." in capsys.readouterr().err


def test_names_of_metrics_have_no_spaces() -> None:
    test, _ = run_scripted(concurrency="2", requests=2, rounds=1, prompt_tokens="9,8")
    shared, _ = run_scripted(
        concurrency="2", requests=2, rounds=1, prompt_tokens="9,8", prefix_tokens="0,4"
    )
    assert "concurrency_2/9_64/requests" in metrics_of(test)
    assert "compare/concurrency_2/8_64_4_shared/requests" in metrics_of(shared)
    assert not any(" " in name for name in metrics_of(shared))


@pytest.mark.export
@pytest.mark.skipif(not can_build(), reason="a pipeline needs the export extra")
def test_a_model_of_transformers_is_a_side(tmp_path: Path, demo: Path) -> None:
    import transformers

    folder = str(checkpoint_folder(MODELS["tiny-fp32"].checkpoint))
    pipeline = transformers.pipeline("text-generation", model=folder, tokenizer=folder)
    mlflow.transformers.save_model(  # pyright: ignore[reportPrivateImportUsage] - loaded lazily
        pipeline, str(tmp_path / "saved"), pip_requirements=["transformers"]
    )
    plan = Plan.check(
        {"concurrency": "2", "requests": 3, "rounds": 1, "prompt_tokens": 9}
        | {"completion_tokens": 6}
    )
    test = run_load_test(str(demo), str(tmp_path / "saved"), plan)
    (measured,) = test.measured
    for one in measured.rounds["compare"][0]:
        assert (one.error, one.prompt_tokens, one.completion_tokens) == (None, 9, 6)
        assert len(one.chunks) == 6
    assert "one request at a time" in test.sides["compare"].notes[0]
    assert set(measured.ratios()) == set(COMPARED)
