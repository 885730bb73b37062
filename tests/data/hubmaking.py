"""A stand-in for the Hugging Face Hub: the routes of its API that its own client asks for, on this machine."""

import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections import Counter
from contextlib import contextmanager


class Hub:
    """Data sets with a commit each time that they change.

    Attributes:
        asked: how often each file was fetched.
        gated: data sets that ask for the token `hf_right`.
        garble: what becomes of the content of a file on its way.
        down: whether every answer is 503.
    """

    def __init__(self):
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.heads: dict[str, str] = {}
        self.asked: Counter = Counter()
        self.requests = 0
        self.gated: set[str] = set()
        self.garble = bytes
        self.down = False

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        number = hashlib.sha1(f"{repository} {len(self.commits)}".encode()).hexdigest()
        self.commits[repository, number], self.heads[repository] = dict(files), number
        return number

    def answer(self, path: str, query: dict[str, list[str]], headers) -> tuple[int, dict[str, str], bytes]:
        self.requests += 1
        if self.down:
            return 503, {}, b""
        asked = re.fullmatch(r"/(api/)?datasets/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path)
        if asked is None or asked[2] not in self.heads:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."}, b"{}"
        kind, repository, what, rest = asked.groups()
        if headers.get("Authorization") not in (None, "Bearer hf_right"):
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        revision, _, inner = (rest or "main").partition("/")
        sha = self.heads[repository] if revision == "main" else revision
        if (repository, sha) not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.commits[repository, sha]
        if kind and what == "tree":
            return 200, {"Content-Type": "application/json"}, json.dumps(self._tree(files, inner, query)).encode()
        if kind:
            return 200, {"Content-Type": "application/json"}, json.dumps({"id": repository, "sha": sha}).encode()
        if repository in self.gated and headers.get("Authorization") != "Bearer hf_right":
            return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {repository} is restricted."}, b""
        if inner not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = {"ETag": f'"{hashlib.sha256(files[inner]).hexdigest()}"', "X-Repo-Commit": sha}
        self.asked[inner] += 1
        return 200, etag, self.garble(files[inner])

    def _tree(self, files: dict[str, bytes], folder: str, query: dict[str, list[str]]) -> list[dict]:
        rows, prefix = {}, f"{folder}/" if folder else ""
        for path, data in files.items():
            if not path.startswith(prefix):
                continue
            name, deeper, _ = path[len(prefix) :].partition("/")
            if deeper:
                rows[prefix + name] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": prefix + name}
            if not deeper or query.get("recursive") == ["true"]:
                digest = hashlib.sha256(data).hexdigest()
                rows[path] = {"type": "file", "oid": "0" * 40, "size": len(data), "path": path}
                if not path.endswith(".md"):
                    rows[path]["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return list(rows.values())


@contextmanager
def serving(hub: Hub):
    """The address of a server for the block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(place.query.lower())
            status, headers, body = hub.answer(urllib.parse.unquote(place.path), query, self.headers)
            if status == 200 and (wanted := self.headers.get("Range")):
                status, body = 206, body[int(wanted.removeprefix("bytes=").partition("-")[0]) :]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
