"""`python -m benchmarks.callers`: what a token costs the processor, with 1 and with 8 callers.

It needs nothing but the package, so that two checkouts can take turns:
``PYTHONPATH=<checkout> python benchmarks/callers.py``. Processor time says what threads that wake
each other cost; on a busy machine, wall time does not. The demo model's own arithmetic is in it.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx import GenAIModel, demo_model_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CALLERS = (1, 8)
TOKENS = 150
PROMPT = "Tell me a long story."
FORMS: Mapping[str, tuple[bool, dict[str, Any]]] = {
    "whole": (False, {}),
    "whole, with stop": (False, {"stop": ["\u2603\u2603", "\n\n###"]}),
    "stream": (True, {}),
}
"""Whether a completion is streamed, and its options, by name."""


def measure(ask: Callable[[], object], callers: int, repeats: int) -> float:
    """Return the median microseconds of processor time that a token takes."""
    with ThreadPoolExecutor(callers) as pool:
        times: list[float] = []
        for _ in range(repeats + 1):
            start = time.process_time()
            for future in [pool.submit(ask) for _ in range(callers)]:
                future.result()
            times.append(time.process_time() - start)
    return 1e6 * statistics.median(times[1:]) / (callers * TOKENS)


def _asker(model: GenAIModel, options: dict[str, Any], *, stream: bool) -> Callable[[], object]:
    if stream:
        return lambda: list(model.stream_complete(PROMPT, **options))
    return lambda: model.complete(PROMPT, **options)


def main(repeats: int = 10) -> None:
    """Print a line for each loop, form and number of callers."""
    length: dict[str, Any] = {"max_tokens": TOKENS, "min_tokens": TOKENS}
    for loop in ("genai", "slots"):
        config = {"loop": loop, "intra_op_num_threads": 1}
        with GenAIModel(demo_model_path(), model_config=config) as model:
            for name, (stream, options) in FORMS.items():
                ask = _asker(model, {**length, **options}, stream=stream)
                for callers in CALLERS:
                    micro = measure(ask, callers, repeats)
                    print(f"{loop:<6} {name:<17} {callers} callers {micro:8.1f} µs/token")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
