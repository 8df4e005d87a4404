"""Converting a checkpoint with the model builder that onnxruntime-genai ships.

It runs in a process of its own: importing it changes the search path and the logging of a process,
and takes seconds; and the kernel can end it, and not us, when memory runs out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from packaging.version import Version
from tqdm import tqdm

from mlflow_phi3_onnx.artifact.folder import CONFIG_FILE
from mlflow_phi3_onnx.errors import ConversionError, DependencyError, InvalidModelError
from mlflow_phi3_onnx.runtime.providers import installed_distribution
from mlflow_phi3_onnx.sources.convert.checkpoint import GENERATION_FILE, TOKENIZER_FILE, Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_phi3_onnx.sources.convert.options import Conversion

__all__ = ["check_dependencies", "convert"]

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SHOWN_LINES = 60
_STEPS_BESIDE_LAYERS = 6
_STEP = re.compile(
    r"(Reading|Saving) (layer \d+|embedding layer|final norm|LM head|ONNX|GenAI|proc)"
)
_DIRECTORIES = re.compile(
    r"(?<![\w./])(?<!https:)(?:[A-Za-z]:)?(?:[\\/][\w.@+~ -]+)*[\\/](?=[\w.@+~-])"
)
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")

# Defaults that genai_config.json has a place for. The builder copies only some of them.
_CARRIED = (
    *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"),
    "no_repeat_ngram_size",
)
# Others that change the text, for which it has none.
_NOT_CARRIED = (
    *("max_new_tokens", "max_length", "min_new_tokens", "min_length", "min_p", "typical_p"),
    *("num_beams", "penalty_alpha", "stop_strings", "bad_words_ids", "suppress_tokens"),
    "sequence_bias",
)


def check_dependencies() -> None:
    """Check that what a conversion needs is installed, without importing it.

    Raises:
        DependencyError: If something is missing.
    """
    needed = ("onnxruntime_genai", "torch", "transformers", "onnx_ir")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyError(
            "Converting a PyTorch model needs the export extra: pip install"
            f" 'mlflow-phi3-onnx[export]'. Missing: {', '.join(missing)}."
        )


def convert(checkpoint: Checkpoint, output: Path, conversion: Conversion) -> dict[str, Any]:
    """Convert a checkpoint to a model folder.

    A progress bar is shown on a terminal. What the builder prints is shown only if it fails.

    Args:
        checkpoint: The checkpoint.
        output: The folder to write; it must not exist. On failure, parts of it may be
            there.
        conversion: How to convert it.

    Returns:
        The facts of the conversion, for the MLmodel file.

    Raises:
        DependencyError: If the export extra is not installed.
        InvalidModelError: If the builder does not know the architecture.
        ConversionError: If it fails otherwise.
    """
    check_dependencies()
    peak = _run(checkpoint, output, conversion)
    _carry_over(checkpoint, output)
    return {
        **conversion.facts(),
        "architecture": checkpoint.architecture,
        "parameters": checkpoint.parameters,
        "builder": f"{installed_distribution()} {_builder_version()}",
        "torch_version": importlib.metadata.version("torch"),
        "transformers_version": importlib.metadata.version("transformers"),
        "peak_memory_bytes": peak,
    }


def _builder_version() -> Version:
    return Version(importlib.metadata.version(installed_distribution() or "onnxruntime-genai"))


def _options(conversion: Conversion) -> list[str]:
    # Its window in genai_config.json is wrong for graphs of full attention: see artifact.defects.
    options = ["hf_token=false", "hf_remote=false", "windowed_kv_cache=false"]
    if conversion.block_size is None:
        return options
    # The builder for Python 3.10 has the older names, and ignores names that it does not know.
    prefix = "" if _builder_version() >= Version("0.12") else "int4_"
    quantized = (f"block_size={conversion.block_size}", f"algo_config={conversion.algorithm}")
    return [*options, *(prefix + option for option in quantized)]


def _environment() -> dict[str, str]:
    """Make an environment without network, tokens and other people's modules.

    The builder imports its own parts by names such as ``quantization``, last on the search path.
    Its folder is put first, so that nothing that is installed can take their place.
    """
    spec = importlib.util.find_spec("onnxruntime_genai")
    assert spec is not None
    assert spec.submodule_search_locations
    tokens = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return {
        **{name: value for name, value in os.environ.items() if name not in tokens},
        "PYTHONPATH": str(Path(spec.submodule_search_locations[0]) / "models"),
        "PYTHONIOENCODING": "utf-8",
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
    }


def _run(checkpoint: Checkpoint, output: Path, conversion: Conversion) -> int:
    """Run the builder; return the most memory that it took, in bytes."""
    with tempfile.TemporaryDirectory(dir=output.parent, ignore_cleanup_errors=True) as work:
        command = [sys.executable, "-u", "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(checkpoint.path), "-o", str(output), "-c", str(Path(work, "cache"))]
        command += ["-p", conversion.precision, "-e", conversion.execution_provider]
        command += ["--extra_options", *_options(conversion)]
        with subprocess.Popen(  # noqa: S603 - paths and checked options, and no shell
            command,
            cwd=work,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                peak, lines = _watch(process, checkpoint)
            finally:
                process.kill()
    if process.returncode != 0:
        raise _failure(process.returncode, lines, peak, checkpoint)
    return peak


def _watch(process: subprocess.Popen[str], checkpoint: Checkpoint) -> tuple[int, list[str]]:
    """Follow a process to its end: its memory, its steps, and the end of what it prints."""
    lines: deque[str] = deque(maxlen=_SHOWN_LINES)
    with suppress(OSError):
        # Where memory runs out, the kernel ends the builder, and not whoever waits for it.
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000", encoding="ascii")
    with tqdm(
        total=checkpoint.layers + _STEPS_BESIDE_LAYERS,
        unit="step",
        desc="Converting",
        disable=None,
        leave=False,
    ) as progress:
        arguments = (process.stdout, lines, progress)
        reader = threading.Thread(target=_read, args=arguments, daemon=True)
        reader.start()
        peak = 0
        while process.poll() is None:
            with suppress(psutil.Error):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
        reader.join()
    return peak, list(lines)


def _read(output: Iterable[str], lines: deque[str], progress: tqdm[Any]) -> None:
    for line in output:
        if text := line.rstrip():
            lines.append(text)
        if _STEP.match(line):
            progress.update()


def _failure(status: int, lines: list[str], peak: int, checkpoint: Checkpoint) -> Exception:
    own = str(checkpoint.path)
    shown = [_DIRECTORIES.sub("", line.replace(own, "the checkpoint")) for line in lines]
    if any("is not currently supported" in line for line in shown):
        return InvalidModelError(
            f"The model builder of onnxruntime-genai {_builder_version()} does not support"
            f" {checkpoint.architecture}."
        )
    _logger.error("The model builder failed; the end of what it printed:\n%s", "\n".join(shown))
    if status < 0:
        return ConversionError(
            f"The model builder was stopped by signal {-status}, when it had taken"
            f" {peak / 1e9:.1f} GB of memory. If memory ran out: it holds the whole model of"
            f" {checkpoint.parameters:,} parameters, and needs more than their bytes."
        )
    raised = [at for at, line in enumerate(shown) if _EXCEPTION.match(line)]
    reason = " ".join(shown[raised[-1] :] if raised else shown[-1:]) or "it said nothing"
    return ConversionError(f"The model builder failed: {reason}")


def _carry_over(checkpoint: Checkpoint, output: Path) -> None:
    """Take from the checkpoint what the builder leaves out or writes otherwise.

    The tokenizer is the checkpoint's, byte for byte: the builder writes it as transformers
    understands it, and transformers 5 rebuilds some from their vocabulary.
    """
    if (checkpoint.path / TOKENIZER_FILE).is_file():
        shutil.copyfile(checkpoint.path / TOKENIZER_FILE, output / TOKENIZER_FILE)
    path = output / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    defaults = {k: v for k, v in checkpoint.generation.items() if v is not None}
    config["search"].update({name: defaults[name] for name in _CARRIED if name in defaults})
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")
    neutral = (None, 0, 1, [])
    if left := [name for name in _NOT_CARRIED if defaults.get(name) not in neutral]:
        _logger.warning(
            "%s sets %s, for which genai_config.json has no place: say it in model_config.",
            GENERATION_FILE,
            ", ".join(left),
        )
