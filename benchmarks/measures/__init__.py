"""The measures, each of one or more rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measures.artifact import log_model
from benchmarks.measures.frame import frame
from benchmarks.measures.latency import late_arrival, second_turn
from benchmarks.measures.memory import memory
from benchmarks.measures.overhead import predict, tokens
from benchmarks.measures.processor import processor
from benchmarks.measures.served import clients, ping
from benchmarks.measures.transformers import transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.results import Row, Speeds
    from benchmarks.subject import Scale

__all__ = ["MEASURES"]

MEASURES: Mapping[str, Callable[[Scale], Iterator[Row | Speeds]]] = {
    "processor": processor,
    "predict": predict,
    "tokens": tokens,
    "frame": frame,
    "clients": clients,
    "late-arrival": late_arrival,
    "second-turn": second_turn,
    "ping": ping,
    "transformers": transformers,
    "memory": memory,
    "log-model": log_model,
}
"""What can be measured, by name, in the order of the table."""
