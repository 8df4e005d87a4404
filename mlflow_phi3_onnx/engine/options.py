"""What may be chosen of an engine: by who loads the model, and by the server around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.artifact.folder import ModelFolder

__all__ = ["EngineOptions", "Isolation", "LoopName", "ServingPolicy"]

LoopName: TypeAlias = Literal["auto", "genai", "slots"]
Isolation: TypeAlias = Literal["inline", "worker", "shared"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is run: each field is a setting of ``model_config``, whose table describes it.

    None leaves a value to the serving policy, the folder or the machine.
    """

    loop: LoopName | None = None
    isolation: Isolation | None = None
    prefix_cache: bool = True
    intra_op_num_threads: int | None = None
    max_batch_size: int = 16
    kv_cache_memory: int | None = None
    execution_provider: str | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict[str, str])
    session_options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def provider(self, folder: ModelFolder) -> str:
        """Return the execution provider that computes a model."""
        return self.execution_provider or folder.providers[0]


@dataclass(frozen=True, kw_only=True)
class ServingPolicy:
    """What the program around a model needs of its engine.

    Attributes:
        default_loop: The loop, where no setting says.
        default_isolation: The process that the engine runs in, where no setting says.
        may_hold_gil: Whether the interpreter's lock may be held for as long as the prompts of a
            batch take. A server has other requests to take in the meantime.
        request_deadline: Seconds after which a completion is given up, whatever the request asks
            for; None leaves that to the requests.
        processes: How many processes share this machine's processors and memory, each with a model.
        models: How many models the program has, among which the memory is shared out; each may use
            all processors.
        niceness: How far an engine in a process of its own stands back, where others want the
            processor too; as ``os.nice`` has it.
    """

    default_loop: LoopName = "genai"
    default_isolation: Isolation = "inline"
    may_hold_gil: bool = True
    request_deadline: float | None = None
    processes: int = 1
    models: int = 1
    niceness: int = 0
