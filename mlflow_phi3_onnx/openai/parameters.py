"""Every request parameter, once: what it means, what it may be, and whether it is honoured.

The parser, the MLflow signatures, the saved ``model_config`` and the tables in the documentation
are all made from :data:`PARAMETERS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlflow_phi3_onnx.core import checks
from mlflow_phi3_onnx.openai import fields, structured
from mlflow_phi3_onnx.openai.messages import MAX_PREDICTION_CHARACTERS, check_prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ALL_TASKS",
    "CHAT",
    "COMPLETIONS",
    "PARAMETERS",
    "TEXT",
    "Parameter",
    "Task",
]

Task: TypeAlias = Literal["llm/v1/chat", "llm/v1/completions", "text-generation"]

CHAT: Task = "llm/v1/chat"
COMPLETIONS: Task = "llm/v1/completions"
TEXT: Task = "text-generation"
ALL_TASKS: tuple[Task, ...] = (CHAT, COMPLETIONS, TEXT)
OPENAI_TASKS: tuple[Task, ...] = (CHAT, COMPLETIONS)

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_DRAFT = 16

Status: TypeAlias = Literal["honoured", "unused", "refused"]


@dataclass(frozen=True)
class Parameter:
    """One request parameter.

    Attributes:
        name: Its name in a request.
        status: ``honoured``; ``unused`` (accepted, with no effect to have); or ``refused``.
        about: What it does, or for a refused one what to do instead.
        allowed: What values it may have, in words.
        check: Returns the clean value or raises ValueError.
        tasks: The tasks that know it.
        numeric: Whether it is a plain number, which an MLflow ``params`` schema can carry.
        configurable: Whether ``model_config`` may give its default.
    """

    name: str
    status: Status
    about: str
    allowed: str = "anything"
    check: Callable[[Any], Any] = lambda value: value
    tasks: tuple[Task, ...] = ALL_TASKS
    numeric: bool = False
    configurable: bool = False


def _number_row(
    name: str,
    about: str,
    allowed: str,
    check: Callable[[Any], Any],
    tasks: tuple[Task, ...] = ALL_TASKS,
) -> Parameter:
    return Parameter(name, "honoured", about, allowed, check, tasks, True, True)


def _form(name: str, about: str, allowed: str, check: Callable[[Any], Any]) -> Parameter:
    return Parameter(name, "honoured", about, allowed, check, configurable=True)


def _unused(name: str, about: str, tasks: tuple[Task, ...] = OPENAI_TASKS) -> Parameter:
    return Parameter(name, "unused", about, tasks=tasks)


def _refused(name: str, about: str, tasks: tuple[Task, ...] = OPENAI_TASKS) -> Parameter:
    return Parameter(name, "refused", about, tasks=tasks)


_COUNT = checks.integer(1, 2**31 - 1)
_SEED = checks.integer(-(2**63), 2**63 - 1)

_ROWS = (
    _number_row(
        "temperature",
        "How freely tokens are chosen; 0 always takes the likeliest.",
        "a number from 0 to 2",
        checks.number(0, 2),
    ),
    _number_row(
        "top_p",
        "Sample among the fewest likeliest tokens with this much probability together.",
        "a number from 0 to 1",
        checks.number(0, 1),
    ),
    _number_row(
        "top_k",
        "Sample among this many likeliest tokens; 0 or -1 means all.",
        "an integer from -1",
        checks.integer(-1, 2**31 - 1),
    ),
    _number_row(
        "min_p",
        "Drop tokens less likely than this share of the likeliest one's probability.",
        "a number from 0 to 1",
        checks.number(0, 1),
    ),
    Parameter(
        "do_sample",
        "honoured",
        "False always takes the likeliest token; True samples, also where the model's own default"
        " does not. Not needed where temperature, top_p, top_k or min_p is given.",
        "true or false",
        checks.boolean,
        configurable=True,
    ),
    _number_row(
        "seed",
        "Makes sampling repeatable, alone or in a batch.",
        "an integer of 64 bits",
        _SEED,
    ),
    _number_row(
        "max_tokens",
        "The most tokens of an answer.",
        "an integer from 1",
        _COUNT,
        (CHAT, TEXT),
    ),
    _number_row(
        "max_tokens",
        "The most tokens of an answer. 0 needs echo: nothing is generated, and the answer is the"
        " prompt, with logprobs if they are asked for.",
        "an integer from 0",
        checks.integer(0, 2**31 - 1),
        (COMPLETIONS,),
    ),
    _number_row(
        "max_completion_tokens",
        "OpenAI's newer name of max_tokens; give one of them.",
        "an integer from 1",
        _COUNT,
    ),
    _number_row(
        "max_length",
        "The most tokens of prompt and answer together, as in onnxruntime-genai.",
        "an integer from 1",
        _COUNT,
    ),
    _number_row(
        "min_tokens",
        "The fewest tokens before an end-of-sequence token may end the answer.",
        "an integer from 0",
        checks.integer(0, 2**31 - 1),
    ),
    Parameter(
        "stop",
        "honoured",
        "Texts that end the answer; they are not part of it.",
        f"a string, or a list of at most {fields.MAX_STOPS} strings, of 1 to"
        f" {fields.MAX_STOP_CHARACTERS:,} characters each",
        fields.stop,
        configurable=True,
    ),
    _number_row(
        "n",
        "How many answers to each prompt.",
        f"an integer from 1 to {MAX_CHOICES}",
        checks.integer(1, MAX_CHOICES),
        OPENAI_TASKS,
    ),
    _number_row(
        "repetition_penalty",
        "Above 1, makes tokens of the prompt and the answer less likely.",
        "a number above 0, up to 10",
        checks.number(0, 10, above=True),
    ),
    _number_row(
        "presence_penalty",
        "Subtracted from the logits of tokens that the answer holds.",
        "a number from -2 to 2",
        checks.number(-2, 2),
    ),
    _number_row(
        "frequency_penalty",
        "Subtracted from the logits of tokens for each time that the answer holds them.",
        "a number from -2 to 2",
        checks.number(-2, 2),
    ),
    Parameter(
        "logit_bias",
        "honoured",
        "Added to the logits of tokens, by token id.",
        f"an object of at most {fields.MAX_BIASES:,} token ids, each with a number from -100"
        " to 100",
        fields.logit_bias,
    ),
    Parameter(
        "logprobs",
        "honoured",
        "Whether to report the log-probability of each token.",
        "true or false",
        checks.boolean,
        tasks=(CHAT,),
    ),
    Parameter(
        "logprobs",
        "honoured",
        "How many of the likeliest tokens to report with each token's log-probability. With echo,"
        " the prompt's tokens are reported too, the first one's log-probability being null; so is"
        " that of an end-of-sequence token, which is listed only then.",
        f"an integer from 0 to {MAX_LOGPROBS}",
        checks.integer(0, MAX_LOGPROBS),
        tasks=(COMPLETIONS,),
    ),
    Parameter(
        "top_logprobs",
        "honoured",
        "How many of the likeliest tokens to report at each position; needs logprobs.",
        f"an integer from 0 to {MAX_LOGPROBS}",
        checks.integer(0, MAX_LOGPROBS),
        tasks=(CHAT,),
    ),
    Parameter(
        "echo",
        "honoured",
        "Whether the answer begins with the prompt.",
        "true or false",
        checks.boolean,
        tasks=(COMPLETIONS,),
    ),
    Parameter(
        "tools",
        "honoured",
        "Functions that the model may call, for the chat template to show it. A strict function's"
        " arguments always match its parameters.",
        f"a list of at most {fields.MAX_TOOLS} objects with type 'function' and a function with a"
        " name, and maybe strict, true or false",
        fields.tools,
        tasks=(CHAT,),
    ),
    Parameter(
        "tool_choice",
        "honoured",
        "'none' hides the tools from the model; 'auto' shows them; 'required' makes the answer one"
        " or more calls; a function's name makes it one call of that function. The arguments of"
        " required calls match the parameters.",
        "'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}",
        fields.tool_choice,
        tasks=(CHAT,),
    ),
    Parameter(
        "parallel_tool_calls",
        "honoured",
        "False makes an answer hold one call at most.",
        "true or false",
        checks.boolean,
        tasks=(CHAT,),
    ),
    Parameter(
        "chat_template_kwargs",
        "honoured",
        "More values for the model's chat template, such as enable_thinking. One that the template"
        " does not read is refused. Text in them is text, as in messages.",
        f"an object of JSON values by name, none of {', '.join(fields.GIVEN_TO_TEMPLATES)}",
        fields.template_kwargs,
        tasks=(CHAT,),
        configurable=True,
    ),
    Parameter(
        "response_format",
        "honoured",
        "The form of the answer: any JSON object, or JSON that matches a schema, strict or not.",
        "an object with type 'text', 'json_object' or 'json_schema'",
        structured.response_format,
        tasks=(CHAT,),
        configurable=True,
    ),
    _form(
        "regex",
        "A regular expression, in Rust's syntax, that the whole answer matches.",
        f"a string of 1 to {structured.MAX_REGEX_CHARACTERS:,} characters",
        structured.regex,
    ),
    _form(
        "grammar",
        "A grammar, in llguidance's variant of Lark, that the whole answer matches.",
        f"a string of 1 to {structured.MAX_LARK_CHARACTERS:,} characters",
        structured.lark,
    ),
    _form(
        "choice",
        "Texts that the answer is one of.",
        f"a list of 1 to {structured.MAX_CHOICES:,} strings, of"
        f" {structured.MAX_CHOICE_CHARACTERS:,} characters together",
        structured.choice,
    ),
    _number_row(
        "timeout",
        "Seconds after which an answer that is not whole is given up with an error.",
        "a number above 0",
        checks.number(0, float("inf"), above=True),
    ),
    _number_row(
        "prompt_lookup_num_tokens",
        "The most tokens that are guessed ahead and checked in one step (prompt lookup decoding);"
        " guesses come from what the prompt and the answer already say. Changes the speed, never"
        " the answer. Default: 0, or 8 with a prediction.",
        f"an integer from 0 to {MAX_DRAFT}",
        checks.integer(0, MAX_DRAFT),
    ),
    Parameter(
        "prediction",
        "honoured",
        "A text that the answer is likely to repeat, such as a file that is to be edited: tokens"
        " are guessed from it too. Changes the speed, never the answer.",
        "an object with type 'content' and a content that is a string or a list of text parts, of"
        f" at most {MAX_PREDICTION_CHARACTERS:,} Unicode characters",
        check_prediction,
        tasks=(CHAT,),
    ),
    Parameter(
        "adapter",
        "honoured",
        "The adapter that the model answers with. Without one, the model answers as it is.",
        "the name of one of the model's adapters",
        checks.string,
    ),
    Parameter(
        "model",
        "honoured",
        "The name of an adapter chooses it, as adapter does. A model with adapters refuses names of"
        " none, other than its own; one without takes any. The answer names who it is from.",
        tasks=OPENAI_TASKS,
    ),
    Parameter(
        "stream",
        "honoured",
        "True is for predict_stream and stream_chat; a plain prediction answers as a whole.",
        "true or false",
        checks.boolean,
        tasks=OPENAI_TASKS,
    ),
    Parameter(
        "stream_options",
        "honoured",
        "include_usage: whether a stream ends with a chunk that holds the usage (default true).",
        "an object with include_usage, true or false",
        fields.stream_options,
        tasks=OPENAI_TASKS,
    ),
    _unused("user", "Not stored."),
    _unused("metadata", "Not stored."),
    _unused("store", "Nothing is stored."),
    _unused("safety_identifier", "Not stored."),
    _unused("prompt_cache_key", "Not needed."),
    _refused("audio", "Only text can be generated.", (CHAT,)),
    _refused("modalities", "Only text can be generated; leave it out.", (CHAT,)),
    _refused("functions", "Deprecated by OpenAI; use tools.", (CHAT,)),
    _refused("function_call", "Deprecated by OpenAI; use tool_choice.", (CHAT,)),
    _refused(
        "chat_template",
        "A template is a program, so only the model's own is used. Put it into the model folder.",
        (CHAT,),
    ),
    _refused("reasoning_effort", "Say it in a message.", (CHAT,)),
    _refused("verbosity", "Say it in a message.", (CHAT,)),
    _refused("web_search_options", "There is no web search.", (CHAT,)),
    _refused("service_tier", "There are no tiers; leave it out."),
    _refused(
        "messages",
        "This task takes a prompt. Save the model with the task llm/v1/chat, or call chat.",
        (COMPLETIONS, TEXT),
    ),
    _refused("suffix", "Text can only be continued; put it into the prompt."),
    _refused("best_of", "Use n and choose among the answers."),
    _refused("max_new_tokens", "Use max_tokens.", ALL_TASKS),
    _refused("num_beams", "Beam search is not supported; use temperature 0.", ALL_TASKS),
    _refused("num_return_sequences", "Use n.", ALL_TASKS),
    _refused("truncation", "A prompt is never cut; one that is too long is an error.", ALL_TASKS),
    _refused("include_prompt", "The prompt is not part of the answer; see echo.", ALL_TASKS),
)


PARAMETERS: Mapping[Task, Mapping[str, Parameter]] = {
    task: {row.name: row for row in _ROWS if task in row.tasks} for task in ALL_TASKS
}
"""The parameters of each task, by name, in the order of the documentation."""
