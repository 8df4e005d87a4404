"""Write docs/parameters.md from the tables that the parser itself uses.

Usage: python scripts/parameter_tables.py
"""

from __future__ import annotations

from pathlib import Path

from mlflow_phi3_onnx.openai.parameters import ALL_TASKS, PARAMETERS, Parameter
from mlflow_phi3_onnx.settings import RUNTIME_SETTINGS

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
"""


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
        lines += [f"## `{task}`", ""]
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
