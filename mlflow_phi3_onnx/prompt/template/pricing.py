"""The filters, tests, methods and functions that chat templates have, and what they cost.

There are no others. Of Jinja's own, those that work on HTML or lay out text are left out: no
prompt needs them, and their time grows with the square of their input.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import SecurityError

from mlflow_phi3_onnx.prompt.template.metering import (
    STEP,
    Metered,
    Namespace,
    OverspentError,
    copy,
    percent_format,
    read,
    spend,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

__all__ = ["RefusalError", "filters", "functions", "methods", "pay_method", "search", "tests"]

MAX_INDENT = 16
"""The widest indent of JSON."""

MAX_PRECISION = 308
"""The most decimal places that a number is rounded to."""

MAX_PAIRS = 1_000
"""The most pairs that a mapping is made of, because all of their keys may have the same hash."""

_SORTING = 20  # comparisons of an item, at most: the binary logarithm of a million
_WORD = 8  # bytes of text for each item that it is split into

# Filters that cost a step; a step for each of their input's items; the size of all that they are
# given; and as much for each comparison of a sort.
_FREE = {"attr", "count", "d", "default", "first", "last", "length", "random"}
_BY_ITEM = {
    *("batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"),
    "slice",
}
_BY_SIZE = {
    *("abs", "capitalize", "center", "e", "escape", "filesizeformat", "float", "forceescape"),
    *("format", "indent", "int", "join", "lower", "replace", "round", "safe", "string", "sum"),
    *("title", "trim", "truncate", "upper", "urlencode", "wordcount"),
}
_BY_ORDER = {"dictsort", "groupby", "max", "min", "sort", "unique"}
_GATHERING = {"join", "sum", *_BY_ORDER}  # read every item, also of an iterator

_FREE_TESTS = {
    *("boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer"),
    *("iterable", "mapping", "none", "number", "sameas", "sequence", "string", "test", "true"),
    "undefined",
}
_TESTS_BY_SIZE = {
    *("!=", "<", "<=", "==", ">", ">=", "divisibleby", "eq", "equalto", "even", "ge"),
    *("greaterthan", "gt", "in", "le", "lessthan", "lower", "lt", "ne", "odd", "upper"),
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
    paid = {name: _paid(jinja[name], name) for name in _BY_ITEM | _BY_SIZE | _BY_ORDER}
    return {**{name: jinja[name] for name in _FREE}, **paid, "tojson": _tojson}


def tests(jinja: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return the tests that templates have, out of Jinja's."""
    paid = {name: _paid_test(jinja[name]) for name in _TESTS_BY_SIZE}
    return {**{name: jinja[name] for name in _FREE_TESTS}, **paid}


def functions(jinja: Mapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the functions that templates have, out of Jinja's: all but ``lipsum``, and more."""
    return {
        "cycler": jinja["cycler"],
        "dict": _Dict(),
        "joiner": jinja["joiner"],
        "namespace": _namespace,
        "raise_exception": _raise_exception,
        "range": jinja["range"],
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
    if isinstance(owner, str):
        growth = _METHOD_GROWTH.get(name)
        spend(len(owner) + (_grown(growth, owner, *args, **kwargs) if growth else 0))
    elif name == "copy":
        copy(owner)
    elif isinstance(owner, list | tuple):
        read(owner)


def search(value: Any) -> Any:
    """Pay for ``x in value``, and return a list for an iterator, which would be used up."""
    if isinstance(value, Metered):
        value = list(value)
    if not isinstance(value, dict):
        read(value)
    return value


def _paid(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wrap one of Jinja's filters so that it pays."""
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0
    growth = _FILTER_GROWTH.get(name)
    times = _SORTING if name in _BY_ORDER else 1

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        first, value, rest = args[:skip], args[skip], args[skip + 1 :]
        spend(STEP)
        if name in _BY_ITEM:
            _pay_items(value)
        else:
            if name in _GATHERING and isinstance(value, Metered):
                value = list(value)
            spend((times - 1) * read(value))
            for other in (*rest, *kwargs.values()):
                read(other)
        if growth is not None:
            spend(_grown(growth, value, *rest, **kwargs))
        result = function(*first, value, *rest, **kwargs)
        return Metered(result) if hasattr(type(result), "__next__") else result

    return paid


def _paid_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap one of Jinja's tests, which compare values, so that it pays."""

    @functools.wraps(function)
    def paid(value: Any, *args: Any) -> Any:
        spend(STEP)
        read(value)
        return function(value, *(search(arg) for arg in args))

    return paid


def _pay_items(value: Any) -> None:
    if isinstance(value, str | list | tuple | dict | range):
        spend(STEP * len(value))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as Hugging Face does: with the characters as they are, also those of HTML."""
    spend(STEP + read(value))
    if indent is None and separators is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
    if (len(indent) if isinstance(indent, str) else indent or 0) > MAX_INDENT:
        raise OverspentError
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces: list[str] = []
    for piece in encoder.iterencode(value):
        spend(STEP + len(piece))
        pieces.append(piece)
    return "".join(pieces)


class _Dict:
    """``dict``, as a function and not as Python's class."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*(_few(arg) for arg in args), **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(_few(keys), value)


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    return Namespace(*(_few(arg) for arg in args), **kwargs)


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
    raise RefusalError(message)


def _strftime_now(form: str) -> str:
    spend(256 * read(form))  # Python gives up where the text is longer than that
    return datetime.now().strftime(form)  # noqa: DTZ005 - Hugging Face's has no time zone either


# How much larger than its input a result may be.


def _grown(growth: Callable[..., int], *args: Any, **kwargs: Any) -> int:
    return max(0, int(growth(*args, **kwargs)))


def _width(value: Any, width: int = 80, *_: Any) -> int:
    del value
    return width


def _indent(value: Any, width: int | str = 4, *_: Any, **__: Any) -> int:
    each = len(width) if isinstance(width, str) else width
    return each * (1 + len(str(value).splitlines()))


def _replace(value: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    return str(value).count(str(old)) * len(str(new))


def _join(value: Any, d: Any = "", *_: Any, **__: Any) -> int:
    return len(str(d)) * len(value)


def _format(value: Any, *args: Any, **kwargs: Any) -> int:
    return percent_format(str(value), kwargs or args)


def _batch(value: Any, linecount: int, *_: Any, **__: Any) -> int:
    del value
    return STEP * linecount


def _round(value: Any, precision: int = 0, *_: Any, **__: Any) -> int:
    del value
    if abs(precision) > MAX_PRECISION:
        raise OverspentError
    return 0


def _sum(value: Any, attribute: Any = None, start: Any = 0) -> int:
    del value, attribute
    if not isinstance(start, int | float):
        raise SecurityError("sum adds only numbers")
    return 0


def _unique(value: Any, *_: Any, **__: Any) -> int:
    """Hashes of strings are random; those of other values may all be the same, on purpose."""
    return sum(not isinstance(item, str) for item in value) ** 2


def _split(value: str, sep: str | None = None, *_: Any, **__: Any) -> int:
    return _WORD * len(value) if sep is None else STEP * (1 + value.count(sep))


def _splitlines(value: str, *_: Any, **__: Any) -> int:
    return _WORD * len(value)


def _join_with(value: str, items: Any) -> int:
    return len(value) * len(items)


_FILTER_GROWTH: Mapping[str, Callable[..., int]] = {
    "batch": _batch,
    "center": _width,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "unique": _unique,
}
_METHOD_GROWTH: Mapping[str, Callable[..., int]] = {
    "center": _width,
    "join": _join_with,
    "ljust": _width,
    "replace": _replace,
    "rjust": _width,
    "rsplit": _split,
    "split": _split,
    "splitlines": _splitlines,
    "zfill": _width,
}
