"""Calls in tags with names inside: Qwen3-Coder, Qwen3.5 and after, Nemotron 3, Step 3.5."""

from __future__ import annotations

from mlflow_phi3_onnx.openai.tools.formats.tagged_calls import TaggedCalls

__all__ = ["FORMAT"]

FORMAT = TaggedCalls(
    name="qwen3_coder",
    begin="<tool_call>",
    end="</tool_call>",
    begins=("<function=",),  # models forget the mark
    one=r'{begin} "\n" call {end}',
    several=r'{begin} "\n" call {end} ("\n" {begin} "\n" call {end})*',
    head="<function=",
    named=(">\n", ">"),
    key="<parameter=",
    keyed=">",
    valued="</parameter>",
    call_end="</function>",
    gap="\n",
    needs=("<function=", "<parameter="),
)
