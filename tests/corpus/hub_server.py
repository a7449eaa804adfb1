"""A real HTTP server that speaks as much of the Hugging Face hub's protocol as its client needs, and can misbehave."""

import hashlib
import io
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

CLIMBMIX = "karpathy/climbmix-400b-shuffle"
TINYSTORIES = "karpathy/tinystories-gpt4-clean"
WORDS = [f"{a}{b}{c}" for a in ("lo", "mi", "ta", "ren") for b in ("ka", "so", "pel") for c in ("n", "tu", "is", "")]


def texts(count: int, seed: int, words: int = 120) -> list[str]:
    """Different documents of made-up words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) + f" {seed}:{number}.\n" for number in range(count)]


def parquet(texts: list[str], column: str = "text") -> bytes:
    """A parquet file with one column of texts, uncompressed so that its size is under control."""
    out = io.BytesIO()
    pq.write_table(pa.table({column: texts}), out, compression="none", use_dictionary=False)
    return out.getvalue()


class HubServer(ThreadingHTTPServer):
    """`files[repo][path]` is served; `faults[path]` are used up one a request for that path's content.

    Faults: "503" · "drop:N" (N bytes of a longer promise) · "short:N" (N bytes, honestly announced) · "wrong" (other
    bytes) · "whole" (Range ignored). `api_faults` are statuses for the next metadata requests. `delay`: seconds before
    every 64 kB of a body. `busiest`: the greatest number of requests for content that were being answered at one time.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.small: set[str] = set()
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.api_faults: list[int] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.delay = 0.0
        self.answering = self.busiest = 0
        self.revision = "a" * 40
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self) -> list[str]:
        """The Range headers of all requests so far."""
        return [headers["range"] for _, _, headers in self.requests if "range" in headers]

    def downloads(self) -> list[str]:
        """Paths of all requests for content so far."""
        return [path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed breaks its connection: nothing to report."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self._note().strip("/").split("/")
        if parts[0] == "api":
            self._metadata(parts)
        else:
            with self._counted():
                self._content("/".join(parts[1:3]), "/".join(parts[5:]))

    def do_POST(self) -> None:
        parts = self._note().strip("/").split("/")
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self._refused():
            return
        repo = "/".join(parts[2:4])
        wanted = parse_qs(body)["paths"]
        self._json([self._info(repo, path) for path in wanted if path in self.server.files[repo]])

    def _note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.guard:
            self.server.requests.append((self.command, path, headers))
        return path

    @contextmanager
    def _counted(self) -> Iterator[None]:
        server = self.server
        with server.guard:
            server.answering += 1
            server.busiest = max(server.busiest, server.answering)
        try:
            yield
        finally:
            with server.guard:
                server.answering -= 1

    def _refused(self) -> bool:
        if self.server.api_faults:
            self._plain(self.server.api_faults.pop(0), b"try later")
            return True
        return False

    def _metadata(self, parts: list[str]) -> None:
        repo = "/".join(parts[2:4])
        if self._refused():
            return
        if repo not in self.server.files:
            self._plain(404, b"no such repository", {"X-Error-Code": "RepoNotFound"})
        elif len(parts) > 4 and parts[4] == "tree":
            self._json([self._info(repo, path) for path in self.server.files[repo]])
        else:
            self._json({"id": repo, "sha": self.server.revision, "private": False, "tags": [], "downloads": 0})

    def _info(self, repo: str, path: str) -> dict[str, object]:
        content = self.server.files[repo][path]
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        info: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if path not in self.server.small:
            sha256 = hashlib.sha256(content).hexdigest()
            info["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return info

    def _content(self, repo: str, path: str) -> None:
        content = self.server.files.get(repo, {}).get(path)
        if content is None:
            self._plain(404, b"no such file", {"X-Error-Code": "EntryNotFound"})
            return
        faults = self.server.faults[path]
        kind, _, size = (faults.pop(0) if faults and self.command == "GET" else "").partition(":")
        if kind == "503":
            self._plain(503, b"try later")
            return
        if kind == "wrong":
            content = bytes(255 - byte for byte in content)
        self._send(content, kind, int(size or 0), hashlib.sha256(content).hexdigest())

    def _send(self, content: bytes, kind: str, size: int, etag: str) -> None:
        start = 0
        asked = self.headers.get("Range")
        if asked and kind not in ("whole", "short"):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        body = content[start : start + size] if kind == "short" else content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", self.server.revision)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self._body(body[:size] if kind == "drop" else body)
        if kind == "drop":
            self.close_connection = True

    def _body(self, body: bytes) -> None:
        for at in range(0, len(body), 1 << 16):
            time.sleep(self.server.delay)
            self.wfile.write(body[at : at + (1 << 16)])

    def _json(self, content: object) -> None:
        self._plain(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _plain(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
