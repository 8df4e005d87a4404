"""The saved model_config: which keys it has, and how it is overridden at load and at predict."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import mlflow_phi3_onnx
from mlflow_phi3_onnx import (
    InvalidRequestError,
    UnsupportedParameterError,
    load_model,
    log_model,
    save_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from mlflow.pyfunc import PyFuncModel

CHAT = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
RUNTIME = {"intra_op_num_threads", "max_batch_size", "kv_cache_memory"}
CONFIG = {"temperature": 0, "max_tokens": 2, "stop": ["Portugal"], "intra_op_num_threads": 1}


@pytest.fixture(scope="module")
def configured(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is saved with answers of at most two tokens."""
    path = tmp_path_factory.mktemp("configured") / "model"
    save_model(demo, path, model_config=CONFIG)
    return path


@contextmanager
def loaded(path: Path, model_config: Any = None) -> Generator[PyFuncModel]:
    model = mlflow.pyfunc.load_model(str(path), model_config=model_config)
    with model.get_raw_model():
        yield model


def tokens(model: PyFuncModel, params: dict[str, Any] | None = None, **fields: Any) -> int:
    answer = model.predict({**CHAT, "min_tokens": 1, **fields}, params=params)[0]
    return answer["usage"]["completion_tokens"]


def saved_config(path: Path) -> dict[str, Any]:
    return Model.load(str(path)).flavors["python_function"]["config"]


def test_every_key_is_saved_so_that_it_can_be_overridden(configured: Path) -> None:
    config = saved_config(configured)
    assert {*config} > {*CONFIG} | RUNTIME | {"top_p", "seed", "repetition_penalty"}
    assert {k: v for k, v in config.items() if v is not None} == CONFIG
    assert not any(isinstance(value, dict) for value in config.values())


def test_every_key_is_saved_without_a_config_too(saved_text: Path) -> None:
    config = saved_config(saved_text)
    assert {*config} > RUNTIME | {"temperature", "max_tokens"}
    assert {*config.values()} == {None}


def test_the_saved_config_is_the_default_of_pyfunc(configured: Path) -> None:
    with loaded(configured) as model:
        assert tokens(model) == 2


def test_the_saved_config_is_the_default_of_the_native_model(configured: Path) -> None:
    with mlflow_phi3_onnx.load_model(configured) as model:
        assert model.chat(CHAT["messages"])["usage"]["completion_tokens"] == 2


def test_pyfunc_load_overrides_by_key(configured: Path) -> None:
    with loaded(configured, {"max_tokens": 3}) as model:
        assert tokens(model) == 3
        assert model.model_config["max_tokens"] == 3
        assert model.model_config["temperature"] == 0


def test_pyfunc_load_sets_a_key_that_was_saved_without_a_value(saved_text: Path) -> None:
    with loaded(saved_text, {"max_tokens": 1}) as model:
        native = model.get_raw_model().generate("The capital of Spain is", max_tokens=1)
        assert model.predict({"prompt": "The capital of Spain is"}) == [native]


def test_native_load_overrides_by_key(configured: Path) -> None:
    with mlflow_phi3_onnx.load_model(configured, model_config={"max_tokens": 3}) as model:
        assert model.chat(CHAT["messages"])["usage"]["completion_tokens"] == 3


def test_none_at_native_load_takes_a_saved_value_away(configured: Path) -> None:
    with mlflow_phi3_onnx.load_model(configured, model_config={"max_tokens": None}) as model:
        answer = model.chat(CHAT["messages"], min_tokens=3)
        assert answer["usage"]["completion_tokens"] >= 3


def test_the_environment_overrides_by_key(
    configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", json.dumps({"max_tokens": 3}))
    with loaded(configured) as model:
        assert tokens(model) == 3


def test_load_overrides_the_environment(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", json.dumps({"max_tokens": 3}))
    with loaded(configured, {"max_tokens": 4}) as model:
        assert tokens(model) == 4


def test_a_value_that_is_not_allowed_is_refused_at_load(configured: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"model_config: max_tokens must be .*; got 0"):
        mlflow.pyfunc.load_model(str(configured), model_config={"max_tokens": 0})


def test_an_unknown_key_is_refused_at_native_load(configured: Path) -> None:
    with pytest.raises(UnsupportedParameterError, match="model_config: color is not a parameter"):
        mlflow_phi3_onnx.load_model(configured, model_config={"color": "blue"})


def test_what_is_no_mapping_is_refused_at_native_load(configured: Path) -> None:
    wrong: Any = "max_tokens"
    with pytest.raises(InvalidRequestError, match=r"^model_config must be a mapping; got a string"):
        mlflow_phi3_onnx.load_model(configured, model_config=wrong)


def test_params_and_fields_do_not_change_the_config(configured: Path) -> None:
    with loaded(configured) as model:
        before = dict(model.model_config)
        assert tokens(model, {"max_tokens": 3}) == 3
        assert tokens(model, max_tokens=4) == 4
        assert tokens(model) == 2
        assert model.model_config == before


def test_the_caller_s_config_is_not_changed(demo: Path, tmp_path: Path) -> None:
    config = {"max_tokens": 5}
    save_model(demo, tmp_path, model_config=config)
    assert config == {"max_tokens": 5}


@pytest.mark.parametrize("kind", [str, Path])
def test_the_config_may_be_a_yaml_file(
    demo: Path, tmp_path: Path, kind: Callable[[Path], Any]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    save_model(demo, tmp_path / "saved", model_config=kind(file))
    config = saved_config(tmp_path / "saved")
    assert {k: v for k, v in config.items() if v is not None} == CONFIG


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("max_tokens: [", MlflowException),
        ("- max_tokens", InvalidRequestError),
        ("just text", InvalidRequestError),
    ],
    ids=["no YAML", "a list", "a string"],
)
def test_a_file_that_holds_no_mapping_is_refused(
    demo: Path, tmp_path: Path, text: str, error: type[Exception]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(error, match=r"config"):
        save_model(demo, tmp_path / "saved", model_config=str(file))
    assert not (tmp_path / "saved").exists()


def test_an_empty_file_is_an_empty_config(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    save_model(demo, tmp_path / "saved", model_config=str(tmp_path / "config.yaml"))
    assert {*saved_config(tmp_path / "saved").values()} == {None}


def test_a_missing_file_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(MlflowException, match=r"no_such\.yaml"):
        save_model(demo, tmp_path / "saved", model_config="no_such.yaml")


@pytest.mark.parametrize("config", [["max_tokens"], 7, {1: 2}, {"stop": object()}])
def test_what_is_no_config_is_refused(demo: Path, tmp_path: Path, config: Any) -> None:
    with pytest.raises(MlflowException, match=r"config|stop"):
        save_model(demo, tmp_path / "saved", model_config=config)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"color": "blue"}, "model_config: color is not a parameter of llm/v1/chat"),
        ({"max_token": 5}, "Did you mean max_tokens"),
        ({"max_new_tokens": 5}, "max_new_tokens is not supported. Use max_tokens"),
        ({"torch_dtype": "auto"}, "torch_dtype is not supported. Where a model is conv"),
        ({"device_map": "auto"}, "device_map is not supported. execution_provider says"),
        ({"return_full_text": True}, "return_full_text is not supported. Answers are without"),
        ({"trust_remote_code": True}, "trust_remote_code is not supported. No code out of"),
        ({"stream": True}, "stream belongs to a single request"),
        ({"messages": []}, "messages is not a parameter"),
    ],
)
def test_a_key_that_means_nothing_is_refused_at_save(
    demo: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedParameterError, match=message):
        save_model(demo, tmp_path / "saved", model_config=config)


def test_a_key_of_another_flavor_that_asks_for_nothing_is_taken(demo: Path, tmp_path: Path) -> None:
    config = {"return_full_text": False, "trust_remote_code": False, "device_map": None}
    save_model(demo, tmp_path / "saved", model_config=config)
    with load_model(tmp_path / "saved") as model:
        assert model.generate("a", max_tokens=1) is not None


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (log_model, {"transformers_model": 5}, "log_model: transformers_model .* as model"),
        (save_model, {"transformers_model": 5}, "save_model: transformers_model .* as model"),
        (log_model, {"model": 5, "torch_dtype": "auto"}, "torch_dtype .* precision of log_model"),
        (log_model, {"model": 5, "processor": 5}, "processor .* as tokenizer"),
        (load_model, {"model_uri": "x", "device": "cuda"}, "load_model: device .* execution_prov"),
        (load_model, {"model_uri": "x", "return_type": "pipeline"}, "return_type .* GenAIModel"),
    ],
)
def test_an_argument_of_another_flavor_is_refused_with_advice(
    function: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedParameterError, match=message) as caught:
        function(**arguments)
    assert caught.value.param == list(arguments)[-1]


def test_an_argument_of_no_flavor_is_an_error_of_the_call() -> None:
    call: Any = load_model
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        call("x", colour="blue")


@pytest.mark.parametrize(
    "config",
    [{"temperature": 3}, {"max_batch_size": 0}, {"stop": [1]}, {"kv_cache_memory": "1 GB"}],
    ids=lambda config: next(iter(config)),
)
def test_a_value_that_is_not_allowed_is_refused_at_save(
    demo: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match=f"model_config: {next(iter(config))} must be"):
        save_model(demo, tmp_path / "saved", model_config=config)
