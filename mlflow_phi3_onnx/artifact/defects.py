"""Known defects of model folders, and their repairs.

A repair is an overlay at load time: the files stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.onnx.graph import FULL_ATTENTION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.artifact.folder import ModelFolder

__all__ = ["Defect", "find_defects", "repairs"]


@dataclass(frozen=True)
class Defect:
    """What is wrong with a model folder, or is to be known of it.

    Attributes:
        name: A short name.
        effect: What it does.
        remedy: What is done about it when the model is loaded.
        overlay: What is laid over the section ``model`` of ``genai_config.json`` for that.
    """

    name: str
    effect: str
    remedy: str
    overlay: Mapping[str, Any] = field(default_factory=dict[str, Any])


def find_defects(folder: ModelFolder) -> list[Defect]:
    """Find the defects that a model folder is known to have."""
    checks = (_sliding_window, _two_ranges, _growing, _states, _hidden_stop)
    return [defect for check in checks if (defect := check(folder)) is not None]


def repairs(folder: ModelFolder) -> dict[str, Any]:
    """Return what is laid over the section ``model`` of ``genai_config.json`` to repair it."""
    overlay: dict[str, Any] = {}
    for defect in find_defects(folder):
        overlay.update(defect.overlay)
    return overlay


def _sliding_window(folder: ModelFolder) -> Defect | None:
    """Find a window in the config of a graph that has none.

    onnxruntime-genai 0.18's builder writes a ``sliding_window`` section for Phi-3-mini-4k although
    its graph has full attention. The runtime then allocates a KV cache of the window's size, and
    every sequence longer than 2,063 tokens fails. All three keys must be set: a partial overlay
    makes the runtime fill in the others with defaults that fail too.
    """
    windows = folder.graph.attention_windows
    if not (folder.sliding_window and windows and windows <= FULL_ATTENTION):
        return None
    window = {"window_size": 0, "slide_key_value_cache": False, "slide_inputs": False}
    return Defect(
        "sliding window",
        "genai_config.json has a sliding window that the graph does not have: longer sequences"
        " would fail.",
        "The window is taken out.",
        {"decoder": {"sliding_window": window}},
    )


def _two_ranges(folder: ModelFolder) -> Defect | None:
    if not folder.two_ranges:
        return None
    return Defect(
        "two ranges of positions",
        "The graph has other position factors beyond its original context (LongRoPE), and"
        " onnxruntime-genai computes them rightly only for one row at a time, and only as one"
        " prompt.",
        f"Sequences that may have more than {folder.graph.first_range:,} tokens are computed one at"
        " a time, and once again as a whole where they come to have more. No prompt is computed in"
        " chunks."
        if folder.graph.first_range
        else "Sequences are computed one at a time, and no prompt in chunks.",
    )


def _growing(folder: ModelFolder) -> Defect | None:
    if not folder.cache_grows:
        return None
    return Defect(
        "growing cache",
        "Each step copies the whole KV cache into a longer one, so it is in memory twice, and long"
        " completions are slower.",
        "It is counted twice. Models that are built by onnxruntime-genai write in place.",
    )


def _states(folder: ModelFolder) -> Defect | None:
    if not folder.states:
        return None
    return Defect(
        "state of fixed size",
        "The graph has a convolution's or a recurrent layer's state, which cannot be taken back and"
        " which padding would change.",
        "Sequences are computed one at a time, prompts not in chunks; no prefix is found again and"
        " no draft token verified.",
    )


def _hidden_stop(folder: ModelFolder) -> Defect | None:
    if not folder.unknown_eos_ids:
        return None
    return Defect(
        "end beyond the vocabulary",
        f"genai_config.json ends completions at the id {max(folder.unknown_eos_ids):,}, but the"
        f" vocabulary has {folder.vocab_size:,}: it never comes, and onnxruntime-genai would fail.",
        "Such ids are left out.",
        {"eos_token_id": folder.eos_token_ids[0]},  # a list would be added to the folder's
    )
