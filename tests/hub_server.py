"""A stand-in for the Hub on 127.0.0.1, with the endpoints that `snapshot_download` calls.

Serves local folders as repositories and records every request. Files come in one piece, without
redirects to other hosts, ranges or Xet.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repo:
    commits: dict[str, Path] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False


@dataclass
class HubServer:
    """Context manager: `url` is the endpoint, `requests` the (method, path) of each request."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fail_with: int | None = None
    """Status of every answer, to play a Hub that is down."""
    missing_status: int = 401
    """Status for an unknown repository: the Hub says 401 to anonymous users, 404 to others."""

    def add(self, repo_id: str, folder: Path, *refs: str, gated: bool = False) -> str:
        """Serve `folder` as a new commit that `refs` (main if none) point to, and return it."""
        commit = hashlib.sha1(f"{repo_id}{folder}".encode(), usedforsecurity=False).hexdigest()
        repo = self.repos.setdefault(repo_id, Repo())
        repo.gated = gated
        repo.commits[commit] = folder
        repo.refs |= dict.fromkeys((*(refs or ("main",)), commit), commit)
        return commit

    def files_fetched(self) -> list[str]:
        """Files whose bytes were asked for."""
        matches = (RESOLVE.fullmatch(path) for method, path in self.requests if method == "GET")
        return sorted(match["file"] for match in matches if match)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on; may be called twice."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 64  # a shorter one makes parallel downloads wait a second now and then


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_HEAD(self) -> None:
        self.respond()

    def do_GET(self) -> None:
        self.respond()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def respond(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, unquote(path)))
        match = API.fullmatch(path) or RESOLVE.fullmatch(path)
        if self.hub.fail_with or not match:
            self.fail(self.hub.fail_with or 404)
        elif (repo := self.hub.repos.get(match["repo"])) is None:
            self.fail(self.hub.missing_status, "RepoNotFound")
        elif (commit := repo.refs.get(unquote(match["revision"]))) is None:
            self.fail(404, "RevisionNotFound")
        elif match.re is API:
            listing = self.info if match["what"] == "revision" else self.tree
            body = json.dumps(listing(match["repo"], repo, commit)).encode()
            self.send(200, body, {"Content-Type": "application/json"})
        elif repo.gated:
            # As on the Hub, what a gated repository holds is public; its files are not.
            self.fail(403, "GatedRepo")
        elif not (file := repo.commits[commit] / unquote(match["file"])).is_file():
            self.fail(404, "EntryNotFound")
        else:
            self.send_file(file, commit)

    def info(self, repo_id: str, repo: Repo, commit: str) -> dict[str, Any]:
        names = [{"rfilename": entry["path"]} for entry in self.tree(repo_id, repo, commit)]
        return {"id": repo_id, "sha": commit, "siblings": names, "private": False, "tags": []}

    def tree(self, repo_id: str, repo: Repo, commit: str) -> list[dict[str, Any]]:
        folder = repo.commits[commit]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [self.entry(file, file.relative_to(folder)) for file in files]

    def entry(self, file: Path, name: Path) -> dict[str, Any]:
        size = file.stat().st_size
        entry = {"type": "file", "path": name.as_posix(), "size": size, "oid": etag(file)[:40]}
        if file.suffix in {".safetensors", ".bin"}:
            entry["lfs"] = {"oid": etag(file), "size": size, "pointerSize": 128}
        return entry

    def send_file(self, file: Path, commit: str) -> None:
        headers = {"ETag": f'"{etag(file)}"', "X-Repo-Commit": commit}
        if file.suffix in {".safetensors", ".bin"}:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(file.stat().st_size)}
        self.send(200, file.read_bytes(), headers)

    def fail(self, status: int, code: str = "") -> None:
        self.send(status, b"<html></html>", {"X-Error-Code": code} if code else {})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def etag(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
