"""A decoder graph on plain ONNX Runtime, over a KV cache of our own.

The only importer of ``onnxruntime``. The cache is one slab for keys and one for values a layer, of
shape ``(slots, heads, capacity, head_size)``. GroupQueryAttention reads each sequence's length from
its attention mask and writes new keys and values in place where past and present are the same
buffer, so a slice of the slabs is a batch: of one slot for a prompt, of neighbouring slots for a
step of several completions. Nothing is allocated for a request.
"""

from __future__ import annotations

import importlib
import math
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_phi3_onnx.core.dtypes import FLOATS
from mlflow_phi3_onnx.errors import (
    DependencyError,
    GenerationError,
    InvalidModelError,
    MemoryBudgetError,
)
from mlflow_phi3_onnx.runtime.messages import reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["CACHE_TYPES", "Interrupted", "SlotSession", "import_onnxruntime"]

_NEEDED_FOR = (
    "the slots loop needs it. Install it with 'pip install onnxruntime', or use loop='genai'"
)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_WEIGHTS_IN = "session.model_external_initializers_file_folder_path"

_LOGITS = {"tensor(float)": FLOATS[1], "tensor(float16)": FLOATS[10]}

CACHE_TYPES = frozenset(FLOATS)
"""The element types of a cache that a session takes, as ``TensorProto.DataType``."""


class Interrupted(Exception):  # noqa: N818 - it is no error: the work was not wanted any more
    """A run that was stopped from another thread."""


class SlotSession:
    """A decoder graph and its slots.

    Args:
        graph: The ONNX file.
        chosen: The same graph without its weights, with an input that chooses the tokens that
            logits are computed of, where there is one.
        first_wanted: What that input is called.
        layers: How many decoder layers.
        heads: How many key and value heads.
        head_size: Numbers in one head.
        element: The cache's element type, as ``TensorProto.DataType``.
        slots: How many sequences the cache holds.
        capacity: Tokens of one slot.
        threads: Threads that compute one operator.

    Attributes:
        slots: How many sequences the cache holds.
        capacity: Tokens of one slot.
        vocab_size: The width of the logits.

    Raises:
        InvalidModelError: If ONNX Runtime cannot load the graph.
        DependencyError: If ONNX Runtime is missing.
        MemoryBudgetError: If the system does not give the memory of the cache.
    """

    def __init__(
        self,
        graph: Path,
        *,
        chosen: bytes | None = None,
        first_wanted: str = "",
        layers: int,
        heads: int,
        head_size: int,
        element: int,
        slots: int,
        capacity: int,
        threads: int,
    ) -> None:
        self._ort = import_onnxruntime(_NEEDED_FOR)
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        if chosen is not None:
            options.add_session_config_entry(_WEIGHTS_IN, str(graph.parent))
        try:
            self._session = self._ort.InferenceSession(
                chosen or str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InvalidModelError(
                f"ONNX Runtime cannot load {graph.name}: {reason(error, graph.parent)}"
            ) from error
        self.slots = slots
        self.capacity = capacity
        self._dtype = FLOATS[element]
        shape = (slots, heads, capacity, head_size)
        try:
            self._slabs = [_Slab(shape, self._dtype) for _ in range(2 * layers)]
        except (OSError, OverflowError, MemoryError) as error:
            size = 2 * layers * math.prod(shape) * self._dtype.itemsize
            raise MemoryBudgetError(
                f"The slots' KV cache takes {size:,} bytes, which the system does not give. Lower"
                " kv_cache_memory or max_batch_size, or use loop='genai'."
            ) from error
        self._names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
        (logits,) = [output for output in self._session.get_outputs() if output.name == "logits"]
        if logits.type not in _LOGITS or not isinstance(logits.shape[-1], int):
            raise InvalidModelError("The graph does not say how wide its logits are.")
        if logits.shape[1] == 1:
            raise InvalidModelError("The graph gives logits of the last token only.")
        self.vocab_size = logits.shape[-1]
        self._first_wanted = first_wanted if chosen is not None else None
        self._logits = np.zeros(0, dtype=_LOGITS[logits.type])
        self._bindings: dict[tuple[int, int], Any] = {}
        self._running: Any = None

    def run(
        self,
        first: int,
        ids: NDArray[np.int64],
        lengths: Sequence[int],
        wanted: int = 1,
        *,
        interruptible: bool = False,
    ) -> NDArray[np.float32]:
        """Compute tokens of neighbouring slots, and append them to the cache.

        Args:
            first: The first slot.
            ids: The new tokens, ``(slots, tokens)``.
            lengths: How many tokens each slot holds afterwards.
            wanted: Of how many of the last tokens the logits are wanted.
            interruptible: Whether :meth:`interrupt` stops it. The options that this takes cost
                time in ONNX Runtime's Python code, and a single step is over soon.

        Returns:
            The logits of the tokens that follow those, ``(slots, wanted, vocabulary)``.

        Raises:
            Interrupted: If :meth:`interrupt` was called meanwhile.
            GenerationError: If ONNX Runtime fails.
        """
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        binding = self._binding(first, len(ids))
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        binding.bind_cpu_input("attention_mask", mask)
        computed = ids.shape[1]
        if self._first_wanted is not None:
            computed = max(wanted, 1)
            binding.bind_cpu_input(self._first_wanted, np.array([-computed]))
        logits = self._bind_logits(binding, (len(ids), computed, self.vocab_size))
        options = self._ort.RunOptions() if interruptible else None
        self._running = options
        try:
            self._session.run_with_iobinding(binding, options)
            return logits[:, computed - wanted :].astype(np.float32)
        except Exception as error:
            if options is not None and options.terminate:
                raise Interrupted from None
            raise GenerationError(
                f"ONNX Runtime failed while it ran the model ({type(error).__name__})."
            ) from error
        finally:
            self._running = None

    def interrupt(self) -> None:
        """Stop what is being computed, from another thread, if it is interruptible."""
        running = self._running
        if running is not None:
            running.terminate = True

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the beginning of a slot to another."""
        for slab in self._slabs:
            slab.array[target, :, :tokens] = slab.array[source, :, :tokens]

    def swap(self, one: int, other: int, one_tokens: int, other_tokens: int) -> None:
        """Exchange what two slots hold."""
        for slab in self._slabs:
            kept = slab.array[one, :, :one_tokens].copy()
            slab.array[one, :, :other_tokens] = slab.array[other, :, :other_tokens]
            slab.array[other, :, :one_tokens] = kept

    def release(self, slot: int) -> None:
        """Give a slot's memory back to the system."""
        for slab in self._slabs:
            slab.release(slot)

    def _bind_logits(self, binding: Any, shape: tuple[int, int, int]) -> NDArray[Any]:
        """Bind memory for logits, the same again and again: the next run writes over it."""
        size = math.prod(shape)
        if size > self._logits.size:
            self._logits = np.zeros(size, dtype=self._logits.dtype)
        logits = self._logits[:size].reshape(shape)
        binding.bind_output("logits", "cpu", 0, logits.dtype, shape, logits.ctypes.data)
        return logits

    def _binding(self, first: int, count: int) -> Any:
        """Bind the cache of neighbouring slots; the bindings are kept, they hold no data."""
        binding = self._bindings.get((first, count))
        if binding is None:
            binding = self._session.io_binding()
            for name, slab in zip(self._names, self._slabs, strict=True):
                part = slab.array[first : first + count]
                place = ("cpu", 0, self._dtype, part.shape, part.ctypes.data)
                binding.bind_input(f"past_key_values.{name}", *place)
                binding.bind_output(f"present.{name}", *place)
            self._bindings[first, count] = binding
        return binding


class _Slab:
    """One array of the cache, in memory that the system provides when it is first written."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        size = math.prod(shape) * dtype.itemsize
        if hasattr(mmap, "MAP_PRIVATE"):
            self._map: mmap.mmap | None = mmap.mmap(
                -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
            self.array = np.frombuffer(self._map, dtype=dtype).reshape(shape)
        else:
            self._map = None
            self.array = np.zeros(shape, dtype=dtype)
        self._slot_bytes = size // shape[0]

    def release(self, slot: int) -> None:
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-slot * self._slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (slot + 1) * self._slot_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)


def import_onnxruntime(needed_for: str) -> Any:
    """Import ``onnxruntime``.

    Args:
        needed_for: What needs it and what helps, to end the message of the error with.

    Raises:
        DependencyError: If it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise DependencyError(f"onnxruntime cannot be imported; {needed_for}.") from error
