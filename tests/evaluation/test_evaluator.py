"""The evaluator ``onnx-genai``, through ``mlflow.models.evaluate``."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import load_image
from mlflow.exceptions import MlflowException
from mlflow.metrics import exact_match
from mlflow.models import MetricThreshold
from mlflow.models.evaluation.validation import ModelValidationFailedException

from mlflow_phi3_onnx import (
    GenAIModel,
    InvalidRequestError,
    UnsupportedParameterError,
    log_model,
    save_model,
)
from mlflow_phi3_onnx.core.tasks import CHAT, COMPLETIONS, TEXT
from mlflow_phi3_onnx.evaluation.memory import PeakMemory
from mlflow_phi3_onnx.evaluation.scored_rows import ScoredRow, aggregated
from mlflow_phi3_onnx.evaluation.text_scores import exact_match as same_text
from mlflow_phi3_onnx.evaluation.text_scores import token_f1
from mlflow_phi3_onnx.model.measured import TimedAnswer
from tests.support.raw_loop import RawLoop, og

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("tracking"),
    # MLflow's evaluator and its metrics warn of themselves, and of how they use pandas.
    *map(pytest.mark.filterwarnings, ("ignore::FutureWarning", "ignore::DeprecationWarning")),
]

CANARY = "Kilimanjaro"
COUNTRIES = {"Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo"}
TABLE, PLOT = "onnx_genai_results_table", "onnx_genai_plot"


def chats(*contents: str) -> dict[str, Any]:
    return {"messages": [[{"role": "user", "content": content}] for content in contents]}


ROWS: dict[str, tuple[dict[str, Any], list[str]]] = {
    CHAT: (
        chats(*(f"What is the capital of {country}?" for country in COUNTRIES)),
        [f"The capital of {country} is {city}." for country, city in COUNTRIES.items()],
    ),
    COMPLETIONS: (
        {"prompt": [f"The capital of {country} is" for country in COUNTRIES]},
        [f" {city}." for city in COUNTRIES.values()],
    ),
    TEXT: (
        {"prompt": [f"The capital of {country} is" for country in COUNTRIES]},
        [f" {city}." for city in COUNTRIES.values()],
    ),
}


@pytest.fixture(scope="module", params=ROWS)
def task(request: pytest.FixtureRequest) -> Any:
    """Each task in turn."""
    return request.param


@pytest.fixture(scope="module")
def models(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The demo model for each task, saved once and loaded."""
    paths = {task: tmp_path_factory.mktemp("saved") / "model" for task in ROWS}
    for task, path in paths.items():
        config = {"temperature": 0, "max_tokens": 12 if task == CHAT else 2}
        save_model(demo, path, task=task, model_config=config)  # type: ignore[arg-type] - all are tasks
    return {task: mlflow.pyfunc.load_model(str(path)) for task, path in paths.items()}


def evaluated(model: Any, given: dict[str, Any], right: list[str] | None, **config: Any) -> Any:
    data = pd.DataFrame(given if right is None else {**given, "right": right})
    return mlflow.models.evaluate(
        model,
        data,
        targets=None if right is None else "right",
        model_type="question-answering",
        evaluators=["onnx-genai"],
        evaluator_config={"onnx-genai": config},
    )


def raw_logprob(raw: RawLoop, before: list[int], token: int) -> float:
    """What onnxruntime-genai's own logits say of a token, by hand."""
    params = og.GeneratorParams(raw.model)
    params.set_search_options(max_length=len(before) + 1)
    generator = og.Generator(raw.model, params)
    generator.append_tokens(before)
    logits = np.asarray(generator.get_logits(), np.float64).reshape(-1)
    return float(logits[token] - np.logaddexp.reduce(logits))


def test_right_answers_are_measured_as_right_on_every_task(
    task: Any, models: dict[str, Any]
) -> None:
    given, right = ROWS[task]
    result = evaluated(models[task], given, right)
    found = result.metrics
    exact = {"rows": 3, "failures": 0, "targets_not_scored": 0, "exact_match": 1, "token_f1": 1}
    assert {name: found[name] for name in exact} == exact
    assert found["perplexity"] == pytest.approx(1, abs=0.1)
    table = result.tables[TABLE]
    assert list(table["outputs"]) == right == list(table["right"])
    assert list(table[next(iter(given))]) == next(iter(given.values()))
    assert found["completion_tokens/total"] == table["completion_tokens"].sum()
    assert found["prompt_tokens/mean"] == table["prompt_tokens"].mean()
    seconds = table["seconds"]
    assert (table["time_to_first_token"] <= seconds).all()
    total = found["completion_tokens/total"] / seconds.sum()
    assert found["tokens_per_second"] == pytest.approx(total)
    assert found["peak_memory_bytes"] > 2**20


def test_perplexity_is_that_of_the_target_s_tokens_and_of_no_other(
    task: Any, demo: Path, models: dict[str, Any]
) -> None:
    """A wrong word in the middle makes the number of tokens count, and each of their places."""
    given, right = ROWS[task]
    wrong = [
        answer.replace(city, "Paris")
        for answer, city in zip(right, COUNTRIES.values(), strict=True)
    ]
    result = evaluated(models[task], given, wrong)
    raw = RawLoop(demo)
    sums: list[float] = []
    counts: list[int] = []
    with GenAIModel(demo) as model:
        for number, target in enumerate(wrong):
            if task == CHAT:
                before = model.apply_chat_template(given["messages"][number], tokenize=True)
                # What the model itself writes is made of these very tokens.
                own = model.greedy_tokens(before, 12)
                (paris,) = model.tokenize("Paris")[-1:]
                after = [
                    paris if model.detokenize([t]).strip() in COUNTRIES.values() else t
                    for t in own[:-1]
                ]
                assert model.detokenize(after).strip() == target
            else:
                before = model.tokenize(given["prompt"][number])
                after = model.tokenize(given["prompt"][number] + target)[len(before) :]
            scores = [raw_logprob(raw, before + after[:i], t) for i, t in enumerate(after)]
            row = result.tables[TABLE].iloc[number]
            assert row["target_tokens"] == len(after)
            expected = math.exp(-sum(scores) / len(scores))
            assert row["perplexity"] == pytest.approx(expected, rel=0.05)
            sums.append(sum(scores))
            counts.append(len(scores))
    assert min(sums) < -3
    expected = math.exp(-sum(sums) / sum(counts))
    assert result.metrics["perplexity"] == pytest.approx(expected, rel=0.05)
    assert result.metrics["target_tokens"] == sum(counts)
    assert result.metrics["exact_match"] == 0


@pytest.mark.parametrize(
    ("answer", "target", "exact", "f1"),
    [
        ("Madrid", "Madrid", 1, 1),
        ("  The madrid!\n", "Madrid.", 1, 1),
        ("Madrid is it", "Madrid", 0, 0.5),  # precision 1/3, recall 1
        ("of of city", "of of town", 0, 2 / 3),  # each word as often as both have it
        ("Rome", "Madrid", 0, 0),
        ("", "Madrid", 0, 0),
        ("the.", "", 1, 1),  # neither has a word
        ("theatre", "atre", 0, 0),  # an article is a word
    ],
)
def test_texts_are_compared_as_squad_does(
    answer: str, target: str, exact: float, f1: float
) -> None:
    assert same_text(answer, target) == exact
    assert token_f1(answer, target) == pytest.approx(f1)


def test_times_are_those_of_tokens() -> None:
    answer = TimedAnswer({}, 5, ((0.5, 1), (0.7, 2), (1.3, 4)))
    assert answer.time_to_first_token == 0.5
    assert answer.seconds == 1.3
    assert answer.completion_tokens == 4
    # Two tokens that came at once took half of the time each.
    assert answer.inter_token_latencies == pytest.approx([0.2, 0.3, 0.3])
    assert answer.decode_seconds / answer.decode_tokens == pytest.approx(0.8 / 3)


def test_rows_are_aggregated_over_tokens_and_failures_are_wrong_answers() -> None:
    def row(**fields: Any) -> ScoredRow:
        times: dict[str, Any] = {"prompt_tokens": 4, "completion_tokens": 3, "seconds": 1.0}
        right: dict[str, Any] = {"output": "x", "exact_match": 1.0, "token_f1": 1.0}
        return ScoredRow(**right, **times, **fields)

    rows = [
        row(target_logprobs=[-1.0], time_to_first_token=0.2, gaps=[0.3, 0.5]),
        row(target_logprobs=[-4.0, -1.0], time_to_first_token=0.4, gaps=[0.1, 0.2]),
        ScoredRow(error="InvalidRequestError: no", exact_match=0.0, token_f1=0.0),
    ]
    found = aggregated(rows, targets=True)
    assert found["perplexity"] == pytest.approx(math.exp(2))  # 6 nats of 3 tokens
    assert (found["rows"], found["failures"], found["targets_not_scored"]) == (3, 1, 1)
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["tokens_per_second"] == 3
    assert found["time_to_first_token/median"] == pytest.approx(0.3)
    assert found["inter_token_latency/median"] == pytest.approx(0.25)
    assert found["inter_token_latency/p95"] == pytest.approx(0.47)
    nothing = aggregated(rows[2:], targets=False)
    assert nothing == {"rows": 1, "failures": 1}


def test_a_row_that_fails_is_counted_and_the_others_go_on(models: dict[str, Any]) -> None:
    given, right = ROWS[CHAT]
    result = evaluated(models[CHAT], {**given, "max_tokens": [12, -1, 12]}, right)
    assert result.metrics["failures"] == 1
    assert result.metrics["exact_match"] == pytest.approx(2 / 3)
    table = result.tables[TABLE]
    assert table["error"][1].startswith("InvalidRequestError: max_tokens must be")
    assert list(table["outputs"].isna()) == [False, True, False]
    assert table["completion_tokens"].count() == 2


def test_a_row_of_several_completions_is_none_to_time(models: dict[str, Any]) -> None:
    given, right = ROWS[COMPLETIONS]
    result = evaluated(models[COMPLETIONS], {**given, "n": [1, 1, 2]}, right)
    assert result.metrics["failures"] == 1
    assert "one completion" in result.tables[TABLE]["error"][2]


def test_without_targets_only_the_answers_are_measured(models: dict[str, Any]) -> None:
    result = evaluated(models[TEXT], ROWS[TEXT][0], None)
    assert "perplexity" not in result.metrics
    assert "exact_match" not in result.metrics
    assert result.metrics["rows"] == 3
    assert list(result.tables[TABLE]["outputs"]) == ROWS[TEXT][1]


def test_thresholds_hold_or_fail(models: dict[str, Any]) -> None:
    result = evaluated(models[CHAT], *ROWS[CHAT])
    good = {
        "exact_match": MetricThreshold(threshold=1, greater_is_better=True),
        "perplexity": MetricThreshold(threshold=1.5, greater_is_better=False),
        "inter_token_latency/p95": MetricThreshold(threshold=60, greater_is_better=False),
    }
    mlflow.validate_evaluation_results(good, result)
    bad = {"perplexity": MetricThreshold(threshold=0.5, greater_is_better=False)}
    with pytest.raises(ModelValidationFailedException, match="perplexity"):
        mlflow.validate_evaluation_results(bad, result)


def test_metrics_are_the_run_s_and_the_logged_model_s(demo: Path, tmp_path: Path) -> None:
    config = {"temperature": 0, "max_tokens": 12}
    uri = log_model(demo, name="evaluated", model_config=config).model_uri
    with mlflow.start_run() as run:
        result = evaluated(uri, *ROWS[CHAT], metric_prefix="held_out_")
    assert result.metrics["held_out_exact_match"] == 1
    client = MlflowClient()
    assert client.get_run(run.info.run_id).data.metrics.items() >= result.metrics.items()
    of_model = client.get_logged_model(uri.removeprefix("models:/")).metrics or []
    # Each once, and no rows, which would fill its page.
    assert sorted(metric.key for metric in of_model) == sorted(result.metrics)
    steps = client.get_metric_history(run.info.run_id, "held_out_row/perplexity")
    assert sorted({point.step for point in steps}) == [0, 1, 2]
    image = load_image(f"runs:/{run.info.run_id}/held_out_{PLOT}.png")
    assert min(image.size) > 100
    result.save(str(tmp_path / "kept"))
    kept = mlflow.models.EvaluationResult.load(str(tmp_path / "kept"))
    content: Any = kept.artifacts[f"held_out_{TABLE}"].content
    assert len(content["data"]) == 3


def stored_with(text: str, folder: Path) -> set[str]:
    """Name the files of a store that hold a text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name for path in files if text.encode() in path.read_bytes()}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, {f"{TABLE}.json"}),
        ({"log_inputs": False}, set[str]()),
        ({"log_inputs": False, "log_outputs": False}, set[str]()),
    ],
)
def test_prompts_are_logged_in_the_table_or_nowhere(
    config: dict[str, Any],
    said: set[str],
    models: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given, right = chats(f"{CANARY}?", f"{CANARY}."), [f"{CANARY} is one.", f"{CANARY} too."]
    with caplog.at_level(logging.DEBUG):
        result = evaluated(models[CHAT], {**given, "max_tokens": [5, -1]}, right, **config)
    table = result.tables[TABLE]
    assert ("outputs" in table) == config.get("log_outputs", True)
    assert ("right" in table) == ("messages" in table) == config.get("log_inputs", True)
    assert stored_with(CANARY, tmp_path) == said
    assert CANARY not in caplog.text


def test_it_stands_beside_mlflow_s_own_evaluator(
    demo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, right = ROWS[CHAT]
    config = {"temperature": 0, "max_tokens": 12, "output": "text"}
    result = mlflow.models.evaluate(
        log_model(demo, name="evaluated", model_config=config).model_uri,
        pd.DataFrame({**given, "right": right}),
        targets="right",
        extra_metrics=[exact_match()],
        evaluators=["default", "onnx-genai"],
    )
    assert result.metrics["exact_match/v1"] == result.metrics["exact_match"] == 1
    assert len(result.tables[TABLE]) == 3
    assert "does nothing with extra_metrics. MLflow's own evaluator does" in caplog.text


def test_all_evaluators_leave_other_models_alone(caplog: pytest.LogCaptureFixture) -> None:
    data = pd.DataFrame({"prompt": ["a"], "right": ["a"]})

    def echo(frame: pd.DataFrame) -> list[str]:
        return list(frame["prompt"])

    both: dict[str, Any] = {"targets": "right", "extra_metrics": [exact_match()]}
    assert mlflow.models.evaluate(echo, data, **both).metrics == {"exact_match/v1": 1.0}
    with pytest.raises(MlflowException, match="could not be evaluated"):
        mlflow.models.evaluate(echo, data, **both, evaluators=["onnx-genai"])
    assert "leaves this model to other evaluators" in caplog.text


@pytest.mark.parametrize("kind", ["classifier", "regressor", "retriever"])
def test_it_is_for_models_that_write_text(kind: str, models: dict[str, Any]) -> None:
    data = pd.DataFrame({**ROWS[CHAT][0], "right": ROWS[CHAT][1]})
    with pytest.raises(MlflowException, match="could not be evaluated"):
        mlflow.models.evaluate(
            models[CHAT], data, targets="right", model_type=kind, evaluators=["onnx-genai"]
        )


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"log_input": False}, UnsupportedParameterError, "log_input is not a setting.*log_inputs"),
        ({"log_inputs": "no"}, InvalidRequestError, "log_inputs must be true or false; got 'no'"),
        ({"metric_prefix": 3}, InvalidRequestError, "metric_prefix must be up to .*; got 3"),
        ({"metric_prefix": "a b/c#"}, InvalidRequestError, "metric_prefix must be up to"),
        ({"metric_prefix": "../a"}, InvalidRequestError, "metric_prefix must be up to"),
        ({"metric_prefix": "a//b"}, InvalidRequestError, "metric_prefix must be up to"),
    ],
)
def test_its_configuration_is_checked(
    config: dict[str, Any], error: type[Exception], message: str, models: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        evaluated(models[CHAT], *ROWS[CHAT], **config)


def test_what_is_meant_for_other_evaluators_is_let_pass(models: dict[str, Any]) -> None:
    assert evaluated(models[CHAT], *ROWS[CHAT], retriever_k=3, col_mapping={}).metrics["rows"] == 3


def test_targets_are_texts(models: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="targets must be strings; row 1 has 7"):
        evaluated(models[CHAT], *(ROWS[CHAT][0], ["a", 7, "b"]))  # type: ignore[arg-type] - that is the point
    given = {"prompt": list("abc")}
    with pytest.raises(InvalidRequestError, match=r"row 1 has .*in the rows 1, 2\. .*dropna"):
        evaluated(models[TEXT], given, ["a", None, None])  # type: ignore[list-item] - nor these


@pytest.mark.parametrize(
    ("columns", "target", "says"),
    [
        ({"number": [1, 2, 3], "max_token": [1, 2, 3]}, "right", "columns max_token, number are"),
        ({}, "outputs", "the columns outputs twice"),
        ({}, "error", "the columns error twice"),
    ],
)
def test_columns_are_refused_before_anything_is_answered(
    columns: dict[str, Any], target: str, says: str, models: dict[str, Any]
) -> None:
    data = pd.DataFrame({**ROWS[TEXT][0], **columns, target: ROWS[TEXT][1]})
    more: dict[str, Any] = {"model_type": "text", "evaluators": ["onnx-genai"], "targets": target}
    with mlflow.start_run() as run, pytest.raises(InvalidRequestError, match=says):
        mlflow.models.evaluate(models[TEXT], data, **more)
    assert MlflowClient().get_run(run.info.run_id).data.metrics == {}


def test_a_second_evaluation_in_a_run_needs_a_prefix(models: dict[str, Any]) -> None:
    with mlflow.start_run():
        evaluated(models[TEXT], *ROWS[TEXT])
        with pytest.raises(InvalidRequestError, match="metric_prefix: the run has an evaluation"):
            evaluated(models[TEXT], *ROWS[TEXT])
        again = evaluated(models[TEXT], *ROWS[TEXT], metric_prefix="again/")
    assert len(again.tables[f"again/{TABLE}"]) == 3


def test_without_inputs_errors_quote_none(models: dict[str, Any]) -> None:
    given = {**ROWS[CHAT][0], "regex": [f"[{CANARY}", None, None], "max_tokens": [5, -1, 5]}
    result = evaluated(models[CHAT], given, ROWS[CHAT][1], log_inputs=False)
    table = result.tables[TABLE]
    assert list(table["error"])[:2] == [
        "InvalidRequestError: regex",
        "InvalidRequestError: max_tokens",
    ]
    assert CANARY not in str(table["target_error"].tolist())


def test_memory_is_watched_in_the_background() -> None:
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        before = memory.bytes
        assert bytearray(b"x") * 2**27  # freed at once: only a look in between can have seen it
    assert memory.bytes >= before > 0
