"""The measures, each of one or more rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measures.artifact import log_model
from benchmarks.measures.conversion import conversion
from benchmarks.measures.frame import frame_throughput
from benchmarks.measures.latency import late_arrival, second_turn
from benchmarks.measures.llama import beside_llama
from benchmarks.measures.memory import resident_memory
from benchmarks.measures.overhead import predict, tokens
from benchmarks.measures.overload import overload
from benchmarks.measures.prefill import chosen_logits
from benchmarks.measures.processor import processor_speeds
from benchmarks.measures.pytorch import decoding
from benchmarks.measures.served import clients, ping
from benchmarks.measures.servers import served_clients, served_token, servers
from benchmarks.measures.tracing import tracing
from benchmarks.measures.worker import shared_memory, worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.results import Result
    from benchmarks.subject import Scale

__all__ = ["MEASURES"]

MEASURES: Mapping[str, Callable[[Scale], Iterator[Result]]] = {
    "processor": processor_speeds,
    "predict": predict,
    "tokens": tokens,
    "frame": frame_throughput,
    "clients": clients,
    "served-token": served_token,
    "served-clients": served_clients,
    "late-arrival": late_arrival,
    "second-turn": second_turn,
    "ping": ping,
    "overload": overload,
    "transformers": decoding,
    "chosen-logits": chosen_logits,
    "llama": beside_llama,
    "servers": servers,
    "memory": resident_memory,
    "worker": worker,
    "shared-memory": shared_memory,
    "tracing": tracing,
    "log-model": log_model,
    "conversion": conversion,
}
"""What can be measured, by name, in the order of the table."""
