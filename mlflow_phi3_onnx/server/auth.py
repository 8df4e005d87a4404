"""Who may ask: requests bring a key, where the server has any."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_phi3_onnx.core.files import read_text, show_path
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError
from mlflow_phi3_onnx.flavor.serving import KEYS_VARIABLE
from mlflow_phi3_onnx.server.errors import UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Keys", "read_keys"]

_logger = logging.getLogger(__name__)

MAX_KEYS_BYTES = 1 << 20
FEWEST_CHARACTERS = 8


class Keys:
    """The keys that are known, as hashes.

    Args:
        keys: The keys; without any, everybody may ask.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = [_hash(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Check that a request brings one of the keys, as ``Authorization: Bearer <key>``.

        The time that it takes tells nothing of the keys: hashes are compared, and each of them.

        Raises:
            UnauthorizedError: If it does not.
        """
        if not self._hashes:
            return
        given = [value for name, value in headers if name == b"authorization"]
        if not given:
            raise UnauthorizedError(
                "The server asks for a key. Send it in the header Authorization: Bearer <key>."
            )
        scheme, _, key = given[0].strip().partition(b" ")
        found = _hash(key.strip())
        known = [hmac.compare_digest(found, one) for one in self._hashes]
        if len(given) > 1 or scheme.lower() != b"bearer" or not any(known):
            raise UnauthorizedError(
                "The key in the header Authorization is not one that the server knows."
            )


def read_keys(file: str | None) -> Keys:
    """Read the server's keys, from its file or else from the environment.

    Raises:
        InvalidRequestError: If the file cannot be read, or has no key, or a key is too short to be
            one.
    """
    if file is None:
        place = KEYS_VARIABLE
        keys = dict(enumerate(os.environ.get(KEYS_VARIABLE, "").split(), 1))
    else:
        place = f"api_key_file {show_path(file)}"
        try:
            lines = read_text(Path(file), MAX_KEYS_BYTES).splitlines()
        except InvalidModelError as error:
            raise InvalidRequestError(
                f"{place} cannot be read: {error.message} It must be a text file of at most"
                " 1 MiB, with one key a line.",
                param="api_key_file",
            ) from error
        keys = {
            number: line.strip()
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.startswith("#")
        }
        if not keys:
            raise InvalidRequestError(f"{place} has no key in it.", param="api_key_file")
        if os.name != "nt" and Path(file).stat().st_mode & stat.S_IROTH:
            _logger.warning(
                "Every user of this machine can read api_key_file. Take that from them: chmod o-r."
            )
    for number, key in keys.items():
        if len(key) < FEWEST_CHARACTERS or not key.isprintable() or " " in key:
            raise InvalidRequestError(
                f"{place}, {'key' if file is None else 'line'} {number}: a key must be"
                f" {FEWEST_CHARACTERS} or more printable characters without blanks; this one has"
                f" {len(key)}.",
                param="api_key_file",
            )
    return Keys(keys.values())


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
