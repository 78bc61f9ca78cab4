"""A server in a thread of the test's process, on a real socket, and raw HTTP to it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from pocketlm.serve.backend import Backend
from pocketlm.serve.buttons import NO_BUTTONS, Buttons
from pocketlm.serve.http_server import ServeConfig, app_of, bound, server

Json = dict[str, Any]
SECONDS = 60  # the longest wait for anything, on a machine that is busy
JSON_TYPE = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Running:
    port: int
    backend: Backend

    @contextmanager
    def asked(
        self,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[HTTPResponse]:
        """The answer to a request; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)) as connection:
            connection.request(
                method or ("GET" if data is None else "POST"),
                path,
                data,
                JSON_TYPE | (headers or {}) if data is not None else headers or {},
            )
            yield connection.getresponse()

    def ask(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """(status, the JSON of the answer; its text where it is none)."""
        with self.asked(path, body, **options) as response:
            data = response.read()
            try:
                return response.status, json.loads(data)
            except ValueError:
                return response.status, data.decode()

    def chunks(self, path: str, body: Json) -> list[Json]:
        """The events of a stream, whose frame is checked: data lines, blank lines, [DONE] last."""
        with self.asked(path, {**body, "stream": True}) as response:
            assert response.status == 200, response.read()
            assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
            text = response.read().decode()
        assert text.endswith("\n\n")
        events = text[:-2].split("\n\n")
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        assert events[-1] == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]

    def metric(self, name: str) -> float:
        _, text = self.ask("/metrics")
        return sum(
            float(line.split()[-1])
            for line in text.splitlines()
            if line.split(" ")[0].split("{")[0] == f"pocketlm_{name}"
        )

    def wait_for(self, name: str, value: float) -> None:
        """Until a metric is that; AssertionError if it takes too long."""
        start = time.monotonic()
        while self.metric(name) != value:
            assert time.monotonic() - start < SECONDS, (name, self.metric(name))
            time.sleep(0.02)

    def raw(self, data: bytes) -> bytes:
        """What comes back for bytes that need be no HTTP."""
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)) as plug:
            plug.sendall(data)
            plug.shutdown(socket.SHUT_WR)
            answer = b""
            while block := plug.recv(65536):
                answer += block
            return answer


@contextmanager
def running(
    path: Path, backend: Backend, config: ServeConfig, buttons: Buttons = NO_BUTTONS
) -> Iterator[Running]:
    """A server of this backend, which stays open at the end."""
    listening = bound(config)
    listening.listen(64)
    uvicorn_server = server(app_of(path, backend, config, buttons))
    thread = threading.Thread(
        target=uvicorn_server.run, kwargs={"sockets": [listening]}, daemon=True
    )
    thread.start()
    try:
        start = time.monotonic()
        while not uvicorn_server.started:
            assert time.monotonic() - start < SECONDS
            time.sleep(0.01)
        yield Running(port=listening.getsockname()[1], backend=backend)
    finally:
        uvicorn_server.should_exit = True
        thread.join(SECONDS)
        listening.close()
