"""Repairs of defects that published builders are known to leave in ``genai_config.json``.

A repair is an overlay at load time: the files stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_phi3_onnx.artifact.folder import ModelFolder

__all__ = ["repairs"]


def repairs(folder: ModelFolder) -> dict[str, Any]:
    """Return the overlay that repairs a folder, in the shape of ``genai_config.json``.

    onnxruntime-genai 0.18's builder writes a ``sliding_window`` section for Phi-3-mini-4k although
    its graph has full attention. The runtime then allocates a KV cache of the window's size, and
    every sequence longer than 2,063 tokens fails. All three keys must be set: a partial overlay
    makes the runtime fill in the others with defaults that fail too.
    """
    decoder = folder.decoder
    windows = folder.graph.attention_windows
    if decoder.get("sliding_window") and windows and windows <= {-1}:
        window = {"window_size": 0, "slide_key_value_cache": False, "slide_inputs": False}
        return {"model": {"decoder": {"sliding_window": window}}}
    return {}
