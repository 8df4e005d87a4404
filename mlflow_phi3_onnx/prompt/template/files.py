"""Finds a model folder's chat template and special tokens, where transformers finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.bounds import MAX_LISTING_BYTES, MAX_TEMPLATE_BYTES
from mlflow_phi3_onnx.core.files import read_json_object, read_text
from mlflow_phi3_onnx.errors import InvalidModelError
from mlflow_phi3_onnx.prompt.template.chat_template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["load_template", "read_templates"]

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"

_SPECIAL_TOKENS = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
    "mask_token",
)


def load_template(path: Path) -> ChatTemplate | None:
    """Read a model folder's chat template.

    ``chat_template.jinja`` and the files in ``additional_chat_templates`` replace ``chat_template``
    of ``tokenizer_config.json``, which is a text, or named texts in a list or an object. Of named
    ones, ``tool_use`` is for requests with tools, and ``default`` for all others.

    Args:
        path: The model folder.

    Returns:
        The template, or None where the folder has none.

    Raises:
        InvalidModelError: If a file or a field is not what it must be.
    """
    config = _read_listing(path / CONFIG_FILE)
    named = _named_templates(path, config)
    if not named:
        return None
    tool_source = named.get("tool_use")
    source = named.get("default", tool_source)
    if source is None:
        raise InvalidModelError(
            f"The model folder has chat templates named {', '.join(sorted(named))}, but none that"
            " is named default."
        )
    return ChatTemplate(source, _special_tokens(path, config), tool_source=tool_source)


def read_templates(path: Path) -> dict[str, str]:
    """Return the texts of a model folder's chat templates by name, none where it has none.

    Raises:
        InvalidModelError: If a file or a field is not what it must be.
    """
    return _named_templates(path, _read_listing(path / CONFIG_FILE))


def _read_listing(file: Path) -> dict[str, Any]:
    return read_json_object(file, infinite=True, most=MAX_LISTING_BYTES)


def _named_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    files = {"default": path / TEMPLATE_FILE} if (path / TEMPLATE_FILE).is_file() else {}
    files |= {file.stem: file for file in (path / TEMPLATE_FOLDER).glob("[!.]*.jinja")}
    if files:
        return {name: read_text(file, MAX_TEMPLATE_BYTES) for name, file in files.items()}
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        value = [{"name": name, "template": text} for name, text in value.items()]
    if not isinstance(value, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get(key), str)
        for entry in value
        for key in ("name", "template")
    ):
        raise InvalidModelError(
            f"{CONFIG_FILE}: chat_template must be a text, or a list of objects with the texts name"
            " and template."
        )
    named = {entry["name"]: entry["template"] for entry in value}
    if len(named) < len(value):
        raise InvalidModelError(
            f"{CONFIG_FILE}: chat_template has two templates of one name. Leave out one."
        )
    return named


def _special_tokens(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that templates know special tokens by."""
    tokens = _tokens_of(config, CONFIG_FILE)
    file = path / SPECIAL_TOKENS_FILE
    if "added_tokens_decoder" not in config and file.is_file():  # as transformers reads them
        tokens.update(_tokens_of(_read_listing(file), SPECIAL_TOKENS_FILE))
    return tokens


def _tokens_of(values: Mapping[str, Any], file: str) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in _SPECIAL_TOKENS:
        value = values.get(name)
        if isinstance(value, dict):
            value = value.get("content", value)
        if isinstance(value, str):
            tokens[name] = value
        elif value is not None:
            raise InvalidModelError(f"{file}: {name} must be a text, or an object with a content.")
    return tokens
