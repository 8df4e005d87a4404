"""Every request parameter, once: what it means, what it may be, and whether it is honoured.

The parser, the MLflow signatures, the saved ``model_config`` and the tables in the documentation
are all made from :data:`PARAMETERS`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.core.checks import Check, boolean, integer, number, one_of, string
from mlflow_phi3_onnx.core.options import Option, table
from mlflow_phi3_onnx.core.sampling import SAMPLING
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT
from mlflow_phi3_onnx.openai import fields, structured
from mlflow_phi3_onnx.openai.prompts import prediction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.core.tasks import Task

__all__ = ["DEFAULTS", "OF_MODEL", "PARAMETERS"]

OPENAI_TASKS: tuple[Task, ...] = (CHAT, COMPLETIONS)

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_DRAFT = 16
PREDICTION_DRAFT = 8
"""How many draft tokens a step has where a request has only a prediction."""

_any = partial(Option, tasks=ALL_TASKS)
_saved = partial(_any, configurable=True)
_chat = partial(Option, tasks=(CHAT,))
_openai = partial(Option, tasks=OPENAI_TASKS)
_unused = partial(_openai, status="unused")
_refused = partial(_any, status="refused")

_OF_MODEL = "the model's, else {}"
_TOP = integer(0, MAX_LOGPROBS)
_COUNT = integer(1)

_ROWS = (
    _saved(
        "temperature",
        "How freely tokens are chosen; 0 always takes the most likely.",
        SAMPLING["temperature"],
        1.0,
        _OF_MODEL,
    ),
    _saved(
        "top_p",
        "Sample among the fewest most likely tokens with this much probability together.",
        SAMPLING["top_p"],
        1.0,
        _OF_MODEL,
    ),
    _saved(
        "top_k",
        "Sample among this many most likely tokens; 0 or -1 means all.",
        SAMPLING["top_k"],
        0,
        _OF_MODEL,
    ),
    _saved(
        "min_p",
        "Drop tokens less likely than this share of the most likely one's probability.",
        SAMPLING["min_p"],
        0.0,
    ),
    _saved(
        "do_sample",
        "False always takes the most likely token; True samples, also where the model's own default"
        " does not. Not needed where temperature, top_p, top_k or min_p is given.",
        SAMPLING["do_sample"],
        otherwise="the model's",
    ),
    _saved("seed", "Makes sampling repeatable, alone or in a batch.", integer(bits=64)),
    _saved("max_tokens", "The most tokens of a completion.", integer(1), tasks=(CHAT, TEXT)),
    _saved(
        "max_tokens",
        "The most tokens of a completion. 0 needs echo: nothing is generated, and the completion is"
        " the prompt, with logprobs if they are asked for.",
        integer(0),
        tasks=(COMPLETIONS,),
    ),
    _saved(
        "max_completion_tokens", "OpenAI's newer name of max_tokens; give one of them.", integer(1)
    ),
    _saved(
        "max_length",
        "The most tokens of prompt and completion together, as in onnxruntime-genai.",
        SAMPLING["max_length"],
        otherwise="the context length",
    ),
    _saved(
        "min_tokens",
        "The fewest tokens before an end-of-sequence token may end the completion.",
        integer(0),
        0,
    ),
    _saved("stop", "Texts that end the completion; they are not part of it.", fields.stop),
    _saved(
        "stop_token_ids",
        "Tokens that end the completion, beside the model's end-of-sequence tokens; they are not"
        " part of its text.",
        fields.stop_token_ids,
    ),
    _saved(
        "ignore_eos",
        "True lets no end-of-sequence token end the completion, which then goes on to its most"
        " tokens, or to what is in stop or stop_token_ids.",
        boolean,
        False,
    ),
    _saved(
        "n", "How many completions of each prompt.", integer(1, MAX_CHOICES), 1, tasks=OPENAI_TASKS
    ),
    _saved(
        "repetition_penalty",
        "Above 1, makes tokens of the prompt and the completion less likely.",
        SAMPLING["repetition_penalty"],
        1.0,
        _OF_MODEL,
    ),
    _saved(
        "presence_penalty",
        "Subtracted from the logits of tokens that the completion holds.",
        number(-2, 2),
        0.0,
    ),
    _saved(
        "frequency_penalty",
        "Subtracted from the logits of tokens for each time that the completion holds them.",
        number(-2, 2),
        0.0,
    ),
    _any("logit_bias", "Added to the logits of tokens, by token id.", fields.logit_bias),
    _chat(
        "logprobs",
        "Whether to report the log-probability of each token.",
        boolean,
        otherwise="false",
    ),
    Option(
        "logprobs",
        "How many of the most likely tokens to report with each token's log-probability. With echo,"
        " the prompt's tokens are reported too, the first one's log-probability being null; so is"
        " that of an end-of-sequence token, which is listed only then.",
        _TOP,
        tasks=(COMPLETIONS,),
    ),
    _chat(
        "top_logprobs",
        "How many of the most likely tokens to report at each position; needs logprobs.",
        _TOP,
        0,
    ),
    Option(
        "echo",
        "Whether the completion begins with the prompt.",
        boolean,
        False,
        tasks=(COMPLETIONS,),
    ),
    _chat(
        "tools",
        "Functions that the model may call, for the chat template to show it. A strict function's"
        " arguments always match its parameters.",
        fields.tools,
    ),
    _chat(
        "tool_choice",
        "'none' hides the tools from the model; 'auto' shows them; 'required' makes the completion"
        " one or more tool calls; a function's name makes it one call of that function. With"
        " allowed_tools all tools are shown, and those that are named may be called, or must be."
        " The arguments of required calls match the parameters.",
        fields.tool_choice,
        fields.ToolChoice("auto"),
        "auto",
    ),
    _chat(
        "parallel_tool_calls", "False makes a completion hold one tool call at most.", boolean, True
    ),
    _chat(
        "reasoning_effort",
        "How much the model thinks before it answers, for the chat template to tell it. Refused"
        " where the template does not read it.",
        one_of("none", "minimal", "low", "medium", "high", "xhigh"),
        otherwise="the template's",
        configurable=True,
    ),
    _chat(
        "add_generation_prompt",
        "Whether the prompt ends with the opening of the assistant's turn.",
        boolean,
        otherwise="true, or false with continue_final_message",
    ),
    _chat(
        "continue_final_message",
        "True lets the completion go on with the last message, which must be an assistant's; its"
        " text is not repeated. Excludes add_generation_prompt.",
        boolean,
        False,
    ),
    _chat(
        "chat_template_kwargs",
        "More values for the model's chat template, such as enable_thinking. One that the template"
        " does not read is refused. Text in them is text, as in messages.",
        fields.template_kwargs,
        configurable=True,
    ),
    _chat(
        "response_format",
        "The form of the completion: any JSON object, or JSON that matches a schema: as"
        " far as it can be held, and with strict wholly, or it is refused.",
        structured.response_format,
        otherwise="text",
        configurable=True,
    ),
    _saved(
        "regex",
        "A regular expression, in Rust's syntax, that the whole completion matches.",
        structured.regex,
    ),
    _saved(
        "grammar",
        "A grammar, in llguidance's variant of Lark, that the whole completion matches.",
        structured.lark,
    ),
    _saved("choice", "Texts that the completion is one of.", structured.choice),
    _saved(
        "timeout",
        "Seconds after which a completion that is not whole is given up with an error.",
        number(0, above=True),
    ),
    _saved(
        "prompt_lookup_num_tokens",
        "The most draft tokens that are checked in one step (prompt lookup, a form of speculative"
        " decoding); they come from what the prompt and the completion already say. Changes the"
        " speed, never the completion.",
        integer(0, MAX_DRAFT),
        0,
        f"{{}}, or {PREDICTION_DRAFT} with a prediction",
    ),
    _chat(
        "prediction",
        "A text that the completion is likely to repeat, such as a file that is to be edited: draft"
        " tokens come from it too. Changes the speed, never the completion.",
        prediction,
    ),
    _any(
        "adapter",
        "The adapter that the model answers with. Without one, the model answers as it is.",
        Check("the name of one of the model's adapters", string, schema=string.schema),
    ),
    _openai(
        "model",
        "The name of an adapter chooses it, as adapter does. A model with adapters refuses names of"
        " none, other than its own; one without takes any. The response names who it is from.",
        string,
    ),
    _openai(
        "stream",
        "True is for predict_stream and stream_chat; a plain prediction answers as a whole.",
        boolean,
    ),
    _openai(
        "stream_options",
        "include_usage: whether a stream ends with one more chunk, which holds the usage and no"
        " choice.",
        fields.stream_options,
        {"include_usage": False},
    ),
    _unused("user", "Not stored."),
    _unused("metadata", "Not stored."),
    _unused("store", "Nothing is stored."),
    _unused("safety_identifier", "Not stored."),
    _unused("prompt_cache_key", "Not needed."),
    _unused("service_tier", "There are no tiers.", one_of("auto", "default")),
    _unused("modalities", "Only text can be generated.", fields.modalities, tasks=(CHAT,)),
    _refused("audio", "Only text can be generated.", tasks=(CHAT,)),
    _refused("functions", "Deprecated by OpenAI; use tools.", tasks=(CHAT,)),
    _refused("function_call", "Deprecated by OpenAI; use tool_choice.", tasks=(CHAT,)),
    _refused(
        "chat_template",
        "A template is a program, so only the model's own is used. Put it into the model folder.",
        tasks=(CHAT,),
    ),
    _refused("enable_thinking", "Give it in chat_template_kwargs.", tasks=(CHAT,)),
    _refused("thinking", "Give it in chat_template_kwargs.", tasks=(CHAT,)),
    _refused("verbosity", "Say it in a message.", string, tasks=(CHAT,)),
    _refused("web_search_options", "There is no web search.", tasks=(CHAT,)),
    _refused(
        "prompt",
        "This task takes messages. Save the model with the task text-generation or"
        " llm/v1/completions, or call generate or complete.",
        tasks=(CHAT,),
    ),
    _refused(
        "messages",
        "This task takes a prompt. Save the model with the task llm/v1/chat, or call chat.",
        tasks=(COMPLETIONS, TEXT),
    ),
    _refused(
        "suffix", "Text can only be continued; put it into the prompt.", string, tasks=OPENAI_TASKS
    ),
    _refused("best_of", "Use n and choose among the completions.", _COUNT, tasks=OPENAI_TASKS),
    _refused("max_new_tokens", "Use max_tokens.", _COUNT),
    _refused("num_beams", "Beam search is not supported; use temperature 0.", _COUNT),
    _refused("num_return_sequences", "Use n.", _COUNT),
    _refused(
        "truncation", "A prompt is never cut; one that is too long is an error.", boolean, False
    ),
    _refused(
        "include_prompt", "The prompt is not part of the completion; see echo.", boolean, False
    ),
)

PARAMETERS: Mapping[Task, Mapping[str, Option]] = {
    task: table(*(row for row in _ROWS if task in row.tasks)) for task in ALL_TASKS
}
"""The parameters of each task, by name, in the order of the documentation."""

DEFAULTS = {row.name: row.default for row in _ROWS if row.default is not None}
"""What holds where a request, its saved configuration and its model say nothing."""

OF_MODEL = tuple(row.name for row in _ROWS if row.otherwise == _OF_MODEL)
"""The parameters whose default a model's ``genai_config.json`` may give."""
