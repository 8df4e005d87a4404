"""ONNX Runtime model packages: a folder with several forms of a model, and a manifest.

The format is ONNX Runtime's
(https://github.com/microsoft/onnxruntime/blob/main/model_package/README.md). The wheels of
onnxruntime-genai do not read it, but each variant of such a package is a folder that they read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.folder import CONFIG_FILE
from mlflow_phi3_onnx.core.checks import string
from mlflow_phi3_onnx.core.document import Document
from mlflow_phi3_onnx.core.files import inside, read_json_object, refuse_unlisted
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.runtime.providers import PROVIDERS, provider_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MANIFEST_FILE", "PackageVariant", "is_package", "read_package"]

MANIFEST_FILE = "manifest.json"
COMPONENT_FILE = "component.json"

_VERSION = re.compile(r"1(\.\d+)?")
_SHOWN = 20
_SHARED = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class PackageVariant:
    """One of a package's forms of its model.

    Attributes:
        name: What the package calls it.
        folder: Where it lies in the package.
        provider: The execution provider that it is for.
    """

    name: str
    folder: str
    provider: str


def is_package(path: Path) -> bool:
    """Whether a folder is a package, and not a model folder."""
    return (path / MANIFEST_FILE).is_file() and not (path / CONFIG_FILE).is_file()


def read_package(path: Path) -> list[PackageVariant]:
    """Read what a package holds.

    Args:
        path: The folder with ``manifest.json``.

    Raises:
        InvalidModelError: If it is not a package, is of a later format, holds other than one
            component, refers to what is not inside a variant's folder, or leads out of its own.
    """
    manifest = Document(read_json_object(path / MANIFEST_FILE), MANIFEST_FILE)
    version = str(manifest.values.get("schema_version"))
    if not _VERSION.fullmatch(version):
        raise manifest.refusal(
            "schema_version", f"is {version[:_SHOWN]}; this package reads 1 and 1.x"
        )
    components = manifest.section("components")
    if len(components.values) != 1:
        raise InvalidModelError(
            f"{MANIFEST_FILE} lists {len(components.values)} components; a package of ONNX Runtime"
            " GenAI has one."
        )
    ((name, place),) = components.values.items()
    folder = PurePosixPath()
    if isinstance(place, str):
        file = _inside(folder, place, MANIFEST_FILE)
        if (path / file).is_dir():
            file /= COMPONENT_FILE
        folder, where = file.parent, file.as_posix()
        refuse_unlisted(path, where)
        component = Document(read_json_object(path / file, name=where), where)
    else:
        component = components.section(name)
    found = [
        _variant(path, folder, name, variant)
        for name, variant in component.sections("variants").items()
    ]
    if not found:
        raise InvalidModelError(f"{component.file} lists no variants.")
    return found


def _variant(path: Path, parent: PurePosixPath, name: str, body: Document) -> PackageVariant:
    folder = _inside(parent, body.values.get("variant_directory", name), body.file)
    if not (path / folder / CONFIG_FILE).is_file():
        raise InvalidModelError(f"The package's variant {name} has no {CONFIG_FILE}.")
    refuse_unlisted(path, (folder / CONFIG_FILE).as_posix())
    config = read_json_object(path / folder / CONFIG_FILE)
    if any(_SHARED.match(text) for text in _texts(config)):
        raise InvalidModelError(
            f"The package's variant {name} refers to shared assets (sha256:...), which the wheels"
            " of onnxruntime-genai do not find. Put the files into the variant's folder, under"
            " their names."
        )
    asked = body.read("ep", string, "cpu")
    provider = provider_name(asked)
    if provider not in PROVIDERS:
        raise InvalidModelError(
            f"The package's variant {name} is for {asked!r}, which is no execution provider of"
            f" onnxruntime-genai; those are {', '.join(PROVIDERS)}."
        )
    return PackageVariant(name, folder.as_posix(), provider)


def _inside(parent: PurePosixPath, name: Any, where: str) -> PurePosixPath:
    """Return a path of the package's, relative to its top."""
    refusal = f"{where} names a path that leads out of the package"
    return parent / inside(Path(), name, refusal).as_posix()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
