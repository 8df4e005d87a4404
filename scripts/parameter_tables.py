"""Write docs/parameters.md from the tables that the parser itself uses.

Usage: python scripts/parameter_tables.py
"""

from __future__ import annotations

from pathlib import Path

from mlflow_phi3_onnx.core.options import markdown
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT
from mlflow_phi3_onnx.deployments.arguments import OPTIONS as DEPLOYMENT_OPTIONS
from mlflow_phi3_onnx.model.settings import RUNTIME_SETTINGS
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.prompts import FORMS, MAX_COMPLETIONS
from mlflow_phi3_onnx.server.settings import OPTIONS as SERVER_OPTIONS
from mlflow_phi3_onnx.sources.convert.options import EXPORT_OPTIONS

TARGET = Path(__file__).parent.parent / "docs" / "parameters.md"

HEAD = """# Parameters

Made by `scripts/parameter_tables.py` from the tables that requests are checked with.

A parameter comes from the row, else from `params`, else from `model_config`, else from the model's
`genai_config.json`. `null` counts as not given. A token limit replaces every token limit of lower
precedence, and a sampling option replaces a `do_sample` of lower precedence.

A model is greedy by default where its `genai_config.json` says `do_sample: false` or `top_k: 1`;
any of `temperature`, `top_p`, `top_k` and `min_p` then turns sampling on.

Without a token limit, a completion may fill the context length, or the KV memory if that is less.
`usage.completion_tokens` counts every token that was generated, the one that ended it too.
Its details tell of draft tokens: `accepted_prediction_tokens` are part of the completion,
`rejected_prediction_tokens` are not counted otherwise.
"""

NOTES = {
    CHAT: "`messages` is a list of objects with `role` and `content`, as in OpenAI's chat API.",
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
    TEXT: "`prompt` is one string a row, the whole prompt.",
}

TITLES = {
    "honoured": [],
    "unused": ["Accepted, without effect:", ""],
    "refused": ["Refused:", ""],
}


def document() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for task in ALL_TASKS:
        lines += [f"## `{task}`", "", NOTES[task], ""]
        for status, title in TITLES.items():
            rows = [row for row in PARAMETERS[task].values() if row.status == status]
            if rows:
                lines += [*title, *markdown(rows, saved=True), ""]
    lines += ["## Runtime settings", "", "Only in `model_config`, of every task.", ""]
    lines += [*markdown(RUNTIME_SETTINGS.values()), "", "## Export options", ""]
    lines += ["Keys of `export_options`, beside `precision`, where a checkpoint is converted.", ""]
    lines += [*markdown(EXPORT_OPTIONS.values()), "", "## Deployments", ""]
    lines += ["Keys of a deployment's `config`, as texts or as what they are.", ""]
    lines += [*markdown(DEPLOYMENT_OPTIONS.values()), "", "## Server", ""]
    lines += ["Flags of `mlflow-phi3-onnx serve`, with hyphens: `max_queue` is `--max-queue`.", ""]
    lines += markdown(SERVER_OPTIONS.values())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
