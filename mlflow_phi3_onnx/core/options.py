"""How an option is declared, checked, refused and documented, whoever takes it.

Request parameters, runtime settings, export options and the config of a deployment are tables of
:class:`Option`; :func:`read` checks what came against a table, and :func:`help_text` and
:func:`markdown` write it for people.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlflow_phi3_onnx.core.checks import (
    MAX_SHOWN_CHARACTERS,
    Check,
    InexactError,
    anything,
    describe_kind,
    did_you_mean,
    show,
    unpacked,
)
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Option", "Status", "check_mapping", "find", "help_text", "markdown", "read", "table"]

Status: TypeAlias = Literal["honoured", "unused", "refused"]

_MOST_LISTED = 12
_INEXACT = (
    ", a float, which holds integers exactly only below 2**53, and MLflow makes floats of the"
    " numbers in params. Give a smaller one, or give it in the row"
)
_ALIKE = 0.8  # of a choice: int5 is as much like int8 as like int4


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: Its name.
        about: What it does, or for a refused one what to do instead.
        check: Returns the clean value or raises ValueError; it says what is allowed.
        default: What holds where it is not given; None where nothing does, or what does depends on
            the model or the machine. A refused one may be given it, for that asks for nothing.
        otherwise: The default in words, where the value alone does not tell; ``{}`` is the value.
        tasks: The tasks that know it, where it belongs to some.
        status: ``honoured``; ``unused`` (accepted, with no effect to have); or ``refused``.
        configurable: Whether ``model_config`` may give its default.
        from_text: Whether a text is read as JSON first: a command line has nothing but texts.
    """

    name: str
    about: str
    check: Check[Any] = anything
    default: Any = None
    otherwise: str = "{}"
    tasks: tuple[str, ...] = ()
    status: Status = "honoured"
    configurable: bool = False
    from_text: bool = False

    @property
    def shown_default(self) -> str:
        """The default, in words; empty where there is none."""
        if self.default is None:
            return self.otherwise.replace("{}", "")
        plain = isinstance(self.default, str)
        shown = self.default if plain else json.dumps(self.default).removesuffix(".0")
        return self.otherwise.format(shown)

    def read(self, value: Any, where: str = "", *, shown: bool = False) -> Any:
        """Check a value.

        Args:
            value: What came.
            where: What the value was given in, for messages.
            shown: Whether messages may hold the value: a setting's, never a request's.

        Raises:
            InvalidRequestError: If it is not what it may be.
        """
        value = self.meant(unpacked(value))
        try:
            return self.check(value)
        except (ValueError, OverflowError) as error:
            came = show(value) if shown else describe_kind(value)
            came += _INEXACT if isinstance(error, InexactError) else ""
            raise InvalidRequestError(
                f"{_prefix(where)}{self.name} must be {self.check.allowed}; got {came}."
                f"{did_you_mean(value, self.check.choices, _ALIKE)}",
                param=self.name,
            ) from error

    def meant(self, value: Any) -> Any:
        """Return the value that a text stands for, where it may stand for one."""
        if self.from_text and isinstance(value, str):
            with suppress(ValueError, RecursionError):
                return json.loads(value)
        return value


def table(*options: Option) -> Mapping[str, Option]:
    """Return options by name."""
    return {option.name: option for option in options}


def find(options: Mapping[str, Option], name: str, what: str, where: str = "") -> Option:
    """Return the option of a name.

    Args:
        options: The table.
        name: Its name.
        what: What the table's options are, for messages: ``"an export option"``.
        where: What the options were given in, for messages: ``"export_options"``.

    Raises:
        UnsupportedParameterError: If there is none.
    """
    if name in options:
        return options[name]
    usable = [key for key, option in options.items() if option.status != "refused"]
    advice = did_you_mean(name, usable)
    if len(usable) <= _MOST_LISTED:
        advice += f" There are {', '.join(usable)}."
    cut = name if len(name) <= MAX_SHOWN_CHARACTERS else f"{name[: MAX_SHOWN_CHARACTERS - 3]}..."
    raise UnsupportedParameterError(f"{_prefix(where)}{cut} is not {what}.{advice}", param=cut)


def read(
    options: Mapping[str, Option],
    values: Mapping[str, Any] | None,
    what: str,
    where: str = "",
    *,
    known: Iterable[str] = (),
    shown: bool = False,
) -> dict[str, Any]:
    """Check values against a table and return those that are given, clean.

    Args:
        options: The table.
        values: Values by name; those that are None are left out.
        what: What the table's options are, for messages: ``"an export option"``.
        where: What the values were given in, for messages: ``"export_options"``.
        known: Other names that may stand beside them.
        shown: Whether messages may hold values: those of settings, never a request's.

    Raises:
        UnsupportedParameterError: If one is not known or not supported.
        InvalidRequestError: If one is not what it may be.
    """
    clean: dict[str, Any] = {}
    for name, value in check_mapping(values, where).items():
        if name in known or value is None:
            continue
        option = find(options, name, what, where)
        if option.status != "refused":
            clean[name] = option.read(value, where, shown=shown)
        elif value is not option.default:
            raise UnsupportedParameterError(
                f"{_prefix(where)}{name} is not supported. {option.about}", param=name
            )
    return clean


def check_mapping(values: Any, name: str) -> Mapping[str, Any]:
    """Check that what came under a name is a mapping; None is an empty one.

    Raises:
        InvalidRequestError: If it is none.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise InvalidRequestError(
            f"{name} must be a mapping; got {describe_kind(values)}.", param=name
        )
    return values


def help_text(options: Mapping[str, Option]) -> str:
    """Write a table for a terminal."""
    width = max(map(len, options)) + 2
    return "\n".join(
        textwrap.fill(
            f"{option.about} May be {option.check.allowed}; by default"
            f" {option.shown_default or 'none'}.",
            width=96,
            initial_indent=f"  {option.name:<{width}}",
            subsequent_indent=" " * (width + 2),
        )
        for option in options.values()
    )


def markdown(options: Iterable[Option], *, saved: bool = False) -> list[str]:
    """Write the lines of a table for the documentation.

    Args:
        options: The options, of which those that are not honoured only tell what they are about.
        saved: Whether to tell which of them ``params`` and ``model_config`` may have.
    """
    lines: list[str] = []
    for option in options:
        cells = [f"`{option.name}`"]
        if option.status == "honoured":
            cells += [option.check.allowed, option.shown_default]
            doors = [option.check.type or "no", "yes" if option.configurable else "no"]
            cells += doors if saved else []
        if not lines:
            doors = ["in `params`", "in `model_config`"] if saved else []
            head = ["name", "may be", "default", *doors]
            lines = [_row([*(head if option.status == "honoured" else ["name"]), "meaning"])]
            lines.append(_row(["---"] * (len(cells) + 1)))
        lines.append(_row([*cells, option.about]))
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""
