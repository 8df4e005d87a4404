"""Models with variants: saved together, one chosen when they are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow.models import Model

import mlflow_phi3_onnx
from mlflow_phi3_onnx import (
    FLAVOR_NAME,
    GenAIModel,
    InvalidModelError,
    InvalidRequestError,
    SourceNotFoundError,
    load_model,
    log_model,
    save_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = "The capital of Spain is"
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
NATIVE = {"genai_config.json", "model.onnx", "model.onnx.data"}


def asking_for(demo: Path, target: Path, provider: str) -> Path:
    """A copy of the demo model that asks for an execution provider."""
    shutil.copytree(demo, target)
    path = target / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["provider_options"] = [{provider: {}}]
    path.write_text(json.dumps(config), encoding="utf-8")
    return target


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.fixture(scope="module")
def cuda(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asking_for(demo, tmp_path_factory.mktemp("cuda") / "model", "cuda")


@pytest.fixture(scope="module")
def both(demo: Path, cuda: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a variant for CUDA, which is not here, and one for CPU."""
    path = tmp_path_factory.mktemp("both") / "saved"
    save_model({"cuda": cuda, "cpu": demo}, path, task="text-generation")
    return path


@pytest.fixture(scope="module")
def expected(demo: Path) -> str:
    with GenAIModel(demo) as model:
        return model.generate(PROMPT, max_tokens=4)


def test_what_both_have_is_saved_once(both: Path) -> None:
    files = {p.relative_to(both / "model").as_posix() for p in (both / "model").rglob("*.*")}
    assert files == TOKENIZER | {f"{name}/{file}" for name in ("cuda", "cpu") for file in NATIVE}
    flavor = Model.load(str(both)).flavors[FLAVOR_NAME]
    assert flavor["execution_providers"] == ["cuda", "cpu"]
    assert flavor["source"]["variants"] == {"cuda": {"kind": "folder"}, "cpu": {"kind": "folder"}}
    assert flavor["variants"]["cpu"] == {
        "folder": "cpu",
        "execution_provider": "cpu",
        "precision": "int4",
        "context_length": 4096,
    }


def test_the_variant_that_runs_here_is_taken(
    both: Path, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="mlflow_phi3_onnx"), load_model(both) as model:
        assert model.execution_provider == "cpu"
        assert "cpu" in repr(model)
        assert model.generate(PROMPT, max_tokens=4) == expected
    assert "The model's variant cpu is taken" in caplog.text


def test_a_variant_is_chosen_by_argument_config_or_environment(
    both: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load_model(both, execution_provider="cpu") as model:
        assert model.generate(PROMPT, max_tokens=4) == expected
    unavailable = "an execution provider that it asks for is not available"
    with pytest.raises(InvalidModelError, match=unavailable):
        load_model(both, execution_provider="cuda")
    with pytest.raises(InvalidModelError, match=unavailable):
        mlflow.pyfunc.load_model(str(both), model_config={"execution_provider": "cuda"})
    monkeypatch.setenv("MLFLOW_PHI3_ONNX_EXECUTION_PROVIDER", "CUDAExecutionProvider")
    with pytest.raises(InvalidModelError, match=unavailable):
        load_model(both)
    with load_model(both, execution_provider="cpu") as model:
        assert model.execution_provider == "cpu"


def test_a_variant_that_is_not_there_is_refused_by_name(both: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no variant for dml; it has: cpu, cuda"):
        load_model(both, execution_provider="dml")
    with pytest.raises(InvalidRequestError, match=r"execution_provider must be one of .*, cpu"):
        load_model(both, execution_provider="tpu")


def test_no_variant_that_runs_here(cuda: Path, tmp_path: Path) -> None:
    save_model({"cuda": cuda}, tmp_path / "saved")
    with pytest.raises(InvalidModelError, match="has variants for cuda, and none of these is"):
        load_model(tmp_path / "saved")


@pytest.mark.usefixtures("tracking")
def test_variants_are_logged_scored_and_logged_again(
    demo: Path, cuda: Path, tmp_path: Path, expected: str
) -> None:
    info = log_model({"cpu": demo, "cuda": cuda}, name="both", task="text-generation")
    pyfunc = mlflow.pyfunc.load_model(info.model_uri)
    with pyfunc.get_raw_model():
        assert pyfunc.predict({"prompt": PROMPT}, params={"max_tokens": 4}) == [expected]
    save_model(info.model_uri, tmp_path / "again", task="text-generation")
    flavor = Model.load(str(tmp_path / "again")).flavors[FLAVOR_NAME]
    assert list(flavor["variants"]) == ["cpu", "cuda"]
    with load_model(tmp_path / "again") as model:
        assert model.generate(PROMPT, max_tokens=4) == expected
        save_model(model, tmp_path / "one")
    assert "variants" not in Model.load(str(tmp_path / "one")).flavors[FLAVOR_NAME]
    with load_model(tmp_path / "one") as model:
        assert model.generate(PROMPT, max_tokens=4) == expected


@pytest.mark.parametrize("damaged", ["cpu", "cuda", None])
def test_variants_of_saved_models_are_checked_each_by_its_own_hashes(
    demo: Path, cuda: Path, tmp_path: Path, damaged: str | None
) -> None:
    other = Path(shutil.copytree(cuda, tmp_path / "other"))
    flip(other / "model.onnx.data", 1_000_000)  # so the two have other hashes
    sources = {"cpu": tmp_path / "cpu", "cuda": tmp_path / "cuda"}
    save_model(demo, sources["cpu"])
    save_model(other, sources["cuda"])
    weights = {name: (path / "model/model.onnx.data") for name, path in sources.items()}
    if damaged is not None:
        flip(weights[damaged], 2_000_000)
        says = rf"{damaged}/model\.onnx\.data is not the file that the source"
        with pytest.raises(InvalidModelError, match=says):
            save_model(sources, tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
        return
    save_model(sources, tmp_path / "saved")
    for name, path in weights.items():
        saved = tmp_path / "saved/model" / name / "model.onnx.data"
        assert saved.read_bytes() == path.read_bytes()
    with load_model(tmp_path / "saved", verify="hash") as model:
        assert model.execution_provider == "cpu"


def test_variants_that_are_none(demo: Path, cuda: Path, tmp_path: Path) -> None:
    def refused(model: Any, says: str, error: type[Exception] = InvalidModelError) -> None:
        with pytest.raises(error, match=says):
            save_model(model, tmp_path / "saved")
        assert not (tmp_path / "saved").exists()

    refused({"gpu": demo}, "named by their execution providers, .*; got 'gpu'", InvalidRequestError)
    refused({"cuda": demo}, "The variant cuda is a folder for cpu")
    refused({}, "got none", InvalidRequestError)
    refused({"cpu": demo, "cuda": tmp_path / "no"}, "there is nothing", SourceNotFoundError)
    other = Path(shutil.copytree(cuda, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages }}")
    refused({"cpu": demo, "cuda": other}, "chat_template.jinja of the variant cuda is not that of")
    config = json.loads((other / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = [1]
    (other / "genai_config.json").write_text(json.dumps(config))
    refused({"cpu": demo, "cuda": other}, "are not forms of one model")


def test_session_and_provider_options(demo: Path, cuda: Path, expected: str) -> None:
    options = {"session_options": {"enable_cpu_mem_arena": False}}
    with GenAIModel(demo, model_config=options) as model:
        assert model.generate(PROMPT, max_tokens=4) == expected
    with GenAIModel(cuda, model_config={"execution_provider": "cpu"}) as model:
        assert model.execution_provider == "cpu"
        assert model.generate(PROMPT, max_tokens=4) == expected
    for config, says in {
        "provider_options": ({"device_id": "0"}, "other than cpu, which has none"),
        "session_options": ({"custom_ops_library": "x.so"}, "without .*custom_ops_library"),
        "execution_provider": ("tpu", "execution_provider must be one of"),
    }.items():
        with pytest.raises(InvalidRequestError, match=says[1]):
            GenAIModel(demo, model_config={config: says[0]})
    with pytest.raises(InvalidRequestError, match="session_options are for the genai loop"):
        GenAIModel(demo, model_config={**options, "loop": "slots"})
    with pytest.raises(InvalidModelError, match="execution provider"):
        GenAIModel(demo, model_config={"execution_provider": "cuda"})


def package(demo: Path, target: Path) -> Path:
    """An ONNX Runtime model package with a variant for CPU and one for CUDA."""
    shutil.copytree(demo, target / "decoder" / "cpu_x64")
    asking_for(demo, target / "decoder" / "gpu", "cuda")
    manifest = {"schema_version": "1.0", "components": {"decoder": "decoder"}}
    component = {
        "variants": {
            "cuda": {
                "variant_directory": "gpu",
                "ep": "CUDAExecutionProvider",
                "device": "gpu",
            },
            "cpu_x64": {"ep": "CPUExecutionProvider"},
        }
    }
    (target / "manifest.json").write_text(json.dumps(manifest))
    (target / "decoder" / "component.json").write_text(json.dumps(component))
    return target


def test_a_model_package_is_kept_whole(demo: Path, tmp_path: Path, expected: str) -> None:
    source = package(demo, tmp_path / "package")
    save_model(source, tmp_path / "saved")
    copied = {
        p.relative_to(tmp_path / "saved" / "model") for p in tmp_path.glob("saved/model/**/*")
    }
    assert copied == {p.relative_to(source) for p in source.rglob("*")}
    flavor = Model.load(str(tmp_path / "saved")).flavors[FLAVOR_NAME]
    assert {n: v["folder"] for n, v in flavor["variants"].items()} == {
        "cuda": "decoder/gpu",
        "cpu_x64": "decoder/cpu_x64",
    }
    with load_model(tmp_path / "saved") as model:
        assert model.execution_provider == "cpu"
        assert model.generate(PROMPT, max_tokens=4) == expected
    with pytest.raises(InvalidModelError, match="is not available"):
        load_model(tmp_path / "saved", execution_provider="cuda")


def test_a_package_may_hold_its_component_in_the_manifest(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "package" / "cpu")
    manifest = {"schema_version": 1, "components": {"model": {"variants": {"cpu": {}}}}}
    (tmp_path / "package" / "manifest.json").write_text(json.dumps(manifest))
    save_model(tmp_path / "package", tmp_path / "saved")
    with load_model(tmp_path / "saved") as model:
        assert model.execution_provider == "cpu"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def variants(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda p: edit(p / "decoder" / "component.json", lambda c: change(c["variants"]))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "version": (
        lambda p: edit(p / "manifest.json", lambda m: m.update(schema_version="2.0")),
        "schema_version is 2.0; this package reads 1 and 1.x",
    ),
    "two components": (
        lambda p: edit(p / "manifest.json", lambda m: m["components"].update(vision="vision")),
        "lists 2 components",
    ),
    "no component": (
        lambda p: (p / "decoder" / "component.json").unlink(),
        "component.json is missing",
    ),
    "component elsewhere": (
        lambda p: edit(p / "manifest.json", lambda m: m.update(components={"d": "../decoder"})),
        "leads out of the package",
    ),
    "variant elsewhere": (
        variants(lambda v: v["cuda"].update(variant_directory="../../x")),
        "leads out of the package",
    ),
    "variant gone": (
        variants(lambda v: v.update(dml={})),
        "variant dml has no genai_config.json",
    ),
    "no variants": (variants(lambda v: v.clear()), "lists no variants"),
    "unknown provider": (
        variants(lambda v: v["cuda"].update(ep="TpuExecutionProvider")),
        "is for 'TpuExecutionProvider', which is no execution provider",
    ),
    "shared assets": (
        lambda p: edit(
            p / "decoder" / "gpu" / "genai_config.json",
            lambda c: c["model"]["decoder"].update(filename="sha256:" + "0" * 64 + "/model.onnx"),
        ),
        "refers to shared assets",
    ),
}


@pytest.mark.parametrize(("damage", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_refused(
    demo: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    source = package(demo, tmp_path / "package")
    damage(source)
    with pytest.raises(InvalidModelError, match=says) as caught:
        save_model(source, tmp_path / "saved")
    assert str(tmp_path) not in caught.value.message
    assert not (tmp_path / "saved").exists()


def test_the_demo_model_is_for_cpu(demo: Path) -> None:
    with mlflow_phi3_onnx.GenAIModel(demo) as model:
        assert model.execution_provider == "cpu"
