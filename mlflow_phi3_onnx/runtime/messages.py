"""What native libraries say when they cannot load a model, made fit for an error message."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["reason"]

_LONGEST = 300
_ABSOLUTE_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][^\\/\s\"':,]+)+[\\/](?=[^\\/\s])")


def reason(error: BaseException, folder: Path) -> str:
    """Return what a native library says of a file, on one line, without the user's folders.

    Only for errors of loading: they speak of files, never of a prompt.

    Args:
        error: What the library raised.
        folder: The model folder; its files are named as they lie in it.
    """
    text = str(error).replace(f"{folder}{os.sep}", "")
    text = _ABSOLUTE_PATH.sub("", " ".join(text.split())) or type(error).__name__
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return shown.rstrip(".") + "."
