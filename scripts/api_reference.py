"""Write docs/api.md from the docstrings of the public names, and the help of the commands.

Usage: python scripts/api_reference.py
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_phi3_onnx
from mlflow_phi3_onnx import errors
from mlflow_phi3_onnx.cli.main import main
from mlflow_phi3_onnx.core.request import Limits
from mlflow_phi3_onnx.deployments import target_help
from mlflow_phi3_onnx.evaluation.quantization_result import VariantReport
from mlflow_phi3_onnx.evaluation.result import PromptComparison

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).parent.parent / "docs" / "api.md"

HEAD = """# API reference

Made by `scripts/api_reference.py` from the docstrings. Everything that is public is here: the
names of `mlflow_phi3_onnx`, the command line and the deployment target. [guide.md](guide.md) shows
the parameters of requests in use, and [parameters.md](parameters.md) lists them.
"""

# The order of the page. Names of `__all__` that are in none of these groups make the script fail.
GROUPS: dict[str, tuple[str, ...]] = {
    "Save, log and load": (
        *("log_model", "save_model", "load_model", "persist_pretrained_model"),
        *("get_default_pip_requirements", "get_default_conda_env", "demo_model_path"),
    ),
    "GenAIModel": ("GenAIModel",),
    "Compare models": ("compare", "Comparison"),
    "Traces": ("autolog",),
    "Choose a precision": ("quantization_report", "QuantizationReport"),
}
CONSTANTS = {"FLAVOR_NAME": "flavor's name in MLmodel files", "__version__": "package's version"}
BESIDE = {
    "GenAIModel": Limits,
    "Comparison": PromptComparison,
    "QuantizationReport": VariantReport,
}
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:    .*\n|\n)+)", re.MULTILINE)
ITEM = re.compile(r"^(\*{0,2}[\w.]+): ((?:.*\n?)(?: +.*\n?)*)", re.MULTILINE)


def markdown(text: str) -> str:
    """Turn a docstring, without its sections, into Markdown."""
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL).strip()


def items(body: str) -> Iterator[str]:
    """List what a section describes; names with the same description share a line."""
    found = [(name, " ".join(markdown(about).split())) for name, about in ITEM.findall(body)]
    for about, group in itertools.groupby(found, key=lambda item: item[1]):
        yield f"- {', '.join(f'`{name}`' for name, _ in group)}: {about}"


def docstring(thing: Any) -> list[str]:
    """Return the paragraphs of a docstring in Google's style."""
    text = (inspect.getdoc(thing) or "") + "\n"
    parts = [markdown(SECTION.sub("", text))]
    for name, body in SECTION.findall(text):
        plain = textwrap.dedent(body)
        if name in ("Returns", "Yields"):
            parts.append(f"**{name}:** {markdown(plain)}")
        else:
            parts += [f"**{name}:**", "\n".join(items(plain))]
    return [part for part in parts if part]


def signature(name: str, function: Any) -> str:
    """Write a signature, in one line where it fits."""
    found = inspect.signature(function)
    parameters: list[str] = []
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        text = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
        if parameter.annotation is not parameter.empty:
            text += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            text += f" = {parameter.default!r}"
        parameters.append(text)
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    back = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    line = f"{prefix}{name}({', '.join(parameters)}){back}"
    if len(line) > 88:
        line = "\n".join([f"{prefix}{name}(", *(f"    {part}," for part in parameters), f"){back}"])
    return f"```text\n{line}\n```"


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """List the public methods and properties of a class, its own first."""
    seen: set[str] = set()
    for base in cls.__mro__[:-1]:
        for name, value in vars(base).items():
            if not name.startswith("_") and name not in seen and hasattr(value, "__doc__"):
                seen.add(name)
                if callable(value) or isinstance(value, property):
                    yield name, value


def describe(name: str, thing: Any, level: int) -> list[str]:
    """Describe a function or a class and its members."""
    parts = [f"{'#' * level} `{name}`"]
    if not isinstance(thing, type):
        return [*parts, signature(name, thing), *docstring(thing)]
    if "__init__" in vars(thing) and not hasattr(thing, "__dataclass_fields__"):
        parts.append(signature(name, thing))
    parts += docstring(thing)
    for member, value in members(thing):
        if isinstance(value, property):
            about = " ".join(docstring(value.fget))
            kind = inspect.signature(value.fget).return_annotation  # type: ignore[arg-type]
            parts += [f"{'#' * (level + 1)} `{name}.{member}`", f"`{kind}`. {about}"]
        else:
            heading, *rest = describe(member, value, level + 1)
            parts += [heading.replace(f"`{member}", f"`{name}.{member}"), *rest]
    return parts


def family(error: type[errors.GenAIError]) -> Iterator[type[errors.GenAIError]]:
    """List a public error and those below it, in the order of the tree."""
    yield error
    for below in error.__subclasses__():
        if below.__module__ == errors.__name__:  # not the server's own, where it was imported
            yield from family(below)


def error_table() -> list[str]:
    """Describe the errors, with what a server answers."""
    tree = re.search(r"^::\n\n((?:    .*\n)+)", errors.__doc__ or "", re.MULTILINE)
    assert tree is not None
    lines = ["| error | HTTP status | OpenAI `type` | OpenAI `code` | what it means |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for error in family(errors.GenAIError):
        about = " ".join(markdown(inspect.getdoc(error).split("\n\n")[0]).split())
        code = f"`{error.openai_code}`" if error.openai_code else ""
        lines.append(
            f"| `{error.__name__}` | {error('').status} | {error.openai_type} | {code} | {about} |"
        )
    return [
        "## Errors",
        f"```text\n{textwrap.dedent(tree[1]).strip()}\n```",
        "Each has `param` (the field at fault), `status` (the HTTP status), `message`, and"
        " `to_openai()`, the body that OpenAI's clients expect.",
        "\n".join(lines),
    ]


def command_help(*arguments: str) -> str:
    """Return what a command prints for --help, with its usage in one line."""
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    usage, rest = printed.getvalue().split("\n\n", 1)
    return f"{' '.join(usage.split())}\n\n{rest.strip()}"


def command_line() -> list[str]:
    """Describe the command and the deployment target."""
    top = command_help()
    commands = re.findall(r"^    (\w+) ", top, re.MULTILINE)
    parts = ["## Command line", f"```text\n{top}\n```"]
    for name in commands:
        parts += [f"### `{name}`", f"```text\n{command_help(name)}\n```"]
    told = re.sub(r"(Records and logs: ).*", r"\1a folder of your user account", target_help())
    intro = "What `mlflow deployments help -t onnx-genai` prints."
    return [*parts, "## Deployment target", intro, f"```text\n{told.strip()}\n```"]


def document() -> str:
    """Return the whole page."""
    listed = {*CONSTANTS, *errors.__all__, *itertools.chain(*GROUPS.values())}
    public = {name for name in mlflow_phi3_onnx.__all__ if not re.match(r"_[^_]", name)}
    if listed != public:
        raise ValueError(f"Put into a group, or take out: {sorted(listed ^ public)}")
    values = [f"`{name}` is the {about}." for name, about in CONSTANTS.items()]
    titles = (*GROUPS, "Errors", "Command line", "Deployment target")
    contents = [
        f"[{title}](#{re.sub('[^a-z ]', '', title.lower()).replace(' ', '-')})" for title in titles
    ]
    parts = [HEAD.strip(), " · ".join(contents), " ".join(values)]
    for title, names in GROUPS.items():
        alone = names == (title,)
        parts += [] if alone else [f"## {title}"]
        for name in names:
            parts += describe(name, getattr(mlflow_phi3_onnx, name), 2 if alone else 3)
            if beside := BESIDE.get(name):
                parts += describe(beside.__name__, beside, 3)
    return "\n\n".join([*parts, *error_table(), *command_line()]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
