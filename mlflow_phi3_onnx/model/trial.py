"""A first run of a model that was loaded, to be sure that it computes what its configuration says.

A graph that does not fit its configuration loads, and fails only when it runs. For the slots loop
there is more to be sure of: that a prompt gives the same logits in pieces, beside others, as at
once. No processor gives quite the same, for it has different kernels for one token and for many,
and the numbers of a quantized model are rounded in between. So what the cache changes is held
against what the kernels alone change, both in relation to how far the logits spread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlflow_phi3_onnx.errors import GenerationError, InvalidModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlflow_phi3_onnx.artifact.folder import ModelFolder
    from mlflow_phi3_onnx.runtime.genai import NativeModel
    from mlflow_phi3_onnx.runtime.ort import SlotSession

__all__ = [
    "FEWEST_FOR_SLOTS",
    "MISFIT",
    "TRIED",
    "goes_back",
    "try_genai",
    "try_padding",
    "try_slots",
]

TRIED = 2
"""Of how many tokens the genai loop's model is tried out with."""

MISFIT = "The model loads but cannot run: genai_config.json does not fit its graph."

PADDED, WIDEST = 2, 4
"""Tokens of the prompt that is tried out with padding, and of the one beside it."""

LENGTH = 32
"""Tokens of the prompt that the slots loop's model is tried out with, if the cache holds them."""

FEWEST_FOR_SLOTS = 7
"""Tokens that the cache must hold at least: six of the prompt, and one more."""

CUTS = ((1, 7), (5, 1))
"""How it is cut, besides in halves: so many tokens in a first run, and so many in a second."""

ALLOWED, ALLOWED_IN_HALVES = 0.1, 0.04
"""How far logits may differ, in relation to their spread. Halves have the same kernels as the whole
prompt, so a fault that is small, in one of many layers, is seen there."""

MASKED = 1e4
"""How far below the largest logit those of tokens are that a graph never lets a model choose."""


def try_genai(
    native: NativeModel, folder: ModelFolder, misfit: str = MISFIT, adapter: str | None = None
) -> NDArray[np.float32]:
    """Run a graph of the genai loop once.

    Args:
        native: The model.
        folder: Its folder.
        misfit: What to say if it fails.
        adapter: The adapter to run it with.

    Returns:
        The logits of the tokens that it gives them of: of all, or only of the last.

    Raises:
        InvalidModelError: If it cannot run, or gives other logits than the configuration says.
    """
    try:
        generator = native.generator(1, TRIED + 1, adapter)
        generator.append([np.zeros(TRIED, dtype=np.int32)])
        generator.logits()
        logits = generator.all_logits()
    except GenerationError as error:
        raise InvalidModelError(misfit) from error
    _check_width(logits.shape[-1], folder)
    return logits


def try_padding(native: NativeModel) -> bool | None:
    """Tell whether a short prompt beside a longer one goes on as it does alone.

    Padding follows the prompt, so it shows in the logits of the token behind it. States of
    convolutions and recurrent layers take it in.

    Returns:
        Whether the logits are the same; None where the graph cannot read the pad id.
    """
    ids = np.arange(WIDEST, dtype=np.int32)
    found: list[NDArray[np.float32]] = []
    try:
        for prompts in ([ids[:PADDED]], [ids[:PADDED], ids]):
            generator = native.generator(len(prompts), WIDEST + 2)
            generator.append(prompts)
            generator.force([0] * len(prompts))
            found.append(generator.logits()[0])
    except GenerationError:
        return None
    return _difference(found[1], found[0]) <= ALLOWED


def goes_back(native: NativeModel) -> bool:
    """Tell whether onnxruntime-genai takes a generator of this model back to an earlier token."""
    generator = native.generator(1, TRIED + 1)
    generator.append([np.zeros(TRIED, dtype=np.int32)])
    try:
        generator.rewind(TRIED - 1)
    except GenerationError:
        return False
    return True


def try_slots(session: SlotSession, folder: ModelFolder) -> None:
    """Compare a prompt computed at once with the same in pieces, and beside another.

    Raises:
        InvalidModelError: If the graph cannot run, gives other logits than the configuration says,
            or computes something else in pieces.
    """
    _check_width(session.vocab_size, folder)
    length = min(LENGTH, session.capacity - 1)
    ids = np.random.default_rng(0).integers(0, folder.vocab_size, (1, length))
    half = length // 2
    even = 2 * half
    found: list[float] = []
    try:
        whole = session.run(0, ids, [length], length)[0]
        for first, second in (*CUTS, (half, half)):
            end = first + second
            if end <= length:
                session.run(1, ids[:, :first], [first])
                pieces = session.run(1, ids[:, first:end], [end])[0, -1]
                found.append(_difference(pieces, whole[end - 1]))
        step = np.concatenate([ids[:, :1], ids[:, even - 1 : even]])
        beside = session.run(0, step, [length + 1, even])[1, -1]
    except (GenerationError, ValueError) as error:
        raise InvalidModelError(MISFIT) from error
    found.append(_difference(beside, whole[even - 1]))
    if not (np.max(found) <= ALLOWED and found[-2] <= ALLOWED_IN_HALVES):
        raise InvalidModelError(
            "The slots loop computes this model otherwise in pieces than at once: its logits differ"
            f" by {np.max(found):.0%} of their spread, which no rounding does. Use loop='genai'."
        )
    session.release(0)
    session.release(1)


def _difference(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return how far logits differ, in relation to their spread: both as standard deviations.

    Tokens that the graph masks are no part of the spread.
    """
    kept = expected > expected.max() - MASKED
    if not (kept.any() and np.array_equal(kept, logits > logits.max() - MASKED)):
        return np.inf
    error, spread = float((logits[kept] - expected[kept]).std()), float(expected[kept].std())
    return error / spread if spread else error


def _check_width(width: int, folder: ModelFolder) -> None:
    if width != folder.vocab_size:
        raise InvalidModelError(
            f"genai_config.json says vocab_size {folder.vocab_size:,}, but the graph gives"
            f" {width:,} logits."
        )
