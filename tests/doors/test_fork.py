"""Processes forked after a model was loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
]

# In a process of its own: forking one that has other threads is not what tests should do.
PROGRAM = """
import os, sys, threading
import mlflow, mlflow_phi3_onnx
from mlflow_phi3_onnx import GenAIModel

def ask(country):
    message = {"role": "user", "content": f"What is the capital of {country}?"}
    return model.chat([message])["choices"][0]["message"]["content"]

config = {"loop": sys.argv[1], "isolation": sys.argv[2]}
model = GenAIModel(mlflow_phi3_onnx.demo_model_path(), model_config=config)
assert "Madrid" in ask("Spain")
story = model.stream_chat([{"role": "user", "content": "Tell me a long story."}], max_tokens=200)
for _ in range(5):
    next(story)
answers = []
thread = threading.Thread(target=lambda: answers.extend(ask(c) for c in ["Italy"] * 20))
thread.start()
for country, capital in (("France", "Paris"), ("Japan", "Tokyo"), ("Peru", "Lima")):
    child = os.fork()
    if child == 0:
        status = 0 if capital in ask(country) and capital in ask(country) else 1
        model.close()
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, country
thread.join()
assert all("Rome" in answer for answer in answers) and len(answers) == 20
assert sum(1 for _ in story) > 10
assert "Madrid" in ask("Spain")
print("both are well")
"""


@pytest.mark.parametrize("isolation", ["inline", "worker", "shared"])
@pytest.mark.parametrize("loop", ["genai", "slots"])
def test_a_fork_answers_while_its_parent_goes_on(loop: str, isolation: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, loop, isolation],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "both are well"
