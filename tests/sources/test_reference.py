"""Models whose weights stay in their repository, against a stand-in of the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest
from huggingface_hub import constants, snapshot_download
from mlflow.models import Model

from mlflow_phi3_onnx import (
    FLAVOR_NAME,
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    SourceNotFoundError,
    SourceUnreachableError,
    load_model,
    log_model,
    persist_pretrained_model,
    save_model,
)
from mlflow_phi3_onnx.cli.main import main
from tests.support.fake_hub import FakeHub

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "someone/phi3-onnx"
PROMPT = "The capital of Spain is"


@pytest.fixture
def hub(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The stand-in with a repository that holds the demo model in a folder."""
    card = tmp_path / "README.md"
    card.write_text("# A model\n")
    with FakeHub() as server, server.in_use(tmp_path, monkeypatch):
        server.add(REPO, {"README.md": card, **{f"cpu/{f.name}": f for f in demo.iterdir()}})
        yield server


@pytest.fixture
def referring(hub: FakeHub, tmp_path: Path) -> Path:
    assert hub
    save_model(REPO, tmp_path / "saved", save_pretrained=False, task="text-generation")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def expected(demo: Path) -> str:
    with GenAIModel(demo) as model:
        return model.generate(PROMPT, max_tokens=4)


def test_no_file_of_the_model_is_saved(referring: Path, hub: FakeHub, demo: Path) -> None:
    names = {p.name for p in referring.rglob("*") if p.is_file()}
    assert not names & {file.name for file in demo.iterdir()}
    flavor = Model.load(str(referring)).flavors[FLAVOR_NAME]
    assert flavor["source"] == {
        "kind": "hub",
        "repo_id": REPO,
        "revision": hub.repositories[REPO].branches["main"],
        "subfolder": "cpu",
    }
    assert flavor["reference"] == {
        name: value for name, value in flavor["source"].items() if name != "kind"
    }
    assert set(flavor["files"]) == {file.name for file in demo.iterdir()}


def test_loading_fetches_the_commit_that_was_saved(
    referring: Path, hub: FakeHub, demo: Path, tmp_path: Path, expected: str
) -> None:
    changed = tmp_path / "chat_template.jinja"
    changed.write_text("{{ messages }}")
    files = {f"cpu/{f.name}": f for f in demo.iterdir()}
    hub.repositories[REPO].commit({**files, "cpu/chat_template.jinja": changed})
    with load_model(referring) as model:
        assert model.generate(PROMPT, max_tokens=4) == expected
    pyfunc = mlflow.pyfunc.load_model(str(referring))
    with pyfunc.get_raw_model():
        assert pyfunc.predict({"prompt": PROMPT}, params={"max_tokens": 4}) == [expected]


def test_a_folder_may_stand_for_the_hub(
    referring: Path,
    hub: FakeHub,
    demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: str,
) -> None:
    hub.close()
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("MLFLOW_PHI3_ONNX_MIRROR", str(mirror))
    with pytest.raises(SourceNotFoundError, match="has no folder someone/phi3-onnx/cpu") as caught:
        load_model(referring)
    assert str(tmp_path) not in caught.value.message
    shutil.copytree(demo, mirror / REPO / "cpu")
    with load_model(referring) as model:
        assert model.generate(PROMPT, max_tokens=4) == expected
    with (mirror / REPO / "cpu" / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InvalidModelError, match=r"tokenizer\.json has .* were saved"):
        load_model(referring)


def test_a_model_that_refers_is_logged_again_with_another_task(
    referring: Path, tmp_path: Path
) -> None:
    save_model(str(referring), tmp_path / "chat", save_pretrained=False)
    flavor = Model.load(str(tmp_path / "chat")).flavors[FLAVOR_NAME]
    assert flavor["task"] == "llm/v1/chat"
    assert flavor["reference"] == Model.load(str(referring)).flavors[FLAVOR_NAME]["reference"]
    assert not (tmp_path / "chat" / "model").exists()
    with load_model(tmp_path / "chat") as model:
        assert model.name == "phi3"


def test_other_bytes_in_the_cache_are_found(referring: Path) -> None:
    (weights,) = Path(constants.HF_HUB_CACHE).rglob("snapshots/*/cpu/model.onnx.data")
    blob = weights.resolve()
    data = bytearray(blob.read_bytes())
    data[1_000_000] ^= 1
    blob.write_bytes(data)
    with pytest.raises(InvalidModelError, match="data is not the file that was saved"):
        load_model(referring)


def test_offline_the_cache_is_enough_and_the_hub_is_not_asked(
    referring: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, expected: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    with load_model(referring) as model:
        assert model.generate(PROMPT, max_tokens=4) == expected
    assert len(hub.requests) == before


def test_without_hub_and_cache_it_says_so(
    referring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(SourceUnreachableError, match="the cache does not hold someone/phi3-onnx"):
        load_model(referring)


@pytest.mark.usefixtures("tracking")
def test_a_logged_model_gets_its_weights_later(hub: FakeHub, expected: str) -> None:
    info = log_model(REPO, name="phi3", save_pretrained=False, task="text-generation")
    size = Model.load(info.model_uri).model_size_bytes
    persist_pretrained_model(info.model_uri)
    persist_pretrained_model(info.model_uri)  # there by now
    model = Model.load(info.model_uri)
    assert model.flavors[FLAVOR_NAME]["data"] == "model"
    assert model.model_size_bytes is not None
    assert size is not None
    assert model.model_size_bytes - size > 4_000_000
    hub.close()
    with load_model(info.model_uri, verify="hash") as loaded:
        assert loaded.generate(PROMPT, max_tokens=4) == expected
    pyfunc = mlflow.pyfunc.load_model(info.model_uri)
    with pyfunc.get_raw_model():
        assert pyfunc.predict({"prompt": PROMPT}, params={"max_tokens": 4}) == [expected]


@pytest.mark.usefixtures("tracking", "hub")
def test_a_registered_version_is_not_changed() -> None:
    log_model(REPO, name="phi3", save_pretrained=False, registered_model_name="phi3")
    with pytest.raises(InvalidRequestError, match="registered version cannot be changed"):
        persist_pretrained_model("models:/phi3/1")


def test_a_saved_folder_gets_its_weights_later(referring: Path, hub: FakeHub) -> None:
    persist_pretrained_model(referring)
    hub.close()
    with load_model(referring, verify="hash") as model:
        assert model.name == "phi3"


def test_only_repositories_of_onnx_models_are_referred_to(
    demo: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequestError, match="save_pretrained=False is for what is in"):
        save_model(demo, tmp_path / "saved", save_pretrained=False)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    hub.add("someone/torch", {"config.json": tmp_path / "config.json", weights.name: weights})
    with pytest.raises(InvalidModelError, match="holds PyTorch weights"):
        save_model("someone/torch", tmp_path / "saved", save_pretrained=False)
    snapshot_download("someone/torch")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidModelError, match="holds PyTorch weights"):
        save_model("someone/torch", tmp_path / "saved", save_pretrained=False)
    assert not (tmp_path / "saved").exists()


@pytest.mark.usefixtures("hub")
def test_the_command_line_refers_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "saved"
    assert main(["export", REPO, "--output", str(target), "--by-reference"]) == 0
    assert main(["inspect", str(target)]) == 0
    assert "its files are in the repository" in capsys.readouterr().out
    save_model(str(target), tmp_path / "whole")  # from a model that refers to one that does not
    assert (tmp_path / "whole" / "model" / "model.onnx.data").is_file()
