"""Saving, logging, loading and persisting: the functions that MLflow's own flavors have too."""

from __future__ import annotations

import posixpath
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlflow.models import Model

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.artifact.manifest import stage
from mlflow_phi3_onnx.artifact.saved import DATA, FLAVOR_NAME, MLMODEL_FILE, read_saved
from mlflow_phi3_onnx.core.former import tells_former_names
from mlflow_phi3_onnx.core.options import check_mapping, read
from mlflow_phi3_onnx.core.tasks import CHAT, Task
from mlflow_phi3_onnx.errors import InvalidRequestError
from mlflow_phi3_onnx.flavor.entry import check_entry, page_of
from mlflow_phi3_onnx.flavor.load import read_artifact
from mlflow_phi3_onnx.flavor.save import CODE, check_target, prepare
from mlflow_phi3_onnx.model.settings import (
    OF_SAVED_MODELS,
    PYFUNC_SETTINGS,
    RUNTIME_SETTINGS,
)
from mlflow_phi3_onnx.sources import mlflow_models
from mlflow_phi3_onnx.sources.local import checked_files, download

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.entities.model_registry import PromptVersion
    from mlflow.models import ModelSignature
    from mlflow.models.auth_policy import AuthPolicy
    from mlflow.models.model import ModelInfo
    from mlflow.models.resources import Resource
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from mlflow_phi3_onnx.artifact.manifest import Verify
    from mlflow_phi3_onnx.model.native import GenAIModel
    from mlflow_phi3_onnx.sources.convert.options import Precision

__all__ = [
    "load_model",
    "log_model",
    "persist_pretrained_model",
    "save_model",
]


@tells_former_names
def save_model(
    model: Any,
    path: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    precision: Precision | None = None,
    export_options: Mapping[str, Any] | None = None,
    save_pretrained: bool = True,
    adapters: Mapping[str, str | Path] | None = None,
    task: Task = CHAT,
    model_config: Mapping[str, Any] | str | Path | None = None,
    conda_env: Mapping[str, Any] | str | None = None,
    code_paths: list[str] | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | Literal["plain", False] | None = None,
    input_example: Any = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    extra_files: list[str] | None = None,
) -> None:
    """Save a model in MLflow's format to a local folder.

    The model is checked but not loaded, and its files are copied once. One of PyTorch's is
    converted first, in a temporary folder. If saving fails, nothing is left behind.

    Args:
        model: What to save. A path, of a folder with ``genai_config.json``, the graph and the
            tokenizer, or of an ONNX Runtime model package; the id of a repository on the Hugging
            Face hub, from which the files that are needed are downloaded; a ``models:/`` or
            ``runs:/`` URI of a model of this flavor or of ``mlflow.transformers``; a
            text-generation pipeline or a model of transformers, or its components, ``{"model": ...,
            "tokenizer": ...}``; a :class:`GenAIModel`. Where it holds a checkpoint, config.json
            with model.safetensors, it is converted. A string is a path where there is something at
            that path. A mapping of execution providers to any of these, such as ``{"cpu": folder,
            "cuda": other}``, saves them as variants of one model.
        path: The folder to save to; it must be empty or not exist.
        subfolder: The folder inside ``model`` that holds the model, where it holds several.
        revision: A branch, tag or commit hash of the repository; None is its main branch. The
            commit hash is recorded in the MLmodel file.
        tokenizer: The tokenizer, or a processor with one, of a model of transformers. A pipeline
            has its own.
        precision: The form of the weights of a model that is converted: ``"int4"``, ``"int8"``,
            ``"fp32"`` or, not for CPU, ``"fp16"``; None is ``"int4"``.
        export_options: How else it is converted: ``block_size`` (weights that share a scale, 16 to
            256; by default 128 on CPU, and 32 elsewhere and with k_quant), ``algorithm``
            (``"default"``, ``"rtn"``, ``"rtn_last"``, ``"k_quant"``, ``"k_quant_last"`` or
            ``"k_quant_mixed"``) and ``execution_provider`` (``"cpu"``, ``"cuda"`` or ``"dml"``).
        save_pretrained: Whether to save the model's files. False is for a repository that holds a
            model in ONNX form: its id, commit and the files' hashes are saved, and loading fetches
            and compares them; see :func:`persist_pretrained_model`.
        adapters: LoRA adapters that requests may choose, by name (letters, digits, ``.``, ``_`` and
            ``-``): each the path of an ``.onnx_adapter`` file, or of a PEFT folder, which is
            converted. The graph must have inputs for them, as Olive makes them.
        task: ``"llm/v1/chat"`` (messages in, OpenAI's chat objects out), ``"llm/v1/completions"``
            (a prompt in, OpenAI's completion objects out) or ``"text-generation"`` (a prompt in,
            text out).
        model_config: Defaults of generation parameters and runtime settings, as a mapping or the
            path of a YAML file. Every key can be given again when the model is loaded.
        conda_env: A conda environment, as a mapping or the path of a YAML file.
        code_paths: Files and folders of code to save along; once the model is loaded they can be
            imported.
        mlflow_model: The MLflow model that the flavor is added to.
        signature: A signature to use instead of the task's, or False for none. It must have the
            task's input, and ask for nothing that the task has not. ``"plain"`` has one column of
            text, and text for the output: ``messages`` are then JSON text, and parameters come in
            ``params``.
        input_example: An input to save along, instead of the task's own, or False for none. It is
            checked as a request to MLflow's server is; the model is not run with it. None is saved
            where a signature of the caller's asks for more than the task's own has.
        pip_requirements: Requirements, or the path of a file of them, instead of the default.
        extra_pip_requirements: Requirements to add to the default.
        metadata: Saved in the MLmodel file. Its ``task`` must be the model's, if it has one.
        extra_files: Files to save along, as paths or URIs.

    Raises:
        SourceError: If there is no such source, it cannot be read, or it holds several models.
        InvalidModelError: If the model is not whole, or an adapter is not, or does not fit it.
        DependencyError: If it must be converted, and the ``export`` extra is not installed.
        ConversionError: If it cannot be converted.
        InvalidRequestError: If another argument is not what it may be.
        mlflow.exceptions.MlflowException: If path exists and is not empty.
    """
    given = locals()
    target = check_target(path)
    with prepare(given) as prepared:
        prepared.write(target, mlflow_model or Model(), link=False)


@tells_former_names
def log_model(  # noqa: D417 - save_model's arguments share one entry
    model: Any,
    artifact_path: str | None = None,
    *,
    name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    precision: Precision | None = None,
    export_options: Mapping[str, Any] | None = None,
    save_pretrained: bool = True,
    adapters: Mapping[str, str | Path] | None = None,
    task: Task = CHAT,
    model_config: Mapping[str, Any] | str | Path | None = None,
    conda_env: Mapping[str, Any] | str | None = None,
    code_paths: list[str] | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | Literal["plain", False] | None = None,
    input_example: Any = None,
    await_registration_for: int | None = mlflow_compat.DEFAULT_AWAIT_MAX_SLEEP_SECONDS,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    extra_files: list[str] | None = None,
    prompts: list[str | PromptVersion] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
    run_id: str | None = None,
    resources: str | list[Resource] | None = None,
    auth_policy: AuthPolicy | None = None,
    validate_serving_input: bool = False,
) -> ModelInfo:
    """Log a model to MLflow.

    The model is checked but not loaded, and its weights are copied once, into the artifact store.
    One of PyTorch's is converted first, in a temporary folder. Where it came from another MLflow
    model, tags link the two, on both sides.

    Args:
        model: What to log; see :func:`save_model`, as for ``subfolder``, ``revision``,
            ``tokenizer``, ``precision``, ``export_options``, ``save_pretrained``, ``adapters``,
            ``task``, ``conda_env``, ``code_paths``, ``signature``, ``input_example``,
            ``pip_requirements``, ``extra_pip_requirements``, ``metadata`` and ``extra_files``.
        artifact_path: Deprecated by MLflow; use ``name``.
        name: The logged model's name.
        model_config: See :func:`save_model`. It is also logged as parameters of the run, and of
            the logged model, beside what the model is: ``model_type``, ``parameters``,
            ``precision``, ``block_size``, ``context_length``, ``vocab_size``,
            ``execution_providers`` and ``task``.
        registered_model_name: Registers a version of the model under this name.
        await_registration_for: Seconds to wait until a registered version is ready; 0 or None
            does not wait.
        prompts: Registered prompts that the model uses, as URIs or objects.
        params: Parameters to log with the model.
        tags: Tags of the logged model.
        model_type: A type to file the model under.
        step: The step of the run at which the model is logged.
        model_id: The logged model to write to, instead of a new one.
        run_id: The run to log under, instead of the active one.
        resources: Databricks resources that the model needs.
        auth_policy: Databricks' authentication policy, instead of ``resources``.
        validate_serving_input: Whether to load the model and run ``input_example`` as a server
            would. It takes the time and memory that loading takes, and one more copy on the disk.

    Returns:
        What was logged; its ``model_uri`` loads it.

    Raises:
        GenAIError: As :func:`save_model` does, but for ``path``.
    """
    given = locals()
    check_entry(given)
    with prepare(given) as prepared:
        origin = prepared.source.origin
        params, tags = page_of(prepared, params, tags)
        info = Model.log(
            artifact_path=artifact_path,
            name=name,
            flavor=prepared,
            flavor_name=FLAVOR_NAME,
            model_config=prepared.config,
            validate_serving_input=validate_serving_input,
            registered_model_name=registered_model_name,
            await_registration_for=await_registration_for or 0,
            run_id=run_id,
            resources=resources,
            auth_policy=auth_policy,
            prompts=prompts,
            params=params,
            tags=tags,
            model_type=model_type,
            step=step,
            model_id=model_id,
        )
    uri, version = info.model_uri, info.registered_model_version
    if registered_model_name is not None and version is not None:
        uri = f"models:/{registered_model_name}/{version}"
        description = str(tags[mlflow_compat.DESCRIPTION_TAG])
        mlflow_models.describe_version(registered_model_name, version, description)
    mlflow_models.link_back(origin, uri)
    return info


@tells_former_names
def load_model(
    model_uri: str | Path,
    dst_path: str | None = None,
    *,
    model_config: Mapping[str, Any] | None = None,
    execution_provider: str | None = None,
    verify: Verify | None = None,
) -> GenAIModel:
    """Load a model as this package's own object.

    Code that was saved with it (``code_paths``) can be imported afterwards; none of it is run.

    Args:
        model_uri: Where it is: a local path, ``models:/``, ``runs:/`` or any URI that MLflow
            reads.
        dst_path: A local folder to download it to; it must exist.
        model_config: Values that replace those of the saved ``model_config``, by key.
        execution_provider: What computes it: ``"cpu"``, ``"cuda"``, ``"dml"``, ... Of a model with
            variants it chooses one; None takes the first that this machine can run.
        verify: How its files are checked before they are read: ``"size"`` (and the hashes of small
            ones), ``"hash"`` or ``"off"``. None is ``"size"``, or ``"hash"`` where the weights are
            in a repository.

    Raises:
        InvalidModelError: If a file is not as it was saved, or the model cannot be loaded.
        InvalidRequestError: If an argument is not what it may be.
        SourceError: If its files are in a repository and cannot be fetched.
        mlflow.exceptions.MlflowException: If there is no model, or it has not this flavor.
    """
    given = {"execution_provider": execution_provider, "verify": verify}
    own = read(RUNTIME_SETTINGS, given, "a runtime setting", shown=True)
    config = check_mapping(model_config, "model_config")
    if foreign := sorted(config.keys() & PYFUNC_SETTINGS.keys()):
        raise InvalidRequestError(
            f"model_config: {foreign[0]} is {OF_SAVED_MODELS[foreign[0]]}. Leave it out.",
            param=foreign[0],
        )
    local = download(model_uri, dst_path, param="model_uri")
    model = read_artifact(local, {**config, **own}).open().model
    _add_code(local / CODE)
    return model


def persist_pretrained_model(model_uri: str | Path) -> None:
    """Bring the files of a model that was saved with ``save_pretrained=False`` into its artifact.

    They are fetched from the repository, compared with the hashes that were saved, and uploaded;
    the MLmodel file is replaced last, so that the model can be loaded at any moment. Does nothing
    where they are there already.

    Args:
        model_uri: Where the model is: a local path, or a URI of MLflow's that can be written to.

    Raises:
        InvalidModelError: If a file is not the one that was saved.
        InvalidRequestError: If what is there cannot be changed, as a registered version.
        SourceError: If the files cannot be fetched.
        mlflow.exceptions.MlflowException: If there is no such model, or it has not this flavor.
    """
    root, name = mlflow_compat.get_root_uri_and_artifact_path(str(model_uri))
    store = mlflow_compat.get_artifact_repository(root)
    with tempfile.TemporaryDirectory() as work:
        local = download(model_uri, work, param="model_uri")
        saved = read_saved(local)
        if not saved.by_reference:
            return
        folder = checked_files(saved, "hash")
        files = {file: folder / file for file in saved.files}
        staged = Path(work) / "staged"
        stage(files, staged, link=True, outside=staged)
        _upload(store, staged, posixpath.join(name, DATA))
        model = Model.load(str(local))
        for flavor in (FLAVOR_NAME, "python_function"):
            model.flavors[flavor]["data"] = DATA
        del model.flavors[FLAVOR_NAME]["reference"]
        sizes = (facts["size"] for facts in saved.files.values())
        model.model_size_bytes = (model.model_size_bytes or 0) + sum(sizes)
        target = local / MLMODEL_FILE
        model.save(str(target))
        store.log_artifact(str(target), name)


def _add_code(folder: Path) -> None:
    """Let a model's own code be imported, where nothing that is installed has the same name."""
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))


def _upload(store: ArtifactRepository, folder: Path, name: str) -> None:
    try:
        store.log_artifacts(str(folder), name)
    except ValueError as error:  # as MLflow refuses models:/<name>/<version>
        raise InvalidRequestError(
            "A registered version cannot be changed. Give the logged model that it was registered"
            " from, models:/m-..., and register that again.",
            param="model_uri",
        ) from error
