"""Neither a model folder nor a configuration has native code write files or load libraries."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_phi3_onnx import GenAIModel, InvalidModelError, InvalidRequestError, save_model
from mlflow_phi3_onnx.runtime.session_options import refused_session_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRITERS = {
    "session.collect_node_memory_stats_to_file": "stats.txt",
    "session.optimized_model_filepath": "optimized.onnx",
    "session.model_external_initializers_file_folder_path": "..",
    "ep.context_file_path": "context.onnx",
    "session.debug_layout_transformation": "1",
    "session.something_of_tomorrow": "1",
    "enable_profiling": "profile",
    "register_custom_ops": "x",
}


@pytest.fixture
def changed(demo: Path, tmp_path: Path) -> Callable[[Callable[[str], str]], Path]:
    """Copies the demo model with another text of genai_config.json."""

    def change(edit: Callable[[str], str]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(demo, folder)
        file = folder / "genai_config.json"
        file.write_text(edit(file.read_text("utf-8")), "utf-8")
        return folder

    return change


def with_options(text: str, options: dict[str, Any]) -> str:
    config = json.loads(text)
    config["model"]["decoder"]["session_options"].update(options)
    return json.dumps(config)


@pytest.mark.parametrize(("name", "value"), WRITERS.items())
def test_an_option_that_is_not_known_is_refused_in_a_folder(
    changed: Callable[[Callable[[str], str]], Path], tmp_path: Path, name: str, value: str
) -> None:
    folder = changed(lambda text: with_options(text, {name: str(tmp_path / value)}))
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.")):
        GenAIModel(folder)
    with pytest.raises(InvalidModelError, match=name.replace(".", r"\.")):
        save_model(folder, tmp_path / "saved")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["changed"]


@pytest.mark.parametrize(("name", "value"), WRITERS.items())
def test_an_option_that_is_not_known_is_refused_in_a_configuration(
    demo: Path, tmp_path: Path, name: str, value: str
) -> None:
    config = {"session_options": {name: str(tmp_path / value)}}
    with pytest.raises(InvalidRequestError, match="session_options"):
        GenAIModel(demo, model_config=config)
    with pytest.raises(InvalidRequestError, match="session_options"):
        save_model(demo, tmp_path / "saved", model_config=config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"intra_op_num_threads": 100_000},
        {"intra_op_num_threads": True},
        {"intra_op_num_threads": -1},
        {"log_id": "a/b"},
        {"log_id": ["x"]},
        {"enable_cpu_mem_arena": "yes"},
        {"provider_options": [{"qnn": {"backend_path": "./libEvil.so"}}]},
        {"provider_options": [{"cuda": {"no_such_option": "1"}}]},
        {"provider_options": [{"cuda": {"device_id": "x" * 2000}}]},
        {"provider_options": {"cuda": {}}},
        {"provider_options": [{"cuda": []}]},
        {"provider_options": ["cuda"]},
    ],
)
def test_values_that_do_not_fit_are_refused(
    changed: Callable[[Callable[[str], str]], Path], options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidModelError, match=next(iter(options)) + "|backend_path|option"):
        GenAIModel(changed(lambda text: with_options(text, options)))


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("intra_op_num_threads", [0, 1024], [-1, 1025, 1.0, True, "1"]),
        ("inter_op_num_threads", [0, 1024], [-1, 1025]),
        ("log_severity_level", [0, 4], [-1, 5]),
        ("log_verbosity_level", [0, 10], [-1, 11]),
        ("log_id", ["", "x" * 1024], ["x" * 1025, "a/b", None]),
        ("enable_mem_pattern", [True, False], [1, "true", None]),
    ],
)
def test_an_option_reaches_as_far_as_it_may(
    name: str, taken: list[Any], refused: list[Any]
) -> None:
    for value in taken:
        assert list(refused_session_options({name: value})) == []
    for value in refused:
        assert list(refused_session_options({name: value})) == [name]


def test_known_options_are_taken(changed: Callable[[Callable[[str], str]], Path]) -> None:
    options = {
        "intra_op_num_threads": 1,
        "enable_cpu_mem_arena": False,
        "session.intra_op.allow_spinning": "0",
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "log_severity_level": 3,
    }
    with GenAIModel(changed(lambda text: with_options(text, options))) as model:
        assert model.generate("The capital of Spain is", max_tokens=1)


@pytest.mark.parametrize("part", ["encoder", "vision", "pipeline"])
def test_every_part_of_a_model_is_looked_at(
    changed: Callable[[Callable[[str], str]], Path], part: str
) -> None:
    def edit(text: str) -> str:
        config = json.loads(text)
        options = {"session_options": {"enable_profiling": "x"}}
        config["model"]["decoder"][part] = [{"stage": options}] if part == "pipeline" else options
        return json.dumps(config)

    with pytest.raises(InvalidModelError, match="enable_profiling"):
        GenAIModel(changed(edit))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"decoder": {', '"decoder": {"session_options": {}}, "decoder": {'),
        ('"session_options": {', '"session_options": {"log_id": "x"}, "session_options": {'),
        ('"search": {', '"search": {"num_beams": 4}, "search": {'),
    ],
)
def test_a_key_that_stands_twice_is_refused(
    changed: Callable[[Callable[[str], str]], Path], before: str, after: str
) -> None:
    folder = changed(lambda text: text.replace(before, after, 1))
    with pytest.raises(InvalidModelError, match="twice"):
        GenAIModel(folder)


@pytest.mark.parametrize("pattern", ["a.%s.key", "a.key", "a.%d.%d.key", "a.%d%n", "a.%5d", "", 5])
@pytest.mark.parametrize("name", ["past_key_names", "past_value_names"])
def test_names_that_native_code_formats_have_one_number(
    changed: Callable[[Callable[[str], str]], Path], name: str, pattern: Any
) -> None:
    def edit(text: str) -> str:
        config = json.loads(text)
        config["model"]["decoder"]["inputs"][name] = pattern
        return json.dumps(config)

    with pytest.raises(InvalidModelError, match=name):
        GenAIModel(changed(edit))


@pytest.mark.parametrize("name", [".", "./", "..", "a/../..", "C:x", "/x"])
def test_a_graph_lies_in_the_folder(
    changed: Callable[[Callable[[str], str]], Path], name: str
) -> None:
    def edit(text: str) -> str:
        config = json.loads(text)
        config["model"]["decoder"]["filename"] = name
        return json.dumps(config)

    with pytest.raises(InvalidModelError, match="leads out of the model folder"):
        GenAIModel(changed(edit))


def test_search_is_an_object(changed: Callable[[Callable[[str], str]], Path]) -> None:
    def edit(text: str) -> str:
        return json.dumps({**json.loads(text), "search": [1]})

    with pytest.raises(InvalidModelError, match="search must be an object"):
        GenAIModel(changed(edit))
