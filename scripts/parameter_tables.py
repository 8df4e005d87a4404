"""Write docs/parameters.md from the tables that the parser itself uses.

Usage: python scripts/parameter_tables.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.core.former import FORMER_NAMES
from mlflow_phi3_onnx.core.options import markdown
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT
from mlflow_phi3_onnx.deployments.arguments import OPTIONS as DEPLOYMENT_OPTIONS
from mlflow_phi3_onnx.model.settings import PYFUNC_SETTINGS, RUNTIME_SETTINGS
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.prompts import FORMS, MAX_COMPLETIONS
from mlflow_phi3_onnx.openai.responses_api.fields import FIELDS
from mlflow_phi3_onnx.openai.responses_api.history import MAX_BYTES, MAX_RESPONSES
from mlflow_phi3_onnx.server.settings import OPTIONS as SERVER_OPTIONS
from mlflow_phi3_onnx.sources.convert.options import EXPORT_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_phi3_onnx.core.options import Option

TARGET = Path(__file__).parent.parent / "docs" / "parameters.md"

HEAD = """# Parameters

Made by `scripts/parameter_tables.py` from the tables that requests are checked with.

Every name below may be an argument of the native model's methods, a field of a row, or a field of
an HTTP body; and, where the table says so, a key of `params` or of `model_config`. A parameter
comes from the row, else from `params`, else from `model_config`, else from the model's
`genai_config.json`. `null` counts as not given. A token limit replaces every token limit of lower
precedence, and a sampling option replaces a `do_sample` of lower precedence.

MLflow's `params` carry one plain type for each name, which the column *in `params`* tells, and drop
other names with a warning. Over HTTP, MLflow's server puts the fields that `params` may have there,
so that they must be of that type too: a `stop` that is null or a text, or a `temperature` that is
a text, is refused in MLflow's words. Numbers in `params` become floats, which hold integers exactly
only below 2**53: a larger `seed` belongs into the row.

Answers of chat are texts of their own: the space that SentencePiece vocabularies write before each
word does not stand before the first. Completions, `text-generation`, a message that is gone on with
and what a grammar asks for have the text as it is.

A model is greedy by default where its `genai_config.json` says `do_sample: false` or `top_k: 1`;
any of `temperature`, `top_p`, `top_k` and `min_p` then turns sampling on.

Without a token limit, a completion may fill the context length, or the KV memory if that is less.
`usage.completion_tokens` counts every token that was generated, the one that ended it too.
Its details tell of draft tokens: `accepted_prediction_tokens` are part of the completion,
`rejected_prediction_tokens` are not counted otherwise.
"""

NOTES = {
    CHAT: """`messages` is a list of objects with `role` and `content`, as in OpenAI's chat API.

MLflow fails a whole data frame that has `messages` that are neither a list nor null, before
`on_error` can hold. A row has one answer, or one error; only where a row is alone and its cell is
an array of several chats of one length (MLflow makes such of `instances`), each has an answer.""",
    COMPLETIONS: f"""`prompt` is {FORMS}.
At most {MAX_COMPLETIONS:,} completions are given to one request. The choices are the `n`
completions of the first prompt, then those of the second, and so on; the usage counts all of them.
Text is tokenized as it is, control tokens included, and no beginning-of-sequence token is added.

`logprobs` of a choice holds `tokens`, `token_logprobs` (natural logarithms, under the raw logits),
`top_logprobs` (the most likely tokens, and the one that is there) and `text_offset` (where each
token begins, in characters from the start of the prompt, whether or not it is echoed). A token that
is part of a character is written as its bytes (`bytes:\\xf0`). With `echo`, the prompt's tokens
come first. So `echo`, `logprobs` and `max_tokens: 0` score a given text, as evaluation harnesses
do.""",
    TEXT: """`prompt` is one string a row, the whole prompt. A pyfunc takes a prompt, or several, in
any form: a string, a list, an array, a Series, a frame of one column whatever its name, CSV,
`{"prompt": [...]}`, `{"inputs": ...}`. A row of a data frame has one answer, or one error. Where a
signature with columns was given, though, MLflow makes a frame of `{"prompt": [...]}`, and a frame
whose only row has a list of texts is read as that: a row for each.""",
}

RESPONSES = f"""## `/v1/responses`

The fields of OpenAI's Responses API, and those of chat that it has no other name for.

`input` is a string, or a list of items: messages with text parts, `function_call`,
`function_call_output` and `reasoning`. A `function_call_output` follows its call, in the input or
in the conversation of `previous_response_id`. Thoughts are given whole, as the content of
`reasoning` items, which can be sent back; the chat template tells what becomes of them.

Conversations are kept in memory: at most {MAX_RESPONSES:,} responses with {MAX_BYTES >> 20} MiB of
JSON together, unless the server is told otherwise.
"""

TITLES = {
    "honoured": [],
    "unused": ["Accepted, without effect:", ""],
    "refused": ["Refused:", ""],
}


def tables(options: Iterable[Option], *, saved: bool = False) -> list[str]:
    """Return the lines of a table of the options of each status."""
    lines: list[str] = []
    listed = list(options)
    for status, title in TITLES.items():
        if rows := [row for row in listed if row.status == status]:
            lines += [*title, *markdown(rows, saved=saved), ""]
    return lines


def document() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for task in ALL_TASKS:
        lines += [f"## `{task}`", "", NOTES[task], ""]
        lines += tables(PARAMETERS[task].values(), saved=True)
    lines += ["## Settings of a pyfunc", "", "In `params` or `model_config`, of every task.", ""]
    lines += [*markdown(PYFUNC_SETTINGS.values()), ""]
    lines += [RESPONSES, *tables(FIELDS.values())]
    lines += ["## Runtime settings", "", "Only in `model_config`, of every task.", ""]
    lines += [*markdown(RUNTIME_SETTINGS.values()), "", "## Export options", ""]
    lines += ["Keys of `export_options`, beside `precision`, where a checkpoint is converted.", ""]
    lines += [*markdown(EXPORT_OPTIONS.values()), "", "## Deployments", ""]
    lines += ["Keys of a deployment's `config`, as texts or as what they are.", ""]
    lines += [*markdown(DEPLOYMENT_OPTIONS.values()), "", "## Server", ""]
    lines += ["Flags of `mlflow-phi3-onnx serve`, with hyphens: `max_queue` is `--max-queue`.", ""]
    lines += [*markdown(SERVER_OPTIONS.values()), "", "## Names of other flavors", ""]
    lines += ["Arguments and `model_config` keys of `mlflow.transformers` and `mlflow.onnx`.", ""]
    lines += markdown(FORMER_NAMES.values())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
