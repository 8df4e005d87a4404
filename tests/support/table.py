"""The requests that are run through every door: good ones, and bad ones."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.support.doors import CANARY, SPAIN, Answer, Bad

__all__ = ["BAD", "BAD_NATIVE_ONLY", "GOOD", "PROMPT_TOKENS", "SAME", "Good", "check_good"]

PROMPT_TOKENS = 10


class Good(NamedTuple):
    """A request, and what its answer must be."""

    name: str
    fields: dict[str, Any]
    text: str
    finish_reason: str
    tokens: int


def check_good(answer: Answer, case: Good) -> None:
    assert (answer.text, answer.finish_reason) == (case.text, case.finish_reason)
    assert answer.usage == {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": case.tokens,
        "total_tokens": PROMPT_TOKENS + case.tokens,
    }


GOOD = [
    Good("plain", {}, "The capital of Spain is Madrid.", "stop", 8),
    Good("max_tokens", {"max_tokens": 3}, "The capital of", "length", 3),
    Good("max_tokens as a float", {"max_tokens": 3.0}, "The capital of", "length", 3),
    Good("max_completion_tokens", {"max_completion_tokens": 2}, "The capital", "length", 2),
    Good("max_length", {"max_length": PROMPT_TOKENS + 4}, "The capital of Spain", "length", 4),
    Good("max_length for one token", {"max_length": PROMPT_TOKENS + 1}, "The", "length", 1),
    Good(
        "as much as the context holds",
        {"max_length": 4096, "max_tokens": 4096 - PROMPT_TOKENS, "logit_bias": {"2559": 0}},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good("min_tokens of all", {"min_tokens": 3, "max_tokens": 3}, "The capital of", "length", 3),
    Good("stop inside a token", {"stop": "pain"}, "The capital of S", "stop", 4),
    Good("stop across tokens", {"stop": ["tal of S"]}, "The capi", "stop", 4),
    Good("stop at the start", {"stop": ["The"]}, "", "stop", 1),
    Good("the earliest of several stops", {"stop": ["Spain", "of"]}, "The capital ", "stop", 3),
    Good(
        "a stop that never comes", {"stop": ["Rome"]}, "The capital of Spain is Madrid.", "stop", 8
    ),
    Good(
        "a stop that has begun when the answer ends",
        {"stop": ["Madrid.zz", "of Spain is Rome"]},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "a stop that has begun where max_tokens cuts",
        {"stop": ["Spain is Rome"], "max_tokens": 4},
        "The capital of Spain",
        "length",
        4,
    ),
    Good("a stop token", {"stop_token_ids": [814, 5]}, "The capital of", "stop", 4),
    Good(
        "the last id as a stop token",
        {"stop_token_ids": [2559], "max_tokens": 1},
        "The",
        "length",
        1,
    ),
    Good("no stop tokens", {"stop_token_ids": [], "max_tokens": 2}, "The capital", "length", 2),
    Good(
        "an end that is ignored",
        {"ignore_eos": True, "max_tokens": 8},
        "The capital of Spain is Madrid.",
        "length",
        8,
    ),
    Good(
        "an end that is a stop token",
        {"ignore_eos": True, "stop_token_ids": [2551], "max_tokens": 20},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "min_tokens of a stop token",
        {"stop_token_ids": [386], "logit_bias": {"386": 100}, "min_tokens": 1, "max_tokens": 4},
        "The",
        "stop",
        2,
    ),
    Good(
        "an opened turn",
        {"add_generation_prompt": True, "continue_final_message": False},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "temperature 0",
        {"temperature": 0, "top_p": 0.5},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good("top_k 1", {"temperature": 2, "top_k": 1}, "The capital of Spain is Madrid.", "stop", 8),
    Good("top_p 0", {"temperature": 2, "top_p": 0}, "The capital of Spain is Madrid.", "stop", 8),
    Good("do_sample false", {"do_sample": False}, "The capital of Spain is Madrid.", "stop", 8),
    Good(
        "null is not given",
        {"stop": None, "seed": None},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "unused",
        {"model": "x", "user": "y", "store": True},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "a prediction",
        {"prediction": {"type": "content", "content": "The capital of Spain is Madrid."}},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "a prediction that is wrong, and of parts",
        {"prediction": {"type": "content", "content": [{"type": "text", "text": "of Italy"}]}},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good(
        "prompt lookup",
        {"prompt_lookup_num_tokens": 4},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
    Good("a timeout", {"timeout": 600.5, "max_tokens": 2}, "The capital", "length", 2),
    Good(
        "text format",
        {"response_format": {"type": "text"}},
        "The capital of Spain is Madrid.",
        "stop",
        8,
    ),
]


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 16, **fields}


SAME = [
    asked("zzz qqq", temperature=1.5, seed=4),
    asked("zzz qqq", temperature=1.1, seed=4, top_p=0.9, top_k=50, min_p=0.01),
    asked("Tell me a joke about atom", repetition_penalty=1.4, seed=2, temperature=1),
    asked("Count from 1 to 20", presence_penalty=1.5, frequency_penalty=1.5),
    asked("Count from 1 to 20", max_tokens=60, prompt_lookup_num_tokens=6),
    asked("Who are you?", regex="[a-z ]{8,30}", temperature=1.2, seed=9),
    asked("What is the capital of Peru?", response_format={"type": "json_object"}, max_tokens=40),
    asked("What is the capital of Peru?", choice=["Lima", "Rome"], temperature=0.7, seed=1),
    asked("What is the capital of Peru?", min_tokens=12, stop=["\n"]),
    asked("What is the capital of Peru?", logit_bias={"300": 4.0, "301": -100}),
    asked("Please think of it. " * 30 + "What is the capital of Italy?"),
]
"""Requests whose answers are not known beforehand, but are the same everywhere."""


def parameter(name: str, value: Any, says: str) -> Bad:
    return Bad({"messages": SPAIN, name: value}, name, says)


def messages(value: Any, param: str, says: str) -> Bad:
    return Bad({"messages": value}, param, says)


BAD = [
    messages([], "messages", "at least one message"),
    messages(["hello"], "messages[0]", "an object with role and content; got a string"),
    messages([{"content": CANARY}], "messages[0].role", "one of system, developer, user"),
    messages([{"role": "robot", "content": CANARY}], "messages[0].role", "one of system"),
    messages([{"role": "user"}], "messages[0].content", "it is missing"),
    messages([{"role": "user", "content": None}], "messages[0].content", "it is missing"),
    messages([{"role": "user", "content": 5}], "messages[0].content", "got 5"),
    messages([*SPAIN, {"role": "user", "content": {}}], "messages[1].content", "got an object"),
    messages([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "type 'text'"),
    messages(
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CANARY}}]}],
        "messages[0].content[0]",
        "image_url are not supported",
    ),
    *(
        messages(
            [{"role": "user", "content": [{"type": kind, kind: CANARY}]}],
            "messages[0].content[0]",
            f"parts of type {kind} are not supported",
        )
        for kind in ("thinking", "image", "video_url", "audio")
    ),
    messages(
        [{"role": "user", "content": [{"type": CANARY, "text": "x"}]}],
        "messages[0].content[0]",
        "an object with type 'text'",
    ),
    messages([{"role": "user", "content": "\ud800"}], "messages", "lone surrogate (U+D800)"),
    messages([{"role": "user", "content": "x", "name": 5}], "messages[0].name", "must be a string"),
    messages(
        [{"role": "user", "content": "x", "tool_calls": []}],
        "messages[0].tool_calls",
        "only to assistant messages",
    ),
    messages(
        [{"role": "assistant", "tool_calls": [{"id": "x"}]}],
        "messages[0].tool_calls[0]",
        "a function that has a name",
    ),
    messages([{"role": "user", "content": CANARY * 2000}], "", "maximum context length is 4,096"),
    parameter("temperature", -0.1, "a number from 0 to 2; got -0.1"),
    parameter("temperature", 2.1, "a number from 0 to 2; got 2.1"),
    parameter("temperature", float("inf"), "got inf"),
    parameter("temperature", CANARY, "got a string"),
    parameter("temperature", True, "got True"),
    parameter("top_p", 1.5, "a number from 0 to 1"),
    parameter("top_k", -2, "an integer from -1"),
    parameter("top_k", 1.5, "an integer from -1"),
    parameter("min_p", -1, "a number from 0 to 1"),
    parameter("seed", 2**63, "an integer of 64 bits"),
    parameter("seed", "7", "got a string"),
    parameter("max_tokens", 0, "an integer from 1; got 0"),
    parameter("max_tokens", -1, "an integer from 1; got -1"),
    parameter("max_tokens", 1e308, "an integer from 1"),
    parameter("max_tokens", 4087, "together 4,097; the model's maximum context length is 4,096"),
    parameter("max_length", 4097, "maximum context length is 4,096"),
    parameter("max_length", 10, "The prompt has 10 tokens; max_length is 10"),
    parameter("n", 0, "an integer from 1 to 128"),
    parameter("n", 129, "an integer from 1 to 128"),
    parameter("stop", "", "of 1 to 1,024 characters"),
    parameter("stop", [1], "a string, or a list"),
    parameter("stop", ["x"] * 17, "at most 16 strings"),
    parameter("stop", "x" * 1025, "of 1 to 1,024 characters"),
    parameter("stop_token_ids", 5, "a list of at most 128 token ids"),
    parameter("stop_token_ids", [-1], "integers from 0; got a list"),
    parameter("stop_token_ids", [1.5], "integers from 0"),
    parameter("stop_token_ids", [1] * 129, "at most 128"),
    parameter("stop_token_ids", [2559, 2560], "token ids below 2,560"),
    parameter("ignore_eos", "yes", "true or false"),
    Bad(
        {"messages": SPAIN, "ignore_eos": True, "regex": "a"},
        "ignore_eos",
        "regex says where the completion ends",
    ),
    parameter("reasoning_effort", "much", "one of none, minimal, low, medium, high, xhigh"),
    parameter("reasoning_effort", "low", "the model's chat template does not read it"),
    parameter("enable_thinking", False, "Give it in chat_template_kwargs"),
    parameter("continue_final_message", True, "messages[0] must be an assistant's"),
    parameter("continue_final_message", "yes", "true or false"),
    parameter("add_generation_prompt", 1, "true or false"),
    Bad(
        {"messages": SPAIN, "continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "give one of them",
    ),
    parameter("repetition_penalty", 0, "a number above 0"),
    parameter("presence_penalty", 2.5, "a number from -2 to 2"),
    parameter("frequency_penalty", -2.5, "a number from -2 to 2"),
    parameter("logit_bias", {"x": 1}, "token ids"),
    parameter("logit_bias", {"1": 101}, "from -100 to 100"),
    parameter("logit_bias", {"99999": 1}, "token ids below"),
    parameter("logit_bias", {"2559": 1, "2560": 1}, "token ids below 2,560"),
    parameter("logprobs", 1, "true or false"),
    parameter("top_logprobs", 3, "needs logprobs"),
    parameter("min_tokens", 4087, "min_tokens is 4,087, but the completion may have at most 4,086"),
    parameter("do_sample", 1, "true or false"),
    parameter("tools", {}, "a list of at most 128 objects"),
    parameter("tools", [{"type": "function"}], "a function with a name"),
    parameter("tools", [{"type": "function", "function": {"name": "f"}}] * 129, "at most 128"),
    parameter("tool_choice", "any", "'none', 'auto', 'required', {'type'"),
    parameter("tool_choice", {"type": "function", "name": CANARY}, "got an object"),
    parameter(
        "tool_choice",
        {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [CANARY]}},
        "'mode': 'auto' or 'required'",
    ),
    parameter("response_format", {"type": "xml"}, "'json_object' or 'json_schema'"),
    parameter("response_format", {"type": "json_schema"}, "an object with a schema"),
    parameter("regex", "", "a string of 1 to 8,192 characters"),
    parameter("regex", "(a", "regex cannot be used as a grammar: unclosed group."),
    parameter("grammar", 5, "a string of 1 to 32,768 characters"),
    parameter("grammar", f"start: /[{CANARY}/", "grammar cannot be used as a grammar"),
    parameter("choice", [], "a list of 1 to 1,000 strings"),
    parameter("choice", ["a", 5], "a list of 1 to 1,000 strings"),
    parameter("parallel_tool_calls", "no", "true or false"),
    parameter("stream_options", {"x": 1}, "include_usage"),
    parameter("timeout", 0, "a number above 0; got 0"),
    parameter("prompt_lookup_num_tokens", 17, "an integer from 0 to 16"),
    parameter("prediction", CANARY, "got a string"),
    parameter("prediction", {"type": "text", "content": "x"}, "an object with type 'content'"),
    parameter("prediction", {"type": "content", "content": 5}, "a string or a list of text parts"),
    parameter("prediction", {"type": "content", "content": "\ud800"}, "Unicode characters"),
    Bad(
        {
            "messages": SPAIN,
            "prediction": {"type": "content", "content": [{"type": "image_url", "x": CANARY}]},
        },
        "prediction.content[0]",
        "image_url are not supported",
    ),
    Bad(
        {
            "messages": SPAIN,
            "prediction": {"type": "content", "content": "x"},
            "prompt_lookup_num_tokens": 0,
        },
        "prediction",
        "of no use",
    ),
    parameter("adapter", CANARY, "adapter cannot be chosen: this model has none"),
    parameter("audio", {}, "Only text can be generated"),
    parameter("functions", [], "use tools"),
    parameter("best_of", 2, "Use n"),
    parameter("suffix", "x", "put it into the prompt"),
    parameter("max_new_tokens", 5, "Use max_tokens"),
    parameter("num_beams", 4, "use temperature 0"),
    parameter("truncation", True, "never cut"),
    Bad(
        {"messages": SPAIN, "max_tokens": 1, "max_completion_tokens": 1},
        "max_completion_tokens",
        "mean the same",
    ),
]

# MLflow drops a column that is not in the signature, with a warning, before the flavor sees it.
BAD_NATIVE_ONLY = [
    parameter("temprature", 1, "Did you mean temperature?"),
    parameter("temperature", float("nan"), "got nan"),
    messages(None, "messages", "messages is missing"),
    messages(CANARY, "messages", "got a string"),
]
