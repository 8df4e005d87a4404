"""Two models side by side: what is compared, what is refused, and what a run gets."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import mlflow
import mlflow.pyfunc
import pytest
from mlflow.artifacts import load_image, load_text
from mlflow.models import Model

import mlflow_phi3_onnx
from mlflow_phi3_onnx import (
    Comparison,
    ContextLengthError,
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    SourceNotFoundError,
    compare,
)
from mlflow_phi3_onnx.evaluation.tracking import plot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "Kilimanjaro"
PROMPTS = ["The capital of Spain is", "The capital of Italy is", f"{CANARY} and then", "a b c d"]
CHATS = [
    [{"role": "user", "content": "What is the capital of Spain?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}],
]


@pytest.fixture(scope="module")
def genai(demo: Path) -> Iterator[GenAIModel]:
    # What a model answers by default does not count: these would change every answer.
    config = {"temperature": 1.5, "repetition_penalty": 1.9, "stop": ["a"], "max_tokens": 1}
    with GenAIModel(demo, model_config=config) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def slots(demo: Path) -> Iterator[GenAIModel]:
    with GenAIModel(demo, model_config={"loop": "slots"}) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def other_folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with two of its layers gone: another model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(demo, folder)
    with (folder / "model.onnx.data").open("r+b") as file:
        for offset in (3_838_720, 4_115_200):  # the scales of two layers' last matrix
            file.seek(offset)
            file.write(bytes(12_288))
    return folder


@pytest.fixture(scope="module")
def other(other_folder: Path) -> Iterator[GenAIModel]:
    with GenAIModel(other_folder) as loaded:
        yield loaded


def same(result: Comparison) -> bool:
    return (
        result.identical_answers == result.greedy_agreement == result.likeliest_agreement == 1
        and result.logprob_difference < 1e-3
        and abs(result.perplexity_difference) < 1e-2
    )


@pytest.mark.parametrize("prompts", [PROMPTS, CHATS, [PROMPTS[0], CHATS[0]]])
def test_a_model_is_like_itself_in_both_loops(
    genai: GenAIModel, slots: GenAIModel, prompts: Any
) -> None:
    result = compare(genai, slots, prompts, max_tokens=24)
    assert same(result)
    assert len(result.prompts) == len(prompts)
    for row, prompt in zip(result.prompts, prompts, strict=True):
        assert row.prompt == prompt
        assert row.first_difference is row.token_a is row.token_id_b is None
        assert row.answer_a == row.answer_b
        assert row.agreement == 1
        assert 1 <= row.tokens_a == row.tokens_b <= 24
    assert result.tokens_per_second_a > 0
    ratio = result.tokens_per_second_b / result.tokens_per_second_a
    assert result.speed_ratio == pytest.approx(ratio)


@pytest.mark.parametrize("prompt", [*PROMPTS, CHATS[0]])
def test_the_other_model_is_another_one(genai: GenAIModel, other: GenAIModel, prompt: Any) -> None:
    assert not same(compare(genai, other, [prompt], max_tokens=8))


def test_chats_are_rendered_by_the_template_and_answered_to_their_end(
    genai: GenAIModel, slots: GenAIModel
) -> None:
    row = compare(genai, slots, CHATS, max_tokens=40).prompts[0]
    assert row.prompt_tokens == len(genai.apply_chat_template(CHATS[0], tokenize=True))
    assert row.answer_b == " The capital of Spain is Madrid.<|end|>"
    assert row.tokens_b == len(slots.tokenize("The capital of Spain is Madrid.")) + 1


def test_numbers_are_those_of_the_models(genai: GenAIModel, other: GenAIModel) -> None:
    result = compare(genai, other, PROMPTS, max_tokens=24)
    surprise = {"a": 0.0, "b": 0.0}
    differences: list[float] = []
    counted = before = answered = 0
    for row, prompt in zip(result.prompts, PROMPTS, strict=True):
        ids = genai.tokenize(prompt)
        a, b = (model.greedy_tokens(ids, 24) for model in (genai, other))
        most = max(len(a), len(b))
        place = next((i for i in range(most) if a[i : i + 1] != b[i : i + 1]), most)
        if place == most:
            assert row.first_difference is row.token_id_a is row.token_b is None
        else:
            assert row.first_difference == place
            assert (row.token_id_a, row.token_id_b) == (a[place], b[place])
            assert str(row.token_b).strip() == genai.detokenize([b[place]]).strip()
        assert row.agreement == place / most
        assert (row.tokens_a, row.tokens_b) == (len(a), len(b))
        assert row.answer_a.strip() == genai.detokenize(a).strip()
        before, answered = before + place, answered + max(len(a), len(b))

        scored = [model.token_logprobs(ids)[1:] for model in (genai, other)]
        p, q = ([entry["logprob"] for entry in entries] for entries in scored)
        apart = [abs(x - y) for x, y in zip(p, q, strict=True)]
        assert row.logprob_difference == pytest.approx(sum(apart) / len(p))
        assert row.perplexity_a == pytest.approx(genai.perplexity(prompt))
        assert row.perplexity_b == pytest.approx(other.perplexity(prompt))
        surprise = {"a": surprise["a"] - sum(p), "b": surprise["b"] - sum(q)}
        differences += apart
        counted += len(p)

    assert result.greedy_agreement == before / answered < 1
    assert 0 < result.identical_answers < 1
    assert result.likeliest_agreement < 1
    assert result.logprob_difference == pytest.approx(sum(differences) / counted)
    assert result.perplexity_a == pytest.approx(math.exp(surprise["a"] / counted))
    assert result.perplexity_b == pytest.approx(math.exp(surprise["b"] / counted))
    assert result.perplexity_difference == result.perplexity_b - result.perplexity_a


def test_an_answer_that_goes_on_where_the_other_is_over_is_different(
    genai: GenAIModel, demo: Path, tmp_path: Path
) -> None:
    """The same weights, but the first token of the answer is among those that end one."""
    folder = tmp_path / "model"
    shutil.copytree(demo, folder)
    whole = genai.greedy_tokens(genai.tokenize(PROMPTS[0]), 8)
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["eos_token_id"].append(whole[0])
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    (row,) = compare(genai, folder, PROMPTS[:1], max_tokens=8).prompts
    assert row.tokens_b == row.first_difference == 1
    assert (row.token_id_a, row.token_id_b, row.token_b) == (whole[1], None, None)
    assert row.agreement == 1 / len(whole)
    assert row.logprob_difference == pytest.approx(0, abs=1e-6)


def test_the_result_is_frozen_and_its_summary_shows_no_prompt(
    genai: GenAIModel, other: GenAIModel
) -> None:
    result = compare(genai, other, PROMPTS, max_tokens=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.speed_ratio = 1.0  # type: ignore[misc] - that it cannot be set is the point
    shown = repr(result)
    counted = sum(len(genai.tokenize(prompt)) for prompt in PROMPTS)
    assert shown.startswith(f"4 prompts of {counted} tokens together; answers of at most 5 tokens")
    assert "model_b: mlflow_phi3_onnx, phi3" in shown
    for value in (result.perplexity_a, result.perplexity_b):
        assert f"{value:.3f}" in shown
    assert f"x {result.speed_ratio:.2f}" in shown
    assert f"{result.greedy_agreement:.1%}" in shown
    assert CANARY not in shown
    assert len({len(line) for line in shown.splitlines()[8:]}) == 1


def test_the_table_has_a_row_for_each_prompt(genai: GenAIModel, other: GenAIModel) -> None:
    frame = compare(genai, other, [*PROMPTS, CHATS[0]], max_tokens=5).to_pandas()
    assert list(frame["prompt"]) == [*PROMPTS, CHATS[0]]
    assert list(frame.columns) == [
        *("prompt", "prompt_tokens", "answer_a", "answer_b", "tokens_a", "tokens_b"),
        *("first_difference", "token_a", "token_b", "token_id_a", "token_id_b"),
        *("agreement", "likeliest_agreement", "logprob_difference"),
        *("perplexity_a", "perplexity_b", "tokens_per_second_a", "tokens_per_second_b"),
    ]
    assert str(frame["first_difference"].dtype) == "Int64"


def test_token_ids_need_no_tokenizer(genai: GenAIModel, slots: GenAIModel) -> None:
    ids = genai.apply_chat_template(CHATS[0], tokenize=True)
    chat, given = compare(genai, slots, [CHATS[0], ids], max_tokens=40).prompts
    assert given.prompt == ids
    assert given.answer_a == chat.answer_b
    assert given.perplexity_a == pytest.approx(chat.perplexity_a, rel=1e-3)


@pytest.mark.usefixtures("tracking")
def test_models_are_taken_wherever_they_are(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, genai: GenAIModel
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    info = mlflow_phi3_onnx.log_model(
        demo, name="model", model_config={"loop": "slots"}, registered_model_name="phi3"
    )
    mlflow_phi3_onnx.save_model(demo, tmp_path / "saved", task="text-generation")
    pyfunc = mlflow.pyfunc.load_model(info.model_uri)
    kinds = [demo, str(tmp_path / "saved"), info.model_uri, "models:/phi3/1", pyfunc]
    for kind in kinds:
        assert same(compare(genai, kind, PROMPTS[:2], max_tokens=8))
        assert same(compare(kind, genai, PROMPTS[:1], max_tokens=2))
    labels = [compare(genai, kind, PROMPTS[:1], max_tokens=1).model_b for kind in kinds]
    assert labels == [
        "mlflow_phi3_onnx, phi3, int4, cpu, genai loop, demo_model",
        "mlflow_phi3_onnx, phi3, int4, cpu, genai loop, saved",
        f"mlflow_phi3_onnx, phi3, int4, cpu, slots loop, {info.model_uri}",
        "mlflow_phi3_onnx, phi3, int4, cpu, slots loop, models:/phi3/1",
        f"mlflow_phi3_onnx, phi3, int4, cpu, slots loop, {info.model_uri}",
    ]
    # Models that were given loaded are not closed.
    assert genai.generate("a", max_tokens=1) is not None
    assert pyfunc.predict({"messages": CHATS[0]})
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("tracking")
def test_an_active_run_gets_the_table_the_metrics_and_a_plot(
    genai: GenAIModel, other: GenAIModel
) -> None:
    pytest.importorskip("matplotlib")
    with mlflow.start_run() as run:
        result = compare(genai, other, [*PROMPTS, CHATS[0]], max_tokens=8)
        compare(genai, other, PROMPTS[:2], max_tokens=8, name="second")
        compare(genai, other, PROMPTS[:1], max_tokens=8, name="unlogged", log=False)

    metrics = mlflow.get_run(run.info.run_id).data.metrics
    expected = {f"comparison/{name}": value for name, value in result.metrics.items()}
    assert {k: v for k, v in metrics.items() if k.startswith("comparison/")} == expected
    assert set(result.metrics) == {
        *("greedy_agreement", "identical_answers", "likeliest_agreement", "logprob_difference"),
        *("perplexity_a", "perplexity_b", "perplexity_difference"),
        *("tokens_per_second_a", "tokens_per_second_b", "speed_ratio"),
    }
    files = {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    kinds = ("json", "txt", "png")
    assert files == {f"{n}.{kind}" for n in ("comparison", "second") for kind in kinds}

    artifacts = mlflow.get_run(run.info.run_id).info.artifact_uri
    table = mlflow.load_table("comparison.json", run_ids=[run.info.run_id])
    frame = result.to_pandas()
    assert list(table.columns) == list(frame.columns)
    assert list(table["prompt"]) == list(frame["prompt"])
    assert table["token_id_b"].fillna(-1).tolist() == frame["token_id_b"].fillna(-1).tolist()
    assert load_text(f"{artifacts}/comparison.txt") == repr(result)
    assert load_image(f"{artifacts}/comparison.png").size[0] > 500
    drawn = plot(result)
    labels = f"model_a: {result.model_a}\nmodel_b: {result.model_b}"
    assert drawn.get_suptitle() == labels
    drawn.canvas.draw()
    assert drawn.bbox.contains(*drawn._suptitle.get_window_extent().max)


@pytest.mark.usefixtures("tracking")
def test_a_run_says_what_was_compared_and_is_linked_with_it(
    demo: Path, genai: GenAIModel, tmp_path: Path
) -> None:
    a, b = (
        mlflow_phi3_onnx.log_model(demo, name=name, registered_model_name=name) for name in "ab"
    )
    mlflow_phi3_onnx.save_model(demo, tmp_path / "foreign", mlflow_model=Model(model_id="m-other"))
    with mlflow.start_run() as run:
        pyfunc = mlflow.pyfunc.load_model(b.model_uri)
        result = compare("models:/a/1", pyfunc, [*PROMPTS, CHATS[0]], max_tokens=3)
        compare(genai, tmp_path / "foreign", PROMPTS[:1], max_tokens=3, name="second")
        with pytest.raises(InvalidRequestError, match="has a result 'second' already"):
            compare("no model", genai, PROMPTS[:1], name="second")

    logged = mlflow.get_run(run.info.run_id)
    form = "mlflow_phi3_onnx, phi3, int4, cpu, genai loop"
    assert logged.data.params == {
        "comparison/model_a": f"{form}, models:/a/1",
        "comparison/model_b": f"{form}, {b.model_uri}",
        "comparison/max_tokens": "3",
        "comparison/prompts": "5",
        "comparison/prompt_tokens": str(sum(row.prompt_tokens for row in result.prompts)),
        "second/model_a": form,
        "second/model_b": f"{form}, foreign",
        "second/max_tokens": "3",
        "second/prompts": "1",
        "second/prompt_tokens": str(len(genai.tokenize(PROMPTS[0]))),
    }
    assert logged.inputs
    inputs = [one.model_id for one in logged.inputs.model_inputs]
    assert sorted(inputs) == sorted([str(a.model_id), str(b.model_id)])
    pages = [mlflow.get_logged_model(str(one.model_id)).metrics for one in (a, b)]
    of_a, of_b = ({m.key: m.value for m in metrics or []} for metrics in pages)
    assert of_a == {}
    assert of_b == {f"comparison/{name}": value for name, value in result.metrics.items()}


@pytest.mark.usefixtures("tracking")
def test_a_model_that_the_run_has_made_is_not_its_input_too(demo: Path, genai: GenAIModel) -> None:
    with mlflow.start_run() as run:
        info = mlflow_phi3_onnx.log_model(demo, name="made")
        compare(info.model_uri, genai, PROMPTS[:1], max_tokens=1)
    logged = mlflow.get_run(run.info.run_id)
    assert logged.outputs
    assert logged.inputs
    assert [one.model_id for one in logged.outputs.model_outputs] == [info.model_id]
    assert logged.inputs.model_inputs == []


@pytest.mark.usefixtures("tracking")
def test_without_matplotlib_there_is_a_warning_instead_of_a_plot(
    genai: GenAIModel,
    slots: GenAIModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with mlflow.start_run() as run:
        compare(genai, slots, PROMPTS[:2], max_tokens=2)
    files = {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert files == {"comparison.json", "comparison.txt"}
    assert "matplotlib is not installed" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.usefixtures("tracking")
def test_without_a_run_none_is_made(genai: GenAIModel, slots: GenAIModel) -> None:
    compare(genai, slots, PROMPTS[:1], max_tokens=1)
    assert mlflow.active_run() is None
    assert mlflow.search_runs(experiment_ids=["0"], output_format="list") == []


def test_other_token_ids_are_refused(genai: GenAIModel, demo: Path, tmp_path: Path) -> None:
    """The same prompts, but a tokenizer that knows one word less."""
    folder = tmp_path / "model"
    shutil.copytree(demo, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = genai.tokenize("The capital of Spain is")
    word = next(k for k, v in tokenizer["model"]["vocab"].items() if v == ids[-2])
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [
        m for m in merges if "".join(m.split(" ") if isinstance(m, str) else m) != word
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    says = (
        rf"prompts\[1\] is {len(ids)} tokens for model_a and \d+ for model_b, and the ids differ"
        rf" from position {len(ids) - 2} on\. Only models with the same tokenizer"
    )
    with pytest.raises(InvalidRequestError, match=says) as caught:
        compare(genai, folder, ["The capital of", "The capital of Spain is"])
    assert caught.value.param == "prompts[1]"
    assert "Spain" not in caught.value.message


LONG = "a " * 4090


@pytest.mark.parametrize(
    ("prompts", "param", "says"),
    [
        ([], "prompts", "prompts must be a list of strings, of conv.*; got an empty list"),
        ("The capital", "prompts", "prompts must be a list .* got a string"),
        (None, "prompts", "prompts must be a list .* got null"),
        ([PROMPTS[0], 5], "prompts[1]", r"prompts\[1\] must be a string, a list .*; got 5"),
        (CHATS[0], "prompts[0]", r"prompts\[0\] must be .* got an object\. Put a single conv"),
        ([["a"]], "prompts[0]", r"prompts\[0\]\[0\] must be a token id.* A conversation is a"),
        ([[1, 2560]], "prompts[0]", "has the token id 2,560; those of model_a are below 2,560"),
        ([[5]], "prompts[0]", r"prompts\[0\] has 1 token; it needs at least two"),
        ([[]], "prompts[0]", r"prompts\[0\]: messages must hold at least one message"),
        ([[{"role": "king"}]], "prompts[0]", r"prompts\[0\]: messages\[0\]\.role must be one of"),
        ([PROMPTS[0], ""], "prompts[1]", r"prompts\[1\] has 0 tokens; it needs at least two"),
        (["Madrid"], "prompts[0]", r"prompts\[0\] has 1 token; it needs at least two"),
        (["\ud800 a"], "prompts[0]", r"prompts\[0\], model_a: text holds a lone surrogate"),
    ],
)
def test_prompts_that_cannot_be_compared_are_named(
    genai: GenAIModel, slots: GenAIModel, prompts: Any, param: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        compare(genai, slots, prompts)
    assert str(caught.value.param).startswith(param)


def test_a_prompt_that_leaves_no_room_is_refused(genai: GenAIModel, slots: GenAIModel) -> None:
    length = len(genai.tokenize(LONG))
    says = rf"prompts\[1\] has {length:,} tokens and max_tokens is 64, .* of model_a is 4,096"
    with pytest.raises(ContextLengthError, match=says):
        compare(genai, slots, [PROMPTS[0], LONG])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_tokens": 0}, "max_tokens must be an integer from 1; got 0"),
        ({"max_tokens": "8"}, "max_tokens must be an integer from 1; got a string"),
        ({"name": "a/b"}, "name must be of letters, digits"),
        ({"name": ""}, "name must be of letters, digits"),
        ({"tokenizer": object()}, "tokenizer is for a model of transformers that is no pipeline"),
    ],
)
def test_options_that_cannot_be_are_named(
    genai: GenAIModel, slots: GenAIModel, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        compare(genai, slots, PROMPTS, **options)


@pytest.mark.usefixtures("tracking")
def test_what_is_no_model_is_refused_by_the_name_of_its_argument(
    genai: GenAIModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    Model(flavors={"sklearn": {}}).save(str(tmp_path / "empty" / "MLmodel"))
    (tmp_path / "nothing").mkdir()
    echo = mlflow.pyfunc.PyFuncModel(Model(), Echo())
    cases: list[tuple[Any, type[Exception], str]] = [
        (5, InvalidRequestError, "model_b must be a GenAIModel, .*; got 5"),
        (None, InvalidRequestError, "got null"),
        (echo, InvalidRequestError, "got a PyFuncModel"),
        ("org/model", SourceNotFoundError, "model_b: there is nothing at the path 'org/model'"),
        (tmp_path / "file", SourceNotFoundError, "model_b: there is a file at the path"),
        ("models:/none/1", SourceNotFoundError, "MLflow has no model at models:/none/1"),
        (tmp_path / "empty", InvalidModelError, "model_b has the flavors sklearn; expected mlflow"),
        (tmp_path / "nothing", InvalidModelError, "genai_config"),
    ]
    for model, error, says in cases:
        with pytest.raises(error, match=says) as caught:
            compare(genai, model, PROMPTS)
        assert str(tmp_path) not in str(caught.value)


class Echo:
    """A pyfunc of another flavor, with no model to look at."""

    def predict(self, data: Any) -> Any:
        return data


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_many_prompts_show_their_progress_on_a_terminal(
    genai: GenAIModel, slots: GenAIModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_phi3_onnx.core.progress.DELAY", 0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    compare(genai, slots, PROMPTS, max_tokens=1)
    assert "/8 [" in terminal.getvalue()
