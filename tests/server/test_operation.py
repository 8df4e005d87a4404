"""What operators see: probes, metrics and logs, and in none of them any text of a request."""

from __future__ import annotations

import json
import logging
import ssl
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from mlflow_phi3_onnx import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.cli.main import main
from mlflow_phi3_onnx.server.run import make_server
from mlflow_phi3_onnx.server.settings import OPTIONS, ServerSettings
from tests.support.doors import CANARY, SPAIN
from tests.support.http_server import Running, in_process, make_certificate, running, until
from tests.support.table import BAD

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CHAT = "/v1/chat/completions"


def test_probes(server: Running) -> None:
    for path in ("/ping", "/health"):
        assert server.get(path).json == {"status": "ok"}
    assert server.get("/ready").json == {"status": "ready"}
    assert set(server.get("/version").json) == {"version", "mlflow"}


def test_metrics_count_what_was_asked() -> None:
    with running({"m": None}) as served:
        served.chat({"messages": SPAIN, "max_tokens": 5, "n": 2})
        served.chat({"messages": SPAIN, "stream": True})
        served.post("/v1/completions", {"prompt": "x", "max_tokens": 0})
        served.get(f"/{CANARY}")
        served.get("/v1/models", Host="elsewhere")
        text = served.get("/metrics").body.decode()
        asked = {"model_name": "m"}
        assert served.metric("http_requests_total", method="POST", route=CHAT, status="200") == 2
        assert served.metric("http_requests_total", route="/v1/completions", status="400") == 1
        assert served.metric("http_requests_total", route="unmatched", status="404") == 1
        assert served.metric("http_requests_total", route="/v1/models", status="403") == 1
        assert served.metric("prompt_tokens_total", **asked) == 20
        assert served.metric("generation_tokens_total", **asked) == 2 * 5 + 8
        assert served.metric("request_success_total", finished_reason="length", **asked) == 2
        assert served.metric("request_success_total", finished_reason="stop", **asked) == 1
        assert served.metric("time_to_first_token_seconds_count", **asked) == 2
        assert served.metric("inter_token_latency_seconds_count", **asked) == 6
        assert served.metric("e2e_request_latency_seconds_count", **asked) == 2
        assert served.metric("request_queue_time_seconds_count", **asked) == 3
        assert served.metric("prefix_cache_queries_total", **asked) == 20
        assert served.metric("prefix_cache_hits_total", **asked) == 8
        for name in ("num_requests_running", "num_requests_waiting", "batch_size"):
            assert served.metric(name, **asked) == 0
    families = [family.name for family in text_string_to_metric_families(text)]
    assert all(name.startswith("onnx_genai:") for name in families)
    assert len(families) == len(set(families))


def test_metrics_name_the_requests_that_they_count(server: Running) -> None:
    longest = "x" * 118
    server.post(CHAT, {"messages": SPAIN}, {"x-request-id": longest})
    metrics = server.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    exemplars = {
        sample.exemplar.labels["request_id"]
        for family in openmetrics.text_string_to_metric_families(metrics.body.decode())
        for sample in family.samples
        if sample.exemplar
    }
    assert longest in exemplars


def test_two_servers_have_metrics_of_their_own(server: Running) -> None:
    with running({"other": None}) as other:
        assert other.metric("http_requests_total") == 0
        assert 'model_name="other"' not in server.get("/metrics").body.decode()


def lines_of(caplog: pytest.LogCaptureFixture) -> list[Mapping[str, Any]]:
    return [getattr(record, "request") for record in caplog.records if hasattr(record, "request")]  # noqa: B009 - logging does not know it


def test_a_request_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlflow_phi3_onnx")
    with running() as served:
        asked = [
            served.chat({"messages": SPAIN, "max_tokens": 5}),
            served.chat({"messages": SPAIN, "stream": True}),
            served.chat({"messages": SPAIN, "temperature": 9}),
            served.chat({"messages": SPAIN, CANARY: 9}),
            served.get(f"/{CANARY}"),
        ]
        served.get("/health")
    lines = lines_of(caplog)
    ids = [reply.headers["x-request-id"] for reply in asked]
    assert [line["request_id"] for line in lines] == ids  # none of a probe
    assert len(set(ids)) == 5
    assert [line["status"] for line in lines] == [200, 200, 400, 400, 404]
    assert (lines[0]["prompt_tokens"], lines[0]["completion_tokens"]) == (10, 5)
    assert (lines[0]["finish_reason"], lines[0]["model"]) == ("length", "demo")
    assert "stream" not in lines[0]
    assert lines[1]["stream"] is True
    assert lines[1]["completion_tokens"] == 8
    for line in lines[:2]:
        assert 0 < line["first_token"] < line["seconds"]
    assert (lines[2]["error"], lines[2]["param"]) == ("InvalidRequestError", "temperature")
    assert (lines[3]["error"], "param" in lines[3]) == ("UnsupportedParameterError", False)
    assert lines[4]["route"] == "unmatched"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_X", True), ("x" * 118, True), ("x" * 119, False), ("", False), ("a b", False),
     ("a\tb", False), ('"}', False), ("é", False)],
)  # fmt: skip
def test_the_caller_s_request_id_is_kept_where_it_can_be_one(
    server: Running, given: str, kept: bool
) -> None:
    reply = server.get("/v1/models", **{"X-Request-Id": given})
    assert (reply.headers["x-request-id"] == given) is kept
    assert kept or reply.headers["x-request-id"].startswith("req-")


def test_what_nobody_foresaw_is_told_without_its_text(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(CANARY)

    with running() as served:
        monkeypatch.setattr("mlflow_phi3_onnx.model.planning.Planner._plan", fail)
        for stream in (False, True):
            reply = served.chat({"messages": SPAIN, "stream": stream})
            assert (reply.status, reply.error["type"]) == (500, "server_error")
            assert CANARY not in reply.body.decode()
            assert "RuntimeError" in reply.error["message"]
        monkeypatch.undo()
        monkeypatch.setattr("mlflow_phi3_onnx.openai.responses.ChatWriter.add", fail)
        *_, error, last = served.chat({"messages": SPAIN, "stream": True}).events
        assert json.loads(error)["error"]["type"] == "server_error"
        failures = [r for r in caplog.records if r.getMessage().startswith("The server failed")]
        assert {getattr(r, "request")["route"] for r in failures} == {CHAT}  # noqa: B009 - logging does not know it
        assert last == "[DONE]"
        monkeypatch.undo()
        assert served.chat({"messages": SPAIN, "max_tokens": 1}).status == 200
        until(lambda: served.metric("batch_size") == 0)
    assert CANARY not in caplog.text
    assert "The server failed: RuntimeError at model/planning.py:" in caplog.text


def test_no_log_error_or_metric_has_any_text_of_a_request(tmp_path: Path) -> None:
    log, keys = tmp_path / "log", tmp_path / "keys"
    keys.write_text(f"sk-{CANARY}", encoding="utf-8")
    talk = [{"role": "user", "content": f"{CANARY} What is the capital of Spain?"}]
    own = {"Authorization": f"Bearer sk-{CANARY}"}
    arguments = ("--api-key-file", str(keys), "--log-level", "debug", "--timeout", "0.5")
    with in_process(*arguments, log=log) as (served, _):
        served.post(CHAT, {"messages": talk})  # without a key
        for stream in (False, True):
            fields = {"messages": talk, "max_tokens": 3, "stream": stream, "user": CANARY}
            assert served.post(CHAT, fields, own).status == 200
            served.post(CHAT, {**fields, "max_tokens": None, "min_tokens": 4000}, own)
        bodies = [json.dumps(case.fields).encode() for case in BAD]
        bodies += [f'{{"messages": "{CANARY}'.encode(), f'"{CANARY}"'.encode()]
        for body in bodies:
            reply = served.post(CHAT, body, own)
            assert reply.status >= 400
            assert CANARY not in reply.body.decode()
        served.post("/invocations", {"inputs": [CANARY], "params": {"stop": CANARY}}, own)
        served.post("/tokenize", {"prompt": CANARY}, own)
        served.get(f"/{CANARY}?{CANARY}", **own)
        served.ask("GET", "/v1/models", headers={"X-Request-Id": f"{CANARY} x", "Cookie": CANARY})
        with served.send({"messages": talk, "min_tokens": 4000}):
            pass
        assert CANARY not in served.get("/metrics", **own).body.decode()
    said = log.read_text(encoding="utf-8")
    assert said.count('"message": "request"') > len(BAD)
    assert CANARY not in said
    assert "Traceback" not in said
    for line in said.splitlines():
        assert json.loads(line)["level"]


def test_settings_are_checked_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for flags, says in (
        (["--port", "65536"], "port must be an integer from 0 to 65535; got 65536"),
        (["--timeout", "soon"], "timeout must be a number above 0; got 'soon'"),
        (["--tls-key", "x"], "tls_cert and tls_key belong together"),
        (["--api-key-file", str(tmp_path / "none")], "cannot be read: none is missing"),
        (["--cors-origins", "example.com"], "cors_origins must be origins such as"),
        (["--log-level", "inf"], "Did you mean info?"),
        (["-m", "x"], "-m takes a model's id and its place"),
        (["nowhere"], "there is nothing at the path"),
    ):
        assert main(["serve", *flags]) == 1
        assert says in capsys.readouterr().err
    with pytest.raises(UnsupportedParameterError, match="Did you mean max_queue"):
        ServerSettings.check({"max_queues": 5})


def test_the_table_s_defaults_are_the_settings() -> None:
    settings = ServerSettings()
    for name, option in OPTIONS.items():
        if option.default is not None:
            assert getattr(settings, name) == option.default
            assert option.read(option.default) == option.default


def test_a_port_that_is_taken(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    # A model that is nowhere would be an error of its own.
    assert main(["serve", "nowhere", "--port", str(server.port)]) == 1
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("::", True),  # noqa: S104 - nothing listens
     ("db", True)],
)  # fmt: skip
def test_a_server_for_everybody_is_warned_of(
    host: str, warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServerSettings(host=host, lazy=True)
    make_server({"x": None}, settings)
    assert ("without a key" in caplog.text) is warned
    caplog.clear()
    monkeypatch.setenv("MLFLOW_PHI3_ONNX_API_KEY", "a-long-enough-key")
    make_server({"x": None}, settings)
    assert "without a key" not in caplog.text


def test_tls(tmp_path: Path, tls_files: dict[str, Any]) -> None:
    with running(**tls_files) as served:
        context = ssl.create_default_context(cafile=tls_files["tls_cert"])
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(f"https://127.0.0.1:{served.port}/health", timeout=30) as response:
            assert json.load(response) == {"status": "ok"}
    with pytest.raises(InvalidRequestError, match="tls_cert cannot be read: "):
        make_server(
            {"x": None}, ServerSettings.check({**tls_files, "tls_cert": str(tmp_path / "x")})
        )


def test_tls_files_that_cannot_be_used_are_found_before_models_are_loaded(
    tmp_path: Path, tls_files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    other, locked, text = tmp_path / "other", tmp_path / "locked", tmp_path / "text"
    for folder, flags in ((other, ["-nodes"]), (locked, ["-passout", "pass:secret"])):
        folder.mkdir()
        make_certificate(folder, *flags)
    text.write_text("no certificate", encoding="utf-8")
    certificate, key = tls_files["tls_cert"], tls_files["tls_key"]
    for one, two, says in (
        (text, key, "cannot be used (no PEM)"),
        (key, certificate, "cannot be used (no PEM)"),
        (certificate, other / "key.pem", "cannot be used (KEY_VALUES_MISMATCH)"),
        (locked / "cert.pem", locked / "key.pem", "tls_key is encrypted"),
    ):
        # A model that is nowhere would be an error of its own.
        flags = ["--port", "0", "--tls-cert", str(one), "--tls-key", str(two)]
        assert main(["serve", "nowhere", *flags]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
