"""What a model is: plain data for its MLmodel file, and a sentence for people."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.prompt.template.files import read_templates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.artifact.bundle import Bundle

__all__ = ["describe", "facts_of"]


def facts_of(bundle: Bundle) -> dict[str, Any]:
    """Return what a reader of the MLmodel file needs to know of a model.

    The count of parameters is that of the graph's weights: a matrix that two layers share and the
    graph holds twice counts twice.
    """
    model = bundle.model
    facts: dict[str, Any] = {
        "model_type": model.model_type,
        "parameters": model.graph.parameters,
        "precision": model.graph.precision,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
        "execution_providers": list(dict.fromkeys(v.provider for v in bundle.variants)),
        "chat_template_sha256": _template_hash(bundle),
    }
    if bundle.has_variants:
        facts["variants"] = bundle.facts_of_variants()
    return facts


def describe(facts: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Say in a sentence what a model is and where it came from."""
    source = origin.get("uri") or origin.get("repo_id")
    came = f" From {source}." if source else ""
    if source and "revision" in origin:
        came = f" From {source} at {origin['revision']}."
    billions = facts["parameters"] / 1e9
    size = f"{billions:.1f} B" if billions >= 1 else f"{facts['parameters'] / 1e6:.1f} M"
    return (
        f"{facts['model_type']} for ONNX Runtime GenAI: {size} parameters, {facts['precision']},"
        f" context of {facts['context_length']:,} tokens, for"
        f" {' and '.join(facts['execution_providers'])}.{came}"
    )


def _template_hash(bundle: Bundle) -> str | None:
    texts = read_templates(bundle.model.tokenizer_path)
    if not texts:
        return None
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(f"{name}\0{texts[name]}\0".encode())
    return digest.hexdigest()
