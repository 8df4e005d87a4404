"""Flags that are made of a table of options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping

    from mlflow_phi3_onnx.core.options import Option

__all__ = ["add_flags", "given_flags"]

_VALUES = {"integer": "N", "number": "X", "object": "JSON", "array": "JSON"}


def add_flags(parser: ArgumentParser, options: Mapping[str, Option]) -> None:
    """Add a flag for each option of a table."""
    for name, option in options.items():
        about = f"{option.about} May be {option.check.allowed}; by default"
        about = f"{about} {option.shown_default or 'none'}.".replace("%", "%%")
        flag, kind = f"--{name.replace('_', '-')}", option.check.schema.get("type")
        if kind == "boolean":
            parser.add_argument(flag, dest=name, action="store_const", const=True, help=about)
        else:
            value = _VALUES.get(kind or "", name.upper())
            value = "SECONDS" if about.startswith("Seconds") else value
            parser.add_argument(flag, dest=name, metavar=value, help=about)


def given_flags(given: Namespace, options: Mapping[str, Option]) -> dict[str, Any]:
    """Return what was given for the options of a table, unchecked."""
    values = {name: getattr(given, name) for name in options}
    return {name: value for name, value in values.items() if value is not None}
