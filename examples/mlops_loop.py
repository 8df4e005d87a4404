"""From candidates to a served champion and back: a model's life in MLflow, offline, in a minute.

Run it with ``python examples/mlops_loop.py``. It uses the tracking server that MLFLOW_TRACKING_URI
names; without that variable, it keeps everything in a new temporary folder.
"""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import mlflow
import pandas as pd
from mlflow.genai.scorers import scorer
from mlflow.models import MetricThreshold, get_model_info
from mlflow.models.evaluation.validation import ModelValidationFailedException

import mlflow_phi3_onnx

EXPERIMENT, NAME = "mlops-loop", "capitals"
CAPITALS = {
    "Spain": "Madrid",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "New Zealand": "Wellington",
    "Argentina": "Buenos Aires",
    "the United States": "Washington",
}
THRESHOLDS = {
    "exact_match": MetricThreshold(threshold=0.5, greater_is_better=True),
    "failures": MetricThreshold(threshold=0, greater_is_better=False),
}

logging.getLogger("mlflow").setLevel(logging.WARNING)
folder = Path(tempfile.mkdtemp(prefix="phi3-mlops-"))
store = os.environ.get("MLFLOW_TRACKING_URI")
if store is None:
    store = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    mlflow.create_experiment(EXPERIMENT, (folder / "artifacts").as_uri())
experiment = mlflow.set_experiment(EXPERIMENT).experiment_id
client = mlflow.MlflowClient()


def prompt(question: str) -> Any:
    """Keep a prompt in MLflow's prompt registry, as a new version."""
    system = {"role": "system", "content": "You answer questions about geography."}
    return mlflow.genai.register_prompt(
        f"{NAME}-prompt", [system, {"role": "user", "content": question}]
    )


def evaluated(name: str, prompt: Any, **config: Any) -> tuple[Any, Any]:
    """Log a candidate, a model with its prompt and its parameters, and measure how good it is."""
    data = pd.DataFrame(
        {
            "messages": [prompt.format(country=country) for country in CAPITALS],
            "expected": [f"The capital of {one} is {city}." for one, city in CAPITALS.items()],
        }
    )
    with mlflow.start_run(run_name=name):
        info = mlflow_phi3_onnx.log_model(
            mlflow_phi3_onnx.demo_model_path(),  # or the folder of a real model, or several
            name=NAME,
            model_config={"temperature": 0, **config},
            prompts=[prompt],
        )
        result = mlflow.models.evaluate(
            info.model_uri,
            data,
            targets="expected",
            model_type="question-answering",
            evaluators=["onnx-genai"],
        )
    return info, result


def registered(info: Any) -> Any:
    """Register a candidate, with the description that MLflow leaves with the logged model."""
    version = mlflow.register_model(info.model_uri, NAME).version
    described = client.get_logged_model(info.model_id).tags["mlflow.note.content"]
    client.update_model_version(NAME, version, described)
    return version


def version_with(alias: str) -> Any:
    """Return the version that has an alias; None if none has it."""
    held = client.get_registered_model(NAME).aliases
    return client.get_model_version_by_alias(NAME, alias) if alias in held else None


def score(version: Any) -> float:
    """Return what the evaluation of a version came to, as MLflow has it on the logged model."""
    info = get_model_info(f"models:/{NAME}/{version.version}")
    metrics = client.get_logged_model(info.model_id).metrics
    return next(metric.value for metric in metrics if metric.key == "exact_match")


def promote_unless_worse() -> bool:
    """Make the challenger the champion, unless the champion is better."""
    challenger, champion = version_with("challenger"), version_with("champion")
    if champion is not None:
        if score(challenger) < score(champion):
            return False
        client.set_registered_model_alias(NAME, "previous", champion.version)
    client.set_registered_model_alias(NAME, "champion", challenger.version)
    client.delete_registered_model_alias(NAME, "challenger")
    return True


print("1. Candidates: evaluated, registered if good enough, promoted unless worse")
plain = prompt("What is the capital of {{country}}?")
formal = prompt("Which city is the seat of government of {{country}}?")
for name, candidate in {
    "few tokens": {"prompt": plain, "max_tokens": 6},
    "formal prompt": {"prompt": formal, "max_tokens": 20},
    "more tokens": {"prompt": plain, "max_tokens": 20},
    "one token more": {"prompt": plain, "max_tokens": 7},
}.items():
    info, result = evaluated(name, **candidate)
    told = f"   {name:<15} exact_match {result.metrics['exact_match']:.2f}"
    try:
        mlflow.validate_evaluation_results(THRESHOLDS, result)
    except ModelValidationFailedException:
        print(f"{told}: below the thresholds, not registered")
        continue
    version = registered(info)
    client.set_registered_model_alias(NAME, "challenger", version)
    outcome = "now the champion" if promote_unless_worse() else "worse than the champion"
    print(f"{told}: version {version}, {outcome}")


@contextmanager
def served(uri: str) -> Generator[str]:
    """Serve a model in a process of its own, which writes a trace of each request."""
    log = folder / "server.log"
    command = ["serve", uri, "--name", NAME, "--port", "0", "--trace", "--trace-content"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow_phi3_onnx.cli", *command],
            env={**os.environ, "MLFLOW_EXPERIMENT_NAME": EXPERIMENT},
            stderr=file,
        )
    try:
        while not (found := re.search(r"http://[\d.:]+/v1", log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.1)
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def ask(url: str, country: str, request_id: str) -> str:
    """Ask the server, with the prompt that the champion was evaluated with."""
    (prompt,) = get_model_info(f"models:/{NAME}@champion").prompts
    messages = mlflow.genai.load_prompt(prompt).format(country=country)
    request = Request(
        f"{url}/chat/completions",
        json.dumps({"model": NAME, "messages": messages}).encode(),
        {"Content-Type": "application/json", "X-Request-Id": request_id},
    )
    with urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]["content"]


print("\n2. Serve the champion, and ask it")
asked = uuid.uuid4().hex
with served(f"models:/{NAME}@champion") as url:
    for place, country in enumerate(("Japan", "New Zealand", "Bolivia")):
        print(f"   {country}: {ask(url, country, f'{asked}-{place}')}")


@scorer
def knows(outputs: Any) -> bool:
    """Tell whether it knew an answer."""
    return "I do not know" not in outputs["choices"][0]["message"]["content"]


@scorer
def finished(outputs: Any) -> bool:
    """Tell whether the answer is whole."""
    return outputs["choices"][0]["finish_reason"] == "stop"


print("\n3. Find the traces of what was served, and evaluate them")
model_id = get_model_info(f"models:/{NAME}@champion").model_id
traces = mlflow.search_traces(model_id=model_id)
checked = mlflow.genai.evaluate(data=traces, scorers=[knows, finished])
told = ", ".join(f"{name} {value:.2f}" for name, value in sorted(checked.metrics.items()))
print(f"   {len(traces)} traces of the champion: {told}")
(trace,) = mlflow.search_traces(
    filter_string=f"trace.client_request_id = '{asked}-2'", return_type="list"
)
print(f"   What the answer on Bolivia was given for: trace {trace.info.trace_id}")

print("\n4. Roll back: the alias goes to the version before, and the server starts with that")
before = version_with("previous").version
client.set_registered_model_alias(NAME, "champion", before)
client.delete_registered_model_alias(NAME, "previous")
with served(f"models:/{NAME}@champion") as url:
    print(f"   Version {before}:", ask(url, "New Zealand", f"{asked}-again"))

page = store.rstrip("/") if store.startswith("http") else "http://127.0.0.1:5000"
print("\nTo look at it in MLflow, open one of these pages")
if page != store.rstrip("/"):
    print(f"after: mlflow ui --backend-store-uri {store}")
print(f"   the versions:     {page}/#/models/{NAME}")
print(f"   the champion:     {page}/#/models/{NAME}/versions/{before}")
print(f"   the runs:         {page}/#/experiments/{experiment}/runs")
print(f"   the traces:       {page}/#/experiments/{experiment}/traces")
