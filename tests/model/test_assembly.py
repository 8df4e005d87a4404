"""From token ids to text: the same however an engine cuts a completion into deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx.core.request import Options
from mlflow_phi3_onnx.engine.base import TokenDelta, TokenScore
from mlflow_phi3_onnx.model.assembly import TextAssembler

if TYPE_CHECKING:
    from mlflow_phi3_onnx.core.request import Delta, FinishReason
    from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer

END = 0


def assembled(
    tokenizer: PromptTokenizer,
    ids: list[int],
    reason: FinishReason,
    size: int,
    stop: tuple[str, ...] = (),
) -> tuple[str, Delta]:
    """Give an assembler so many tokens at a time; return all text and the last delta."""
    options = Options(stop=stop, top_logprobs=0)
    assembler = TextAssembler(tokenizer, frozenset({END}), options)
    text, scores = "", list[Any]()
    taken: Any = None
    for start in range(0, len(ids), size):
        part = tuple(ids[start : start + size])
        last = start + size >= len(ids)
        logprobs = tuple(TokenScore(token, -float(token)) for token in part if token != END)
        assembler.add(TokenDelta(part, reason if last else None, logprobs))
        taken = assembler.take()
        text += taken.text
        scores += [entry.token_id for entry in taken.logprobs]
        if assembler.finished:
            break
    assert assembler.finished
    assert scores == [token for token in taken.token_ids if token != END]
    assert taken.tokens == len(taken.token_ids) == len(taken.token_starts)
    return text, taken


CASES: dict[str, tuple[str, tuple[str, ...], FinishReason, str, FinishReason, int]] = {
    "no stop sequence": ("a b c d", (), "stop", "a b c d", "stop", 5),
    "a limit": ("a b c d", (), "length", "a b c d", "length", 4),
    "one in the middle": ("a b c d", (" c",), "stop", "a b", "stop", 3),
    "one at the end": ("a b c d", (" d",), "length", "a b c", "stop", 4),
    "one across tokens": ("a b c d", ("b c",), "length", "a ", "stop", 3),
    "begun at the end": ("a b c d", ("c d e",), "stop", "a b c d", "stop", 5),
    "begun at a limit": ("a b c d", ("c d e",), "length", "a b c d", "length", 4),
    "the first in the text": ("a b c d", ("c", "b"), "stop", "a ", "stop", 2),
}


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stop", "reason", "told", "ended", "tokens"), CASES.values(), ids=CASES
)
def test_text_tokens_and_reason(
    tokenizer: PromptTokenizer,
    size: int,
    text: str,
    stop: tuple[str, ...],
    reason: FinishReason,
    told: str,
    ended: FinishReason,
    tokens: int,
) -> None:
    ids = [token for word in text.split() for token in tokenizer.encode(f"x {word}")[-1:].tolist()]
    ids += [END] * (reason == "stop")
    found, last = assembled(tokenizer, ids, reason, size, stop)
    assert (found.removeprefix(" "), last.finish_reason) == (told, ended)
    assert last.token_ids == tuple(ids[:tokens])


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_stop_sequence_that_half_a_character_makes(tokenizer: PromptTokenizer, size: int) -> None:
    """What never becomes a character is told at the end, and may be what ends the text."""
    ids = tokenizer.encode("😀").tolist()[-4:-1]
    for stop, told, ended in (((), "\ufffd", "length"), (("\ufffd",), "", "stop")):
        found, last = assembled(tokenizer, ids, "length", size, stop)
        assert (found, last.finish_reason, last.tokens) == (told, ended, 3)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_where_each_token_s_text_begins(tokenizer: PromptTokenizer, size: int) -> None:
    """Half a character begins where the whole one does, and an end where the text ends."""
    ids = [*tokenizer.encode("x a 😀 b").tolist()[-8:], END]
    text, last = assembled(tokenizer, ids, "stop", size)
    starts = [text[start:] for start in last.token_starts]
    emoji = [i for i in range(len(ids)) if starts[i].startswith("😀")]
    assert len(emoji) == 4
    assert emoji == list(range(emoji[0], emoji[0] + 4))
    assert starts[emoji[-1] + 1] == " b"
    assert (last.token_starts[0], starts[-1]) == (0, "")
    _, stopped = assembled(tokenizer, ids, "stop", size, (" b",))
    assert stopped.token_starts == last.token_starts[: emoji[-1] + 2]


def test_marks_are_kept_where_other_control_tokens_are_not(tokenizer: PromptTokenizer) -> None:
    user, system = tokenizer.control_id("<|user|>"), tokenizer.control_id("<|system|>")
    assert user is not None
    assert system is not None
    ids = [
        *tokenizer.encode("x é😀")[1:].tolist(),
        user,
        *tokenizer.encode("a")[-1:].tolist(),
        system,
    ]
    written: dict[str, str] = {}
    for name, kept in (("none", {999_999}), ("user", {user}), ("usual", set[int]())):
        stream = tokenizer.detokenizer(kept=frozenset(kept))
        written[name] = "".join(map(stream.add, ids)) + stream.flush()
    assert written["none"] == written["usual"]
    head, mark, tail = written["user"].partition("<|user|>")
    assert mark
    assert (head, tail.strip()) == (written["none"].rstrip()[: len(head)], "a")
    broken = tokenizer.encode("x 😀")[-4:-1].tolist()
    stream = tokenizer.detokenizer(kept=frozenset({user}))
    assert "".join(map(stream.add, [*broken, system])) + stream.flush() == "\ufffd"
