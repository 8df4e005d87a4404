"""What is checked of a saved model's files before anything reads them."""

# pyright: reportPrivateUsage=false
# The engine below the model has no public name.

from __future__ import annotations

import pickle
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import psutil
import pytest

from mlflow_phi3_onnx import (
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    load_model,
    save_model,
)
from mlflow_phi3_onnx.artifact import manifest
from tests.support.doors import SPAIN
from tests.support.edits import edit_json
from tests.support.engines import until

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = "model.onnx.data"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A saved model to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def refused(path: Path, says: str, **options: Any) -> None:
    for load in (load_model, _as_pyfunc):
        with pytest.raises(InvalidModelError, match=says) as caught:
            load(path, **options)
        assert str(path) not in caught.value.message


def _as_pyfunc(path: Path, **options: Any) -> Any:
    return mlflow.pyfunc.load_model(str(path), model_config=options)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "model.onnx"])
def test_a_byte_of_a_small_file_is_found_by_default(copy: Path, name: str) -> None:
    flip(copy / "model" / name, 100)
    refused(copy, f"{name} is not the file that was saved")
    refused(copy, f"{name} is not the file that was saved", verify="hash")


def test_a_byte_of_the_weights_is_found_by_their_hash(copy: Path) -> None:
    flip(copy / "model" / WEIGHTS, 1_000_000)
    refused(copy, f"{WEIGHTS} is not the file that was saved", verify="hash")
    with load_model(copy) as model:  # the size is the same
        assert model.name == "phi3"


def test_files_up_to_a_size_are_hashed_by_default(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(copy / "model" / WEIGHTS, 1_000_000)
    size = (copy / "model" / WEIGHTS).stat().st_size
    monkeypatch.setattr(manifest, "SMALL_FILE", size - 1)
    with load_model(copy) as model:
        assert model.name == "phi3"
    monkeypatch.setattr(manifest, "SMALL_FILE", size)
    refused(copy, f"{WEIGHTS} is not the file that was saved")


def test_an_extra_file_is_named(copy: Path) -> None:
    (copy / "model" / "special_tokens_map.json").write_text("{}")
    refused(copy, "special_tokens_map.json was not saved with the model")
    with load_model(copy, verify="off") as model:
        assert model.name == "phi3"


def test_hidden_files_do_not_count(copy: Path) -> None:
    (copy / "model" / ".DS_Store").touch()
    with load_model(copy) as model:
        assert model.name == "phi3"


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_a_link_out_of_the_model_is_named(copy: Path, demo: Path, name: str) -> None:
    (copy / "model" / name).unlink()
    (copy / "model" / name).symlink_to(demo / name)
    refused(copy, f"{name} is a symbolic link that leads out of the model")


def test_a_data_folder_that_is_a_link_out_of_the_model_is_refused(copy: Path, demo: Path) -> None:
    shutil.rmtree(copy / "model")
    (copy / "model").symlink_to(demo)
    for verify in ("size", "hash", "off"):
        refused(copy, "model is a symbolic link that leads out of the model", verify=verify)


def test_a_broken_link_is_a_lost_file(copy: Path) -> None:
    (copy / "model" / WEIGHTS).unlink()
    (copy / "model" / WEIGHTS).symlink_to("nowhere")
    refused(copy, f"has lost its file {WEIGHTS}")


def test_what_off_does_not_check_the_folder_still_must_be(copy: Path) -> None:
    (copy / "model" / WEIGHTS).unlink()
    refused(copy, f"has no {WEIGHTS}", verify="off")


def test_a_level_that_is_none_is_refused(copy: Path) -> None:
    wrong: Any = "md5"
    with pytest.raises(InvalidRequestError) as caught:
        load_model(copy, verify=wrong)
    assert caught.value.message == "verify must be one of size, hash, off; got 'md5'."
    with pytest.raises(InvalidRequestError, match=r"^model_config: verify must be .*; got 'md5'"):
        load_model(copy, model_config={"verify": wrong})
    with pytest.raises(InvalidRequestError, match=r"^execution_provider must be .*; got 'gpu'"):
        load_model(copy, execution_provider="gpu")


def test_a_plain_folder_has_nothing_to_be_verified_by(demo: Path) -> None:
    with pytest.raises(InvalidRequestError, match="verify is for saved models") as caught:
        GenAIModel(demo, model_config={"verify": "hash"})
    assert caught.value.param == "verify"
    assert caught.value.message.endswith("Leave it out of model_config.")


def config_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "genai_config.json", change)


def renamed_weights(location: str) -> Callable[[Path], None]:
    """Let the graph name other weights, by a name of the same length."""

    def damage(folder: Path) -> None:
        graph = folder / "model.onnx"
        assert len(location) == len(WEIGHTS)
        graph.write_bytes(graph.read_bytes().replace(WEIGHTS.encode(), location.encode()))

    return damage


UNSAFE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a library": (
        config_with(
            lambda c: c["model"]["decoder"]["session_options"].update(custom_ops_library="/x.so")
        ),
        "names a custom_ops_library",
    ),
    "a library of another part": (
        config_with(
            lambda c: c["model"].update(vision={"session_options": {"custom_ops_library": "x"}})
        ),
        "names a custom_ops_library",
    ),
    "weights at an absolute path": (renamed_weights("/model.onnx.dat"), "external data leads out"),
    "weights above": (renamed_weights("../del.onnx.dat"), "external data leads out"),
    "weights of another file": (renamed_weights("model.onnx.xyzw"), "has no model.onnx.xyzw"),
}


@pytest.mark.parametrize(("damage", "says"), UNSAFE.values(), ids=UNSAFE)
def test_what_is_not_safe_is_neither_saved_nor_loaded(
    demo: Path, saved: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "folder"))
    damage(folder)
    with pytest.raises(InvalidModelError, match=says):
        save_model(folder, tmp_path / "saved")
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    damage(copy / "model")
    refused(copy, says, verify="off")


@pytest.mark.parametrize(("name", "level"), [(WEIGHTS, "hash"), ("chat_template.jinja", None)])
def test_a_pickled_copy_is_checked_as_the_model_was(
    copy: Path, name: str, level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)
    with load_model(copy.name, verify=level) as model:
        content = pickle.dumps(model)
    monkeypatch.chdir("/")
    pickle.loads(content).close()  # noqa: S301
    flip(copy / "model" / name, 100)
    with pytest.raises(InvalidModelError, match=f"{name} is not the file that was saved"):
        pickle.loads(content)  # noqa: S301


@pytest.mark.parametrize("isolation", ["worker", "shared"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no shared workers")
def test_a_worker_is_not_started_again_with_other_weights(
    copy: Path, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="w-") as sockets:
        monkeypatch.setenv("XDG_RUNTIME_DIR", sockets)
        config = {"isolation": isolation}
        with load_model(copy, verify="hash", model_config=config) as model:
            flip(copy / "model" / WEIGHTS, 1_000_000)
            kill_worker(model)
            for _ in range(2):
                with pytest.raises(InvalidModelError, match=f"{WEIGHTS} is not the file"):
                    model.chat(SPAIN)
            flip(copy / "model" / WEIGHTS, 1_000_000)
            assert model.chat(SPAIN)


def kill_worker(model: GenAIModel) -> None:
    engine: Any = model._engine
    psutil.Process(engine.facts["pid"]).kill()
    until(lambda: engine.deaths == 1)
