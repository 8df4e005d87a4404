"""The loop that users of onnxruntime-genai write by hand: the reference for greedy text."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

og: Any = importlib.import_module("onnxruntime_genai")  # a compiled module, without types


class RawLoop:
    def __init__(self, folder: Path, overlay: dict[str, Any] | None = None) -> None:
        config = og.Config(str(folder))
        config.overlay(json.dumps(overlay or {}))
        self.model = og.Model(config)
        self.tokenizer = og.Tokenizer(self.model)

    def tokens(self, prompt: str, max_tokens: int) -> list[int]:
        return self.continued(self.tokenizer.encode(prompt).tolist(), max_tokens)

    def continued(self, ids: list[int], max_tokens: int) -> list[int]:
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=len(ids) + max_tokens, do_sample=False)
        generator = og.Generator(self.model, params)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return generator.get_sequence(0)[len(ids) :].tolist()

    def __call__(self, prompt: str, max_tokens: int) -> str:
        stream = self.tokenizer.create_stream()
        return "".join(stream.decode(token) for token in self.tokens(prompt, max_tokens))

    def render(self, messages: list[dict[str, Any]]) -> str:
        return self.tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
