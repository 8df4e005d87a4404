"""Repositories of the hub as sources, against a stand-in of its HTTP API."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from huggingface_hub import constants
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import mlflow_phi3_onnx
from mlflow_phi3_onnx import (
    FLAVOR_NAME,
    DependencyError,
    GenAIError,
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
    SourceUnreachableError,
    log_model,
    save_model,
)
from tests.support.fake_hub import TOKEN, FakeHub, Repository

if TYPE_CHECKING:
    from collections.abc import Iterator

# The tree of microsoft/Phi-3-mini-4k-instruct-onnx; each variant is the demo model.
REPO = "microsoft/Phi-3-mini-4k-instruct-onnx"
CPU = "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"
VARIANTS = [
    "cpu_and_mobile/cpu-int4-rtn-block-32",
    CPU,
    "cuda/cuda-fp16",
    "cuda/cuda-int4-rtn-block-32",
    "directml/directml-int4-awq-block-128",
]


@pytest.fixture(scope="module")
def files(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("repository")
    found = {f"{variant}/{file.name}": file for variant in VARIANTS for file in demo.iterdir()}
    texts = {
        "README.md": "# Phi-3 Mini-4K-Instruct ONNX models\n",
        "LICENSE": "MIT License\n",
        "config.json": json.dumps({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}),
        ".gitattributes": "*.data filter=lfs\n",
        f"{CPU}/configuration_phi3.py": "raise RuntimeError('code of a repository was run')\n",
    }
    for name, text in texts.items():
        found[name] = folder / name.replace("/", "_")
        found[name].write_text(text)
    return found


@pytest.fixture
def hub(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """The stand-in with that repository, and huggingface_hub turned to it, with an empty cache."""
    with FakeHub() as server, server.in_use(tmp_path, monkeypatch):
        server.add(REPO, files)
        yield server


@pytest.fixture
def repository(hub: FakeHub) -> Repository:
    return hub.repositories[REPO]


def source_of(path: Path) -> dict[str, Any]:
    return Model.load(str(path)).flavors[FLAVOR_NAME]["source"]


def offline(monkeypatch: pytest.MonkeyPatch, *, on: bool = True) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", on)


def test_a_variant_is_downloaded_and_nothing_else(
    hub: FakeHub, repository: Repository, demo: Path, tmp_path: Path
) -> None:
    save_model(REPO, tmp_path / "saved", subfolder=CPU)
    needed = {file.name for file in demo.iterdir()}
    assert sorted(hub.downloaded()) == sorted(needed | {"README.md", "LICENSE"})
    assert not any("directml" in r.path or "cuda" in r.path for r in hub.requests)
    assert any(r.path.startswith("/cdn/") for r in hub.requests)
    commit = repository.branches["main"]
    assert source_of(tmp_path / "saved") == {
        "kind": "hub",
        "repo_id": REPO,
        "revision": commit,
        "subfolder": CPU,
    }
    assert (tmp_path / "saved" / "model" / "LICENSE").read_text() == "MIT License\n"
    for file in demo.iterdir():
        assert (tmp_path / "saved" / "model" / file.name).read_bytes() == file.read_bytes()
    with GenAIModel(tmp_path / "saved" / "model") as model:
        assert model.complete("The capital of Spain is", max_tokens=3)["usage"]


def test_a_second_save_downloads_nothing_again(hub: FakeHub, tmp_path: Path) -> None:
    save_model(REPO, tmp_path / "first", subfolder=CPU)
    before = len(hub.downloaded())
    save_model(REPO, tmp_path / "second", subfolder=CPU)
    assert len(hub.downloaded()) == before


BAD = {
    "task": {"task": "chat"},
    "configuration": {"model_config": {"color": 1}},
    "signature": {"signature": "text"},
    "task of the metadata": {"metadata": {"task": "other"}},
    "metadata": {"metadata": ["task"]},
    "two environments": {"conda_env": {}, "pip_requirements": []},
    "no environment": {"conda_env": "no_such.yaml"},
    "no requirements": {"pip_requirements": ["-r no_such.txt"]},
    "code": {"code_paths": ["no_such.py"]},
    "adapter": {"adapters": {"a": "no_such.onnx_adapter"}},
    "precision": {"precision": "int3"},
    "subfolder": {"subfolder": "../outside"},
}


@pytest.mark.usefixtures("tracking")
@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_a_bad_argument_is_refused_before_the_hub_is_asked(
    hub: FakeHub, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises((GenAIError, MlflowException, OSError, ValueError)):
        save_model(REPO, tmp_path / "saved", **arguments)
    with pytest.raises((GenAIError, MlflowException, OSError, ValueError)):
        log_model(REPO, name="bad", **arguments)
    assert hub.requests == []
    assert not (tmp_path / "saved").exists()


def test_a_repository_of_several_variants_lists_them(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"{REPO} holds several models") as caught:
        save_model(REPO, tmp_path / "saved")
    assert ", ".join(VARIANTS) in caught.value.message
    assert hub.downloaded() == []
    assert not (tmp_path / "saved").exists()


def test_a_subfolder_that_is_not_there_lists_what_is(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no subfolder 'cpu-int4'.*cuda/cuda-fp16"):
        save_model(REPO, tmp_path / "saved", subfolder="cpu-int4")
    assert hub.downloaded() == []


def test_a_download_that_breaks_off_is_resumed_where_it_broke(
    hub: FakeHub, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only whole chunks are kept, and the weights here are smaller than one.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 250_000)
    hub.cut["model.onnx.data"] = 1_000_000
    save_model(REPO, tmp_path / "saved", subfolder=CPU)
    ranges = [r.range for r in hub.requests if r.path.endswith(".data") and r.method == "GET"]
    assert "bytes=1000000-" in ranges
    saved = tmp_path / "saved" / "model" / "model.onnx.data"
    assert saved.read_bytes() == (demo / "model.onnx.data").read_bytes()


def test_a_save_that_failed_goes_on_with_the_files_that_came(
    hub: FakeHub, demo: Path, tmp_path: Path
) -> None:
    hub.broken["tokenizer.json"] = 503
    with pytest.raises(SourceUnreachableError, match=r"status 503.*Try again later") as caught:
        save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert caught.value.status == 503
    assert not (tmp_path / "saved").exists()
    needed = {*(file.name for file in demo.iterdir()), "README.md", "LICENSE"}
    cached = {path.name for path in (tmp_path / "cache").glob("*/snapshots/**/*")}
    hub.requests.clear()
    hub.broken.clear()
    save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert set(hub.downloaded()) == needed - cached
    assert cached


def test_a_branch_that_moved_is_taken_where_it_is_now(
    repository: Repository, files: dict[str, Path], tmp_path: Path
) -> None:
    first = repository.branches["main"]
    save_model(REPO, tmp_path / "first", subfolder=CPU)
    second = repository.commit({**files, "NOTICE.md": files["README.md"]})
    save_model(REPO, tmp_path / "second", subfolder=CPU)
    save_model(REPO, tmp_path / "third", subfolder=CPU, revision=first)
    revisions = [source_of(tmp_path / name)["revision"] for name in ("first", "second", "third")]
    assert revisions == [first, second, first]


def test_a_branch_that_moves_while_it_is_read_is_read_again(
    hub: FakeHub, repository: Repository, demo: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """Other weights and one more file come; what is saved is of one commit, and whole."""
    weights = tmp_path / "weights"
    weights.write_bytes((demo / "model.onnx.data").read_bytes() + b"more")
    added = {f"{CPU}/model.onnx.data": weights, f"{CPU}/more.json": files["config.json"]}
    moved: list[str] = []
    hub.after_info = lambda: moved.append(
        repository.commit({n: p for n, p in files.items() if not n.startswith("cuda")} | added)
    )
    save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert [source_of(tmp_path / "saved")["revision"]] == moved
    assert (tmp_path / "saved/model/model.onnx.data").read_bytes() == weights.read_bytes()
    assert (tmp_path / "saved/model/more.json").read_bytes() == files["config.json"].read_bytes()


def test_a_branch_may_move_twice_and_not_for_ever(
    hub: FakeHub, repository: Repository, files: dict[str, Path], tmp_path: Path
) -> None:
    told = 0

    def move_after(*times: int) -> None:
        def after_info() -> None:
            nonlocal told
            told += 1
            if told in times or not times:
                repository.commit({**files, f"{told}.md": files["README.md"]})
            hub.after_info = after_info

        hub.after_info = after_info

    # A revision is asked for twice: for the list of its files, and for the files.
    move_after(1, 3)
    save_model(REPO, tmp_path / "third_time", subfolder=CPU)
    assert source_of(tmp_path / "third_time")["revision"] == repository.branches["main"]
    assert told == 6
    move_after()
    with pytest.raises(SourceError, match="changes faster than it is downloaded") as caught:
        save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert caught.value.param == "revision"
    assert not (tmp_path / "saved").exists()


def test_a_revision_is_a_branch_or_a_commit(
    repository: Repository, files: dict[str, Path], tmp_path: Path
) -> None:
    commit = repository.commit({n: p for n, p in files.items() if CPU in n}, branch="cpu-only")
    save_model(REPO, tmp_path / "branch", revision="cpu-only")
    save_model(REPO, tmp_path / "commit", revision=commit)
    expected = {"kind": "hub", "repo_id": REPO, "revision": commit, "subfolder": CPU}
    assert source_of(tmp_path / "branch") == source_of(tmp_path / "commit") == expected


@pytest.mark.usefixtures("hub")
def test_a_revision_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"has no revision v9\.") as caught:
        save_model(REPO, tmp_path / "saved", subfolder=CPU, revision="v9")
    assert (caught.value.param, caught.value.status) == ("revision", 404)


@pytest.mark.usefixtures("hub")
def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="no folder org/nothing here, and no such") as e:
        save_model("org/nothing", tmp_path / "saved")
    assert "log in with 'hf auth login', or set HF_TOKEN" in e.value.message
    assert not (tmp_path / "saved").exists()


def test_a_file_that_the_hub_has_lost(hub: FakeHub, tmp_path: Path) -> None:
    hub.broken["tokenizer.json"] = 404
    with pytest.raises(SourceNotFoundError, match="lists a file that the hub does not have"):
        save_model(REPO, tmp_path / "saved", subfolder=CPU)


def test_a_repository_without_a_model(hub: FakeHub, files: dict[str, Path], tmp_path: Path) -> None:
    hub.add("org/docs", {name: files[name] for name in ("README.md", "config.json")})
    with pytest.raises(InvalidModelError, match=r"org/docs has no genai_config\.json\. Expected"):
        save_model("org/docs", tmp_path / "saved")


def test_a_checkpoint_is_not_downloaded_where_it_cannot_be_converted(
    hub: FakeHub, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("config.json", "model.safetensors", "pytorch_model.bin")
    hub.add("org/phi3", dict.fromkeys(names, files["README.md"]))
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(DependencyError, match="needs the export extra"):
        save_model("org/phi3", tmp_path / "saved")
    assert hub.downloaded() == []


def test_what_a_compiler_has_made_is_downloaded_and_pickles_are_not(
    hub: FakeHub, demo: Path, tmp_path: Path
) -> None:
    files = {file.name: file for file in demo.iterdir()}
    for name in ("npu_context.bin", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"):
        files[name] = tmp_path / name
        files[name].write_bytes(b"content")
    hub.add("org/npu", files)
    save_model("org/npu", tmp_path / "saved")
    saved = {file.name for file in (tmp_path / "saved" / "model").iterdir()}
    assert saved & {name for name in files if name.endswith(".bin")} == {"npu_context.bin"}


def test_a_variant_that_lacks_a_file(hub: FakeHub, files: dict[str, Path], tmp_path: Path) -> None:
    names = [f"{CPU}/{name}" for name in ("genai_config.json", "model.onnx", "tokenizer.json")]
    hub.add("org/half", {name: files[name] for name in names})
    with pytest.raises(InvalidModelError, match=r"no tokenizer_config\.json") as caught:
        save_model("org/half", tmp_path / "saved")
    assert str(tmp_path) not in caught.value.message
    assert not (tmp_path / "saved").exists()


def test_a_model_at_the_top_comes_without_what_lies_beside_it(
    hub: FakeHub, demo: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    hub.add("org/flat", {**files, **{file.name: file for file in demo.iterdir()}})
    save_model("org/flat", tmp_path / "saved")
    model = {file.name for file in demo.iterdir()}
    saved = {path.name for path in (tmp_path / "saved" / "model").iterdir()}
    assert saved == model | {"README.md", "LICENSE", "config.json"}


def test_a_gated_repository_needs_a_token(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.gated = True
    with pytest.raises(SourceAccessError, match=r"is gated: accept its conditions.*log in") as e:
        save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert e.value.status == 403
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert source_of(tmp_path / "saved")["repo_id"] == REPO


def test_a_token_is_taken_from_the_file_that_logging_in_writes(
    repository: Repository, tmp_path: Path
) -> None:
    repository.private = True
    with pytest.raises(SourceNotFoundError, match="no such repository on the hub, or it is priv"):
        save_model(REPO, tmp_path / "saved", subfolder=CPU)
    (tmp_path / "token").write_text(TOKEN)
    save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert source_of(tmp_path / "saved")["repo_id"] == REPO


def test_a_token_goes_to_the_hub_and_nowhere_else(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    wrong = TOKEN[::-1]
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(SourceAccessError, match="refused the token that was sent") as caught:
        save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert any(r.authorization == f"Bearer {wrong}" for r in hub.requests)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""
    told = [*traceback.format_exception(caught.value), caplog.text, shown.out, shown.err]
    assert wrong not in "".join(told)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert not any(r.authorization for r in hub.requests if r.path.startswith("/cdn/"))
    texts = [path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in text for text in texts)


def test_a_hub_that_is_not_there(hub: FakeHub, tmp_path: Path) -> None:
    hub.close()
    with pytest.raises(SourceUnreachableError, match=r"could not be reached.*HF_HUB_OFFLINE") as e:
        save_model(REPO, tmp_path / "saved", subfolder=CPU)
    assert hub.url not in e.value.message
    assert not (tmp_path / "saved").exists()


def test_offline_takes_what_the_cache_holds(
    hub: FakeHub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(REPO, tmp_path / "online", subfolder=CPU)
    hub.requests.clear()
    offline(monkeypatch)
    save_model(REPO, tmp_path / "offline", subfolder=CPU)
    save_model(REPO, tmp_path / "by_hash", revision=repository.branches["main"])
    assert hub.requests == []
    online = source_of(tmp_path / "online")
    assert source_of(tmp_path / "offline") == source_of(tmp_path / "by_hash") == online


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("revision", [None, "v2"])
def test_offline_without_the_model_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    offline(monkeypatch)
    with pytest.raises(SourceUnreachableError, match=r"does not hold .* at the revision"):
        save_model(REPO, tmp_path / "saved", subfolder=CPU, revision=revision)
    offline(monkeypatch, on=False)
    save_model(REPO, tmp_path / "online", subfolder=CPU)
    offline(monkeypatch)
    other = "cuda/cuda-fp16" if revision is None else CPU
    with pytest.raises((SourceUnreachableError, SourceNotFoundError)):
        save_model(REPO, tmp_path / "saved", subfolder=other, revision=revision)
    assert not (tmp_path / "saved").exists()


def test_the_environment_is_what_turns_it(hub: FakeHub, demo: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE, as a user sets them, in processes of their own."""
    code = (
        f"import sys, mlflow_phi3_onnx as m;m.save_model({REPO!r}, sys.argv[1], subfolder={CPU!r})"
    )
    root = str(Path(mlflow_phi3_onnx.__file__).parents[1])
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**clean, "PYTHONPATH": root, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1,localhost"}
    for target, setting in (("online", "0"), ("offline", "1")):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / target)],
            env={**environment, "HF_HUB_OFFLINE": setting},
            check=True,
            cwd=tmp_path,
        )
        if target == "online":
            hub.close()
    digest = hashlib.sha256((demo / "model.onnx.data").read_bytes()).hexdigest()
    flavor = Model.load(str(tmp_path / "offline")).flavors[FLAVOR_NAME]
    assert flavor["files"]["model.onnx.data"]["sha256"] == digest
    assert not (tmp_path / "home" / "token").exists()


@pytest.mark.usefixtures("hub")
def test_a_file_that_was_changed_in_the_cache_is_not_saved(tmp_path: Path) -> None:
    save_model(REPO, tmp_path / "first", subfolder=CPU)
    (weights,) = (tmp_path / "cache").glob(f"*/snapshots/*/{CPU}/model.onnx.data")
    with weights.resolve().open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff\x00\xff")
    with pytest.raises(InvalidModelError, match=r"model\.onnx\.data is not the file that the sour"):
        save_model(REPO, tmp_path / "second", subfolder=CPU)
    assert not (tmp_path / "second").exists()


def test_a_path_that_exists_is_a_path(
    hub: FakeHub, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo, tmp_path / REPO)
    save_model(REPO, tmp_path / "saved")
    assert source_of(tmp_path / "saved") == {"kind": "folder"}
    assert hub.requests == []


@pytest.mark.parametrize(
    "model", ["phi3", "a/b/c", "./org/name", "~/org/name", "org/", "-org/name", "", "org name/x"]
)
def test_a_string_that_is_neither_says_what_may_be(
    hub: FakeHub, tmp_path: Path, model: str
) -> None:
    with pytest.raises(SourceNotFoundError, match="path of a folder with a model, the id"):
        save_model(model, tmp_path / "saved")
    assert hub.requests == []


def test_a_revision_of_a_folder_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="revision is for repositories on the hub") as e:
        save_model(demo, tmp_path / "saved", revision="main")
    assert e.value.param == "revision"


@pytest.mark.usefixtures("tracking", "hub")
def test_a_bad_source_leaves_no_logged_model() -> None:
    for subfolder, revision in ((None, None), ("cuda/none", None), (CPU, "v9")):
        with pytest.raises(GenAIError):
            log_model(REPO, name="bad", subfolder=subfolder, revision=revision)
    assert mlflow.search_logged_models(experiment_ids=["0"], output_format="list") == []
    info = log_model(REPO, name="good", subfolder=CPU)
    assert info.flavors[FLAVOR_NAME]["source"]["repo_id"] == REPO
