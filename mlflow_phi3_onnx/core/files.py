"""What a folder brings is not trusted: its JSON, the names in it, the files of it.

Native readers take documents that Python's does not, or read them otherwise: nlohmann's JSON, which
onnxruntime-genai uses, merges keys that are written twice. What could be read in two ways is
refused, so that what was checked is what runs.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml

from mlflow_phi3_onnx.core.bounds import MAX_DEPTH, MAX_JSON_BYTES, MAX_VALUES, MAX_YAML_BYTES
from mlflow_phi3_onnx.core.characters import check_characters
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.plain_yaml import name_twice, plain_yaml
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "LONGEST_NAME",
    "inside",
    "link_or_copy",
    "list_own",
    "list_visible",
    "open_file",
    "parse_json_object",
    "read_json_object",
    "read_text",
    "read_yaml_object",
    "refuse_link_out",
    "refuse_unlisted",
    "show_path",
]

_SHOWN = 80
LONGEST_NAME = 255
"""Bytes of a name, as file systems take them."""

_NOT_IN_NAMES = re.compile(r"[\\:\x00-\x1f\x7f\ud800-\udfff]")


def read_json_object(
    path: Path,
    error: Callable[[str], Exception] = InvalidModelError,
    *,
    name: str = "",
    infinite: bool = False,
    most: int = MAX_JSON_BYTES,
) -> dict[str, Any]:
    """Read a JSON document that a folder brings; a byte-order mark before it is taken off.

    Args:
        path: The file.
        error: Makes the error of a message.
        name: What the file is called in messages; by default its name, without its folder.
        infinite: Whether ``NaN`` and ``Infinity`` are taken, which JSON has not.
        most: The most bytes that it may have.

    Raises:
        Exception: What ``error`` makes, if the file is missing, larger, nested deeper than 64
            levels, no JSON in UTF-8 or no object, or has too many values, a key twice in one
            object, or a lone surrogate.
    """
    name = name or path.name
    data = _read(path, most, name, error)
    value = parse_json_object(data, name, error, infinite=infinite, values=MAX_VALUES)
    check_characters(data, value, lambda _, what: error(f"{name}: {what}"))
    return value


def parse_json_object(
    data: bytes | str,
    name: str,
    error: Callable[[str], Exception] = InvalidModelError,
    *,
    infinite: bool = False,
    values: int | None = None,
) -> dict[str, Any]:
    """Parse what a JSON file holds; as :func:`read_json_object`, but with lone surrogates.

    Args:
        data: What it holds.
        name: What it is called in messages.
        error: Makes the error of a message.
        infinite: Whether ``NaN`` and ``Infinity`` are taken.
        values: The most values that it may have; None for any number. They are counted before they
            are read, by what stands before each of them, within strings too.
    """
    options: dict[str, Any] = {"object_pairs_hook": _unique}
    if not infinite:
        options |= {"parse_constant": _finite, "parse_float": _finite}
    value = None
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        if values is not None and sum(map(text.count, ",[{")) > values:
            raise ValueError(f"it could have more than {values:,} values")
        value = json.loads(text, **options)
    except UnicodeDecodeError as cause:
        raise error(f"{name} is not valid JSON: it is not text in UTF-8.") from cause
    except json.JSONDecodeError as cause:
        # As the library says it: some of its sentences end with "at".
        place = f"line {cause.lineno}, column {cause.colno}"
        raise error(f"{name} is not valid JSON: {cause.msg.rstrip(': ')}: {place}.") from cause
    except ValueError as cause:
        raise error(f"{name} is not valid JSON: {cause}.") from cause
    except RecursionError:
        deep = True
    else:
        deep = _is_deep(value)
    if deep:
        raise error(f"{name} is not valid JSON: it is nested deeper than {MAX_DEPTH} levels.")
    if not isinstance(value, dict):
        raise error(f"{name} must hold a JSON object; it holds {describe_kind(value)}.")
    return value


def read_yaml_object(path: Path) -> dict[str, Any]:
    """Read a YAML document that a folder brings.

    Args:
        path: The file.

    Raises:
        InvalidModelError: If the file is missing, larger than 512 KiB, nested deeper than 64
            levels, no YAML of plain data in UTF-8 or no mapping, has a key twice in one mapping,
            tells the type of a value, or refers to itself.
    """
    data = _read(path, MAX_YAML_BYTES, path.name, InvalidModelError)
    try:
        value = plain_yaml(data.decode("utf-8-sig"))
    except yaml.MarkedYAMLError as cause:
        line = f" in line {cause.problem_mark.line + 1}" if cause.problem_mark else ""
        raise InvalidModelError(f"{path.name} is not valid YAML: {cause.problem}{line}.") from cause
    except (yaml.YAMLError, ValueError, TypeError) as cause:
        raise InvalidModelError(
            f"{path.name} is not valid YAML ({type(cause).__name__})."
        ) from cause
    if not isinstance(value, dict):
        raise InvalidModelError(
            f"{path.name} must hold a mapping; it holds {describe_kind(value)}."
        )
    return value


def show_path(path: object) -> str:
    """Show a path in a message, an absolute one by its last part: the rest tells of the machine.

    What can hardly be a path is not quoted: ``given`` is put for it.
    """
    text = str(path)
    if not text.isprintable() or not 0 < len(text) <= LONGEST_NAME:
        return "given"
    return repr(f".../{Path(text).name}" if Path(text).is_absolute() else text)


def read_text(path: Path, most: int) -> str:
    """Read a text file that a folder brings; a byte-order mark before it is taken off.

    Args:
        path: The file.
        most: The most bytes that it may have.

    Raises:
        InvalidModelError: If it is missing, larger, or not UTF-8.
    """
    try:
        return _read(path, most, path.name, InvalidModelError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidModelError(f"{path.name} is not text in UTF-8.") from error


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
    parts = name.split("/")
    if (
        _NOT_IN_NAMES.search(name)
        or not {"", ".", ".."}.isdisjoint(parts)
        or any(len(part.encode()) > LONGEST_NAME for part in parts)
    ):
        raise error(
            f"{refusal}: {name[:_SHOWN]!r} is no plain relative path, of names joined by '/',"
            " without '.', '..', ':' and '\\'."
        )
    path = root / name
    if not links and not _real(path).is_relative_to(_real(root)):
        raise error(f"{name} is a symbolic link that leads out of the model: copy the file itself.")
    return path


def list_visible(root: Path, depth: int | None = None) -> list[str]:
    """List a folder's files, relative and with slashes, in order, without what is hidden.

    Links to folders are not followed, and not listed.

    Args:
        root: The folder.
        depth: How many folders deep to look; None for all of them.
    """
    return _listed(root, [(place, files) for place, _, files in _walk(root, depth)])


def list_own(root: Path) -> list[str]:
    """List a folder's files as :func:`list_visible`, and refuse links that lead out of it.

    Those of the hub's cache are taken. Another would publish a file of whoever saves the folder, or
    have one read that the model does not bring. What is hidden is never saved, and not looked at.

    Raises:
        InvalidModelError: If there is one.
    """
    found: list[tuple[Path, list[str]]] = []
    for place, folders, files in _walk(root):
        found.append((place, files))
        for name in (*folders, *files):
            refuse_link_out(root, place / name)
    return _listed(root, found)


def refuse_link_out(root: Path, path: Path) -> None:
    """Refuse what is in a folder if it is a link that leads out of it; see :func:`list_own`."""
    if not path.is_symlink():
        return
    top, goal = _real(root), _real(path)
    caches = [folder.parent / "blobs" for folder in top.parents if folder.name == "snapshots"]
    if not any(goal.is_relative_to(allowed) for allowed in (top, *caches)):
        raise InvalidModelError(
            f"{path.relative_to(root).as_posix()} is a symbolic link that leads out of the model:"
            " copy the file itself."
        )


def refuse_unlisted(root: Path, name: str) -> None:
    """Refuse a plain name that :func:`list_own` does not list: of what is not saved with a model.

    Raises:
        InvalidModelError: If it is hidden, in a folder that is a link, or a link that leads out.
    """
    parts = name.split("/")
    *folders, _ = places = [root.joinpath(*parts[: n + 1]) for n in range(len(parts))]
    if any(place.name.startswith(".") for place in places):
        problem = "is hidden: give it a name without a dot at the beginning"
    elif any(place.is_symlink() for place in folders):
        problem = "is in a folder that is a symbolic link: put the folder itself there"
    else:
        return refuse_link_out(root, root / name)
    raise InvalidModelError(f"{name} {problem}. It would not be saved with the model.")


def open_file(path: Path) -> BinaryIO:
    """Open a file that a folder brings.

    Raises:
        OSError: If it is not there; ``UnsupportedOperation`` if it is no regular file: a pipe would
            be waited for, and a device has no end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise io.UnsupportedOperation("it is no file")
    return path.open("rb")


def link_or_copy(source: Path, target: Path) -> None:
    """Make a symbolic link to a file; where the system makes none, a copy."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _real(path: Path) -> Path:
    """Follow links. A circle of them leads nowhere, where ``Path.resolve`` raises RuntimeError."""
    return Path(os.path.realpath(path))


def _walk(root: Path, depth: int | None = None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield the folders in a folder, each with the names of what is visible in it."""
    for parent, folders, files in os.walk(root):
        place = Path(parent)
        visible = [name for name in folders if not name.startswith(".")]
        too_deep = depth is not None and len(place.relative_to(root).parts) >= depth
        folders[:] = [] if too_deep else visible
        yield place, visible, [name for name in files if not name.startswith(".")]


def _listed(root: Path, found: list[tuple[Path, list[str]]]) -> list[str]:
    parts = [(*place.relative_to(root).parts, name) for place, names in found for name in names]
    return ["/".join(names) for names in sorted(parts)]


def _read(path: Path, most: int, name: str, error: Callable[[str], Exception]) -> bytes:
    try:
        with open_file(path) as file:
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise error(f"{name} is missing.") from cause
    except io.UnsupportedOperation as cause:
        raise error(f"{name} cannot be read: {cause}.") from cause
    except OSError as cause:
        raise error(f"{name} cannot be read.") from cause
    if len(data) > most:
        bound = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
        raise error(f"{name} is larger than {bound}.")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = (key for key, _ in pairs)
        raise ValueError(f"it has the key {name_twice(keys)} twice in one object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text[:_SHOWN]}")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
