"""The conversations that responses can go on from, in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

from mlflow_phi3_onnx.errors import ResponseNotFoundError

__all__ = ["MAX_BYTES", "MAX_RESPONSES", "History"]

MAX_RESPONSES = 1000
MAX_BYTES = 1 << 26


class History:
    """Keeps the conversations of responses by their ids; the least recently used go first.

    A conversation is its items, without the instructions. It is kept as JSON, and counts with all
    of its bytes for each of its responses, although these share what they have in common. One that
    alone is larger than the bound is not kept. May be used by several threads.

    Args:
        max_responses: The most responses that are kept; 0 keeps none.
        max_bytes: The most bytes of JSON that they may have together.
    """

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[bytes, ...]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, response_id: str) -> bool:
        return response_id in self._kept

    @property
    def bytes(self) -> int:
        """How many bytes the conversations have that are kept."""
        return self._bytes

    def turns(self, response_id: str) -> tuple[bytes, ...]:
        """Return a response's conversation, its output included: the items of each turn, as JSON.

        Raises:
            ResponseNotFoundError: If it is not kept, or was never there.
        """
        with self._lock:
            if response_id in self._kept:
                self._kept.move_to_end(response_id)
                return self._kept[response_id]
        raise ResponseNotFoundError(
            "previous_response_id must be the id of a response that is still kept; got another one."
            " A response is not kept if it was made with store false or has failed, and those that"
            " were not used for longest are forgotten. Send the whole conversation as input.",
            param="previous_response_id",
        )

    def keep(self, response_id: str, turns: tuple[bytes, ...]) -> bool:
        """Keep a response's conversation, as :meth:`turns` returns it; tell whether it is kept."""
        if _size(turns) > self._max_bytes:
            return False
        with self._lock:
            self._bytes += _size(turns) - _size(self._kept.pop(response_id, ()))
            self._kept[response_id] = turns
            while len(self._kept) > self._max_responses or self._bytes > self._max_bytes:
                _, forgotten = self._kept.popitem(last=False)
                self._bytes -= _size(forgotten)
            return response_id in self._kept


def _size(turns: tuple[bytes, ...]) -> int:
    return sum(map(len, turns))
