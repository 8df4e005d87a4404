"""Scoring a Spark data frame; the executors have the package from the model itself."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS
from tests.support.spark import (
    LONG,
    MARKS,
    MESSAGES,
    PROMPTS,
    QUESTIONS,
    save,
    session,
    udf,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = MARKS

SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 5}
# What a row of text is in each task, and what is wrong with those that are in between.
BAD = {CHAT: [None, [("king", "Hello")], [("user", LONG)]], COMPLETIONS: [None, LONG]}
BAD[TEXT] = BAD[COMPLETIONS]
TYPES = {CHAT: MESSAGES, COMPLETIONS: "string", TEXT: "string"}
CODES = {
    CHAT: [None, None, "context_length_exceeded"],
    COMPLETIONS: [None, "context_length_exceeded"],
}
CODES[TEXT] = CODES[COMPLETIONS]


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session on one core."""
    with session(tmp_path_factory.mktemp("spark"), "local[1]") as spark:
        yield spark


@pytest.fixture(scope="module")
def functions(spark: Any) -> Any:
    """Spark's functions of columns, which need a session."""
    assert spark
    return importlib.import_module("pyspark.sql.functions")


@pytest.fixture(scope="module")
def native(demo: Path) -> Iterator[GenAIModel]:
    """The model itself, in the loop that a pyfunc is loaded with."""
    with GenAIModel(demo) as model:
        yield model


@pytest.fixture(scope="module")
def saved(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Task, str]:
    """A model of each task."""
    folder = tmp_path_factory.mktemp("saved")
    return {task: save(demo, folder / str(i), task) for i, task in enumerate(ALL_TASKS)}


@pytest.fixture(scope="module")
def plain(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Task, str]:
    """A model of each task, with a signature of one column of text."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        task: save(demo, folder / str(i), task, signature="plain")
        for i, task in enumerate(ALL_TASKS)
    }


@pytest.fixture(scope="module")
def prompts(spark: Any) -> Any:
    """A data frame with a column of prompts, in one partition, so that its order is known."""
    return spark.createDataFrame([(prompt,) for prompt in PROMPTS], ["prompt"]).coalesce(1)


@pytest.fixture(scope="module")
def chats(spark: Any) -> Any:
    """A data frame with conversations, and a token limit that one of them has."""
    rows = [([("user", q)], limit) for q, limit in zip(QUESTIONS, [3, None, None], strict=True)]
    return spark.createDataFrame(rows, f"messages {MESSAGES}, max_tokens int").coalesce(1)


def frame_of(spark: Any, task: Task, between: list[Any] | None = None) -> Any:
    """A data frame of a task's one column: all good rows twice, with others in between."""
    good: list[Any] = PROMPTS if task != CHAT else [[("user", q)] for q in QUESTIONS]
    rows = [(cell,) for cell in [*good, *(between or []), *(good if between else [])]]
    return spark.createDataFrame(rows, f"{INPUT_FIELDS[task]} {TYPES[task]}").coalesce(1)


def answered(native: GenAIModel, question: str, limit: int = 5) -> str:
    messages = [{"role": "user", "content": question}]
    answer = native.chat(messages, temperature=0, max_tokens=limit)
    return answer["choices"][0]["message"]["content"]


def expected(native: GenAIModel, task: Task, limit: int = 5) -> list[str]:
    if task == CHAT:
        return [answered(native, question, limit) for question in QUESTIONS]
    return native.generate(PROMPTS, temperature=0, max_tokens=limit)


def text_of(answer: Any) -> str:
    """Return the text of an answer: a text, a struct, or what JSON text was."""
    if isinstance(answer, str):
        return answer
    [choice] = answer["choices"]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_plain_column_is_answered_with_the_task_s_own_type(
    spark: Any, saved: dict[Task, str], native: GenAIModel, task: Task
) -> None:
    result = frame_of(spark, task).withColumn("answer", udf(spark, saved[task])(INPUT_FIELDS[task]))
    kind = result.schema["answer"].dataType.simpleString()
    answers = values(result, "answer")
    assert [text_of(answer) for answer in answers] == expected(native, task)
    assert kind == "string" if task == TEXT else kind.startswith("struct<id:string,object:string,")
    if task != TEXT:
        assert {answer["object"] for answer in answers} == {
            "chat.completion" if task == CHAT else "text_completion"
        }
        assert len({answer["id"] for answer in answers}) == len(answers)
        usage = [answer["usage"].asDict() for answer in answers]
        assert all(u["prompt_tokens"] + u["completion_tokens"] == u["total_tokens"] for u in usage)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_struct_is_answered_in_every_partition(
    spark: Any, functions: Any, saved: dict[Task, str], native: GenAIModel, task: Task
) -> None:
    """Whatever batches the rows come in; text is asked for, and the column has any name."""
    frame = frame_of(spark, task).withColumn("id", functions.monotonically_increasing_id())
    frame = frame.repartition(3, "id").withColumn("partition", functions.spark_partition_id())
    column = functions.struct(INPUT_FIELDS[task])
    answer = udf(spark, saved[task], result_type="string", params={"output": "text"})(column)
    rows = frame.select("id", "partition", answer).collect()
    assert len({row["partition"] for row in rows}) > 1
    assert [text for _, _, text in sorted(rows)] == expected(native, task)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_plain_signature_finds_its_column_and_gives_text(
    spark: Any, functions: Any, plain: dict[Task, str], native: GenAIModel, task: Task
) -> None:
    field = INPUT_FIELDS[task]
    frame = frame_of(spark, task, BAD[task])
    if task == CHAT:
        frame = frame.withColumn(field, functions.to_json(field))
    more = frame.selectExpr("1 AS number", field)
    answers = values(more, udf(spark, plain[task], params={"on_error": "row"})())
    good = expected(native, task)
    bad = answers[len(good) : -len(good)]
    assert [json.loads(text)["error"]["code"] for text in bad] == CODES[task]
    assert answers[: len(good)] == answers[-len(good) :] == good


@pytest.mark.parametrize("output", ["openai", "text", "json"])
@pytest.mark.parametrize("task", [CHAT, COMPLETIONS])
def test_bad_rows_have_errors_in_their_places_and_all_others_are_right(
    spark: Any, saved: dict[Task, str], native: GenAIModel, task: Task, output: str
) -> None:
    kind = None if output == "openai" else "string"
    params = {"output": output, "on_error": "row"}
    answer = udf(spark, saved[task], result_type=kind, params=params)
    answers = values(frame_of(spark, task, BAD[task]), answer(INPUT_FIELDS[task]))
    good = expected(native, task)
    bad = answers[len(good) : -len(good)]
    if output == "openai":
        assert [(row["object"], row["choices"]) for row in bad] == [("error", [])] * len(bad)
    else:
        assert [json.loads(text)["error"]["code"] for text in bad] == CODES[task]
    if output == "json":
        answers = [json.loads(text) for text in answers]
    assert [text_of(answer) for answer in answers[: len(good)]] == good
    assert [text_of(answer) for answer in answers[-len(good) :]] == good


def test_a_bad_row_stops_the_job_and_says_why(spark: Any, saved: dict[Task, str]) -> None:
    rows = [([("user", "Hello")],), ([("king", "Hello")],)]
    frame = spark.createDataFrame(rows, f"messages {MESSAGES}").coalesce(1)
    with pytest.raises(Exception, match=r"row 1: messages\[0\]\.role must be one of"):
        values(frame, udf(spark, saved[CHAT])("messages"))


def test_columns_without_a_struct_are_refused(
    spark: Any, saved: dict[Task, str], prompts: Any
) -> None:
    frame = prompts.selectExpr("prompt", "5 AS max_tokens")
    with pytest.raises(Exception, match=r"The 2 columns have no names.*wrap them in struct\("):
        values(frame, udf(spark, saved[TEXT])("prompt", "max_tokens"))


def test_params_hold_for_every_row(
    spark: Any, saved: dict[Task, str], prompts: Any, native: GenAIModel
) -> None:
    short = udf(spark, saved[TEXT], params={"max_tokens": 2})
    assert values(prompts, short("prompt")) == expected(native, TEXT, 2)


def test_a_config_given_to_spark_replaces_the_saved_one(
    spark: Any, saved: dict[Task, str], prompts: Any, native: GenAIModel
) -> None:
    """Of a local session; on a cluster MLflow drops it."""
    short = udf(spark, saved[TEXT], model_config={"max_tokens": 2})
    assert values(prompts, short("prompt")) == expected(native, TEXT, 2)


def test_a_model_may_be_saved_to_give_text_and_keep_bad_rows(
    spark: Any, demo: Path, tmp_path: Path, native: GenAIModel
) -> None:
    config = {"output": "text", "on_error": "row"}
    uri = save(demo, tmp_path / "model", CHAT, model_config=config)
    answers = values(frame_of(spark, CHAT, [None]), udf(spark, uri)("messages"))
    good = expected(native, CHAT)
    assert [*good, json.loads(answers.pop(len(good)))["error"]["param"], *good] == [
        *answers[: len(good)],
        "messages",
        *answers[len(good) :],
    ]


@pytest.mark.parametrize("task", ALL_TASKS)
def test_optional_columns_may_be_null(
    spark: Any, functions: Any, saved: dict[Task, str], native: GenAIModel, task: Task
) -> None:
    """Each row has what its cells say, and what is saved where they say nothing."""
    columns = f"{INPUT_FIELDS[task]} {TYPES[task]}, max_tokens int, seed long, stop array<string>"
    prompt = PROMPTS[0] if task != CHAT else [("user", QUESTIONS[0])]
    rows = [(prompt, 1, None, None), (prompt, None, 7, None), (prompt, None, None, [" of", "ri"])]
    frame = spark.createDataFrame(rows, columns).coalesce(1)
    answer = udf(spark, saved[task], result_type="string", params={"output": "text"})
    requests: list[dict[str, Any]] = [
        {**SHORT, "max_tokens": 1},
        SHORT,
        {**SHORT, "stop": [" of", "ri"]},
    ]
    if task == CHAT:
        message = {"role": "user", "content": QUESTIONS[0]}
        texts = [text_of(native.chat([message], **request)) for request in requests]
    else:
        texts = [native.generate(PROMPTS[0], **request) for request in requests]
    assert len(set(texts)) == 3
    assert values(frame, answer(functions.struct("*"))) == texts


def test_messages_may_be_maps(spark: Any, saved: dict[Task, str], native: GenAIModel) -> None:
    rows = [([{"role": "user", "content": question}],) for question in QUESTIONS]
    frame = spark.createDataFrame(rows, "messages array<map<string,string>>").coalesce(1)
    answer = udf(spark, saved[CHAT])("messages")
    assert values(frame, answer["choices"][0]["message"]["content"]) == expected(native, CHAT)


def test_numbers_may_be_literals_of_sql(
    spark: Any, saved: dict[Task, str], chats: Any, native: GenAIModel
) -> None:
    spark.udf.register("phi3", udf(spark, saved[CHAT]))
    chats.createOrReplaceTempView("chats")
    query = "SELECT phi3(struct(messages, 0.0 AS temperature, 3 AS max_tokens)) FROM chats"
    answers = [row[0] for row in spark.sql(query).collect()]
    assert [text_of(answer) for answer in answers] == expected(native, CHAT, 3)


def test_a_prompt_of_several_texts_is_one_row_with_a_choice_for_each(
    spark: Any, functions: Any, saved: dict[Task, str], prompts: Any, native: GenAIModel
) -> None:
    """Also in the last batch, which has one row."""
    frame = prompts.select(functions.array("prompt", functions.lit("Hello")).alias("prompt"))
    answers = values(frame, udf(spark, saved[COMPLETIONS])("prompt"))
    texts = [[choice["text"] for choice in answer["choices"]] for answer in answers]
    hello = native.generate("Hello", **SHORT)
    assert texts == [[text, hello] for text in expected(native, COMPLETIONS)]


def test_a_struct_may_have_some_fields_of_an_answer(
    spark: Any, functions: Any, saved: dict[Task, str], chats: Any, native: GenAIModel
) -> None:
    kind = (
        "choices array<struct<message:struct<content:string>,"
        "logprobs:struct<content:array<struct<token:string,logprob:double>>>>>,"
        "usage struct<total_tokens:long>"
    )
    column = functions.struct("messages", functions.lit(True).alias("logprobs"))
    answers = values(chats, udf(spark, saved[CHAT], result_type=kind)(column))
    assert answers[0].asDict().keys() == {"choices", "usage"}
    assert [text_of(answer) for answer in answers] == expected(native, CHAT)
    for [choice] in (answer["choices"] for answer in answers):
        tokens = choice["logprobs"]["content"]
        assert len(tokens) == 5
        assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
        assert all(token["logprob"] <= 0 for token in tokens)


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def test_each_row_may_have_its_own_tools_and_answers_as_json_have_their_calls(
    spark: Any, functions: Any, saved: dict[Task, str], native: GenAIModel
) -> None:
    """One type holds the tools of all rows, so each has nulls for what only others have."""
    message = {"role": "user", "content": QUESTIONS[0]}
    tools = [tool("capital", country={"type": "string"}), tool("add", number={"type": "integer"})]
    kind = (
        "array<struct<type:string,function:struct<name:string,parameters:struct<type:string,"
        "properties:struct<country:struct<type:string>,number:struct<type:string>>,"
        "required:array<string>>>>>"
    )
    rows = [([("user", QUESTIONS[0])], json.dumps([one])) for one in tools]
    frame = spark.createDataFrame(rows, f"messages {MESSAGES}, tools string").coalesce(1)
    frame = frame.withColumn("tools", functions.from_json("tools", kind))
    frame = frame.selectExpr("*", "'required' AS tool_choice", "40 AS max_tokens")
    answer = udf(spark, saved[CHAT], result_type="string", params={"output": "json"})
    column = answer(functions.struct("*"))
    answers = [json.loads(text) for text in values(frame, column)]
    for one, found in zip(tools, answers, strict=True):
        same = native.chat(
            [message], tools=[one], tool_choice="required", max_tokens=40, temperature=0
        )
        assert found["usage"]["prompt_tokens"] == same["usage"]["prompt_tokens"]
        messages = [answer["choices"][0]["message"] for answer in (found, same)]
        one_call, other = (message["tool_calls"][0]["function"] for message in messages)
        assert one_call == other
        assert one_call["name"] == one["function"]["name"]
    calls = "tool_calls:array<struct<function:struct<name:string>>>"
    typed = functions.from_json(column, f"choices array<struct<message:struct<{calls}>>>")
    names = typed["choices"][0]["message"]["tool_calls"][0]["function"]["name"]
    assert values(frame, names) == ["capital", "add"]


def test_a_response_format_may_be_a_column(
    spark: Any, functions: Any, saved: dict[Task, str], native: GenAIModel
) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"yes": {"type": "boolean"}}}
    schema |= {"required": ["yes"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    kind = (
        "type string, json_schema struct<name:string,schema:struct<type:string,"
        "properties:struct<yes:struct<type:string>>,required:array<string>,additionalProperties:boolean>>"
    )
    rows = [([("user", QUESTIONS[0])], json.dumps(wanted)), ([("user", QUESTIONS[0])], None)]
    frame = spark.createDataFrame(rows, f"messages {MESSAGES}, response_format string").coalesce(1)
    frame = frame.withColumn("response_format", functions.from_json("response_format", kind))
    frame = frame.selectExpr("*", "30 AS max_tokens")
    answer = udf(spark, saved[CHAT], result_type="string", params={"output": "text"})
    held, free = values(frame, answer(functions.struct("*")))
    assert isinstance(json.loads(held)["yes"], bool)
    assert free == answered(native, QUESTIONS[0], 30)
