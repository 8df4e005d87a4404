"""Stop sequences, found in text that arrives in deltas."""

from __future__ import annotations

from mlflow_phi3_onnx.core.marks import begun

__all__ = ["StopMatcher"]


class StopMatcher:
    """Passes text on until a stop sequence occurs in it.

    The end of the text is held back for as long as it may be the beginning of a stop sequence, so
    no part of one is ever passed on.

    Args:
        stops: The stop sequences, none of them empty.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Take the next text and return what can be passed on."""
        if not self._stops:
            return text
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(begun(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what is still held back."""
        held, self._held = self._held, ""
        return held
