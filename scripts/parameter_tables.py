"""Write docs/parameters.md from the tables that the parser itself uses.

Usage: python scripts/parameter_tables.py
"""

from __future__ import annotations

from pathlib import Path

from mlflow_phi3_onnx.model.settings import RUNTIME_SETTINGS
from mlflow_phi3_onnx.openai.parameters import (
    ALL_TASKS,
    CHAT,
    COMPLETIONS,
    PARAMETERS,
    TEXT,
    Parameter,
)
from mlflow_phi3_onnx.openai.prompts import FORMS, MAX_ANSWERS

TARGET = Path(__file__).parent.parent / "docs" / "parameters.md"

HEAD = """# Parameters

Made by `scripts/parameter_tables.py` from the tables that requests are checked with.

A parameter comes from the row, else from `params`, else from `model_config`, else from the model's
`genai_config.json`. `null` counts as not given. A token limit replaces every token limit of lower
precedence, and a sampling option replaces a `do_sample` of lower precedence.

A model is greedy by default where its `genai_config.json` says `do_sample: false` or `top_k: 1`;
any of `temperature`, `top_p`, `top_k` and `min_p` then turns sampling on.

Without a token limit, an answer may fill the context length, or the KV memory if that is less.
`usage.completion_tokens` counts every token that was generated, the one that ended the answer too.
Its details tell of tokens that were guessed ahead: `accepted_prediction_tokens` are part of the
answer, `rejected_prediction_tokens` are not counted otherwise.
"""

NOTES = {
    CHAT: "`messages` is a list of objects with `role` and `content`, as in OpenAI's chat API.",
    COMPLETIONS: f"""`prompt` is {FORMS}.
At most {MAX_ANSWERS:,} answers are given to one request. The choices are the `n` answers to the
first prompt, then those to the second, and so on; the usage counts all of them. Text is tokenized
as it is, control tokens included, and no beginning-of-sequence token is added.

`logprobs` of a choice holds `tokens`, `token_logprobs` (natural logarithms, under the raw logits),
`top_logprobs` (the likeliest tokens, and the one that is there) and `text_offset` (where each token
begins, in characters from the start of the prompt, whether or not it is echoed). A token that is
part of a character is written as its bytes (`bytes:\\xf0`). With `echo`, the prompt's tokens come
first. So `echo`, `logprobs` and `max_tokens: 0` score a given text, as evaluation harnesses do.""",
    TEXT: "`prompt` is one string a row, the whole prompt.",
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _honoured(rows: list[Parameter]) -> list[str]:
    lines = ["| parameter | may be | in `model_config` | meaning |", "| --- | --- | --- | --- |"]
    for row in rows:
        saved = "yes" if row.configurable else "no"
        lines.append(f"| `{row.name}` | {_cell(row.allowed)} | {saved} | {_cell(row.about)} |")
    return lines


def _plain(rows: list[Parameter]) -> list[str]:
    lines = ["| parameter | |", "| --- | --- |"]
    return lines + [f"| `{row.name}` | {_cell(row.about)} |" for row in rows]


def document() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for task in ALL_TASKS:
        rows = list(PARAMETERS[task].values())
        lines += [f"## `{task}`", "", NOTES[task], ""]
        lines += [*_honoured([row for row in rows if row.status == "honoured"]), ""]
        if unused := [row for row in rows if row.status == "unused"]:
            lines += ["Accepted, without effect:", "", *_plain(unused), ""]
        if refused := [row for row in rows if row.status == "refused"]:
            lines += ["Refused:", "", *_plain(refused), ""]
    lines += ["## Runtime settings", "", "Only in `model_config`, of every task.", ""]
    lines += ["| setting | may be | meaning |", "| --- | --- | --- |"]
    for name, (about, allowed, _) in RUNTIME_SETTINGS.items():
        lines.append(f"| `{name}` | {allowed} | {about} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
