"""The demo model that comes with the package."""

from __future__ import annotations

from pathlib import Path

from mlflow_phi3_onnx.errors import InvalidModelError

__all__ = ["demo_model_path"]


def demo_model_path() -> str:
    """Return the folder of the demo model.

    It is a toy: a tiny Phi-3 that has memorised a page of text. It has the files, the chat template
    and the special tokens of a real one, so that everything can be tried offline.

    Raises:
        InvalidModelError: If this copy of the package has no demo model, as the one that travels
            inside a logged model.
    """
    path = Path(__file__).parent / "demo_model"
    if not path.is_dir():
        raise InvalidModelError("This copy of mlflow_phi3_onnx came without its demo model.")
    return str(path)
