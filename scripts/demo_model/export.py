"""Export with the model builder that onnxruntime-genai ships."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizer import write_tokenizer
from transformers import Phi3ForCausalLM
from transformers.utils.logging import disable_progress_bar

PRECISION = "int4"
OPTIONS = ("windowed_kv_cache=false", "block_size=32", "accuracy_level=4", "is_symmetric=true")
NEW_KEYS = ("bot_token_id", "eot_token_id")
FILES = (
    "genai_config.json",
    "model.onnx",
    "model.onnx.data",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def export(model: Phi3ForCausalLM, tokenizer: dict[str, Any], output: Path) -> None:
    """Write a model as a folder that onnxruntime-genai loads.

    Args:
        model: The trained model.
        tokenizer: The contents of its `tokenizer.json`.
        output: The folder; it is made if need be, and files of the same names are replaced.

    Raises:
        RuntimeError: The builder failed; the message is what it printed.
    """
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source, built = work / "source", work / "built"
        model.save_pretrained(source)
        write_tokenizer(tokenizer, source)
        _run_builder(source, built, work)
        # The builder writes the tokenizer as the library of its day saves it: ship our own.
        write_tokenizer(tokenizer, built)
        _drop_new_keys(built / "genai_config.json")
        output.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            if (built / file).exists():
                (output / file).write_bytes((built / file).read_bytes())


def _drop_new_keys(path: Path) -> None:
    """Take out what onnxruntime-genai before 0.12 does not know: it is the last for Python 3.10."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in NEW_KEYS:
        config["model"].pop(key, None)
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")


def _run_builder(source: Path, built: Path, work: Path) -> None:
    """Run the builder as a process of its own, from an empty folder: its imports are intrusive."""
    empty = work / "empty"
    empty.mkdir()
    command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(source), "-o", str(built), "-c", str(work / "cache")]
    command += ["-p", PRECISION, "-e", "cpu", "--extra_options", *OPTIONS]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=empty, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"The model builder failed:\n{done.stdout}\n{done.stderr}")
