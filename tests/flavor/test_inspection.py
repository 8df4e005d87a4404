"""`mlflow-phi3-onnx inspect`: what it tells of a model, and of a broken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlflow_phi3_onnx import GenAIModel, log_model, save_model
from mlflow_phi3_onnx.artifact.onnx.graph import read_graph
from mlflow_phi3_onnx.cli.main import main
from tests.support.thinking import thinker

Captured = pytest.CaptureFixture[str]


def report(capsys: Captured, *arguments: object) -> dict[str, Any]:
    assert main(["inspect", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_folder(demo: Path, capsys: Captured) -> None:
    found = report(capsys, demo)
    with GenAIModel(demo) as model:
        limits = model.limits
    assert found["kind"] == "model folder"
    assert found["model_type"] == "phi3"
    assert found["context_length"] == limits.context_length
    assert found["vocab_size"] == limits.vocab_size
    assert found["memory"]["kv_bytes_per_token"] == limits.kv_bytes_per_token
    assert found["memory"]["kv_bytes_of_whole_context"] == 4096 * limits.kv_bytes_per_token
    assert found["bytes"] == sum(f.stat().st_size for f in demo.iterdir())
    (variant,) = found["variants"]
    assert variant["execution_provider"] == "cpu"
    assert variant["precision"] == "int4"
    assert variant["why_not_slots"] is None
    assert variant["defects"] == []


def test_loading_tells_which_loop_it_gets_here(
    demo: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "loaded" not in report(capsys, demo)
    taken = {"loop": "slots", "why_not_slots": None, "computes_together": True}
    save_model(demo, tmp_path / "saved", model_config={"loop": "genai"})
    for source in (demo, tmp_path / "saved"):
        assert report(capsys, source, "--load")["loaded"] == taken
    # Here another processor's arithmetic is that of a fault: nothing may differ at all.
    monkeypatch.setattr("mlflow_phi3_onnx.model.trial.ALLOWED", -1.0)
    found = report(capsys, demo, "--load", "--verify", "off")
    assert found["variants"][0]["why_not_slots"] is None
    assert found["loaded"]["loop"] == "genai"
    assert "otherwise in pieces than at once" in found["loaded"]["why_not_slots"]
    assert not found["loaded"]["computes_together"]
    assert main(["inspect", "--load", str(demo)]) == 0
    (line,) = [li for li in capsys.readouterr().out.splitlines() if li.startswith("loop='auto'")]
    assert line.startswith("loop='auto' here genai (not slots: The slots loop computes")
    assert line.endswith("), one request at a time")


def test_a_saved_model_and_a_uri(
    demo: Path, tmp_path: Path, tracking: str, capsys: Captured
) -> None:
    assert tracking
    save_model(demo, tmp_path / "saved", task="llm/v1/completions")
    found = report(capsys, tmp_path / "saved", "--verify", "hash")
    assert found["kind"] == "saved model"
    assert found["task"] == "llm/v1/completions"
    assert found["source"] == {"kind": "folder"}
    info = log_model(demo, name="phi3")
    assert report(capsys, info.model_uri)["parameters"] == found["parameters"]


def test_the_text_has_what_matters(demo: Path, tmp_path: Path, capsys: Captured) -> None:
    save_model(demo, tmp_path / "saved")
    assert main(["inspect", str(tmp_path / "saved")]) == 0
    text = capsys.readouterr().out
    for part in ("phi3", "int4 in blocks of", "4,096 tokens", "KV cache", "genai and slots"):
        assert part in text
    assert str(tmp_path) not in text


def test_the_tool_format_is_told(demo: Path, tmp_path: Path, capsys: Captured) -> None:
    assert report(capsys, demo)["tool_format"] == "phi4_mini"
    save_model(demo, tmp_path / "saved", model_config={"tool_format": "hermes"})
    assert report(capsys, tmp_path / "saved")["tool_format"] == "hermes"
    assert main(["inspect", str(tmp_path / "saved")]) == 0
    assert "tool calls       hermes" in capsys.readouterr().out
    save_model(demo, tmp_path / "none", model_config={"tool_format": "none"})
    assert report(capsys, tmp_path / "none")["tool_format"] is None
    assert main(["inspect", str(tmp_path / "none")]) == 0
    assert "they stay text and cannot be required" in capsys.readouterr().out


def test_the_form_of_reasoning_is_told(demo: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = thinker(demo, tmp_path / "model")
    assert report(capsys, demo)["reasoning_format"] is None
    assert main(["inspect", str(demo)]) == 0
    assert "if there is any, it stays text" in capsys.readouterr().out
    assert main(["inspect", str(folder)]) == 0
    assert "reasoning        think" in capsys.readouterr().out
    save_model(folder, tmp_path / "none", model_config={"reasoning_format": "none"})
    assert report(capsys, tmp_path / "none")["reasoning_format"] is None
    save_model(demo, tmp_path / "set", model_config={"reasoning_format": "mistral_think"})
    assert report(capsys, tmp_path / "set")["reasoning_format"] == "mistral_think"


def test_a_defect_and_its_repair(demo: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "model"))
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["sliding_window"] = {"window_size": 2047}
    config["model"]["eos_token_id"].append(99999)
    path.write_text(json.dumps(config))
    (variant,) = report(capsys, folder)["variants"]
    names = [defect["name"] for defect in variant["defects"]]
    assert names == ["sliding window", "end beyond the vocabulary"]
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "The window is taken out." in out
    assert "Such ids are left out." in out


def test_what_is_broken_has_status_1(demo: Path, tmp_path: Path, capsys: Captured) -> None:
    save_model(demo, tmp_path / "saved")
    with (tmp_path / "saved" / "model" / "model.onnx.data").open("ab") as file:
        file.write(b"more")
    for arguments in (["--json"], []):
        assert main(["inspect", *arguments, str(tmp_path / "saved")]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "error: model.onnx.data has" in captured.err
    assert main(["inspect", str(tmp_path / "nothing")]) == 1
    assert "error: model: there is nothing at the path '" in capsys.readouterr().err


def test_parameters_and_precision_of_the_demo_model(demo: Path) -> None:
    graph = read_graph(demo / "model.onnx")
    config = json.loads((demo / "genai_config.json").read_text())["model"]
    hidden, layers = config["decoder"]["hidden_size"], config["decoder"]["num_hidden_layers"]
    vocabulary = config["vocab_size"]
    # Phi-3: attention 4 h², MLP of some width 3 h w, two norms a layer, embeddings, head, last norm
    rest = 2 * vocabulary * hidden + hidden + layers * (4 * hidden**2 + 2 * hidden)
    per_layer, left = divmod(graph.parameters - rest, layers * 3 * hidden)
    assert left == 0
    assert per_layer > hidden
    assert graph.precision == "int4"
