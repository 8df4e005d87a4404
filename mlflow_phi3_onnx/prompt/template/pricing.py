"""The filters, tests, methods and functions that chat templates have, and what they cost.

There are no others. Of Jinja's own, those that work on HTML or lay out text are left out: no
prompt needs them, and their time grows with the square of their input.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2.utils
from jinja2.exceptions import SecurityError

from mlflow_phi3_onnx.prompt.template.metering import (
    STEP,
    Metered,
    OverspentError,
    copy,
    percent_format,
    read,
    spend,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

__all__ = [
    "Namespace",
    "RefusalError",
    "filters",
    "functions",
    "gathered",
    "methods",
    "pay_method",
    "search",
    "tests",
]

MAX_INDENT = 16
"""The widest indent of JSON."""

MAX_PRECISION = 308
"""The most decimal places that a number is rounded to."""

MAX_PAIRS = 1_000
"""The most pairs that a mapping is made of, because all of their keys may have the same hash."""

_SORTING = 18  # comparisons of an item, at most 20 among a million, beside two that are paid for
_WORD = 8  # bytes of text for each item that it is split into

# What a filter or test costs: nothing; a step and the size of its arguments; with that, a step for
# each of its input's items; or a step and the size of all that it is given.
_FREE = {"count", "d", "default", "first", "last", "length", "random"}
_BY_ARGUMENTS = {"attr"}
_BY_ITEM = {
    *("batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"),
    "slice",
}
_BY_SIZE = {
    *("abs", "capitalize", "center", "dictsort", "e", "escape", "filesizeformat", "float"),
    *("forceescape", "format", "groupby", "indent", "int", "join", "lower", "max", "min"),
    *("replace", "round", "safe", "sort", "string", "sum", "title", "trim", "truncate", "unique"),
    *("upper", "urlencode", "wordcount"),
}
_FREE_TESTS = {
    *("boolean", "callable", "defined", "escaped", "false", "float", "integer"),
    *("iterable", "mapping", "none", "number", "sameas", "sequence", "string", "true"),
    "undefined",
}
_TESTS_BY_SIZE = {
    *("!=", "<", "<=", "==", ">", ">=", "divisibleby", "eq", "equalto", "even", "filter", "ge"),
    *("greaterthan", "gt", "in", "le", "lessthan", "lower", "lt", "ne", "odd", "test", "upper"),
}

_METHODS: Mapping[type, set[str]] = {
    str: {
        *("capitalize", "casefold", "center", "count", "endswith", "find", "format", "format_map"),
        *("index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier"),
        *("islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "ljust"),
        *("lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
        *("rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines"),
        *("startswith", "strip", "swapcase", "title", "upper", "zfill"),
    },
    dict: {"copy", "get", "items", "keys", "values"},
    list: {"copy", "count", "index"},
    tuple: {"count", "index", "grouper", "list"},  # the last two are those of groupby's items
    float: {"is_integer"},
}
_LIGHT_METHODS = {"endswith", "get", "items", "keys", "startswith", "values"}


class RefusalError(Exception):
    """The template calls ``raise_exception``."""


def filters(jinja: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return the filters that templates have, out of Jinja's."""
    free = {name: jinja[name] for name in _FREE}
    paid = {name: _paid(jinja[name], name) for name in _BY_ARGUMENTS | _BY_ITEM | _BY_SIZE}
    return {**free, **paid, "tojson": _tojson}


def tests(jinja: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return the tests that templates have, out of Jinja's."""
    free = {name: jinja[name] for name in _FREE_TESTS}
    return {**free, **{name: _paid_test(jinja[name]) for name in _TESTS_BY_SIZE}}


def functions(jinja: Mapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the functions that templates have, out of Jinja's: all but ``lipsum``, and more."""
    return {
        **{name: jinja[name] for name in ("cycler", "joiner", "range")},
        "dict": _Dict(),
        "namespace": Namespace,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }


@functools.cache
def methods(kind: type) -> set[str] | None:
    """Return the methods that values of a type have; None where all are Jinja's."""
    return next((names for base, names in _METHODS.items() if issubclass(kind, base)), None)


def pay_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Pay for calling a value's method.

    Raises:
        OverspentError: If it costs or makes too much.
    """
    for arg in args:
        read(arg)
    if name in _LIGHT_METHODS:
        return
    if name == "copy":
        copy(owner)
    elif isinstance(owner, str | list | tuple):
        read(owner)
        _pay_growth(_METHOD_GROWTH, name, owner, *args, **kwargs)


def search(value: Any) -> Any:
    """Pay for ``x in value``, and return a list for an iterator, which would be used up."""
    value = gathered(value)
    if not isinstance(value, dict):
        read(value)
    return value


def gathered(value: Any) -> Any:
    """Return a list for an iterator, and any other value as it is."""
    return list(value) if type(value) is Metered else value


def _paid(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wrap one of Jinja's filters so that it pays."""
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        first, value, rest = args[:skip], args[skip], args[skip + 1 :]
        spend(STEP)
        for given in (*rest, *kwargs.values()):
            read(given)
        if name in _BY_SIZE:
            value = gathered(value)
            read(value)
        elif name in _BY_ITEM and isinstance(value, str | list | tuple | dict | range):
            spend(STEP * len(value))
        _pay_growth(_FILTER_GROWTH, name, value, *rest, **kwargs)
        result = function(*first, value, *rest, **kwargs)
        return Metered(result) if hasattr(type(result), "__next__") else result

    return paid


def _paid_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap one of Jinja's tests, which compare values, so that it pays."""

    def paid(value: Any, *args: Any) -> Any:
        spend(STEP)
        read(value)
        return function(value, *(search(arg) for arg in args))

    return paid


def _pay_growth(
    table: Mapping[str, Callable[..., int]], name: str, /, *args: Any, **kwargs: Any
) -> None:
    """Pay for how much larger than its input a result may be."""
    growth = table.get(name)
    if growth is not None:
        spend(max(0, int(growth(*args, **kwargs))))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as Hugging Face does: with the characters as they are, also those of HTML."""
    spend(STEP + read(value))
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None and separators is None:
        return encoder.encode(value)
    if (len(indent) if isinstance(indent, str) else indent or 0) > MAX_INDENT:
        raise OverspentError
    pieces: list[str] = []
    for piece in encoder.iterencode(value):
        spend(STEP + len(piece))
        pieces.append(piece)
    return "".join(pieces)


class _Dict:
    """``dict``, as a function and not as Python's class."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*map(_few, args), **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(_few(keys), value)


class Namespace(jinja2.utils.Namespace):
    """Jinja's ``namespace``, without names that Python or Jinja might take for their own."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*map(_few, args), **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError("a namespace has no names that begin with an underscore")
        super().__setitem__(name, value)


def _few(items: Any) -> Any:
    if isinstance(items, dict):
        copy(items)
        return items
    pairs = list(items)
    if len(pairs) > MAX_PAIRS:
        raise OverspentError
    read(pairs)
    return pairs


def _raise_exception(message: str) -> None:
    read(message)
    raise RefusalError(message)


def _strftime_now(form: str) -> str:
    spend(256 * read(form))  # Python gives up where the text is longer than that
    return datetime.now().strftime(form)  # noqa: DTZ005 - Hugging Face's has no time zone either


def _indent(value: Any, width: int | str = 4, *_: Any, **__: Any) -> int:
    each = len(width) if isinstance(width, str) else width
    return each * (1 + len(str(value).splitlines()))


def _round(_: Any, precision: int = 0, *__: Any, **___: Any) -> int:
    if abs(precision) > MAX_PRECISION:
        raise OverspentError
    return 0


def _sum(_: Any, attribute: Any = None, start: Any = 0) -> int:
    del attribute
    if not isinstance(start, int | float):
        raise SecurityError("sum adds only numbers")
    return 0


def _sort(value: Any, *_: Any, **__: Any) -> int:
    return _SORTING * read(value)


def _unique(value: Any, *_: Any, **__: Any) -> int:
    """Hashes of strings are random; those of other values may all be the same, on purpose."""
    return _sort(value) + sum(not isinstance(item, str) for item in value) ** 2


def _split(value: str, sep: str | None = None, *_: Any, **__: Any) -> int:
    return _WORD * len(value) if sep is None else STEP * (1 + value.count(sep))


# How much larger than its input a result may be, and what else a filter or a method costs.
_GROWTH: Mapping[str, Callable[..., int]] = {
    "center": lambda _, width=80, *__: width,
    "replace": lambda value, old, new, *_, **__: str(value).count(str(old)) * len(str(new)),
}
_FILTER_GROWTH: Mapping[str, Callable[..., int]] = {
    **_GROWTH,
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort"), _sort),
    "batch": lambda _, linecount, *__, **___: STEP * linecount,
    "format": lambda value, *args, **kwargs: percent_format(str(value), kwargs or args),
    "indent": _indent,
    "join": lambda value, d="", *_, **__: len(str(d)) * len(value),
    "round": _round,
    "sum": _sum,
    "unique": _unique,
}
_METHOD_GROWTH: Mapping[str, Callable[..., int]] = {
    **_GROWTH,
    **dict.fromkeys(("ljust", "rjust", "zfill"), _GROWTH["center"]),
    **dict.fromkeys(("rsplit", "split"), _split),
    "join": lambda value, items: len(value) * len(items),
    "splitlines": lambda value, *_, **__: _WORD * len(value),
}
