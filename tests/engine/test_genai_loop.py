"""The genai loop: groups of rows, single ones, generators that are kept, prompts in pieces."""
# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlflow_phi3_onnx import GenAIModel, InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.core.request import Options
from mlflow_phi3_onnx.engine.loops import prefill as chunks
from mlflow_phi3_onnx.engine.loops.genai_pool import MAX_KEPT, GeneratorPool
from mlflow_phi3_onnx.engine.options import ServingPolicy
from tests.support.engines import submit, until
from tests.support.versions import needs_new_genai

if TYPE_CHECKING:
    from collections.abc import Iterator

STORY = [{"role": "user", "content": "Tell me a long story."}]
COUNTRIES = ["Spain", "France", "Italy", "Japan", "Peru", "Chile", "Kenya", "Egypt", "Norway"]


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def texts(responses: list[dict[str, Any]]) -> list[Any]:
    return [[c["message"]["content"] for c in r["choices"]] for r in responses]


@pytest.fixture(scope="module")
def reference(demo: Path) -> Iterator[GenAIModel]:
    """One row at a time, in generators that were never used before."""
    with GenAIModel(demo, model_config={"max_batch_size": 1, "prefix_cache": False}) as model:
        yield model


ROWS = [
    question(f"{'Please think. ' * (i % 5)}What is the capital of {c}?", max_tokens=1 + i % 9)
    for i, c in enumerate(COUNTRIES * 4)
]


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_rows_of_every_length_in_batches_of_every_size(
    demo: Path, reference: GenAIModel, batch: int
) -> None:
    expected = texts([reference.run("llm/v1/chat", [row])[0] for row in ROWS])
    with GenAIModel(demo, model_config={"max_batch_size": batch}) as model:
        for rows, wanted in ((ROWS, expected), (ROWS[::-1], expected[::-1])):
            assert texts(model.run("llm/v1/chat", rows)) == wanted


def test_rows_that_are_not_over_move_to_a_smaller_batch(
    demo: Path, reference: GenAIModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    take = GeneratorPool.take

    def counted(pool: Any, rows: int, *arguments: Any, **named: Any) -> Any:
        opened.append(rows)
        return take(pool, rows, *arguments, **named)

    rows = [{"messages": STORY}, *(question("Hello", max_tokens=1) for _ in range(7))]
    expected = texts([reference.run("llm/v1/chat", [row])[0] for row in rows])
    monkeypatch.setattr(GeneratorPool, "take", counted)
    with GenAIModel(demo) as model:
        assert texts(model.run("llm/v1/chat", rows)) == expected
    assert opened[:2] == [8, 1]


def test_a_second_turn_finds_the_first_in_a_kept_generator(
    demo: Path, reference: GenAIModel
) -> None:
    turns: list[Any] = [{"role": "user", "content": "What is the capital of Spain?"}]
    with GenAIModel(demo) as model:
        answer = model.chat(turns)
        assert "prompt_tokens_details" not in answer["usage"]
        turns += [answer["choices"][0]["message"], {"role": "user", "content": "And of France?"}]
        again = model.chat(turns)
        cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= answer["usage"]["total_tokens"] - 2
        assert again["choices"] == reference.chat(turns)["choices"]
        sampled = {"temperature": 1.5, "seed": 4, "max_tokens": 12}
        assert (
            model.chat(turns, **sampled)["choices"] == reference.chat(turns, **sampled)["choices"]
        )


def test_a_longer_answer_tells_what_was_found_of_its_prompt(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it outgrows its generator, and moves to a larger one."""
    monkeypatch.setattr("mlflow_phi3_onnx.engine.loops.genai_batch.GROWTH", 16)
    monkeypatch.setattr("mlflow_phi3_onnx.engine.loops.genai_batch.ENOUGH", 8)
    with GenAIModel(demo) as model:
        asked = question("What is the capital of Spain, and what is the capital of Italy?")
        model.chat(**asked, max_tokens=2)
        short = model.chat(**asked, max_tokens=2)["usage"]
        long = model.chat(**asked, min_tokens=40, max_tokens=40)["usage"]
    found = {"cached_tokens": short["prompt_tokens"] - chunks.MIN_COMPUTED}
    assert short["prompt_tokens_details"] == long["prompt_tokens_details"] == found


def test_a_few_generators_are_kept_those_that_were_used_last(demo: Path) -> None:
    with GenAIModel(demo) as model:
        pool = model._engine._loop._pool  # type: ignore[attr-defined] - below every interface
        for number in range(1, MAX_KEPT + 3):
            model.run("llm/v1/chat", [question("Hello", max_tokens=2) for _ in range(number)])
            # The generator is given back in the step that answers, but after the answer.
            until(lambda n=number: pool._kept and pool._kept[-1].generator.rows == n)
        assert [kept.generator.rows for kept in pool._kept] == list(range(3, MAX_KEPT + 3))


def test_what_is_kept_gives_way_to_what_is_asked_for(demo: Path) -> None:
    with GenAIModel(demo) as model:
        per_token = model.limits.kv_bytes_per_token
    with GenAIModel(demo, model_config={"kv_cache_memory": per_token * 100}) as model:
        pool = model._engine._loop._pool  # type: ignore[attr-defined] - below every interface
        for number in range(1, 5):
            model.run("llm/v1/chat", [question("Hello", max_tokens=8) for _ in range(number)])
            # The generator is given back in the step that answers, but after the answer.
            until(lambda: 0 < sum(kept.kv_tokens for kept in pool._kept) <= 100)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [(170, [10, 20, 30]), (169, [20, 30]), (150, [20, 30]), (149, [30]), (110, [30]), (109, [])],
)
def test_what_was_used_longest_ago_gives_way_first(
    demo: Path, budget: int, kept: list[int]
) -> None:
    with GenAIModel(demo) as model:
        pool = model._engine._loop._pool  # type: ignore[attr-defined] - below every interface
        made = [pool.take(2, length, 1000)[0] for length in (20, 10, 30)]
        for at in (1, 0, 2):
            pool.give(made[at])
        assert pool.take(1, 50, budget)[0].max_length == 50
        assert [each.generator.max_length for each in pool._kept] == kept


def test_those_that_wait_begin_together_once_half_of_the_batch_is_free(demo: Path) -> None:
    with GenAIModel(demo, model_config={"max_batch_size": 4}) as model:
        loop = model._engine._loop  # type: ignore[attr-defined] - below every interface
        admit, begun = loop.admit, list[list[int]]()

        def watched(waiting: Any) -> Any:
            taken = admit(waiting)
            if taken:
                begun.append(sorted(state.max_tokens for state in taken))
            return taken

        loop.admit = watched  # type: ignore[method-assign] - it does what it did
        prompt = np.full(10, 400, dtype=np.int32)
        lengths = [4, 6, 10, 12, 30, 31, 32]
        tickets = submit(model, *((prompt, n, Options(min_tokens=n)) for n in lengths))
        assert [ticket.result().tokens for ticket in tickets] == lengths
    assert begun == [[4, 6, 10, 12], [30, 31], [32]]


def test_prompts_in_pieces(
    demo: Path, reference: GenAIModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [question(f"{'Please think of it. ' * 9}Capital of {c}?") for c in COUNTRIES]
    expected = texts([reference.run("llm/v1/chat", [row])[0] for row in rows])
    monkeypatch.setattr(chunks, "MAX_CHUNK", 7)
    with GenAIModel(demo, model_config={"max_batch_size": 1}) as model:
        assert texts(model.run("llm/v1/chat", rows)) == expected


@pytest.mark.parametrize("size", [3, 7, 512])
def test_no_piece_is_a_single_token(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(chunks, "MAX_CHUNK", size)
    for length in range(2, 40):
        left, pieces = length, list[int]()
        while left:
            pieces.append(chunks.ChunkSize().next(left, alone=False))
            left -= pieces[-1]
        assert min(pieces) >= chunks.MIN_COMPUTED
        assert sum(pieces) == length


def test_a_servers_loop_computes_long_prompts_one_by_one(demo: Path, reference: GenAIModel) -> None:
    rows = [question(f"{'Please think of it. ' * 9}Capital of {c}?") for c in COUNTRIES]
    with GenAIModel(demo, policy=ServingPolicy(may_hold_gil=False)) as model:
        together = model.run("llm/v1/chat", rows)
    assert texts(together) == texts([reference.run("llm/v1/chat", [row])[0] for row in rows])


def test_a_cache_of_two_ranges_of_positions_is_never_taken_back(
    demo: Path, tmp_path: Path, reference: GenAIModel
) -> None:
    """A graph with an ``If``, as LongRoPE's have: beyond a length, all keys are other ones."""
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    out = helper.make_tensor_value_info("factor", TensorProto.FLOAT, [])
    one = helper.make_node("Constant", [], ["factor"], value_float=1.0)
    branch = helper.make_graph([one], "branch", [], [out])
    graph.graph.initializer.append(yes)
    graph.graph.node.append(
        helper.make_node("If", ["yes"], ["factor"], then_branch=branch, else_branch=branch)
    )
    onnx.save(graph, folder / "model.onnx")
    rows = [question(f"What is the capital of {country}?") for country in COUNTRIES]
    expected = texts(reference.run("llm/v1/chat", rows))
    with GenAIModel(folder) as model:
        assert texts(model.run("llm/v1/chat", rows)) == expected
        assert texts(model.run("llm/v1/chat", rows)) == expected
        assert model._engine._loop._pool._kept == []  # type: ignore[attr-defined] - as above
        again = model.chat(**rows[0])
        assert "prompt_tokens_details" not in again["usage"]
        with pytest.raises(UnsupportedParameterError, match="cache cannot be taken back"):
            model.chat(**rows[0], prompt_lookup_num_tokens=4)
    with pytest.raises(InvalidRequestError, match=r"two ranges of positions \(LongRoPE\)"):
        GenAIModel(folder, model_config={"loop": "slots"})


def test_the_logprobs_of_a_prompt_are_the_same_in_pieces(
    model: GenAIModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = model._tokenizer.encode("The capital of Spain is Madrid. The capital of Italy is")
    scored = (prompt, 0, Options(top_logprobs=2, prompt_logprobs=True))
    (whole,) = (ticket.result() for ticket in submit(model, scored))
    monkeypatch.setattr(chunks, "MAX_CHUNK", 4)
    (pieces,) = (ticket.result() for ticket in submit(model, scored))
    assert (whole.text, whole.tokens, whole.finish_reason) == ("", 0, "length")
    assert whole.prompt_logprobs is not None
    assert pieces.prompt_logprobs is not None
    assert len(whole.prompt_logprobs) == len(prompt)
    assert whole.prompt_logprobs[0] is None
    for one, other, token in zip(
        whole.prompt_logprobs[1:], pieces.prompt_logprobs[1:], prompt[1:], strict=True
    ):
        assert one is not None
        assert other is not None
        assert one.token_id == other.token_id == token
        assert len(one.top) == 2
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    # What the model is sure of: the answer that it has learnt.
    logprobs = [entry.logprob for entry in whole.prompt_logprobs[1:] if entry is not None]
    assert max(logprobs) > np.log(0.9)


@needs_new_genai
def test_a_graph_that_gives_the_last_logits_only_computes_no_padding(
    demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the builder's prune_lm_head makes them: beside a longer prompt, those of the padding."""
    folder = shutil.copytree(demo, tmp_path / "pruned")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = model.graph
    place, last = next((i, n) for i, n in enumerate(graph.node) if "logits" in n.output)
    for name, value in (("from", -1), ("to", 1 << 62), ("tokens", 1)):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    cut = helper.make_node("Slice", [last.input[0], "from", "to", "tokens"], ["last"])
    last.input[0] = "last"
    graph.node.insert(place, cut)
    (logits,) = [output for output in graph.output if output.name == "logits"]
    logits.type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(model, folder / "model.onnx")
    prompts = ["The capital of Spain is", "Tell me a joke about", "Count from 1 to 9: 1, 2, 3,"]
    with caplog.at_level("INFO", "mlflow_phi3_onnx"), GenAIModel(folder) as pruned:
        alone = [pruned.generate(prompt, max_tokens=4) for prompt in prompts]
        assert pruned.generate(prompts, max_tokens=4) == alone
        assert alone[0] == " Madrid."
    with GenAIModel(folder, model_config={"loop": "auto"}):
        assert "not slots: The graph gives logits of the last token only." in caplog.text
