"""Whether a signature and an input example fit a task, told before anything is saved."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, convert_input_example_to_serving_input
from mlflow.types.schema import AnyType, Array, DataType, Map, Object

from mlflow_phi3_onnx import mlflow_compat
from mlflow_phi3_onnx.core.checks import describe_kind, is_one
from mlflow_phi3_onnx.core.options import check_mapping, find, read
from mlflow_phi3_onnx.core.tasks import ALL_TASKS, CHAT, COMPLETIONS, TEXT, Task
from mlflow_phi3_onnx.errors import (
    ContextLengthError,
    GenAIError,
    InvalidRequestError,
    UnsupportedParameterError,
)
from mlflow_phi3_onnx.flavor.output import Answering, read_pyfunc_settings
from mlflow_phi3_onnx.flavor.rows import clean_params, rows
from mlflow_phi3_onnx.flavor.signatures import packs_objects, plain_signature
from mlflow_phi3_onnx.flavor.signatures import signature as task_signature
from mlflow_phi3_onnx.model.settings import PYFUNC_SETTINGS
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS, parse_request
from mlflow_phi3_onnx.openai.prompts import FORMS, MESSAGES, PROMPT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mlflow.types.schema import ColSpec

    from mlflow_phi3_onnx.model.planning import Planner
    from mlflow_phi3_onnx.model.settings import Settings

__all__ = ["answered_example", "checked_example", "checked_signature", "with_output"]

PLAIN = "plain"

# Messages may be JSON text, and an object may hold a list with one prompt for each row.
_FORMS: Mapping[Task, tuple[Mapping[str, Any], str]] = {
    CHAT: (
        {"anyOf": [{"type": "string"}, MESSAGES]},
        "a list of objects with role and content, or a string",
    ),
    COMPLETIONS: (PROMPT, FORMS),
    TEXT: ({"anyOf": PROMPT["anyOf"][:2]}, "a string, or a list of strings"),
}
"""What the prompt may be in MLflow's data, by task: as a JSON schema and in words."""

_NUMBERS = {"integer", "number"}
_IN_JSON = {
    DataType.string: {"string"},
    DataType.boolean: {"boolean"},
    **dict.fromkeys((DataType.integer, DataType.long, DataType.float, DataType.double), _NUMBERS),
}

_QUESTION = "What is the capital of Spain?"


def with_output(config: dict[str, Any], given: Any, task: Task) -> dict[str, Any]:
    """Return the configuration to save: that of a plain signature answers with text.

    Args:
        config: The configuration.
        given: The signature that was given.
        task: The task.

    Raises:
        InvalidRequestError: If it is to answer with objects all the same.
    """
    if not is_one(given, PLAIN) or task == TEXT:
        return config
    if config.get("output") == "openai":
        raise InvalidRequestError(
            "model_config: output is openai, but a plain signature has text for its output. Give"
            " text or json, or leave output out.",
            param="output",
        )
    return {"output": "text", **config}


def checked_signature(given: Any, task: Task, settings: Settings) -> ModelSignature | None:
    """Return the signature to save: the caller's, or the task's own.

    Args:
        given: A signature, ``"plain"``, None for the task's own, or False for none.
        task: The task.
        settings: The checked configuration of the model.

    Raises:
        InvalidRequestError: If it is none of these, or has not the task's input.
    """
    if given is False:
        return None
    if given is None:
        return task_signature(task, Answering.chosen(settings.pyfunc).output)
    if is_one(given, PLAIN):
        return plain_signature(task)
    if not isinstance(given, ModelSignature):
        raise InvalidRequestError(
            f"signature must be a ModelSignature, {PLAIN!r}, None for the task's own, or False for"
            f" none; got {describe_kind(given)}.",
            param="signature",
        )
    if given.inputs is not None and not _has_input(given, task):
        fitting = [other for other in ALL_TASKS if _has_input(given, other)]
        named = given.inputs.has_input_names()
        names = ", ".join(map(str, given.inputs.input_names())) if named else "they have no names"
        raise InvalidRequestError(
            f"signature: {task} reads {INPUT_FIELDS[task]}, which is none of the inputs: {names}."
            f"{_advice(fitting)} Leave signature out for the task's own.",
            param="signature",
        )
    _check_what_always_comes(given, task)
    return given


def checked_example(
    given: Any,
    task: Task,
    settings: Settings,
    adapters: Collection[str],
    signature: ModelSignature | None,
) -> Any:
    """Return the input example to save: the caller's, or one of the task's own.

    Args:
        given: An example, or one with ``params`` as a tuple; None for the task's own, or False for
            none.
        task: The task.
        settings: The checked configuration of the model.
        adapters: The names of its adapters.
        signature: The signature to save.

    Returns:
        The example. Of the task's own, the first that fits the signature; None where none does.

    Raises:
        InvalidRequestError: If the model would refuse it, or MLflow's server.
    """
    if given is False:
        return None

    packed = packs_objects(signature)

    def parse(data: Any, params: Any, task: Task, config: Mapping[str, Any]) -> None:
        for row, beside in _requests(data, params, task, packed=packed):
            parse_request(row, task, params=beside, config=config, adapters=adapters)

    def refusal(example: Any) -> str | None:
        """Say why MLflow's server, or the model behind it, would refuse an example."""
        try:
            parse(*_as_served(example, signature), task, settings.generation)
        except (GenAIError, MlflowException, TypeError) as error:
            return str(error).rpartition("Error: ")[2]  # before it, MLflow quotes the input
        return None

    plain = signature == plain_signature(task)
    if given is None:
        examples = _own_examples(task)
        examples = [_plain_frame(examples[0], task)] if plain else examples
        return next((own for own in examples if not refusal(own)), None)
    data, params = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    try:
        parse(data, params, task, settings.generation)
    except GenAIError as error:
        fitting: list[str] = []
        for other in ALL_TASKS:
            try:
                parse(data, params, other, {})
            except GenAIError:
                continue
            fitting.append(other)
        raise type(error)(
            f"input_example: {error.message}{_advice(fitting)}", param="input_example"
        ) from error
    if not plain and (why := refusal(given)):
        raise InvalidRequestError(
            f"input_example: MLflow's server would refuse it, with this signature. {why}",
            param="input_example",
        )
    if not plain:
        return given
    frame = _plain_frame(data, task)
    return frame if params is None else (frame, params)


def answered_example(
    example: Any,
    task: Task,
    settings: Settings,
    signature: ModelSignature | None,
    planner: Planner,
    *,
    own: bool,
) -> Any:
    """Return the input example to save, once the model is there: a checked one that it can answer.

    Args:
        example: The example, or None for none.
        task: The task.
        settings: The checked configuration of the model.
        signature: The signature to save.
        planner: Plans the model's requests.
        own: Whether the example is the task's own, which is left out where it does not fit.

    Raises:
        GenAIError: If the model would refuse it, or every request with its configuration.
    """
    try:
        planner.check(task, _own_examples(task)[0], {})
    except GenAIError as error:
        if error.param in settings.generation and not isinstance(error, ContextLengthError):
            raise type(error)(f"model_config: {error.message}", param=error.param) from error
    if example is None:
        return None
    try:
        served = _as_served(example, signature)
        for row, beside in _requests(*served, task, packed=packs_objects(signature)):
            planner.check(task, row, beside)
    except GenAIError as error:
        if own:
            return None
        raise type(error)(f"input_example: {error.message}", param="input_example") from error
    return example


def _requests(
    data: Any, params: Any, task: Task, *, packed: bool
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the requests of an input: the fields of each, and the parameters beside it."""
    beside = clean_params(check_mapping(params, "params"))
    read_pyfunc_settings(beside)
    return [(row, beside) for row in rows(data, task, packed=packed)]


def _plain_frame(data: Any, task: Task) -> pd.DataFrame:
    """Write an example for a plain signature, in the form with which Azure ML's script starts."""
    frame = pd.DataFrame(rows(data, task))
    if task == CHAT:
        frame["messages"] = frame["messages"].map(json.dumps)
    return frame


def _own_examples(task: Task) -> list[Any]:
    """List examples of a task, for signatures that take one form only."""
    if task == CHAT:
        messages = [{"role": "user", "content": _QUESTION}]
        return [{"messages": messages}, {"messages": json.dumps(messages)}]
    return [{"prompt": _QUESTION}, {"prompt": [_QUESTION]}]


def _as_served(example: Any, signature: ModelSignature | None) -> tuple[Any, Any]:
    """Return what predict gets where MLflow's server gets an example: the input and the params."""
    model = Model(signature=signature)
    inputs, params = model.get_input_schema(), model.get_params_schema()
    text = convert_input_example_to_serving_input(example)
    came: Any = mlflow_compat.parse_json_data(text, model, inputs)
    return mlflow_compat.validate_prediction_input(came.data, came.params, inputs, params)


def _check_what_always_comes(given: ModelSignature, task: Task) -> None:
    """Check what every request would have: the required inputs, and the defaults of params.

    Raises:
        InvalidRequestError: If the model would refuse all of them.
    """
    inputs, field = given.inputs, INPUT_FIELDS[task]
    defaults = {spec.name: spec.default for spec in given.params or ()}
    always = list(clean_params(defaults))
    columns: dict[Any, Any] = {}
    if inputs is not None and inputs.has_input_names() and not inputs.is_tensor_spec():
        columns = inputs.input_dict()
        always += [str(name) for name in inputs.required_input_names() if name != field]
        _check_column(columns[field], *_FORMS[task])
    known, what = {**PARAMETERS[task], **PYFUNC_SETTINGS}, f"a parameter of {task}"
    for name in always:
        option = find(known, name, what, "signature")
        if option.status == "refused":
            raise UnsupportedParameterError(
                f"signature: {name} is not supported. {option.about}", param="signature"
            )
        if name in columns:
            _check_column(columns[name], option.check.schema, option.check.allowed)
    read(known, clean_params(defaults), what, "signature")


def _check_column(column: ColSpec, schema: Mapping[str, Any], allowed: str) -> None:
    """Check that a column can hold what a field may be.

    Raises:
        InvalidRequestError: If its type leaves no value that the field may have.
    """
    kind = str(column.type).removeprefix("DataType.")
    if not _can_hold(column.type, schema):
        raise InvalidRequestError(
            f"signature: {column.name} must be {allowed}; got a column of type {kind}. Leave"
            " signature out for the task's own.",
            param="signature",
        )


def _can_hold(kind: Any, schema: Mapping[str, Any]) -> bool:
    """Tell whether a value of one of MLflow's types can match a JSON schema."""
    if "anyOf" in schema:
        return any(_can_hold(kind, one) for one in schema["anyOf"])
    types = schema.get("type")
    if types is None or isinstance(kind, AnyType):
        return True
    allowed = {types} if isinstance(types, str) else set(types)
    if isinstance(kind, Array):
        return "array" in allowed and _can_hold(kind.dtype, schema.get("items", {}))
    if not isinstance(kind, Object | Map):
        return not allowed.isdisjoint(_IN_JSON.get(kind, ()))
    members = schema.get("properties", {})
    held = (
        dict.fromkeys(members, kind.value_type)
        if isinstance(kind, Map)
        else {member.name: member.dtype for member in kind.properties}
    )
    return (
        "object" in allowed
        and held.keys() >= {*schema.get("required", ())}
        and all(_can_hold(held[name], members[name]) for name in held.keys() & members.keys())
    )


def _has_input(signature: ModelSignature, task: Task) -> bool:
    inputs = signature.inputs
    if not inputs.has_input_names():
        plain = not inputs.is_tensor_spec() and inputs.input_types() == [DataType.string]
        return task != CHAT and plain
    return INPUT_FIELDS[task] in inputs.input_names()


def _advice(fitting: list[str]) -> str:
    return f" It fits task={' or '.join(map(repr, fitting))}." if fitting else ""
