"""What a model is and needs, told without loading it: for its MLmodel file and for people."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.artifact.bundle import Bundle, Variant, bundle_of_folder
from mlflow_phi3_onnx.artifact.defects import find_defects
from mlflow_phi3_onnx.artifact.saved import MLMODEL_FILE, SavedModel, read_saved
from mlflow_phi3_onnx.engine.options import EngineOptions, ServingPolicy
from mlflow_phi3_onnx.flavor.load import choose_variant
from mlflow_phi3_onnx.model.reading import reasoning_format_of, tool_format_of
from mlflow_phi3_onnx.model.start import start_engine, why_not_slots
from mlflow_phi3_onnx.prompt.template.files import read_templates
from mlflow_phi3_onnx.prompt.tokenizer import PromptTokenizer
from mlflow_phi3_onnx.runtime.genai import can_run_on, check_config
from mlflow_phi3_onnx.sources.local import checked_files, local_copy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.artifact.manifest import Verify

__all__ = ["describe", "facts_of", "inspect_model", "render"]

_EXAMPLE_TOKENS = 1000
_NO_REASONING_FORMAT = "no known form (reasoning_format): if there is any, it stays text"
_NO_TOOL_FORMAT = "no known form (tool_format): they stay text and cannot be required"


def facts_of(bundle: Bundle) -> dict[str, Any]:
    """Return what a reader of the MLmodel file needs to know of a model.

    The count of parameters is that of the graph's weights: a matrix that two layers share and the
    graph holds twice counts twice.
    """
    model = bundle.model
    facts: dict[str, Any] = {
        "model_type": model.model_type,
        "parameters": model.parameters,
        "precision": model.graph.precision,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
        "execution_providers": list(dict.fromkeys(v.provider for v in bundle.variants)),
        "chat_template_sha256": _template_hash(bundle),
    }
    if bundle.has_variants:
        facts["variants"] = bundle.facts_of_variants()
    return facts


def describe(flavor: Mapping[str, Any]) -> str:
    """Say in a sentence what a model is and where it came from.

    Args:
        flavor: The flavor's section of its MLmodel file.
    """
    origin = flavor["source"]
    source = origin.get("uri") or origin.get("repo_id")
    revision = f" at {origin['revision']}" if "revision" in origin else ""
    came = f" From {source}{revision}." if source else ""
    billions = flavor["parameters"] / 1e9
    size = f"{billions:.1f} B" if billions >= 1 else f"{flavor['parameters'] / 1e6:.1f} M"
    return (
        f"{flavor['model_type']} for ONNX Runtime GenAI: {size} parameters, {flavor['precision']},"
        f" context of {flavor['context_length']:,} tokens, for"
        f" {' and '.join(flavor['execution_providers'])}.{came}"
    )


def inspect_model(source: str, *, verify: Verify = "size", load: bool = False) -> dict[str, Any]:
    """Check a model as loading it would, and tell what is in it.

    Args:
        source: The path of a model folder, of a model package or of a saved model, or a
            ``models:/`` or ``runs:/`` URI.
        verify: How closely a saved model's files are checked.
        load: Whether to load the model too, to tell which loop it gets here.

    Returns:
        Plain data: ``kind``, what the model is, ``files`` and ``bytes``, ``memory`` (bytes), its
        ``variants`` and their ``defects``, of a saved model ``source``, ``task`` and ``adapters``,
        and, where it was loaded, ``loaded``.

    Raises:
        SourceNotFoundError: If there is nothing.
        InvalidModelError: If the model is broken.
    """
    expected = "the path of a model folder or a saved model, or a models:/ or runs:/ URI"
    with local_copy(source, expected=expected) as (path, _):
        if not (path / MLMODEL_FILE).is_file():
            return _report(bundle_of_folder(path), {"kind": "model folder"}, {}, load=load)
        saved = read_saved(path)
        folder = checked_files(saved, verify)
        return _report(saved.bundle(folder), _of_saved(saved), saved.config, load=load)


def check_loadable(bundle: Bundle) -> PromptTokenizer:
    """Read what loading a model reads, but for its graph and weights, as loading does.

    Returns:
        Its tokenizer, with its chat template.

    Raises:
        InvalidModelError: If the tokenizer, the template or a configuration cannot be used.
    """
    for variant in bundle.variants:
        check_config(variant.model.path)
    return PromptTokenizer(bundle.model.tokenizer_path)


def _template_hash(bundle: Bundle) -> str | None:
    texts = sorted(read_templates(bundle.model.tokenizer_path).items())
    joined = "".join(f"{name}\0{text}\0" for name, text in texts)
    return hashlib.sha256(joined.encode()).hexdigest() if texts else None


def _of_saved(saved: SavedModel) -> dict[str, Any]:
    return {
        "kind": "saved model",
        "schema_version": saved.schema_version,
        "task": saved.task,
        "source": saved.source,
        "onnxruntime_genai_version": saved.runtime_version or None,
        "by_reference": saved.by_reference,
        "adapters": sorted(saved.adapters),
    }


def _report(
    bundle: Bundle, head: Mapping[str, Any], config: Mapping[str, Any], *, load: bool
) -> dict[str, Any]:
    facts = facts_of(bundle)
    model = bundle.model
    tokenizer = check_loadable(bundle)
    calls = tool_format_of(tokenizer, config.get("tool_format") or "auto")
    reasoning = reasoning_format_of(tokenizer, config.get("reasoning_format") or "auto")
    per_token = model.kv_bytes_per_token
    sizes = {name: path.stat().st_size for name, path in bundle.files.items()}
    loaded = {"loaded": _load(choose_variant(bundle), tokenizer)} if load else {}
    return {
        **head,
        **facts,
        "modalities": model.modalities,
        "decoder_files": model.decoder_files,
        "eos_token_ids": list(model.eos_token_ids),
        "chat_template": facts["chat_template_sha256"] is not None,
        "tool_format": calls.name if calls else None,
        "reasoning_format": reasoning.name if reasoning else None,
        "files": sizes,
        "bytes": sum(sizes.values()),
        "memory": {
            "kv_bytes_per_token": per_token,
            f"kv_bytes_of_{_EXAMPLE_TOKENS}_tokens": _EXAMPLE_TOKENS * per_token,
            "kv_bytes_of_whole_context": model.context_length * per_token,
        },
        "variants": [_of_variant(variant) for variant in bundle.variants],
        **loaded,
    }


def _load(variant: Variant, tokenizer: PromptTokenizer) -> dict[str, Any]:
    """Load a model as a server does, and tell which loop it gets and why."""
    options = EngineOptions(loop="auto")
    engine = start_engine(variant.model, tokenizer.grammars, options, ServingPolicy(), {})
    loop = engine.loop
    engine.close()
    return {"loop": loop.name, "why_not_slots": loop.why, "computes_together": loop.together}


def _of_variant(variant: Variant) -> dict[str, Any]:
    model = variant.model
    return {
        "name": variant.name,
        "execution_provider": variant.provider,
        "known_to_run_here": can_run_on(variant.provider),
        "precision": model.graph.precision,
        "block_sizes": sorted(model.graph.block_sizes),
        "why_not_slots": why_not_slots(model),
        "defects": [
            {"name": defect.name, "effect": defect.effect, "remedy": defect.remedy}
            for defect in find_defects(model)
        ],
    }


def render(report: Mapping[str, Any]) -> str:
    """Write a report for people."""
    memory = report["memory"]
    blocks = sorted({size for v in report["variants"] for size in v["block_sizes"]})
    in_blocks = f" in blocks of {', '.join(map(str, blocks))}" if blocks else ""
    lines = [
        ("context", f"{report['context_length']:,} tokens"),
        ("vocabulary", f"{report['vocab_size']:,} ids"),
        ("modalities", _modalities(report["modalities"])),
        ("decoder", " then ".join(report["decoder_files"])),
        ("ends at", ", ".join(map(str, report["eos_token_ids"]))),
        ("chat template", "yes" if report["chat_template"] else "none: chat is refused"),
        ("tool calls", report["tool_format"] or _NO_TOOL_FORMAT),
        ("reasoning", report["reasoning_format"] or _NO_REASONING_FORMAT),
        ("files", f"{len(report['files'])}, {_size(report['bytes'])}"),
        (
            "KV cache",
            f"{_size(memory['kv_bytes_per_token'])} a token,"
            f" {_size(memory[f'kv_bytes_of_{_EXAMPLE_TOKENS}_tokens'])} for {_EXAMPLE_TOKENS:,}"
            f" tokens, {_size(memory['kv_bytes_of_whole_context'])} for the whole context",
        ),
    ]
    if report["kind"] == "saved model":
        lines += _lines_of_saved(report)
    for variant in report["variants"]:
        lines += _lines_of_variant(variant)
    if loaded := report.get("loaded"):
        why = f" (not slots: {loaded['why_not_slots']})" if loaded["why_not_slots"] else ""
        alone = "" if loaded["computes_together"] else ", one request at a time"
        lines.append(("loop='auto' here", f"{loaded['loop']}{why}{alone}"))
    head = (
        f"{report['kind']}: {report['model_type']}, {report['parameters']:,} parameters,"
        f" {report['precision']}{in_blocks}"
    )
    return "\n".join([head, *(f"{label:<16} {text}" for label, text in lines)])


def _lines_of_saved(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    source = report["source"]
    place = source.get("uri") or source.get("repo_id") or source.get("kind", "unknown")
    revision = f" at {source['revision']}" if "revision" in source else ""
    where = ", its files are in the repository" if report["by_reference"] else ""
    runtime = f"onnxruntime-genai {report['onnxruntime_genai_version']}"
    lines = [
        ("task", report["task"]),
        ("source", f"{place}{revision}{where}"),
        ("saved with", f"{runtime}, layout {report['schema_version']}"),
    ]
    if report["adapters"]:
        lines.append(("adapters", ", ".join(report["adapters"])))
    return lines


def _lines_of_variant(variant: Mapping[str, Any]) -> list[tuple[str, str]]:
    name = f"variant {variant['name']}" if variant["name"] else "runs on"
    here = "" if variant["known_to_run_here"] else " (not known to be on this machine)"
    reason = variant["why_not_slots"]
    return [
        (name, f"{variant['execution_provider']}{here}, {variant['precision']}"),
        ("loops", f"genai; not slots, because {reason}" if reason else "genai and slots"),
        *(
            ("defect", f"{defect['name']}: {defect['effect']} {defect['remedy']}")
            for defect in variant["defects"]
        ),
    ]


def _modalities(names: list[str]) -> str:
    others = " and ".join(names[1:])
    return f"text; {others} cannot be given yet" if others else "text"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
