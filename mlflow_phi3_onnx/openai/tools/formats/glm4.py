"""GLM's calls, from 4.5 on: a name, and tags around keys and values."""

from __future__ import annotations

from mlflow_phi3_onnx.openai.tools.formats.tagged_calls import TaggedCalls

__all__ = ["FORMAT"]

FORMAT = TaggedCalls(
    name="glm4",
    begin="<tool_call>",
    end="</tool_call>",
    one="{begin} call {end}",
    several=r'{begin} call {end} ("\n" {begin} call {end})*',
    named=("\n", "<"),
    key="<arg_key>",
    keyed="</arg_key>",
    value="<arg_value>",
    valued="</arg_value>",
    tight="<tool_call>{function-name}<arg_key>",  # 4.7 and after
    needs=("<arg_key>",),
)
