"""Runs mutations of one document, in a process of its own: native code may end it.

``python tests/fuzz/worker.py DOCUMENT SEED COUNT FOLDER``, from the repository, writes a line of
JSON before and after each case.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIError, GenAIModel, load_model, save_model
from mlflow_phi3_onnx.flavor.inspect import inspect_model
from tests.support.adapted import open_for_adapters, parameters, random_deltas, write_adapter
from tests.support.mutations import mutate_bytes, mutate_json, mutate_template, mutate_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

ADAPTER = "adapter.onnx_adapter"
CHAT = [{"role": "user", "content": "What is the capital of Spain?"}]


def _text(mutate: Callable[[str, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, rng: mutate(data.decode(), rng)


# The mutation of each document.
DOCUMENTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "genai_config.json": _text(mutate_json),
    "tokenizer.json": _text(mutate_json),
    "tokenizer_config.json": _text(mutate_json),
    "special_tokens_map.json": _text(mutate_json),
    "chat_template.jinja": _text(mutate_template),
    "model.onnx": mutate_bytes,
    "MLmodel": _text(mutate_yaml),
    "manifest.json": _text(mutate_json),
    ADAPTER: mutate_bytes,
}


def use(model: GenAIModel) -> None:
    """Answer in ways that use the tokenizer, the template, the grammar and the scores."""
    with model:
        model.chat(CHAT, max_tokens=3)
        model.complete("Madrid aaaa!", max_tokens=3, logprobs=2, regex="[a-z]+")


def case(document: str, target: Path) -> None:
    """Do what a user does with what they were given."""
    report = inspect_model(str(target), verify="off")
    json.dumps(report)
    if document == "MLmodel":
        use(load_model(target, verify="off"))
        return
    saved = target.with_name("saved")
    adapters = {"x": target.with_name(ADAPTER)} if document == ADAPTER else None
    save_model(target, saved, adapters=adapters)
    if adapters:
        use(load_model(saved))
    shutil.rmtree(saved)
    if "variants" not in report or report["variants"][0]["name"] == "":
        use(GenAIModel(target))


def prepare(document: str, folder: Path) -> tuple[Path, Path]:
    """Make what is mutated, and return the path to use and the file to change."""
    demo = Path(mlflow_phi3_onnx.demo_model_path())
    target = folder / "model"
    if document == "MLmodel":
        save_model(demo, target)
    elif document == "manifest.json":
        shutil.copytree(demo, target / "cpu")
        manifest = {
            "schema_version": "1.0",
            "components": {
                "model": {"variants": {"cpu": {"ep": "cpu", "variant_directory": "cpu"}}}
            },
        }
        (target / document).write_text(json.dumps(manifest), "utf-8")
    elif document == ADAPTER:
        open_for_adapters(demo, target)
        write_adapter(folder / ADAPTER, parameters(random_deltas(demo, 0)))
        return target, folder / ADAPTER
    else:
        shutil.copytree(demo, target)
    file = target / document
    if document == "special_tokens_map.json":
        config = json.loads((target / "tokenizer_config.json").read_text("utf-8"))
        config.pop("added_tokens_decoder", None)
        (target / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        file.write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}), "utf-8")
    return target, file


def megabytes() -> int:
    """The most memory that this process has had, where the system tells."""
    status = Path("/proc/self/status")  # getrusage counts the parent's too
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), 0)


def say(**facts: Any) -> None:
    """Write a line."""
    print(json.dumps(facts), flush=True)


def main() -> None:
    """Run."""
    document, seed, count, folder = sys.argv[1:]
    logging.disable(logging.WARNING)
    target, file = prepare(document, Path(folder))
    original = file.read_bytes()
    for number in range(int(seed), int(seed) + int(count)):
        file.write_bytes(DOCUMENTS[document](original, random.Random(number)))  # noqa: S311 - it picks mutations
        say(begins=number)
        begun = time.monotonic()
        try:
            case(document, target)
            outcome = "taken"
        except GenAIError as error:
            outcome = type(error).__name__
            if str(target) in error.message:
                outcome = f"FOREIGN a path in: {error.message}"
        except BaseException as error:  # noqa: BLE001 - a PanicException is no Exception
            outcome = f"FOREIGN {type(error).__module__}.{type(error).__name__}: {error}"[:300]
        shutil.rmtree(target.with_name("saved"), ignore_errors=True)
        peak = megabytes()
        say(
            ends=number, outcome=outcome, seconds=round(time.monotonic() - begun, 3), megabytes=peak
        )


if __name__ == "__main__":
    main()
