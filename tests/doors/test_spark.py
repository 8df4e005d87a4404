"""Scoring a Spark data frame; the executors have the package from the model itself."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from mlflow_phi3_onnx import GenAIModel, save_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_phi3_onnx.core.tasks import Task

pytestmark = [
    pytest.mark.spark,
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="needs pyspark"),
    pytest.mark.skipif(
        not (shutil.which("java") or os.environ.get("JAVA_HOME")), reason="needs Java"
    ),
    # Said by every pyspark so far; what is used here works with pandas 3.
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
]

PROMPTS = ["The capital of Spain is", "Madrid is", "Hello", "The capital of France is", "A"]
QUESTIONS = ["What is the capital of Spain?", "Hello", "What is the capital of France?"]
MESSAGES = "array<struct<role:string,content:string>>"


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session on one core, with batches of two rows."""
    sql = importlib.import_module("pyspark.sql")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("spark"))
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        session = (
            sql.SparkSession.builder.master("local[1]")
            .config("spark.ui.enabled", "false")
            .config("spark.sql.shuffle.partitions", "1")
            .config("spark.sql.execution.arrow.maxRecordsPerBatch", "2")
            .getOrCreate()
        )
        yield session
        session.stop()


@pytest.fixture(scope="module")
def native(demo: Path) -> Iterator[GenAIModel]:
    """The model itself, in the loop that a pyfunc is loaded with."""
    with GenAIModel(demo) as model:
        yield model


def saved(demo: Path, folder: Path, task: Task) -> str:
    save_model(demo, folder, task=task, model_config={"temperature": 0, "max_tokens": 5})
    return str(folder)


@pytest.fixture(scope="module")
def chat(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(demo, tmp_path_factory.mktemp("chat"), "llm/v1/chat")


@pytest.fixture(scope="module")
def completions(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(demo, tmp_path_factory.mktemp("completions"), "llm/v1/completions")


@pytest.fixture(scope="module")
def text(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(demo, tmp_path_factory.mktemp("text"), "text-generation")


@pytest.fixture(scope="module")
def prompts(spark: Any) -> Any:
    """A data frame with a column of prompts, in one partition, so that its order is known."""
    return spark.createDataFrame([(prompt,) for prompt in PROMPTS], ["prompt"]).coalesce(1)


@pytest.fixture(scope="module")
def chats(spark: Any) -> Any:
    """A data frame with conversations, and a token limit that one of them has."""
    rows = [([("user", q)], limit) for q, limit in zip(QUESTIONS, [3, None, None], strict=True)]
    return spark.createDataFrame(rows, f"messages {MESSAGES}, max_tokens int").coalesce(1)


def values(frame: Any, column: Any) -> list[Any]:
    return [row[0] for row in frame.select(column).collect()]


def udf(spark: Any, uri: str, **arguments: Any) -> Any:
    return mlflow.pyfunc.spark_udf(spark, uri, env_manager="local", **arguments)


def generated(native: GenAIModel, limit: int = 5) -> list[str]:
    return native.generate(PROMPTS, temperature=0, max_tokens=limit)


def answered(native: GenAIModel, question: str, limit: int = 5) -> str:
    messages = [{"role": "user", "content": question}]
    answer = native.chat(messages, temperature=0, max_tokens=limit)
    return answer["choices"][0]["message"]["content"]


def test_text_generation_gives_a_column_of_strings(
    spark: Any, text: str, prompts: Any, native: GenAIModel
) -> None:
    result = prompts.withColumn("answer", udf(spark, text)("prompt"))
    assert result.schema["answer"].dataType.simpleString() == "string"
    assert values(result, "answer") == generated(native)


def test_text_generation_finds_the_column_of_prompts(
    spark: Any, text: str, prompts: Any, native: GenAIModel
) -> None:
    more = prompts.selectExpr("1 AS number", "prompt")
    assert values(more, udf(spark, text)()) == generated(native)


def test_text_generation_gives_strings_where_asked_for(
    spark: Any, text: str, prompts: Any, native: GenAIModel
) -> None:
    assert values(prompts, udf(spark, text, result_type="string")("prompt")) == generated(native)


def test_params_hold_for_every_row(spark: Any, text: str, prompts: Any, native: GenAIModel) -> None:
    short = udf(spark, text, params={"max_tokens": 2})
    assert values(prompts, short("prompt")) == generated(native, 2)


def test_a_config_given_to_spark_replaces_the_saved_one(
    spark: Any, text: str, prompts: Any, native: GenAIModel
) -> None:
    short = udf(spark, text, model_config={"max_tokens": 2})
    assert values(prompts, short("prompt")) == generated(native, 2)


def test_chat_gives_openai_s_object_as_a_struct(
    spark: Any, chat: str, chats: Any, native: GenAIModel
) -> None:
    answers = values(chats, udf(spark, chat)("messages"))
    assert {answer["object"] for answer in answers} == {"chat.completion"}
    assert len({answer["id"] for answer in answers}) == len(QUESTIONS)
    choices = [answer["choices"] for answer in answers]
    expected = [answered(native, question) for question in QUESTIONS]
    assert [choice["message"]["content"] for [choice] in choices] == expected
    usage = [answer["usage"].asDict() for answer in answers]
    assert all(u["prompt_tokens"] + u["completion_tokens"] == u["total_tokens"] for u in usage)


def test_a_column_of_limits_holds_for_the_rows_that_have_one(
    spark: Any, chat: str, chats: Any, native: GenAIModel
) -> None:
    functions = importlib.import_module("pyspark.sql.functions")
    answer = udf(spark, chat)(functions.struct("messages", "max_tokens"))
    text = values(chats, answer["choices"][0]["message"]["content"])
    limits = zip(QUESTIONS, [3, 5, 5], strict=True)
    assert text == [answered(native, question, limit) for question, limit in limits]


def test_messages_may_be_maps(spark: Any, chat: str, native: GenAIModel) -> None:
    rows = [([{"role": "user", "content": question}],) for question in QUESTIONS]
    frame = spark.createDataFrame(rows, "messages array<map<string,string>>").coalesce(1)
    answer = udf(spark, chat)("messages")
    expected = [answered(native, question) for question in QUESTIONS]
    assert values(frame, answer["choices"][0]["message"]["content"]) == expected


def test_numbers_may_be_literals_of_sql(
    spark: Any, chat: str, chats: Any, native: GenAIModel
) -> None:
    spark.udf.register("phi3", udf(spark, chat))
    chats.createOrReplaceTempView("chats")
    query = "SELECT phi3(struct(messages, 0.0 AS temperature, 3 AS max_tokens)) FROM chats"
    answers = [row[0]["choices"][0]["message"]["content"] for row in spark.sql(query).collect()]
    assert answers == [answered(native, question, 3) for question in QUESTIONS]


def test_completions_give_openai_s_object_as_a_struct(
    spark: Any, completions: str, prompts: Any, native: GenAIModel
) -> None:
    functions = importlib.import_module("pyspark.sql.functions")
    answer = udf(spark, completions)(functions.struct("prompt"))
    assert values(prompts, answer["choices"][0]["text"]) == generated(native)


def test_a_bad_row_stops_the_job_and_says_why(spark: Any, chat: str) -> None:
    rows = [([("user", "Hello")],), ([("king", "Hello")],)]
    frame = spark.createDataFrame(rows, f"messages {MESSAGES}").coalesce(1)
    with pytest.raises(Exception, match=r"row 1: messages\[0\]\.role must be one of"):
        values(frame, udf(spark, chat)("messages"))
