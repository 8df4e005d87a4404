"""Which precision to take: what is refused, what is worth having, and a tiny model in all forms."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import load_image, load_text

from benchmarks.models import MODELS, can_build, checkpoint_folder
from mlflow_phi3_onnx import (
    ContextLengthError,
    ConversionError,
    InvalidRequestError,
    SourceError,
    UnsupportedParameterError,
    quantization_report,
)
from mlflow_phi3_onnx.artifact.folder import read_folder
from mlflow_phi3_onnx.evaluation.quantization import encoded
from mlflow_phi3_onnx.evaluation.quantization_result import Measured, judged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CANARY = "Kilimanjaro"
TEXTS = ["The sea is wide. And the sea is deep.", f"{CANARY} and then, far away from here."]

needs_export = [
    pytest.mark.export,
    pytest.mark.timeout(900),  # two models are converted, and loaded several times
    pytest.mark.skipif(not can_build(), reason="converting a model needs the export extra"),
]


def form(name: str, size: int, distance: float, *decode: float) -> Measured:
    quality = {"perplexity_b": 2.0, "likeliest_agreement": 0.9, "logprob_difference": distance}
    return Measured(
        name=name,
        size_bytes=size,
        quality=quality,
        prefill=decode,
        decode=decode,
        peak_memory_bytes=3 * size,
    )


@pytest.mark.parametrize(
    ("forms", "worth"),
    [
        # The second is in nothing better than the first.
        ([form("a", 10, 0.1, 5, 5), form("b", 20, 0.2, 4, 4)], ["a"]),
        # Larger and slower, but nearer.
        ([form("a", 10, 0.2, 5, 5), form("b", 20, 0.1, 4, 4)], ["a", "b"]),
        # Larger and farther, but faster in every turn.
        ([form("a", 10, 0.1, 5, 5), form("b", 20, 0.2, 6, 6)], ["a", "b"]),
        # Faster in one turn of the two is no difference.
        ([form("a", 10, 0.1, 5, 5), form("b", 20, 0.2, 6, 4)], ["a"]),
        # The same in all: both are as good.
        ([form("a", 10, 0.1, 5, 5), form("b", 10, 0.1, 5, 5)], ["a", "b"]),
        # The same size and distance: speed decides.
        ([form("a", 10, 0.1, 5, 5), form("b", 10, 0.1, 6, 7)], ["b"]),
    ],
)
def test_what_is_worth_having_is_on_the_pareto_front(
    forms: Sequence[Measured], worth: list[str]
) -> None:
    assert [one.name for one in judged(forms) if one.worth_having] == worth


def test_speeds_are_related_turn_by_turn() -> None:
    _, report = judged([form("a", 10, 0.1, 4, 10, 5), form("b", 20, 0.1, 8, 5, 5)])
    assert (report.decode_ratio, report.decode_ratio_low, report.decode_ratio_high) == (1, 0.5, 2)
    assert report.decode_tokens_per_second == 5


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precisions": "int4"}, InvalidRequestError, "precisions must be a list"),
        ({"precisions": []}, InvalidRequestError, "precisions must be a list"),
        ({"precisions": ["int5"]}, InvalidRequestError, "precision must be one of int4, int8"),
        ({"precisions": ["int4", {}]}, InvalidRequestError, "int4-b128-default twice"),
        (
            {"precisions": [{"precision": "int4", "blocks": 32}]},
            UnsupportedParameterError,
            "blocks is not an export option.*block_size",
        ),
        ({"texts": "a text"}, InvalidRequestError, "texts must be a list of strings"),
        ({"texts": ["a text", 3]}, InvalidRequestError, r"texts\[1\] must be a string; got 3"),
        ({"max_tokens": 1}, InvalidRequestError, "max_tokens must be at least 2"),
        ({"repeats": 0}, InvalidRequestError, "repeats must be an integer from 1 to 100"),
        (
            {"model_config": {"prefix_cache": True}},
            InvalidRequestError,
            "prefix_cache is set by the report",
        ),
        ({"model_config": "x"}, InvalidRequestError, "model_config must be a mapping"),
        ({"model_config": {"loop": "x"}}, InvalidRequestError, "loop must be one of"),
        ({"name": "a/b"}, InvalidRequestError, "name must be of letters"),
    ],
)
def test_arguments_are_checked_before_anything_is_made(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        quantization_report(tmp_path / "none", **arguments)


def test_there_must_be_something_to_convert(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        quantization_report(tmp_path / "none")
    with pytest.raises(InvalidRequestError, match="in ONNX form already"):
        quantization_report(demo)


@pytest.mark.parametrize(
    ("text", "limit", "error", "message"),
    [
        ("a", 2, InvalidRequestError, r"texts\[1\] has fewer than two tokens"),
        ("word " * 300_000, 2, ContextLengthError, r"texts\[1\] has .* context length is"),
        ("a text", 10**6, ContextLengthError, r"texts\[0\] has .* lower max_tokens"),
    ],
)
def test_texts_fit_the_first_form(
    demo: Path, text: str, limit: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoded(read_folder(demo), ["a text", text], limit)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.usefixtures("tracking")
class TestExported:
    pytestmark = needs_export

    def test_a_pipeline_is_its_forms_reference(self, scratch: Path, tmp_path: Path) -> None:
        import transformers

        checkpoint = str(checkpoint_folder(MODELS["tiny-fp32"].checkpoint))
        pipeline = transformers.pipeline("text-generation", model=checkpoint, tokenizer=checkpoint)
        forms = [{"precision": "int4", "block_size": 32, "algorithm": "rtn"}, "fp32"]
        with mlflow.start_run() as run:
            report = quantization_report(
                pipeline, forms, texts=TEXTS, max_tokens=4, repeats=2, name="forms"
            )
            with pytest.raises(InvalidRequestError, match="has a result 'forms' already"):
                quantization_report(pipeline, forms, name="forms")
        assert list(scratch.glob("mlflow-phi3-onnx-*")) == []
        rounded, exact = report.variants
        assert [rounded.name, exact.name] == ["int4-b32-rtn", "fp32"]
        assert report.reference == "transformers, Phi3ForCausalLM, float32"
        # The same weights: what PyTorch computes, ONNX Runtime does.
        assert exact.likeliest_agreement == 1
        assert exact.logprob_difference < 1e-3
        assert exact.perplexity == pytest.approx(report.reference_perplexity, rel=1e-3)
        assert rounded.logprob_difference > exact.logprob_difference
        assert rounded.size_bytes < exact.size_bytes
        assert report.worth_having == ["int4-b32-rtn", "fp32"]
        assert rounded.decode_ratio == rounded.decode_ratio_low == rounded.decode_ratio_high == 1
        for one in report.variants:
            assert one.prefill_tokens_per_second > 0
            assert one.decode_ratio_low <= one.decode_ratio <= one.decode_ratio_high
            assert one.peak_memory_bytes > one.size_bytes
        self._check_run(run.info.run_id, report, tmp_path)

    def _check_run(self, run_id: str, report: Any, store: Path) -> None:
        client = MlflowClient()
        data = client.get_run(run_id).data
        assert data.metrics["forms/fp32/likeliest_agreement"] == 1
        assert data.metrics["forms/int4-b32-rtn/worth_having"] == 1
        assert data.params["forms/texts"] == "2"
        table = mlflow.load_table("forms.json", run_ids=[run_id])
        assert list(table["name"]) == [one.name for one in report.variants]
        assert min(load_image(f"runs:/{run_id}/forms.png").size) > 100
        assert load_text(f"runs:/{run_id}/forms.txt") == repr(report)
        assert "* int4-b32-rtn" in repr(report)
        held = [path for path in store.rglob("*") if path.is_file()]
        assert not [path.name for path in held if CANARY.encode() in path.read_bytes()]

    def test_a_checkpoint_is_compared_with_its_own_fp32(self, scratch: Path) -> None:
        folder = checkpoint_folder(MODELS["tiny-fp32"].checkpoint)
        # Blocks of 128 do not fit k_quant in a model as narrow as this: one form fails.
        report = quantization_report(
            folder,
            [{"precision": "int4", "block_size": 128, "algorithm": "k_quant"}],
            texts=TEXTS,
            max_tokens=2,
            repeats=1,
            model_config={"loop": "slots"},
        )
        assert list(scratch.glob("mlflow-phi3-onnx-*")) == []
        assert [one.name for one in report.variants] == ["fp32"]
        assert report.reference == "fp32"
        assert report.variants[0].logprob_difference == 0
        assert list(report.failed) == ["int4-b128-k_quant"]
        assert "int4-b128-k_quant: The model builder failed" in repr(report)

    def test_without_its_reference_there_is_no_report(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow_phi3_onnx.sources import resolve

        def fail(*_: Any) -> None:
            raise ConversionError("The disk is full.")

        # A builder that fails on what it can build is not to be had.
        monkeypatch.setattr(resolve, "convert", fail)
        with pytest.raises(ConversionError, match="fp32: The disk is full"):
            quantization_report(checkpoint_folder(MODELS["tiny-fp32"].checkpoint), ["int8"])
