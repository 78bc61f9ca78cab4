"""A hub of one's own for tests: as much of the Hugging Face hub's HTTP interface as pushing and
pulling a model takes, with the repositories in memory.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest

Repositories = dict[str, dict[str, bytes]]
COMMIT = "c" * 40


class Handler(BaseHTTPRequestHandler):
    repositories: Repositories

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.split("?")[0].strip("/").split("/")
        if self.path == "/api/repos/create":
            row = json.loads(body)
            name = f"{row['organization']}/{row['name']}" if "organization" in row else row["name"]
            self.repositories.setdefault(name, {})
            return self.answer({"url": f"https://huggingface.co/{name}", "id": name, "name": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"warnings": [], "errors": []})
        name, action = f"{parts[2]}/{parts[3]}", parts[4]
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                content = base64.b64decode(row["value"]["content"])
                self.repositories[name][row["value"]["path"]] = content
        address = f"https://huggingface.co/{name}/commit/{COMMIT}"
        self.answer({"commitUrl": address, "commitOid": COMMIT})

    def do_GET(self) -> None:
        parts = unquote(self.path.split("?")[0]).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.repositories.get(f"{parts[2]}/{parts[3]}")
            if files is None:
                return self.answer({"error": "no such repository"}, 401)
            siblings = [{"rfilename": name} for name in files]
            if "tree" in parts:
                return self.answer(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                        for name, content in files.items()
                    ]
                )
            return self.answer(
                {"id": f"{parts[2]}/{parts[3]}", "sha": COMMIT, "siblings": siblings}
            )
        files = self.repositories.get("/".join(parts[:2]), {})
        content = files.get("/".join(parts[4:]))
        if content is None:
            return self.answer({"error": "nothing of that name"}, 404)
        self.answer(content, headers={"X-Repo-Commit": COMMIT, "ETag": f'"{oid(content)}"'})

    do_HEAD = do_GET


def oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def hub_server(patch: pytest.MonkeyPatch, cache: Any) -> Iterator[Repositories]:
    """{OWNER/NAME: {file: content}} of a hub that huggingface_hub asks in this process."""
    repositories: Repositories = {}
    handler = type("OneHub", (Handler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    patch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    patch.setenv("HF_TOKEN", "hf_of_a_test")
    try:
        yield repositories
    finally:
        server.shutdown()
        server.server_close()
