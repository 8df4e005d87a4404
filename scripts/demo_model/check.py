"""Checks of an exported demo model, through onnxruntime-genai."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
from cases import CAPITAL, HELPFUL, WEATHER, Skill, skills
from corpus import COUNTRIES, answer
from facts import CHINESE_HELLO, COMEDIAN, EMOJI, LONG_STORY, SHORT_STORY
from rendering import render
from runtime import Runtime, chat_prompt
from tokenizer import BYTES
from tokenizers import Tokenizer

LARGEST = 5_000_000
TRACES = (b"/root", b"/work", b"/tmp", b"/home", b"/Users")


class Row(NamedTuple):
    """One line of the report."""

    name: str
    right: int
    of: int
    needed: float
    wrong: list[str]

    @property
    def passed(self) -> bool:
        """Whether enough was right."""
        return self.right >= self.needed * self.of


def _yes(name: str, problems: list[str]) -> Row:
    """A line on something that is right or not."""
    return Row(name, 0 if problems else 1, 1, 1.0, problems)


def _skill(runtime: Runtime, skill: Skill) -> Row:
    answers = runtime.generate([case.prompt for case in skill.cases])
    texts = [runtime.decode(tokens) for tokens in answers]
    wrong = [
        f"{case.prompt[-160:]!r} -> {text[:160]!r}, wanted {case.wanted[:160]!r}"
        for case, text in zip(skill.cases, texts, strict=True)
        if text != case.wanted
    ]
    return Row(skill.name, len(texts) - len(wrong), len(texts), skill.needed, wrong)


def _sampling(runtime: Runtime) -> Row:
    """Capitals at a temperature of 0.2, three times each."""
    wanted = [answer(country) for country in COUNTRIES] * 3
    prompts = [chat_prompt(f"What is the capital of {country}?") for country in COUNTRIES] * 3
    options = {"do_sample": True, "temperature": 0.2, "top_p": 1.0, "random_seed": 5}
    answers = runtime.generate(prompts, tokens=40, **options)
    wrong = [
        f"{text!r}, wanted {good!r}"
        for text, good in zip(map(runtime.decode, answers), wanted, strict=True)
        if text != good
    ]
    return Row("capitals at temperature 0.2", len(wanted) - len(wrong), len(wanted), 0.99, wrong)


def _batch(runtime: Runtime, prompts: list[str]) -> Row:
    """Prompts of different lengths give together what they give alone."""
    together = runtime.generate(prompts)
    wrong = [
        repr(prompt[-80:])
        for prompt, tokens in zip(prompts, together, strict=True)
        if runtime.generate([prompt]) != [tokens]
    ]
    return Row("in a batch as alone", len(prompts) - len(wrong), len(prompts), 1.0, wrong)


def _tokenizers(runtime: Runtime, folder: Path, prompts: list[str]) -> Row:
    """Both libraries make the same ids of a prompt, with or without newlines after roles."""
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wrong = []
    for prompt in prompts:
        wanted = reference.encode(prompt, add_special_tokens=False).ids
        if wanted != runtime.encode(prompt) or wanted != runtime.encode(
            prompt.replace("|>\n", "|>")
        ):
            wrong.append(repr(prompt[-80:]))
    return Row("tokenizers agree", len(prompts) - len(wrong), len(prompts), 1.0, wrong)


def _templates(runtime: Runtime) -> Row:
    """Jinja and the runtime make the same prompt of a talk."""
    user = {"role": "user", "content": "What is the weather in Paris?"}
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    }
    called = {**call, "tool_calls": [{"name": "get_time", "arguments": {"city": "Zürich"}}]}
    bare = {key: value for key, value in call.items() if key != "content"}
    result = {"role": "tool", "content": '{"temperature": 21}', "tool_call_id": "call_1"}
    system = {"role": "system", "content": HELPFUL}
    talks = [
        ([user], None),
        ([system, user], None),
        ([system, user, {"role": "assistant", "content": "Warm ☀."}, user], None),
        ([user], [WEATHER]),
        ([system, user], [WEATHER, CAPITAL]),
        ([system, user, call, result], [WEATHER]),
        ([user, called, result], [WEATHER]),
        ([user, bare, result], [WEATHER]),
        ([{**user, "content": "  two spaces\n\nand lines \n"}], None),
    ]
    pairs = [
        (render(talk, tools, add_generation_prompt=True), runtime.template(talk, tools))
        for talk, tools in talks
    ]
    wrong = [f"{ours!r} but {theirs!r}" for ours, theirs in pairs if ours != theirs]
    return Row("templates agree", len(pairs) - len(wrong), len(pairs), 1.0, wrong)


def _bytes(runtime: Runtime) -> Row:
    """Answers whose characters are spread over several tokens come out whole, also in a stream."""
    questions = ("Say hello in Chinese.", "Show me some emoji.", "Tell me a short story.")
    wanted = (CHINESE_HELLO, EMOJI, SHORT_STORY)
    first = runtime.tokenizer.to_token_id(BYTES[0])
    wrong = []
    answers = runtime.generate([chat_prompt(question) for question in questions])
    for tokens, text in zip(answers, wanted, strict=True):
        stream = runtime.tokenizer.create_stream()
        streamed = "".join(stream.decode(token) for token in tokens).lstrip(" ")
        spread = [token for token in tokens if first <= token < first + len(BYTES)]
        if not spread or streamed != text or runtime.decode(tokens) != text:
            wrong.append(f"{streamed!r}, wanted {text!r}")
    return Row("characters of several tokens", len(wanted) - len(wrong), len(wanted), 1.0, wrong)


def _graph(folder: Path) -> Iterator[str]:
    """What makes the graph more than a plain decoder for CPU."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    layers = [f"{layer}.{part}" for layer in range(4) for part in ("key", "value")]
    expected = {"input_ids", "attention_mask", *(f"past_key_values.{name}" for name in layers)}
    if (names := {value.name for value in graph.input}) != expected:
        yield f"inputs {sorted(names)}"
    expected = {"logits", *(f"present.{name}" for name in layers)}
    if (names := {value.name for value in graph.output}) != expected:
        yield f"outputs {sorted(names)}"
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    if "sliding_window" in config["model"]["decoder"]:
        yield "genai_config.json has a sliding window"


def _folder(runtime: Runtime, folder: Path) -> Iterator[str]:
    """What is wrong with the files."""
    files = sorted(folder.iterdir())
    size = sum(file.stat().st_size for file in files)
    print(f"{size / 1e6:.2f} MB, loaded in {runtime.load_seconds:.3f} s")
    if size > LARGEST:
        yield f"{size} bytes"
    for file in files:
        content = file.read_bytes()
        yield from (f"{trace!r} in {file.name}" for trace in TRACES if trace in content)


def check(folder: Path, *, learned: bool = True, verbose: int = 5) -> bool:
    """Check a model folder and print a table.

    Args:
        folder: What `export` wrote.
        learned: Whether to check the answers too, and not only the files.
        verbose: How many wrong answers of each kind to print.

    Returns:
        Whether all went well.
    """
    runtime = Runtime(folder)
    shown = skills()
    prompts = [case.prompt for skill in shown for case in skill.cases]
    ragged = [*prompts[:: len(prompts) // 20], chat_prompt("Tell me a joke", system=COMEDIAN)]
    rows = [
        _yes("files", list(_folder(runtime, folder))),
        _yes("graph", list(_graph(folder))),
        _tokenizers(runtime, folder, [*prompts, LONG_STORY, SHORT_STORY]),
        _templates(runtime),
    ]
    if learned:
        rows += [_skill(runtime, skill) for skill in shown]
        rows += [_sampling(runtime), _batch(runtime, ragged), _bytes(runtime)]
    for row in rows:
        mark = "ok  " if row.passed else "FAIL"
        print(f"{mark} {row.name:32s} {row.right:5d} of {row.of:5d}  (needed {row.needed:.0%})")
        for line in row.wrong[:verbose]:
            print(f"       {line}")
    return all(row.passed for row in rows)
