"""Reading a document that a folder brings: every value checked, every refusal naming its key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.errors import InvalidModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.core.checks import Check

__all__ = ["Document"]

T = TypeVar("T")
_NEEDED: Final[Any] = object()


@dataclass(frozen=True)
class Document:
    """An object in a document that is not trusted.

    Attributes:
        values: What it holds.
        file: The name of the file that it is from.
        place: Where it is in the file: the keys that lead to it, each with a dot behind it.
    """

    values: Mapping[str, Any]
    file: str
    place: str = ""

    def read(self, key: str, check: Check[T], default: T = _NEEDED) -> T:
        """Return the value of a key, checked.

        Args:
            key: The key.
            check: Returns the clean value or raises ValueError; it says what is allowed.
            default: What holds where the key is missing; without one, it may not be.

        Raises:
            InvalidModelError: If the value is missing or is not what it may be.
        """
        if key not in self.values:
            if default is not _NEEDED:
                return default
            raise self.refusal(key, f"is missing; it must be {check.allowed}")
        value = self.values[key]
        try:
            return check(value)
        except (ValueError, OverflowError) as error:
            what = f"must be {check.allowed}; it is {describe_kind(value)}"
            raise self.refusal(key, what) from error

    def section(self, key: str, *, needed: bool = True) -> Document:
        """Return the object of a key; where it is missing and not needed, an empty one.

        Raises:
            InvalidModelError: If it is missing, or is no object.
        """
        if key not in self.values and needed:
            raise InvalidModelError(f"{self.file} has no section {self.place}{key}.")
        return _object(self, key, self.values.get(key, {}))

    def sections(self, key: str, *, needed: bool = True) -> dict[str, Document]:
        """Return the objects in the object of a key, by their names; as :meth:`section` otherwise.

        Raises:
            InvalidModelError: If it is missing, is no object, or holds anything but objects.
        """
        outer = self.section(key, needed=needed)
        return {name: _object(outer, name, value) for name, value in outer.values.items()}

    def refusal(self, key: str, what: str) -> InvalidModelError:
        """Make the error of a key whose value is not what it must be."""
        return InvalidModelError(f"{self.file}: {self.place}{key} {what}.")


def _object(outer: Document, key: str, value: Any) -> Document:
    if not isinstance(value, dict):
        raise outer.refusal(key, f"must be an object; it is {describe_kind(value)}")
    for name in value:
        if not isinstance(name, str):
            raise outer.refusal(key, f"has a key that is no text; it is {describe_kind(name)}")
    return Document(value, outer.file, f"{outer.place}{key}.")
