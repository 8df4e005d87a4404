"""Text on models that take images and sounds, whose positions have two ranges (LongRoPE)."""
# pyright: reportPrivateUsage=false
# The tokenizer below the model has no public name.

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlflow
import numpy as np
import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidModelError, InvalidRequestError, save_model
from mlflow_phi3_onnx.artifact.folder import read_folder
from tests.support import tiny_multimodal as tiny
from tests.support.adapted import write_adapter
from tests.support.edits import edit_json
from tests.support.raw_loop import RawLoop
from tests.support.versions import needs_new_genai

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_new_genai

Kind = Literal["phi3v", "phi4mm"]
KINDS: tuple[Kind, ...] = ("phi3v", "phi4mm")
FIRST, MAX_TOKENS = tiny.FIRST_RANGE, 24
LENGTHS = (FIRST - 2, 5, FIRST - MAX_TOKENS, FIRST - 1, FIRST, FIRST + 1, FIRST + 20, 2)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.multimodal(tmp_path_factory.mktemp("multimodal") / kind, kind)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[GenAIModel]:
    with GenAIModel(folder) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(3, 300, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What onnxruntime-genai's own loop says where every token is computed from a new prompt."""
    raw = RawLoop(folder)
    answers: list[list[int]] = []
    for prompt in prompts:
        sequence = list(prompt)
        while len(sequence) < len(prompt) + MAX_TOKENS and (new := raw.continued(sequence, 1)):
            sequence += new
        answers.append(sequence[len(prompt) :])
    return answers


def spoken(model: GenAIModel, tokens: list[int]) -> str:
    detokenizer = model._tokenizer.detokenizer()
    return "".join(map(detokenizer.add, tokens)) + detokenizer.flush()


def texts(response: Any) -> list[str]:
    return [choice["text"] for choice in response["choices"]]


def test_alone(model: GenAIModel, prompts: Any, expected: Any) -> None:
    assert [model.greedy_tokens(prompt, max_tokens=MAX_TOKENS) for prompt in prompts] == expected


@pytest.mark.parametrize("fields", [{}, {"logit_bias": {"5": 0}}], ids=["its choice", "our choice"])
def test_together(model: GenAIModel, prompts: Any, expected: Any, fields: dict[str, Any]) -> None:
    answers = texts(model.complete(prompts, max_tokens=MAX_TOKENS, **fields))
    assert answers == [spoken(model, tokens) for tokens in expected]
    alone = [texts(model.complete(p, max_tokens=MAX_TOKENS, **fields))[0] for p in prompts]
    assert alone == answers


@pytest.mark.parametrize(("longest", "together"), [(FIRST, 2), (FIRST + 1, 1)])
def test_sequences_that_stay_in_the_first_range_are_computed_together(
    model: GenAIModel, monkeypatch: pytest.MonkeyPatch, longest: int, together: int
) -> None:
    """The longest prompt and the longest completion count together."""
    native = model._engine._loop._pool._model  # type: ignore[attr-defined] - below every interface
    made: list[int] = []
    generator = native.generator

    def counted(rows: int, *arguments: Any) -> Any:
        made.append(rows)
        return generator(rows, *arguments)

    monkeypatch.setattr(native, "generator", counted)
    rows = [
        {"prompt": [5] * 20, "max_tokens": 1},
        {"prompt": [6], "max_tokens": longest - 20, "min_tokens": longest - 20},
    ]
    model.run("llm/v1/completions", rows)
    assert made == ([2] if together == 2 else [1, 1])


def test_a_template_and_an_artifact(folder: Path, kind: Kind, tmp_path: Path) -> None:
    save_model(folder, tmp_path / "saved")
    question: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    with GenAIModel(folder) as model:
        wanted = model.chat(**question)["choices"]
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    assert loaded.predict(question)[0]["choices"] == wanted
    weights = next((tmp_path / "saved").rglob("vision.onnx"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(InvalidModelError, match=r"vision\.onnx"):
        mlflow.pyfunc.load_model(str(tmp_path / "saved"), model_config={"verify": "hash"})
    assert kind in repr(model)


def test_places_of_images_never_come_from_text(model: GenAIModel, kind: Kind) -> None:
    content = f"{tiny.IMAGE} <|image_1|> <|endoftext10|>"
    assert model.chat([{"role": "user", "content": content}], max_tokens=2)["choices"]
    if kind == "phi4mm":
        place = model.limits.vocab_size - 1
        for prompt in (f"a {tiny.IMAGE}", [5, place]):
            with pytest.raises(InvalidRequestError, match=f"id {place}, which stands for an image"):
                model.complete(prompt, max_tokens=2)
        assert model.complete([5, place - 1], max_tokens=2)["choices"]


@pytest.mark.parametrize("place", ["vision", "embedding", "decoder"])
def test_every_graph_is_checked(folder: Path, tmp_path: Path, place: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    name = "text.onnx" if place == "decoder" else f"{place}.onnx"
    (copy / name).write_bytes((copy / name).read_bytes()[:-30])
    with pytest.raises(InvalidModelError, match=f"{name} is not a whole ONNX model"):
        read_folder(copy)
    (copy / name).unlink()
    with pytest.raises(InvalidModelError, match=rf"no {name} \(.*model\.{place}\.filename\)"):
        read_folder(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config_filename": "nothing.json"}, r"no nothing\.json \(.*vision\.config_filename\)"),
        ({"config_filename": "../vision.json"}, r"model\.vision\.config_filename leads out"),
        ({"config_filename": "text.onnx"}, "is not valid JSON"),
        ({"adapter_filename": "a.onnx_adapter"}, r"model\.vision\.adapter_filename"),
        ({"filename": "/vision.onnx"}, r"model\.vision\.filename leads out"),
        ({"filename": 7}, r"model\.vision\.filename must be the name of a file"),
        (
            {"session_options": {"custom_ops_library": "x.so"}},
            "names a custom_ops_library. It is native code",
        ),
    ],
)
def test_every_file_that_is_named_is_checked(
    folder: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    edit_json(copy / "genai_config.json", lambda config: config["model"]["vision"].update(change))
    with pytest.raises(InvalidModelError, match=says):
        save_model(copy, tmp_path / "saved")


def test_an_adapter_that_changes_nothing_is_refused(kind: Kind, tmp_path: Path) -> None:
    """onnxruntime-genai gives adapters to no part of such a model."""
    folder = tiny.multimodal(tmp_path / "model", kind, adapters="read")
    random = np.random.default_rng(0)
    shapes = {"A": (tiny.WIDTH, tiny.RANK), "B": (tiny.RANK, tiny.WIDTH)}
    numbers = {
        f"{layer}.lora_{part}": random.normal(0, 1, shape).astype(np.float32)
        for layer in range(tiny.LAYERS)
        for part, shape in shapes.items()
    }
    file = write_adapter(tmp_path / "style.onnx_adapter", numbers)
    with pytest.raises(InvalidModelError, match=r"'style' changes nothing: .* same logits"):
        GenAIModel(folder, adapters={"style": file})
