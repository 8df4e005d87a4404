"""A model's life in MLflow, as the example leads it, against a tracking server and in its pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from mlflow import MlflowClient

from benchmarks.serving import running
from tests.support.browser import chromium
from tests.support.http_server import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # four models are logged and evaluated, and served twice
    pytest.mark.filterwarnings("ignore"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "mlops_loop.py"
SERVER = [
    *(sys.executable, "-m", "mlflow", "server", "--port", "{port}", "--workers", "1"),
    *("--backend-store-uri", "sqlite:///store.db", "--artifacts-destination", "artifacts"),
]
NAME = "capitals"
CURVES = ("perplexity", "token_f1", "time_to_first_token", "inter_token_latency")


class Loop(NamedTuple):
    """What the example has left at a tracking server, and what it said."""

    url: str
    client: Any
    experiment: str
    said: str

    def traces(self) -> list[Any]:
        """List the traces of what was served: only those have a request id of a caller's."""
        found = self.client.search_traces(locations=[self.experiment])
        return [trace for trace in found if trace.info.client_request_id]

    def version(self, alias: str) -> Any:
        return self.client.get_model_version_by_alias(NAME, alias)

    def logged(self, version: Any) -> Any:
        """Return the logged model that a version was made of."""
        return self.client.get_logged_model(version.source.removeprefix("models:/"))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("loop")
    with running(SERVER, "/health", folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as (url, _):
        done = subprocess.run(
            [sys.executable, str(EXAMPLE)],
            env={**os.environ, "MLFLOW_TRACKING_URI": url},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        client: Any = MlflowClient(url, url)
        experiment = client.get_experiment_by_name("mlops-loop").experiment_id
        yield Loop(url, client, experiment, done.stdout)


def test_only_what_is_good_enough_is_registered_and_promoted(loop: Loop) -> None:
    assert "formal prompt   exact_match 0.00: below the thresholds, not registered" in loop.said
    assert "exact_match 1.00: version 2, now the champion" in loop.said
    assert "exact_match 0.83: version 3, worse than the champion" in loop.said
    versions = {
        int(one.version): loop.logged(one)
        for one in loop.client.search_model_versions(f"name='{NAME}'")
    }
    scores = {
        number: next(one.value for one in model.metrics if one.key == "exact_match")
        for number, model in versions.items()
    }
    assert scores == pytest.approx({1: 1 / 2, 2: 1, 3: 5 / 6})
    # Version 2 was promoted and rolled back; the one that is worse is the challenger.
    assert int(loop.version("champion").version) == 1
    assert int(loop.version("challenger").version) == 3
    assert set(loop.client.get_registered_model(NAME).aliases) == {"champion", "challenger"}


def test_what_was_served_is_found_and_judged(loop: Loop) -> None:
    traces = loop.traces()
    assert [trace.data.spans[0].span_type for trace in traces] == ["CHAT_MODEL"] * 4
    judged = [
        {one.name: one.value for one in trace.info.assessments or []}
        for trace in sorted(traces, key=lambda trace: trace.info.client_request_id)
    ]
    # The last was asked after the roll-back, and is not judged. Of Bolivia nothing is known.
    known, unknown = {"knows": True, "finished": True}, {"knows": False, "finished": True}
    assert judged == [known, known, unknown, {}]


def test_a_model_that_is_not_there_is_told_with_the_store(loop: Loop) -> None:
    url = loop.url.replace("://", "://someone:secret@")
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_phi3_onnx.cli", "inspect", f"models:/{NAME}/99"],
        env={**os.environ, "MLFLOW_TRACKING_URI": url},
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"MLflow has no model at models:/{NAME}/99 in the store {loop.url}. MLFLOW_TRACKING_URI"
    assert said in done.stderr
    assert "secret" not in done.stderr


class Pages:
    """MLflow's own pages, in a browser."""

    def __init__(self, browser: Any, url: str) -> None:
        self._page = browser.new_page(viewport={"width": 1400, "height": 3000})
        self._url = url

    def open(self, path: str, *texts: str) -> Any:
        """Open a page, and wait until it shows all the texts."""
        self._page.goto("about:blank")
        self._page.goto(f"{self._url}/#/{path}")
        until(lambda: [text for text in texts if text not in self.text()] == [])
        return self._page

    def text(self) -> str:
        """Return what the page shows, white space as single spaces."""
        return " ".join(self._page.inner_text("body").split())


@pytest.fixture(scope="module")
def pages(loop: Loop) -> Iterator[Pages]:
    with chromium() as browser:
        yield Pages(browser, loop.url)


def test_a_trace_is_shown_as_a_chat(loop: Loop, pages: Pages) -> None:
    (trace,) = (one for one in loop.traces() if one.info.client_request_id.endswith("-0"))
    path = f"experiments/{loop.experiment}/traces?selectedEvaluationId={trace.info.trace_id}"
    turns = "System You answer questions about geography. User What is the capital of Japan?"
    answer = "Assistant The capital of Japan is Tokyo."
    page = pages.open(path, turns, answer)
    text = pages.text()
    assert re.search(r"Success [\d.]+m?s 26 tokens \$0\.00", text)
    for name in ("template and tokenization", "queue", "prefill", "decode"):
        assert re.search(rf"{name} [\d.]+m?s", text)
    page.get_by_text("Attributes", exact=True).click()
    until(lambda: "onnx_genai.finish_reasons - stop" in pages.text())


def test_a_run_shows_its_plots(loop: Loop, pages: Pages) -> None:
    run = f"experiments/{loop.experiment}/runs/{loop.version('champion').run_id}"
    page = pages.open(f"{run}/model-metrics", *(f"(row/{name})" for name in CURVES))
    # Other metrics have one value, and are shown as bars.
    curves = page.locator(".js-plotly-plot .scatterlayer .trace")
    until(lambda: curves.count() >= len(CURVES))
    page = pages.open(f"{run}/artifacts/onnx_genai_plot.png", "onnx_genai_results_table.json")
    plot = page.locator("img[alt='onnx_genai_plot.png']")
    until(lambda: plot.count() and plot.evaluate("(image) => image.naturalWidth") == 800)


def test_a_version_shows_what_it_is(loop: Loop, pages: Pages) -> None:
    version = loop.version("champion")
    described = "phi3 for ONNX Runtime GenAI: 2.8 M parameters, int4, context of 4,096 tokens"
    page = pages.open(
        f"models/{NAME}/versions/{version.version}", described, "champion", "Outputs (6)"
    )
    page.get_by_text(re.compile(r"Inputs \(\d+\)")).click()
    until(lambda: "messages (required) Array(any)" in pages.text())
    model = loop.logged(version)
    page = pages.open(f"experiments/{loop.experiment}/models/{model.model_id}", described)
    until(lambda: f"Metrics ({len(model.metrics)})" in pages.text())
    assert "exact_match" in pages.text()
    assert "precision int4" in pages.text()
