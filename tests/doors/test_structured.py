"""Answers that are held to a form: JSON schemas, expressions, grammars and choices."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import mlflow
import pandas as pd
import pytest

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel, InvalidRequestError
from tests.support.doors import COUNTED, SPAIN
from tests.support.forms import SCHEMAS, SUM, closed, schema_format


def check(text: str, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_matches_its_schema(model: GenAIModel, name: str) -> None:
    schema = SCHEMAS[name]
    form = schema_format(schema)
    sampled = [{"temperature": 1.5, "seed": seed} for seed in range(6)]
    rows = [
        {"messages": SPAIN, "response_format": form, "max_tokens": 400, **options}
        for options in [{}, {"temperature": 2, "n": 3, "seed": 7}, *sampled]
    ]
    for answer in model.run("llm/v1/chat", rows):
        for one in answer["choices"]:
            assert one["finish_reason"] == "stop"
            check(one["message"]["content"], schema)


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_holds_strict_or_not(model: GenAIModel, strict: bool | None) -> None:
    schema = closed(answer={"enum": ["yes", "no"]})
    answer = model.chat(
        SPAIN, response_format=schema_format(schema, strict=strict, description="An answer.")
    )
    check(answer["choices"][0]["message"]["content"], schema)


def test_any_object(model: GenAIModel) -> None:
    ended = 0
    for seed in range(8):
        answer = model.chat(
            SPAIN,
            response_format={"type": "json_object"},
            temperature=1.5,
            seed=seed,
            max_tokens=400,
        )["choices"][0]
        if answer["finish_reason"] == "stop":
            ended += 1
            assert isinstance(json.loads(answer["message"]["content"]), dict)
    assert ended


EXPRESSIONS = [
    "[0-9]{3}-[A-F]{2}",
    "(yes|no|maybe)( please)?!",
    "^https?://[a-z]{2,8}\\.(com|org)$",
    "[^\\x00-\\x7f]{3}",
    "(a+)+b",
    "\\p{Lu}\\p{Ll}{2,9}",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_text_matches_its_expression(model: GenAIModel, expression: str) -> None:
    same = expression.replace("\\p{Lu}", "\\w").replace("\\p{Ll}", "\\w")
    for seed in range(4):
        text = model.generate("The", regex=expression, temperature=1.5, seed=seed, max_tokens=300)
        assert re.fullmatch(same, text)


@pytest.mark.parametrize(
    "texts",
    [
        ["yes", "no"],
        ["a", "ab", "abc"],
        ["Madrid", "Paris", "New York"],
        ['"quoted"', "back\\slash", "two\nlines", "/slash/", "tab\t"],
        ["é", "日本", "😀", "\u2028"],
        [f"choice number {i}" for i in range(1000)],
    ],
)
def test_an_answer_is_one_of_the_choices(model: GenAIModel, texts: list[str]) -> None:
    rows = [{"prompt": "The", "choice": texts, "temperature": 2, "seed": i} for i in range(6)]
    assert set(model.run("text-generation", rows)) <= set(texts)


def test_the_likeliest_choice_is_taken(model: GenAIModel) -> None:
    assert model.generate("The capital of Spain is", choice=[" Paris", " Madrid"]) == " Madrid"


def test_text_matches_its_grammar(model: GenAIModel) -> None:
    for seed in range(4):
        response = model.complete("2+2", grammar=SUM, temperature=1.5, seed=seed, max_tokens=50)
        text = response["choices"][0]["text"]
        assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2}){1,3}", text)


def test_a_grammar_may_hold_schemas(model: GenAIModel) -> None:
    schema = json.dumps(closed(n={"enum": [1, 2]}))
    text = model.generate("x", grammar=f'start: "a: " %json {schema} " b: " %json\n {schema} "."')
    assert re.fullmatch(r'a: \{"n": ?[12]\} b: \{"n": ?[12]\}\.', text)


def test_the_end_token_inside_a_grammar_does_not_cut_it(model: GenAIModel) -> None:
    with pytest.raises(InvalidRequestError, match=r"^grammar cannot be used .* no token") as caught:
        model.generate("x", grammar='start: <|end|> "a"')
    assert caught.value.param == "grammar"
    assert model.generate("x", grammar='start: "a" (<|end|> "b" | "c")') == "ac"


ROWS: list[dict[str, Any]] = [
    {"response_format": schema_format(SCHEMAS["object"])},
    {},
    {"regex": "[a-z]{5}"},
    {"choice": ["Madrid", "Paris"], "logprobs": True, "top_logprobs": 2},
    {"temperature": 1.2, "seed": 3},
    {"grammar": SUM, "temperature": 1.5, "seed": 4},
    {"response_format": schema_format(SCHEMAS["array"]), "temperature": 1.5, "seed": 5},
    {"response_format": {"type": "json_object"}, "max_tokens": 7},
    {"response_format": schema_format(SCHEMAS["object"]), "temperature": 1.5, "seed": 6},
    {"regex": "[a-z ]{300}", "stop": "e"},
    {"regex": "a{30}", "frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 5},
]


def test_rows_of_a_batch_are_what_each_is_alone(model: GenAIModel) -> None:
    rows = [{"messages": SPAIN, "max_tokens": 60, **row} for row in ROWS]
    together = model.run("llm/v1/chat", rows)
    alone = [model.run("llm/v1/chat", [row])[0] for row in rows]
    assert [r["choices"] for r in together] == [r["choices"] for r in alone]
    for one, other in zip(together, alone, strict=True):
        counted = ("prompt_tokens", "completion_tokens")
        assert [one["usage"][name] for name in counted] == [
            other["usage"][name] for name in counted
        ]
    assert together[1]["choices"][0]["message"]["content"] == "The capital of Spain is Madrid."
    assert together[-1]["choices"][0]["message"]["content"] == "a" * 30


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_streams_are_what_whole_answers_are(model: GenAIModel, row: dict[str, Any]) -> None:
    fields = {"max_tokens": 60, **row}
    whole = model.chat(SPAIN, **fields)
    chunks = list(model.stream_chat(SPAIN, **COUNTED, **fields))
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(c["delta"].get("content", "") for c in choices)
    assert text == whole["choices"][0]["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_a_token_limit_may_cut_a_form(model: GenAIModel) -> None:
    answer = model.chat(SPAIN, regex="[0-9]{50}", max_tokens=5)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    answer = model.chat(SPAIN, regex="[0-9]", max_tokens=1)
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_stop_sequence_still_cuts(model: GenAIModel) -> None:
    answer = model.chat(SPAIN, grammar='start: "one two three"', stop=" t")["choices"][0]
    assert answer["message"]["content"] == "one"
    assert answer["finish_reason"] == "stop"


def test_no_bias_leads_out_of_a_form(model: GenAIModel) -> None:
    ids = {str(i): 100 for i in range(0, 2000, 2)} | {"5": -100}
    assert model.generate("x", choice=["yes"], logit_bias=dict(list(ids.items())[:900])) == "yes"


def test_a_form_may_repeat_what_the_model_s_own_configuration_forbids(
    demo: Path, tmp_path: Path, loop: str
) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    config = json.loads((folder / "genai_config.json").read_text("utf-8"))
    config["search"]["no_repeat_ngram_size"] = 2
    (folder / "genai_config.json").write_text(json.dumps(config), "utf-8")
    tools = [
        {
            "type": "function",
            "function": {"name": "f", "parameters": closed(a={"const": "xyxyxyxyxy"})},
        }
    ]
    with GenAIModel(folder, model_config={"loop": loop}) as model:
        (held,) = model.chat(SPAIN, regex="(ab){8}")["choices"]
        (called,) = model.chat(SPAIN, tools=tools, tool_choice="required")["choices"]
        free = model.chat([{"role": "user", "content": "Count from 1 to 20"}])["choices"][0]
    assert held["message"]["content"] == "ab" * 8
    assert called["finish_reason"] == "tool_calls"
    ids = model.tokenize(free["message"]["content"])
    assert len(set(itertools.pairwise(ids))) == len(ids) - 1


def test_logprobs_are_those_before_the_form(model: GenAIModel) -> None:
    answer = model.chat(SPAIN, choice=["Zagreb"], logprobs=True, top_logprobs=1)["choices"][0]
    entries = answer["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == "Zagreb"
    free = model.chat(SPAIN, max_tokens=1, logprobs=True, top_logprobs=1)["choices"][0]
    (likeliest,) = entries[0]["top_logprobs"]
    (freely,) = free["logprobs"]["content"][0]["top_logprobs"]
    # What a form asks for is written as it is: with the space that the vocabulary has there.
    assert (likeliest["token"], freely["token"]) == (" The", "The")
    assert likeliest["logprob"] == freely["logprob"]
    assert entries[0]["logprob"] < entries[0]["top_logprobs"][0]["logprob"]


def many_expressions(count: int) -> dict[str, Any]:
    return {"allOf": [{"type": "string", "pattern": f"x.*{i}.*y"} for i in range(count)]}


def chain(length: int) -> dict[str, Any]:
    links: dict[str, Any] = {
        f"n{i}": {"$ref": f"#/$defs/n{i + 1}", "pattern": f"{i}"} for i in range(length)
    }
    return {"$defs": {**links, f"n{length}": {"type": "string"}}, "$ref": "#/$defs/n0"}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = closed(a=schema)
    return schema


BAD_SCHEMAS: list[tuple[dict[str, Any], str]] = [
    ({"type": "objct"}, "Invalid type: objct."),
    ({"$ref": "#/$defs/none"}, "does not exist."),
    ({"$ref": "https://example.com/schema"}, "does not fetch resources."),
    ({"type": "string", "pattern": 5}, "Expected string for 'pattern', got 5."),
    ({"type": "string", "maxLength": -1}, "maxLength cannot be held: Expected positive integer"),
    ({"type": "string", "maxLength": 2.5}, "maxLength cannot be held: Expected positive integer"),
    ({"type": "string", "minLength": 2**32}, "minLength cannot be held: decimal literal invalid."),
    ({"enum": []}, "Unsatisfiable schema"),
    ({"$ref": "#"}, "it matches nothing."),
    ({"x-guidance": {"lenient": True}}, "x-guidance is not supported"),
    ({"const": float("nan")}, "a schema that is not valid JSON."),
    ({"const": "\ud800"}, "cannot be used as a grammar: "),
    (deep(40), "nested more than 64 levels deep."),
    (deep(3000), "nested more than 64 levels deep."),
    ({"enum": [f"value {i}" for i in range(10_000)]}, "more than 65,536 characters."),
    (many_expressions(20), "match more than 10 expressions at once."),
    (chain(30), "match more than 10 expressions at once."),
    ({"type": "integer", "multipleOf": 1_000_003}, "common multiple is above 20,000."),
    (
        {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}], "type": "integer"},
        "common multiple is above 20,000.",
    ),
    (
        {"patternProperties": {f"^{i}.*$": {} for i in range(300)}},
        "more than 16 patternProperties.",
    ),
    (closed(**{f"p{i}": {"type": "string", "format": "uri"} for i in range(800)}), "too big"),
]


@pytest.mark.parametrize(
    ("schema", "says"), BAD_SCHEMAS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_schemas_are_refused_before_anything_runs(
    model: GenAIModel, schema: dict[str, Any], says: str
) -> None:
    rows = [{"messages": SPAIN}, {"messages": SPAIN, "response_format": schema_format(schema)}]
    with pytest.raises(InvalidRequestError, match=r"^row 1: ") as caught:
        model.run("llm/v1/chat", rows)
    assert says in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.param == "response_format"
    assert model.chat(SPAIN, regex="ok")["choices"][0]["message"]["content"] == "ok"


def test_a_keyword_that_is_null_is_absent(model: GenAIModel) -> None:
    schema = {
        **closed(a={"type": "integer", "enum": None, "minimum": None, "maximum": 0, "$ref": None}),
        "properties": {"a": {"const": None}, "b": None},
        "required": ["a"],
        "anyOf": None,
    }
    form = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    assert (
        model.chat(SPAIN, response_format=form)["choices"][0]["message"]["content"] == '{"a": null}'
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("regex", "(a", "unclosed group."),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(?P<n>a)(?P=n)", "cannot be used as a grammar: "),
        ("regex", "a\\b", "cannot be used as a grammar: "),
        ("regex", "[^\\x00-\\x{10ffff}]", "cannot be used as a grammar: "),
        ("regex", "(((a{1000}){1000}){1000})", "too many expressions constructed."),
        ("grammar", "canary", "Expected token ':'"),
        ("grammar", 'start: "a" b', 'unknown name: "b".'),
        ("grammar", 'start: <|nothing|> "b"', 'unknown special token: "<|nothing|>".'),
        ("grammar", "start: start", "it matches nothing."),
        ("grammar", 'start: %json {"type": "objct"}', "Invalid type: objct."),
        ("grammar", "start: %json [1]", "must hold a JSON schema"),
        ("grammar", "start: %json {", "%json must be followed by a JSON schema."),
        ("grammar", "start: %json " + "[" * 20_000, "%json must be followed by a JSON schema."),
        ("grammar", f"start: %json {json.dumps(many_expressions(20))}", "10 expressions"),
        ("grammar", "start: a\na[temperature=0.5]: /x/", "temperature is not supported"),
        (
            "grammar",
            "start: A\nA: " + " & ".join(f"/.*{i}.*/" for i in range(12)),
            "lexer",
        ),
        ("grammar", "start: " + "(" * 500 + '"a"' + ")" * 500, "too deeply nested"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_expressions_and_grammars_are_refused(
    model: GenAIModel, name: str, value: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        model.chat(SPAIN, **{name: value})
    assert says in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.param == name
    assert model.chat(SPAIN, regex="ok")["choices"][0]["message"]["content"] == "ok"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"regex": "a", "choice": ["a"]}, "choice", "regex and choice cannot both hold"),
        ({"regex": "a", "min_tokens": 3}, "min_tokens", "regex says where the completion ends"),
        (
            {
                "regex": "a",
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": "required",
            },
            "regex",
            "leaves no room for tool calls",
        ),
        ({"response_format": {"type": "text", "x": 1}}, "response_format", "got an object"),
        ({"response_format": "json_object"}, "response_format", "got a string"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format",
            "must be an object with a schema",
        ),
        ({"choice": "yes"}, "choice", "got a string"),
        ({"choice": ["a" * 20000, "b" * 20000]}, "choice", "32,768 characters together"),
        ({"regex": "\ud800"}, "regex", "a string of 1 to"),
    ],
    ids=str,
)
def test_what_cannot_hold_together_is_refused(
    model: GenAIModel, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        model.chat(SPAIN, **fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_completions_have_no_response_format(model: GenAIModel) -> None:
    with pytest.raises(mlflow_phi3_onnx.UnsupportedParameterError, match="response_format"):
        model.complete("x", response_format={"type": "json_object"})


def test_a_saved_form_holds_until_a_request_has_its_own(demo: Path, tmp_path: Path) -> None:
    mlflow_phi3_onnx.save_model(demo, tmp_path / "m", model_config={"choice": ["yes", "no"]})
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "m"))

    def text(**fields: Any) -> str:
        answer: Any = loaded.predict({"messages": SPAIN, **fields})[0]
        return answer["choices"][0]["message"]["content"]

    assert text() in ("yes", "no")
    assert text(regex="[0-9]") in "0123456789"
    assert text(response_format={"type": "text"}) == "The capital of Spain is Madrid."


def test_forms_reach_completions_through_pyfunc(demo: Path, tmp_path: Path) -> None:
    mlflow_phi3_onnx.save_model(demo, tmp_path / "m", task="llm/v1/completions")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    rows = [{"prompt": "x", "choice": ["a", "b"]}, {"prompt": "x", "regex": "[0-9]"}]
    first, second = (answer["choices"][0]["text"] for answer in loaded.predict(rows))
    assert first in "ab"
    assert second in "0123456789"


def test_forms_reach_text_generation_through_params(demo: Path, tmp_path: Path) -> None:
    mlflow_phi3_onnx.save_model(demo, tmp_path / "m", task="text-generation")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    prompts = pd.DataFrame({"prompt": ["x", "y"]})
    assert loaded.predict(prompts, params={"regex": "ab"}) == ["ab", "ab"]
    assert loaded.predict(prompts, params={"choice": ["cd"]}) == ["cd", "cd"]
    assert loaded.predict(prompts, params={"grammar": 'start: "ef"'}) == ["ef", "ef"]
