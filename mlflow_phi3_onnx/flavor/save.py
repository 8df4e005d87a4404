"""Writing a model in MLflow's format: everything is checked first, and a failure leaves nothing."""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from mlflow import pyfunc as mlflow_pyfunc

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.artifact.lora.adapters import check_adapters, fitted, stage_adapters
from mlflow_phi3_onnx.artifact.manifest import Manifest, stage, write_manifest
from mlflow_phi3_onnx.artifact.saved import DATA, FLAVOR_NAME, MLMODEL_FILE, SCHEMA_VERSION
from mlflow_phi3_onnx.core.checks import describe_kind
from mlflow_phi3_onnx.core.files import LONGEST_NAME
from mlflow_phi3_onnx.errors import InvalidModelError, InvalidRequestError, SaveError
from mlflow_phi3_onnx.flavor import requirements
from mlflow_phi3_onnx.flavor.arguments import (
    check_paths,
    read_config,
    read_environment,
    read_metadata,
)
from mlflow_phi3_onnx.flavor.fit import (
    answered_example,
    checked_example,
    checked_signature,
    with_output,
)
from mlflow_phi3_onnx.flavor.inspect import check_loadable, facts_of
from mlflow_phi3_onnx.model.native import GenAIModel
from mlflow_phi3_onnx.model.planning import Planner
from mlflow_phi3_onnx.model.settings import Settings, config_keys
from mlflow_phi3_onnx.sources.resolve import ResolvedSource, Source

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from mlflow.models import Model, ModelSignature

    from mlflow_phi3_onnx.core.tasks import Task

__all__ = ["CODE", "PreparedModel", "check_target", "prepare"]

_logger = logging.getLogger(__name__)

CODE = "code"
"""The folder of a saved model that holds its code."""


_NOT_IN_PATHS = re.compile(r"[\0\ud800-\udfff]")
_SAID = re.compile(r"\[Errno \d+\] ([^:']+)")


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model that is ready to be written: what was given is checked, and its source resolved.

    Attributes:
        source: The model.
        adapters: The files of its adapters, by name; they fit it.
        task: What it is for.
        config: The saved configuration, as it was given.
        signature: The signature, or None for none.
        example: The input example, or None for none.
        metadata: For the MLmodel file, the task included.
        environment: The conda environment, the pip requirements and their constraints.
        code_paths: Files and folders of code to save along.
        extra_files: Other files to save along, as paths or URIs.
    """

    source: ResolvedSource
    adapters: Mapping[str, Path]
    task: Task
    config: Mapping[str, Any]
    signature: ModelSignature | None
    example: Any
    metadata: Mapping[str, Any]
    environment: tuple[Any, list[str], list[str]]
    code_paths: list[str] | None
    extra_files: list[str] | None

    def save_model(
        self,
        path: str,
        mlflow_model: Model,
        *,
        validate_serving_input: bool = False,
        **_: Any,
    ) -> None:
        """Save the model for ``Model.log``, into a folder that it copies on at once.

        ``Model.log`` acts on ``model_config`` and ``validate_serving_input``, and passes them on.
        Where it is to load the model from there, links would not do: they lead out of the model.
        """
        self.write(Path(path), mlflow_model, link=not validate_serving_input)

    def write(self, path: Path, mlflow_model: Model, *, link: bool) -> None:
        """Write the model to a folder that is empty or does not exist.

        Args:
            path: The folder.
            mlflow_model: The MLflow model that the flavor is added to.
            link: Whether to link the model's files, where the folder is copied again at once.
        """
        source = self.source
        files = source.bundle.files
        data = None if source.reference else DATA
        where = {"reference": dict(source.reference)} if source.reference else {"data": DATA}
        with _beside(path) as work, ThreadPoolExecutor(1) as worker:
            # Hashing gigabytes lets go of the interpreter's lock: the rest is done meanwhile.
            if data:
                staging = worker.submit(stage, files, work / data, link=link, outside=work)
            else:
                staging = worker.submit(write_manifest, files)
            adapters = stage_adapters(self.adapters, work, link=link)
            code = _copy_code(self.code_paths, work)
            mlflow_compat.save_example(mlflow_model, self.example, str(work))
            if self.signature is not None:
                mlflow_model.signature = self.signature
            mlflow_model.metadata = {**(mlflow_model.metadata or {}), **self.metadata}
            mlflow_pyfunc.add_to_model(
                mlflow_model,
                loader_module=FLAVOR_NAME,
                data=data,
                code=code,
                conda_env=mlflow_compat.CONDA_ENV_FILE,
                python_env=mlflow_compat.PYTHON_ENV_FILE,
                # MLflow lets only saved keys be overridden at load, so all of them are saved.
                model_config={**dict.fromkeys(config_keys(self.task)), **self.config},
                streamable=True,
            )
            manifest = staging.result()
            _check_hashes(manifest, source.hashes)
            mlflow_model.add_flavor(
                FLAVOR_NAME,
                schema_version=SCHEMA_VERSION,
                onnxruntime_genai_version=requirements.runtime_version(),
                **facts_of(source.bundle),
                source=dict(source.origin),
                task=self.task,
                **where,
                code=code,
                files=manifest,
                **({"adapters": adapters} if adapters else {}),
                **mlflow_compat.copy_extra_files(self.extra_files, str(work)),
            )
            mlflow_model.model_size_bytes = mlflow_compat.get_total_file_size(str(work))
            mlflow_model.save(str(work / MLMODEL_FILE))
            _write_environment(work, *self.environment)


@contextmanager
def prepare(given: Mapping[str, Any]) -> Generator[PreparedModel]:
    """Check all that was given, then resolve the source and fit the adapters.

    What is made for it lasts for the context.

    Args:
        given: The arguments of ``save_model`` or ``log_model``, by name.

    Raises:
        GenAIError: As ``save_model`` tells.
    """
    environment = read_environment(
        given["conda_env"], given["pip_requirements"], given["extra_pip_requirements"]
    )
    for name in ("code_paths", "extra_files"):
        check_paths(name, given[name])
    task = given["task"]
    config = with_output(read_config(given["model_config"]), given["signature"], task)
    settings = Settings.check(config, task)
    metadata = read_metadata(given["metadata"], task)
    if settings.verify is not None:
        raise InvalidRequestError(
            "model_config: verify is for whoever loads the model to say, not for the model itself."
            " Leave it out of model_config, and give it to load_model.",
            param="verify",
        )
    signature = checked_signature(given["signature"], task, settings)
    wanted = check_adapters(given["adapters"])
    example = checked_example(given["input_example"], task, settings, wanted, signature)
    source = _source(given, adapted=bool(wanted))
    with source.resolve() as resolved, fitted(wanted, resolved.bundle.model) as adapters:
        tokenizer, model = check_loadable(resolved.bundle), resolved.bundle.model
        planner = Planner(model, tokenizer, model.context_length, settings, wanted)
        own = given["input_example"] is None
        example = answered_example(example, task, settings, signature, planner, own=own)
        yield PreparedModel(
            source=resolved,
            adapters=adapters,
            task=task,
            config=config,
            signature=signature,
            example=example,
            metadata=metadata,
            environment=environment,
            **{name: given[name] for name in ("code_paths", "extra_files")},
        )


def check_target(given: Any) -> Path:
    """Check that a model can be saved to a path, and return it.

    Raises:
        InvalidRequestError: If it is no path, or that of a file or a folder that is not empty.
        SaveError: If the system cannot tell what is there.
    """
    path = _read_target(given)
    try:
        path.stat()
        taken = not path.is_dir() or any(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        taken = False
    except OSError as error:
        raise _not_saved(path, error) from error
    if taken:
        kind = "is not empty" if path.is_dir() else "is a file"
        raise InvalidRequestError(
            f"The path to save to, {path.name or path}, {kind}. Give a folder that is empty or does"
            " not exist.",
            param="path",
            error_code="RESOURCE_ALREADY_EXISTS",
        )
    return path


def _read_target(given: Any) -> Path:
    """Make an absolute path of what was given."""
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else given
    parts = Path(text).parts if isinstance(text, str) else ()
    came = ""
    if not isinstance(text, str):
        came = describe_kind(text)
    elif not text:
        came = "an empty string"
    elif _NOT_IN_PATHS.search(text):
        came = "a string with a NUL or a lone surrogate"
    elif (longest := max((len(part.encode()) for part in parts), default=0)) > LONGEST_NAME:
        came = f"a name of {longest:,} bytes"
    if came:
        raise InvalidRequestError(
            f"path must be a string or a pathlib.Path, of names of up to {LONGEST_NAME} bytes; got"
            f" {came}. Give a folder that is empty or does not exist.",
            param="path",
        )
    return Path(text).absolute()


def _source(given: Mapping[str, Any], *, adapted: bool) -> Source:
    names = ("subfolder", "revision", "tokenizer", "precision", "export_options")
    model, origin = given["model"], {}
    if isinstance(model, GenAIModel):
        if model.adapters:
            _logger.warning(
                "The model was loaded with adapters (%s), which are not carried over: give those"
                " that you need.",
                ", ".join(model.adapters),
            )
        model, origin = model.folder, model.origin
    return Source(
        model=model,
        **{name: given[name] for name in names},
        by_reference=not given["save_pretrained"],
        adapted=adapted,
        origin=origin,
    )


@contextmanager
def _beside(path: Path) -> Generator[Path]:
    """Give a folder to write a model to, and put it in a path's place once it is whole.

    It lies beside the path, so that this is one step. Where the path is an empty folder, it lies in
    there, and the MLmodel file comes last. What a killed process leaves is hidden, and no model.

    Raises:
        InvalidRequestError: If there is something at the path.
        SaveError: If it cannot be written to.
    """
    goal = Path(os.path.realpath(check_target(path)))
    hidden = f".{uuid.uuid4().hex[:8]}.partial"
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        apart = not goal.exists()  # a folder that is there may be a volume, or in use
        work = goal.parent / hidden if apart else goal / hidden
        work.mkdir()
        try:
            yield work
            if apart:
                work.rename(goal)
            else:
                _move_up(work, goal)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except OSError as error:
        raise _not_saved(path, error) from error


def _move_up(work: Path, goal: Path) -> None:
    items = sorted(work.iterdir(), key=lambda item: item.name == MLMODEL_FILE)
    for item in items:
        item.rename(goal / item.name)
    work.rmdir()


def _not_saved(path: Path, error: OSError) -> SaveError:
    return SaveError(
        f"The model cannot be saved to {path}: {_reason(error)}. Nothing was left there."
    )


def _reason(error: OSError) -> str:
    """Say what was wrong. Copying a folder collects the errors of its files, as texts."""
    said = _SAID.search(str(error))
    return error.strerror or (said[1] if said else type(error).__name__)


def _copy_code(code_paths: list[str] | None, target: Path) -> str | None:
    code = mlflow_compat.copy_code_paths(code_paths, str(target), CODE)
    if requirements.own_requirement() is None:
        requirements.bundle_source(target / CODE)
        return CODE
    return code


def _check_hashes(manifest: Manifest, hashes: Mapping[str, str]) -> None:
    """Check that the files are those of the source; they may have changed since they were fetched.

    Raises:
        InvalidModelError: If one is missing or has other bytes.
    """
    for name, sha256 in hashes.items():
        if name not in manifest or manifest[name]["sha256"] != sha256:
            raise InvalidModelError(
                f"{name} is not the file that the source tells of: it was damaged on its way, or"
                " changed here. Remove it from the local cache, and try again."
            )


def _write_environment(path: Path, conda: Any, pip: list[str], constraints: list[str]) -> None:
    (path / mlflow_compat.CONDA_ENV_FILE).write_text(
        yaml.safe_dump(conda, default_flow_style=False), encoding="utf-8"
    )
    (path / mlflow_compat.REQUIREMENTS_FILE).write_text("\n".join(pip), encoding="utf-8")
    if constraints:
        (path / mlflow_compat.CONSTRAINTS_FILE).write_text("\n".join(constraints), encoding="utf-8")
    mlflow_compat.PythonEnv.current().to_yaml(str(path / mlflow_compat.PYTHON_ENV_FILE))
