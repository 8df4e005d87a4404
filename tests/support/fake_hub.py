"""A stand-in for the Hugging Face hub: the part of its HTTP API that downloads use.

Its answers have the status, headers and error codes of the real one: metadata of a revision with
the files of its commit, listings, and files by HEAD and GET, the large ones from another host, and
in ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
from huggingface_hub import constants

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    import pytest
    from typing_extensions import Self

TOKEN = "hf_" + "q7Wm" * 8
"""The one token that may read what needs a token."""

LARGE = 1_000_000
"""Files from this size on are stored apart from the repository, as with Git LFS."""


@dataclass
class Repository:
    """A repository: its commits, and the one that each branch is at.

    Attributes:
        commits: The files of each commit, by hash.
        branches: The commit of each branch.
        gated: Whether its files need a token; what it holds is public all the same.
        private: Whether it does not exist for those without a token.
    """

    commits: dict[str, Mapping[str, Path]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict[str, str])
    gated: bool = False
    private: bool = False

    def commit(self, files: Mapping[str, Path], branch: str = "main") -> str:
        """Put files on a branch; returns the commit's hash."""
        name = f"{branch} {len(self.commits)} {sorted(files)}"
        sha = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class FakeHub:
    """The server; it runs until it is closed.

    Attributes:
        repositories: What it holds, by id.
        requests: What was asked for, in order.
        cut: Large files, by name, whose next answer breaks off after so many bytes.
        broken: Files, by name, whose bytes are answered with this status.
        after_info: Called once, when a revision has been told.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cut: dict[str, int] = {}
        self.broken: dict[str, int] = {}
        self.after_info: Any = None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def storage(self) -> str:
        """Where large files are: the same server by another name, as if it were another host."""
        return f"http://localhost:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening; connections are then refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repo_id: str, files: Mapping[str, Path]) -> Repository:
        """Add a repository with files on its main branch."""
        repository = self.repositories[repo_id] = Repository()
        repository.commit(files)
        return repository

    @contextmanager
    def in_use(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
        """Turn huggingface_hub of this process to it, with cache and token in a folder.

        Its settings are read from the environment when it is imported, which it has been.
        """
        settings = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(folder / "token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        huggingface_hub.close_session()  # its client has read the environment's proxies
        yield
        huggingface_hub.close_session()

    def downloaded(self) -> list[str]:
        """The names of the files whose bytes were asked for, in order."""
        return [
            r.path.rpartition("/")[2]
            for r in self.requests
            if r.method == "GET" and ("/resolve/" in r.path or r.path.startswith("/cdn/"))
        ]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - any names
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = self.headers
        self.hub.requests.append(
            Request(self.command, self.path, headers.get("Range"), headers.get("Authorization"))
        )
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/cdn/([0-9a-f]{64})/(.+)", path):
            self._large_file(match[1], match[2])
        else:
            self._error(404, None, "Not found")

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _find(self, repo_id: str, revision: str) -> tuple[str, Mapping[str, Path]] | None:
        """Return a revision's commit and files, or answer why there is none."""
        repository = self.hub.repositories.get(repo_id)
        token = self.headers.get("Authorization")
        if token is not None and not self._authorized():
            self._error(401, None, "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and not self._authorized()):
            # To those without a token, the hub does not tell what exists.
            status = 404 if self._authorized() else 401
            self._error(status, "RepoNotFound", "Repository not found")
        else:
            commit = repository.branches.get(revision, revision)
            if commit in repository.commits:
                return commit, repository.commits[commit]
            self._error(404, "RevisionNotFound", "Invalid rev id")
        return None

    def _info(self, repo_id: str, revision: str) -> None:
        found = self._find(repo_id, revision)
        if found is None:
            return
        commit, files = found
        siblings = [{"rfilename": name, **_facts(path)} for name, path in files.items()]
        self._json({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings})
        if self.hub.after_info is not None:
            call, self.hub.after_info = self.hub.after_info, None
            call()

    def _tree(self, repo_id: str, revision: str) -> None:
        found = self._find(repo_id, revision)
        if found is not None:
            facts = [{"path": name, "type": "file", **_facts(p)} for name, p in found[1].items()]
            self._json([{**entry, "oid": entry["blobId"]} for entry in facts])

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        found = self._find(repo_id, revision)
        if found is None:
            return
        commit, files = found
        if self.hub.repositories[repo_id].gated and not self._authorized():
            status = 401 if self.headers.get("Authorization") is None else 403
            self._error(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
        elif self.command == "GET" and (status := self.hub.broken.get(name.rpartition("/")[2])):
            self._error(status, "EntryNotFound" if status == 404 else None, "Broken")
        elif name not in files:
            self._error(404, "EntryNotFound", "Entry not found")
        elif (size := files[name].stat().st_size) < LARGE:
            self._send(files[name], {"X-Repo-Commit": commit, "ETag": f'"{_digest(files[name])}"'})
        else:
            digest = _digest(files[name])
            self.send_response(302)
            self.send_header("Location", f"{self.hub.storage}/cdn/{digest}/{name}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-ETag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(size))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _large_file(self, digest: str, name: str) -> None:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                if name in files and _digest(files[name]) == digest:
                    self._send(files[name], {"ETag": f'"{digest}"'})
                    return
        self._error(404, None, "Not found")

    def _send(self, path: Path, headers: dict[str, str]) -> None:
        data = path.read_bytes()
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(asked[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = self.hub.cut.pop(path.name, None)
        self.wfile.write(data[start : len(data) if end is None else start + end])
        if end is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _error(self, status: int, code: str | None, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _facts(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    facts: dict[str, Any] = {"size": size, "blobId": _digest(path)[:40]}
    if size >= LARGE:
        facts["lfs"] = {"sha256": _digest(path), "oid": _digest(path), "size": size}
        facts["lfs"]["pointerSize"] = 134
    return facts
