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
import shutil
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlflow_phi3_onnx.core.bounds import MAX_DEPTH, MAX_JSON_BYTES
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "inside",
    "link_or_copy",
    "list_visible",
    "parse_json_object",
    "read_json_object",
    "read_text",
    "read_yaml_object",
    "refuse_links_out",
    "show_path",
]

_SHOWN = 80
_LONGEST_NAME = 255
_ALIASES = 1000
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
    data = _read(path, MAX_JSON_BYTES, name, error)
    return parse_json_object(data, name, error, infinite=infinite)


def parse_json_object(
    data: bytes,
    name: str,
    error: Callable[[str], Exception] = InvalidModelError,
    *,
    infinite: bool = False,
) -> dict[str, Any]:
    """Parse what a JSON file holds; arguments and errors as :func:`read_json_object`."""
    options: dict[str, Any] = {"object_pairs_hook": _unique}
    if not infinite:
        options |= {"parse_constant": _finite, "parse_float": _finite}
    value = None
    try:
        value = json.loads(data.decode("utf-8-sig"), **options)
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
        InvalidModelError: If the file is missing, larger than 64 MiB, nested deeper than 64 levels,
            no YAML of plain data in UTF-8 or no mapping, has a key twice in one mapping, or refers
            to itself.
    """
    data = _read(path, MAX_JSON_BYTES, path.name, InvalidModelError)
    try:
        text = data.decode("utf-8-sig")
        _check_events(yaml.parse(text, Loader=_Loader))
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a loader of plain data
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
    if not text.isprintable() or not 0 < len(text) <= _LONGEST_NAME:
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
        or any(len(part.encode()) > _LONGEST_NAME for part in parts)
    ):
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


def link_or_copy(source: Path, target: Path) -> None:
    """Make a symbolic link to a file; where the system makes none, a copy."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def refuse_links_out(root: Path) -> None:
    """Refuse a folder with a symbolic link that leads out of it, but for those of the hub's cache.

    Such a link would publish a file of whoever saves the folder. What is hidden is never saved, and
    not looked at.

    Raises:
        InvalidModelError: If there is one.
    """
    top = root.resolve()
    caches = [folder.parent / "blobs" for folder in top.parents if folder.name == "snapshots"]
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *files):
            path = Path(parent, name)
            if name.startswith(".") or not path.is_symlink():
                continue
            if not any(path.resolve().is_relative_to(place) for place in (top, *caches)):
                raise InvalidModelError(
                    f"{path.relative_to(root).as_posix()} is a symbolic link that leads out of the"
                    " model: copy the file itself."
                )


_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Loads plain data, and no mapping that has a key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if "<<" in keys:
            problem = "it merges mappings with '<<'"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        if len({*keys}) != len(keys):
            problem = f"it has the key {_twice(keys)} twice in one mapping"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _check_events(events: Iterable[Any]) -> None:
    """Refuse what would take more than its length: deep nesting, and aliases within aliases."""
    depth = aliases = 0
    anchored: list[int] = []  # the depths of the anchored collections that are open
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if event.anchor is not None:
                anchored.append(depth)
        elif isinstance(event, yaml.CollectionEndEvent):
            if anchored and anchored[-1] == depth:
                anchored.pop()
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        if depth > MAX_DEPTH or aliases > _ALIASES or (anchored and type(event) is yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem=f"it is nested deeper than {MAX_DEPTH} levels, or by aliases",
                problem_mark=event.start_mark,  # pyright: ignore[reportArgumentType] - stubs name two
            )


def _read(path: Path, most: int, name: str, error: Callable[[str], Exception]) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device has no end
            raise error(f"{name} cannot be read: it is no file.")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise error(f"{name} is missing.") from cause
    except OSError as cause:
        raise error(f"{name} cannot be read.") from cause
    if len(data) > most:
        raise error(f"{name} is larger than {most >> 20} MiB.")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = (key for key, _ in pairs)
        raise ValueError(f"it has the key {_twice(keys)} twice in one object")
    return value


def _twice(keys: Iterable[str]) -> str:
    """Name a key that stands twice."""
    ((twice, _),) = Counter(keys).most_common(1)
    return repr(twice[:_SHOWN])


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
