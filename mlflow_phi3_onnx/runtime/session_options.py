"""Which options of ONNX Runtime a model or a caller may set.

ONNX Runtime takes options as an open set, and some of them write files, load libraries or read
other folders. So what is not listed here is refused, wherever it comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["MAX_THREADS", "refused_provider_options", "refused_session_options"]

MAX_THREADS = 1024
_LONGEST = 1024

_FLAGS = frozenset(
    {
        "disable_cpu_ep_fallback",
        "disable_quant_qdq",
        "enable_cpu_mem_arena",
        "enable_mem_pattern",
        "enable_quant_qdq_cleanup",
        "use_env_allocators",
    }
)
_NUMBERS = {
    "inter_op_num_threads": MAX_THREADS,
    "intra_op_num_threads": MAX_THREADS,
    "log_severity_level": 4,
    "log_verbosity_level": 10,
}
_TEXTS = frozenset(
    {
        "graph_optimization_level",
        "log_id",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "optimization.enable_gelu_approximation",
        "session.disable_cpu_ep_fallback",
        "session.disable_prepacking",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.graph_optimizations_loop_level",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
        "session.use_env_allocators",
    }
)

_PROVIDER_OPTIONS = frozenset(
    {
        "arena_extend_strategy",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "device_filter",
        "device_id",
        "device_type",
        "do_copy_in_default_stream",
        "enable_causallm",
        "enable_cuda_graph",
        "enable_dynamic_shapes",
        "enable_graph_capture",
        "enable_graph_serialization",
        "enable_htp_fp16_precision",
        "enable_htp_shared_memory_allocator",
        "enable_skip_layer_norm_strict_mode",
        "gpu_mem_limit",
        "htp_graph_finalization_optimization_mode",
        "htp_performance_mode",
        "num_of_threads",
        "num_streams",
        "performance_preference",
        "precision",
        "prefer_nhwc",
        "qnn_context_priority",
        "soc_model",
        "sdpa_kernel",
        "tunable_op_enable",
        "tunable_op_tuning_enable",
        "use_tf32",
        "vtcm_mb",
    }
)
_LIBRARIES = frozenset(
    f"{before}Qnn{kind}{after}"
    for before, after in (("", ".dll"), ("lib", ".so"))
    for kind in ("Cpu", "Gpu", "Htp")
)
"""Values of QNN's ``backend_path``: the libraries that come with the execution provider."""


def refused_session_options(options: Mapping[str, Any]) -> Iterator[str]:
    """List the session options that may not be set, or not to this value, by name.

    ``provider_options`` among them are another matter: see :func:`refused_provider_options`.
    """
    for name, value in options.items():
        if name in _FLAGS:
            allowed = isinstance(value, bool)
        elif name in _NUMBERS:
            number = isinstance(value, int) and not isinstance(value, bool)
            allowed = number and 0 <= value <= _NUMBERS[name]
        elif name in _TEXTS:
            allowed = _is_short(value)
        else:
            allowed = name == "provider_options"
        if not allowed:
            yield str(name)


def refused_provider_options(options: Mapping[str, Any]) -> Iterator[str]:
    """List the options of an execution provider that may not be set, or not to this value."""
    for name, value in options.items():
        library = name == "backend_path" and isinstance(value, str) and value in _LIBRARIES
        if not (library or (name in _PROVIDER_OPTIONS and _is_short(value))):
            yield str(name)


def _is_short(value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return True
    return isinstance(value, str) and len(value) <= _LONGEST and "/" not in value
