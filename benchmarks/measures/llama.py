"""Beside llama.cpp, on the same checkpoint: prompts, and decoding of one row and of several."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.beside import beside
from benchmarks.llama import QUANTIZED, llama_file
from benchmarks.models import MODELS, model_folder
from benchmarks.results import Compared
from benchmarks.subject import LOOPS
from mlflow_phi3_onnx.evaluation.load.turns import interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.beside import Beside
    from benchmarks.subject import Scale

__all__ = ["beside_llama"]

PROMPTS = (32, 256)
ROWS = (1, 4, 8)
REPEATS = 5


def beside_llama(scale: Scale) -> Iterator[Compared]:
    """Measure both loops with every block size, and llama.cpp's own forms, turn by turn."""
    names = scale.pick(scale.models, ("tiny-int4",))
    checkpoint = MODELS[names[0]].checkpoint
    places = {f"`{loop}`, {name}": (loop, model_folder(name)) for name in names for loop in LOOPS}
    forms = {f"llama.cpp, {form}": form for form in QUANTIZED}
    places |= {name: ("llama", llama_file(checkpoint, form)) for name, form in forms.items()}
    asked = [("prefill", size) for size in PROMPTS] + [("decode", rows) for rows in ROWS]
    found: dict[str, dict[str, list[float]]] = {name: {} for name in places}
    with ExitStack() as stack:
        others = {name: stack.enter_context(beside(*place)) for name, place in places.items()}
        for what, size in asked:
            sides = {name: partial(_ask, other, what, size) for name, other in others.items()}
            for name, samples in interleaved(sides, scale.pick(REPEATS, 1)).items():
                found[name][f"{what} {size}"] = samples
    for name, samples in found.items():
        yield Compared(name, samples)


def _ask(other: Beside, what: str, size: int, _: int) -> float:
    return other.ask(what, size)
