"""The signature of each task: what MLflow is told of a request and of its response.

MLflow drops what an input schema has not, before this package can refuse it, and takes one form of
an input for another to make it fit. A prompt may come in so many forms that the tasks with one have
no input schema: this package checks what came. Chat has one, because MLflow would take a request
for a table otherwise.

A chat's parameters are ``AnyType`` columns, for MLflow takes no ``5`` for a double, no missing
value for a long, and no string ``stop``. Its errors quote the whole input; ours name the field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow.models import ModelSignature
from mlflow.types.schema import (
    AnyType,
    Array,
    ColSpec,
    DataType,
    Object,
    ParamSchema,
    ParamSpec,
    Property,
    Schema,
)

from mlflow_phi3_onnx.core.tasks import CHAT, TEXT, Task
from mlflow_phi3_onnx.model.settings import PYFUNC_SETTINGS
from mlflow_phi3_onnx.openai.parameters import PARAMETERS
from mlflow_phi3_onnx.openai.parse import INPUT_FIELDS

if TYPE_CHECKING:
    from mlflow_phi3_onnx.core.checks import PlainType
    from mlflow_phi3_onnx.core.options import Option

__all__ = ["packs_objects", "plain_signature", "signature"]

_OF_THE_PLATFORM = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key"}
"""What is for OpenAI's platform alone: it does nothing here, whatever it says."""

_PARAM_TYPES: dict[PlainType, DataType] = {
    "number": DataType.double,  # for MLflow takes no 5.0 for a long
    "true or false": DataType.boolean,
    "text": DataType.string,
    "list of texts": DataType.string,
    "list of integers": DataType.long,
}


def signature(task: Task, output: str = "openai") -> ModelSignature:
    """Build a task's signature.

    Args:
        task: The task.
        output: What a pyfunc answers with: ``openai``, ``text`` or ``json``.
    """
    inputs = None
    if task == CHAT:
        named = [ColSpec(AnyType(), row.name, required=False) for row in _columns(task)]
        inputs = Schema([ColSpec(Array(AnyType()), INPUT_FIELDS[task]), *named])
    outputs = Schema([ColSpec(DataType.string)])
    if task != TEXT and output == "openai":
        outputs = _response(task)
    return ModelSignature(inputs=inputs, outputs=outputs, params=_params(task))


def plain_signature(task: Task) -> ModelSignature:
    """Build a signature of nothing but plain columns, for programs that know no others.

    The prompt, or the messages as JSON text, is its one input, and text its output.
    """
    inputs = Schema([ColSpec(DataType.string, INPUT_FIELDS[task])])
    outputs = Schema([ColSpec(DataType.string)])
    return ModelSignature(inputs=inputs, outputs=outputs, params=_params(task))


def packs_objects(signature: ModelSignature | None) -> bool:
    """Tell whether MLflow makes a data frame of one row of an object: with a schema of columns."""
    inputs = signature and signature.inputs
    return inputs is not None and not inputs.is_tensor_spec()


def _columns(task: Task) -> list[Option]:
    """List the parameters that MLflow is to pass on: those to refuse too, at the end."""
    rows = [row for name, row in PARAMETERS[task].items() if name not in _OF_THE_PLATFORM]
    return sorted(rows, key=lambda row: row.status != "honoured")


def _params(task: Task) -> ParamSchema:
    return ParamSchema(
        [
            ParamSpec(row.name, _PARAM_TYPES[kind], [] if many else None, (-1,) if many else None)
            for row in (*_columns(task), *PYFUNC_SETTINGS.values())
            if (kind := row.check.type) is not None
            for many in [kind.startswith("list")]
        ]
    )


def _response(task: Task) -> Schema:
    text, integer = DataType.string, DataType.long
    completion = {"message": _object(role=text, content=text)} if task == CHAT else {"text": text}
    columns = {
        "id": text,
        "object": text,
        "created": integer,
        "model": text,
        "choices": Array(_object(index=integer, **completion, finish_reason=text)),
        "usage": _object(prompt_tokens=integer, completion_tokens=integer, total_tokens=integer),
    }
    return Schema([ColSpec(kind, name) for name, kind in columns.items()])


def _object(**properties: Any) -> Object:
    return Object([Property(name, kind) for name, kind in properties.items()])
