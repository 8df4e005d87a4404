"""What the processor gives to any loop, to judge the other figures by."""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.results import Speeds
from mlflow_phi3_onnx.evaluation.load.turns import interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.raw import RawModel
    from benchmarks.subject import Scale

__all__ = ["processor_speeds"]

LONG_PROMPT = 256
SHORT_PROMPT = 8
BATCHES = (1, 2, 4, 8, 16)
STEPS = 8
REPEATS = 3


def processor_speeds(scale: Scale) -> Iterator[Speeds]:
    """Measure prompts and steps of batches in onnxruntime-genai itself, with our threads."""
    for subject in scale.wide():
        raw, steps = subject.raw_with_our_threads(), scale.pick(STEPS, 2)
        long = subject.prompts.text(LONG_PROMPT, "long")
        short = subject.prompts.text(SHORT_PROMPT, "short")
        sides = {"prefill": partial(_speed, raw, 0, long, 1, 1)}
        sides |= {f"decode {rows}": partial(_speed, raw, 1, short, rows, steps) for rows in BATCHES}
        results = interleaved(sides, scale.pick(REPEATS, 1))
        prefill, *decode = (statistics.median(samples) for samples in results.values())
        yield Speeds(subject.name, prefill, dict(zip(BATCHES, decode, strict=True)))


def _speed(raw: RawModel, which: int, prompt: str, rows: int, steps: int, _: int) -> float:
    return raw.speeds(prompt, rows, steps)[which]
