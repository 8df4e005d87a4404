"""What a folder brings is not trusted: its JSON, the names in it, the files of it.

Native readers take documents that Python's does not, or read them otherwise: nlohmann's JSON, which
onnxruntime-genai uses, merges keys that are written twice. What could be read in two ways is
refused, so that what was checked is what runs.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["inside", "list_visible", "parse_json_object", "read_json_object"]

MAX_JSON_BYTES = 1 << 26
MAX_JSON_DEPTH = 64

_SHOWN = 80
_NOT_IN_NAMES = re.compile(r"[\\:\x00-\x1f\x7f\ud800-\udfff]")


def read_json_object(
    path: Path,
    error: Callable[[str], Exception] = InvalidModelError,
    *,
    name: str = "",
    infinite: bool = False,
) -> dict[str, Any]:
    """Read a JSON document that a folder brings; a byte-order mark before it is taken off.

    Args:
        path: The file.
        error: Makes the error of a message.
        name: What the file is called in messages; by default its name, without its folder.
        infinite: Whether ``NaN`` and ``Infinity`` are taken, which JSON has not.

    Raises:
        Exception: What ``error`` makes, if the file is missing, larger than 64 MiB, nested deeper
            than 64 levels, no JSON in UTF-8 or no object, or has a key twice in one object.
    """
    name = name or path.name
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise error(f"{name} is missing.") from cause
    except OSError as cause:
        raise error(f"{name} cannot be read.") from cause
    return parse_json_object(data, name, error, infinite=infinite)


def parse_json_object(
    data: bytes,
    name: str,
    error: Callable[[str], Exception] = InvalidModelError,
    *,
    infinite: bool = False,
) -> dict[str, Any]:
    """Parse what a JSON file holds; arguments and errors as :func:`read_json_object`."""
    if len(data) > MAX_JSON_BYTES:
        raise error(f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB.")
    options: dict[str, Any] = {"object_pairs_hook": _unique}
    if not infinite:
        options |= {"parse_constant": _finite, "parse_float": _finite}
    value = None
    try:
        value = json.loads(data.decode("utf-8-sig"), **options)
    except UnicodeDecodeError as cause:
        raise error(f"{name} is not valid JSON: it is not text in UTF-8.") from cause
    except json.JSONDecodeError as cause:
        raise error(f"{name} is not valid JSON: {cause.msg} in line {cause.lineno}.") from cause
    except ValueError as cause:
        raise error(f"{name} is not valid JSON: {cause}.") from cause
    except RecursionError:
        deep = True
    else:
        deep = _is_deep(value)
    if deep:
        raise error(f"{name} is not valid JSON: it is nested deeper than {MAX_JSON_DEPTH} levels.")
    if not isinstance(value, dict):
        raise error(f"{name} must hold a JSON object; it holds {describe_kind(value)}.")
    return value


def inside(
    root: Path,
    name: Any,
    refusal: str,
    error: Callable[[str], Exception] = InvalidModelError,
    *,
    links: bool = True,
) -> Path:
    r"""Return the path that a name means in a folder; nothing need be there.

    A name is plain: parts joined by ``/``, none of them empty, ``.`` or ``..``, without ``\``,
    ``:`` and control characters. It means the same on every system and to every reader.

    Args:
        root: The folder.
        name: The name, from a document that is not trusted.
        refusal: What is wrong where the name is not plain: the beginning of a message.
        error: Makes the error of a message.
        links: Whether symbolic links may lead out, as those of the hub's cache do.

    Raises:
        Exception: What ``error`` makes, if the name is not plain, or is a link that leads out.
    """
    if not isinstance(name, str):
        raise error(f"{refusal}: a path must be a string; got {describe_kind(name)}.")
    if _NOT_IN_NAMES.search(name) or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise error(
            f"{refusal}: {name[:_SHOWN]!r} is no plain relative path, of names joined by '/',"
            " without '.', '..', ':' and '\\'."
        )
    path = root / name
    if not links and not path.resolve().is_relative_to(root.resolve()):
        raise error(f"{name} is a symbolic link that leads out of the model: copy the file itself.")
    return path


def list_visible(root: Path, depth: int | None = None) -> list[str]:
    """List a folder's files, relative and with slashes, in order, without what is hidden.

    Links to folders are not followed, and not listed.

    Args:
        root: The folder.
        depth: How many folders deep to look; None for all of them.
    """
    found: list[tuple[str, ...]] = []
    for parent, folders, files in os.walk(root):
        here = Path(parent).relative_to(root).parts
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = shown if depth is None or len(here) < depth else []
        found += [(*here, name) for name in files if not name.startswith(".")]
    return ["/".join(parts) for parts in sorted(found)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {twice[:_SHOWN]!r} twice in one object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text[:_SHOWN]}")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
