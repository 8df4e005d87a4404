"""Completions: prompts in all their forms, echo and log-probabilities, through every door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

import mlflow_phi3_onnx
from mlflow_phi3_onnx.flavor.signatures import signature
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import parse_request
from tests.support.doors import (
    CANARY,
    COUNTED,
    DOORS,
    ONE_LOOP,
    Bad,
    Door,
    bad_id,
    refused_everywhere,
    saved,
    text_doors,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_phi3_onnx import GenAIModel

SPAIN = "The capital of Spain is"
ITALY = "The capital of Italy is"
CHAT = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
FORMS = "a string, a list of strings, a list of token ids or a list of lists of token ids"


@pytest.fixture(scope="module")
def pyfunc(demo: Path, loop: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("saved") / "completions"
    return saved(demo, folder, "llm/v1/completions", loop)


@pytest.fixture(scope="module")
def doors(model: GenAIModel, pyfunc: Any) -> dict[str, Door]:
    return text_doors(model, pyfunc)


def texts(choices: list[dict[str, Any]]) -> list[str]:
    return [choice["text"] for choice in choices]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("a string", [" Madrid."]),
        ("a list of strings", [" Madrid.", " Rome."]),
        ("token ids", [" Madrid."]),
        ("lists of token ids", [" Madrid.", " Rome."]),
    ],
)
def test_a_prompt_may_have_four_forms(
    model: GenAIModel, doors: dict[str, Door], door: str, form: str, expected: list[str]
) -> None:
    ids = [model.tokenize(SPAIN), model.tokenize(ITALY)]
    prompt: Any = {
        "a string": SPAIN,
        "a list of strings": [SPAIN, ITALY],
        "token ids": ids[0],
        "lists of token ids": ids,
    }[form]
    choices, usage = doors[door]({"prompt": prompt})
    assert texts(choices) == expected
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    prompt_tokens = sum(map(len, ids[: len(expected)]))
    assert usage["prompt_tokens"] == prompt_tokens
    assert usage["total_tokens"] == prompt_tokens + usage["completion_tokens"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("echo", [False, True], ids=["answers", "echo"])
def test_choices_are_each_prompt_s_answers_in_turn(
    doors: dict[str, Door], door: str, *, echo: bool
) -> None:
    sampled = {"n": 3, "temperature": 2, "seed": 11, "max_tokens": 6, "echo": echo}
    choices, usage = doors[door]({"prompt": [SPAIN, "zzz qqq"], **sampled})
    first, first_usage = doors[door]({"prompt": SPAIN, **sampled})
    second, second_usage = doors[door]({"prompt": "zzz qqq", **sampled})
    alone = [*first, *({**choice, "index": choice["index"] + 3} for choice in second)]
    assert choices == alone
    assert len(set(texts(second))) > 1
    begins = [SPAIN] * 3 + ["zzz qqq"] * 3
    assert [text.startswith(b) for text, b in zip(texts(choices), begins, strict=True)] == [
        echo
    ] * 6
    assert usage == {name: count + second_usage[name] for name, count in first_usage.items()}


def test_control_tokens_in_a_whole_prompt_are_control_tokens(model: GenAIModel) -> None:
    assert model.generate(CHAT) == " The capital of Spain is Madrid."
    assert "".join(model.stream_generate(CHAT)) == " The capital of Spain is Madrid."
    by_ids = model.complete(model.tokenize(CHAT))
    assert by_ids["choices"] == model.complete(CHAT)["choices"]


def test_every_prompt_s_cached_tokens_count(demo: Path) -> None:
    prompts = [f"{SPAIN} Madrid. " * 4, f"{ITALY} Rome. " * 4]
    with mlflow_phi3_onnx.GenAIModel(demo, model_config={"loop": "slots"}) as model:
        model.complete(prompts, max_tokens=1)
        usage = model.complete(prompts, n=2, max_tokens=1)["usage"]
        each = [model.complete(prompt, max_tokens=1)["usage"] for prompt in prompts]
        cached = [one["prompt_tokens_details"]["cached_tokens"] for one in each]
        assert usage["prompt_tokens_details"]["cached_tokens"] == sum(cached) > 0
        *_, last = model.stream_complete(prompts, n=2, max_tokens=1, **COUNTED)
        assert last["usage"] == usage


ECHOED = ["a string", "token ids"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", ECHOED)
@pytest.mark.parametrize("prompt", [SPAIN, CHAT, " naïve 😀 x", "\n"], ids=repr)
def test_echo_begins_with_the_prompt(
    model: GenAIModel, doors: dict[str, Door], door: str, form: str, prompt: str
) -> None:
    ids = model.tokenize(prompt)
    echoed = prompt if form == "a string" else model.detokenize(ids)
    given: Any = prompt if form == "a string" else ids
    (plain,), usage = doors[door]({"prompt": given, "max_tokens": 3})
    (choice,), echo_usage = doors[door]({"prompt": given, "max_tokens": 3, "echo": True})
    assert choice == {**plain, "text": echoed + plain["text"]}
    assert echo_usage == usage


@pytest.mark.parametrize("door", DOORS)
def test_logprobs_tell_where_tokens_begin_after_the_prompt(
    doors: dict[str, Door], door: str
) -> None:
    (choice,), _ = doors[door]({"prompt": SPAIN, "logprobs": 2, "max_tokens": 3})
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"] == " Madrid."
    assert logprobs["text_offset"] == [len(SPAIN), len(SPAIN + " Madrid")]
    assert all(logprob <= 0 for logprob in logprobs["token_logprobs"])
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3


def test_the_chosen_token_is_among_the_likeliest_reported(model: GenAIModel) -> None:
    choice = model.complete(SPAIN, logprobs=1, max_tokens=1, choice=["Zagreb"])["choices"][0]
    (token,), (top,) = choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"]
    assert len(top) == 2
    assert top[token] == choice["logprobs"]["token_logprobs"][0] == min(top.values())


def test_a_token_within_a_character_begins_where_the_character_does(model: GenAIModel) -> None:
    emoji = {str(token): 100 for token in model.tokenize("😀")[-4:]}
    answer = model.complete("x", logit_bias=emoji, max_tokens=4, logprobs=0)["choices"][0]
    assert answer["logprobs"]["text_offset"][0] == 1
    forced = model.complete("x", choice=["a😀b"], logprobs=0)["choices"][0]
    characters = [offset - len("x") for offset in forced["logprobs"]["text_offset"]]
    assert [forced["text"][at] for at in characters] == ["a", *"😀😀😀😀", "b"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("form", ECHOED)
def test_echo_with_logprobs_reports_the_prompt(
    model: GenAIModel, doors: dict[str, Door], door: str, form: str
) -> None:
    prompt = "What is naïve 😀? The capital of Spain is"
    ids = model.tokenize(prompt)
    given: Any = prompt if form == "a string" else ids
    asked = {"prompt": given, "echo": True, "logprobs": 2, "max_tokens": 2}
    (choice,), usage = doors[door](asked)
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {len(ids) + 2}
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    scored = model.token_logprobs(prompt, top_logprobs=2)
    assert logprobs["token_logprobs"][: len(ids)] == pytest.approx(
        [entry["logprob"] for entry in scored], abs=1e-5
    )
    for at, token, top in zip(
        logprobs["text_offset"], logprobs["tokens"], logprobs["top_logprobs"], strict=True
    ):
        assert token.startswith("bytes:") or choice["text"][at:].startswith(token)
        assert top is None or 2 <= len(top) <= 3
    (answer,), _ = doors[door]({**asked, "echo": False})
    for name, values in answer["logprobs"].items():
        for echoed, value in zip(logprobs[name][len(ids) :], values, strict=True):
            # How many tokens are computed at once may change how a number is rounded.
            assert echoed == value if name in EXACT else echoed == pytest.approx(value, abs=1e-5)
    assert usage["completion_tokens"] == 2


EXACT = ("tokens", "text_offset")


@pytest.mark.parametrize("door", DOORS)
def test_each_choice_has_the_logprobs_of_its_own_prompt(
    model: GenAIModel, doors: dict[str, Door], door: str
) -> None:
    prompts = [SPAIN, "zzz qqq"]
    choices, _ = doors[door](
        {"prompt": prompts, "n": 2, "echo": True, "logprobs": 0, "max_tokens": 1}
    )
    for choice, prompt in zip(choices, [prompts[0]] * 2 + [prompts[1]] * 2, strict=True):
        length = len(model.tokenize(prompt))
        assert "".join(choice["logprobs"]["tokens"][:length]) == prompt
        assert choice["logprobs"]["text_offset"][length:] == [len(prompt)]


@pytest.mark.parametrize("door", DOORS)
def test_an_echo_without_an_answer(doors: dict[str, Door], door: str) -> None:
    prompts = [f"{SPAIN} Madrid.", f"{SPAIN} Rome."]
    fields = {"prompt": prompts, "echo": True, "max_tokens": 0}
    choices, usage = doors[door](fields)
    assert texts(choices) == prompts
    assert {choice["finish_reason"] for choice in choices} == {"length"}
    assert not any("logprobs" in choice for choice in choices)
    assert usage["completion_tokens"] == 0
    right, wrong = (
        sum(choice["logprobs"]["token_logprobs"][1:])
        for choice in doors[door]({**fields, "logprobs": 0})[0]
    )
    assert right > wrong + 1


def test_scores_as_evaluation_harnesses_read_them(model: GenAIModel) -> None:
    """They send context and continuation as one list of ids, and read what follows the context."""
    context = model.tokenize(SPAIN)
    continuations = [
        [*model.tokenize(f"{SPAIN} {city}")][len(context) :] for city in ("Madrid", "Rome")
    ]
    response = model.complete(
        [context + continuation for continuation in continuations],
        max_tokens=1,
        logprobs=1,
        echo=True,
        temperature=0,
        seed=1234,
    )
    # After "Madrid." the model ends its answer: the token that does is listed, to be left out.
    assert response["choices"][0]["text"] == f"{SPAIN} Madrid."
    greedy: list[bool] = []
    for choice, continuation in zip(response["choices"], continuations, strict=True):
        logprobs = choice["logprobs"]
        scores = logprobs["token_logprobs"][len(context) : -1]
        top = logprobs["top_logprobs"][len(context) : -1]
        assert len(scores) == len(continuation)
        greedy.append(
            all(score == max(best.values()) for score, best in zip(scores, top, strict=True))
        )
    assert greedy == [True, False]


def bad(prompt: Any, param: str, says: str, **more: Any) -> Bad:
    return Bad({"prompt": prompt, **more}, param, says)


BAD = [
    bad(5, "prompt", f"prompt must be {FORMS}; got 5."),
    bad({"text": CANARY}, "prompt", "got an object"),
    bad([], "prompt", f"prompt must be {FORMS}; got an empty list."),
    bad("", "prompt", "The prompt is empty"),
    bad(["a", ""], "prompt[1]", "prompt[1] is empty; it needs at least one token."),
    bad([[5], []], "prompt[1]", "at least one; got an empty list"),
    bad(["a", 5], "prompt[1]", f"as prompt[0] is; got 5. prompt must be {FORMS}."),
    bad(["a", [5]], "prompt[1]", "must be a string, as prompt[0] is; got a list"),
    bad([5, CANARY], "prompt[1]", "a token id, an integer from 0; got a string"),
    bad([[5], CANARY], "prompt[1]", "a list of token ids, at least one; got a string"),
    bad([[5], 5], "prompt[1]", "a list of token ids, at least one; got 5"),
    bad([[5], [5, 2.5]], "prompt[1][1]", "a token id, an integer from 0; got 2.5"),
    bad([5, 6, 7, -1], "prompt[3]", "an integer from 0; got -1"),
    bad([True], "prompt[0]", "got True"),
    bad([None], "prompt[0]", "got null"),
    bad([5, 32064], "prompt[1]", "a token id below 2,560; got 32,064"),
    bad([2559, 2560], "prompt[1]", "a token id below 2,560; got 2,560"),
    bad([[5], [6, 2**31 - 1]], "prompt[1][1]", "a token id below 2,560"),
    bad(["\ud800", "a"], "prompt[0]", "prompt[0] holds a lone surrogate"),
    bad(["a"] * 2049, "prompt", "at most 2,048 prompts; got 2,049"),
    bad(["a"] * 1025, "n", "1,025 prompts with 2 completions each are more than 2,048", n=2),
    bad(["a", CANARY * 2000], "", "prompt[1] has"),
    bad([5] * 4096, "", "The prompt has 4,096 tokens; the model's maximum context length is 4,096"),
    bad("a", "max_tokens", "max_tokens is 0, which needs echo", max_tokens=0),
    bad("a", "max_tokens", "an integer from 0; got -1", max_tokens=-1),
    bad("a", "max_completion_tokens", "an integer from 1", max_completion_tokens=0, echo=True),
    bad("a", "min_tokens", "at most 0 tokens", max_tokens=0, echo=True, min_tokens=1),
]


@ONE_LOOP
@pytest.mark.parametrize("case", BAD, ids=bad_id)
def test_bad_prompts(doors: dict[str, Door], case: Bad) -> None:
    refused_everywhere(doors.values(), case)


@pytest.mark.parametrize(("prompts", "n"), [(2048, 1), (1024, 2), (16, 128)])
def test_as_many_answers_as_are_allowed(prompts: int, n: int) -> None:
    asked = parse_request({"prompt": ["a"] * prompts, "n": n}, "llm/v1/completions")
    assert len(asked.prompts) * asked.options.n == 2048


def test_a_missing_prompt_is_named(model: GenAIModel) -> None:
    missing: Any = None
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match=r"list of strings.*is missing"):
        model.complete(missing)


def test_a_saved_configuration_has_answers(demo: Path) -> None:
    config = {"max_tokens": 0}
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match="A single request may have 0"):
        mlflow_phi3_onnx.GenAIModel(demo, model_config=config, task="llm/v1/completions")


@pytest.mark.parametrize(
    ("prompt", "advice"),
    [
        (["a"], "Send several prompts as rows of a data frame"),
        ([5, 6], "Token ids are for complete"),
    ],
    ids=repr,
)
def test_text_generation_takes_one_string_a_row(
    model: GenAIModel, prompt: Any, advice: str
) -> None:
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match=advice):
        model.stream_generate(prompt)
    with pytest.raises(mlflow_phi3_onnx.InvalidRequestError, match="row 1: prompt must be a str"):
        model.generate(["a", prompt])


def test_an_object_is_one_row_and_a_list_of_objects_several(pyfunc: Any) -> None:
    ids = pyfunc.get_raw_model().tokenize(SPAIN)
    (one,) = pyfunc.predict({"prompt": [SPAIN, ITALY], "n": 2})
    assert texts(one["choices"]) == [" Madrid."] * 2 + [" Rome."] * 2
    rows = pyfunc.predict([{"prompt": [SPAIN, ITALY]}, {"prompt": ids}, {"prompt": [ids]}])
    assert [texts(row["choices"]) for row in rows] == [
        [" Madrid.", " Rome."],
        [" Madrid."],
        [" Madrid."],
    ]


def test_a_cell_of_a_frame_may_have_any_form(pyfunc: Any) -> None:
    ids = pyfunc.get_raw_model().tokenize(SPAIN)
    frame = pd.DataFrame({"prompt": [SPAIN, [SPAIN, ITALY], ids, [ids]], "max_tokens": [5] * 4})
    rows = pyfunc.predict(frame)
    assert [texts(row["choices"]) for row in rows] == [
        [" Madrid."],
        [" Madrid.", " Rome."],
        [" Madrid."],
        [" Madrid."],
    ]


def test_a_signature_whose_prompt_is_a_string_works_on(demo: Path, tmp_path: Path) -> None:
    """Models that were saved when a prompt could only be a string have it."""
    new = signature("llm/v1/completions")
    names = PARAMETERS["llm/v1/completions"]
    columns = [ColSpec(AnyType(), name, required=False) for name in names if name != "messages"]
    columns.append(ColSpec(Array(AnyType()), "messages", required=False))
    old = ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt"), *columns]),
        outputs=new.outputs,
        params=new.params,
    )
    mlflow_phi3_onnx.save_model(demo, tmp_path / "old", task="llm/v1/completions", signature=old)
    loaded: Any = mlflow.pyfunc.load_model(str(tmp_path / "old"))
    assert texts(loaded.predict({"prompt": SPAIN})[0]["choices"]) == [" Madrid."]
    assert len(loaded.predict(pd.DataFrame({"prompt": [SPAIN, ITALY]}))) == 2
    (chunk, *_) = loaded.predict_stream({"prompt": SPAIN, "echo": True})
    assert chunk["choices"][0]["text"] == SPAIN


def test_completions_through_pyfunc_take_objects(pyfunc: Any) -> None:
    request = {"prompt": SPAIN, "logit_bias": {"5": 0, "6": 0}}
    response = pyfunc.predict({**request, "metadata": {"a": "b"}})[0]
    assert response["choices"][0]["text"] == " Madrid."
    chunks = list(pyfunc.predict_stream({**request, "stream_options": {"include_usage": False}}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " Madrid."
