"""Who may ask: every request passes here before anything reads it.

A server on 127.0.0.1 is reached by every page that a browser on this machine shows. Such a page can
post text/plain without asking, so JSON's content type is required, which a browser asks for first;
its Origin is not ours; and where its name is made to resolve to 127.0.0.1 (DNS rebinding), its Host
is not ours.
"""

import asyncio
import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from pocketlm.serve.metrics import Metrics
from pocketlm.serve.refusal import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PRIVATE = ("/v1/", "/api/", "/metrics")  # what a key protects; the page and /health are for all
HEADER_BYTES = 32_768
BODY_SECONDS = 30  # in which a body must have come; our choice
SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
]
METHODS, HEADERS = "GET, POST, OPTIONS", "Content-Type, Authorization"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """hosts: the names of this server. any_address: whether an IP address is one of them too, for
    only a name can be rebound. origins: of other pages that may ask, such as
    "http://localhost:3000". key: what a client must show; None for no key.
    """

    hosts: frozenset[str] = LOOPBACK
    any_address: bool = False
    origins: frozenset[str] = frozenset()
    key: str | None = None
    max_body_bytes: int = 2**20


class Guard:
    """An ASGI application around another one. Bodies of POSTs are read here, and arrive whole."""

    def __init__(self, app: App, rules: Rules, metrics: Metrics, routes: frozenset[str]) -> None:
        """routes: the paths that are counted by their names; all others are "other"."""
        self.app, self.rules, self.metrics, self.routes = app, rules, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: there is none here
            await send({"type": "websocket.close", "code": 1008})
            return
        # clients join addresses and paths with a slash too many
        path = re.sub(r"/{2,}", "/", scope["path"])
        scope = {**scope, "path": path, "raw_path": path.encode("utf-8", "replace")}
        headers = [(bytes(k).lower(), bytes(v)) for k, v in scope["headers"]]
        more = list(SAFE)

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *more]}
                route = path if path in self.routes else "other"
                self.metrics.add("requests_total", route=route, status=message["status"])
            await send(message)

        try:
            if sum(len(k) + len(v) for k, v in headers) > HEADER_BYTES:
                raise Refusal(431, f"the headers are longer than {HEADER_BYTES:,} bytes")
            self._check_host(headers)
            more += self._check_origin(headers, scope["scheme"])
            if scope["method"] == "OPTIONS":
                await refuse(counted, Refusal(204, ""))
                return
            self._check_key(headers, path)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                self._check_type(headers)
                receive = whole(await self._body(headers, receive), receive)
            await self.app(scope, receive, counted)
        except Refusal as refusal:
            await refuse(counted, refusal)

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        values = _all(headers, b"host")
        host = host_of(values[0]) if len(values) == 1 else None
        if host is None or not (
            host in self.rules.hosts or (self.rules.any_address and _is_address(host))
        ):
            raise Refusal(
                403,
                "this server is not called that: the Host header must name it, as in "
                f"{', '.join(sorted(self.rules.hosts))}; another name needs --allow-host",
                code="host_refused",
            )

    def _check_origin(
        self, headers: list[tuple[bytes, bytes]], scheme: str
    ) -> list[tuple[bytes, bytes]]:
        """Headers that let the page of an allowed origin read the answer."""
        values = _all(headers, b"origin")
        if not values:
            return []
        host = _all(headers, b"host")[0]
        origin = values[0].lower()
        if len(values) == 1 and origin == f"{scheme}://{host}".lower():
            return []
        if len(values) > 1 or origin not in self.rules.origins:
            raise Refusal(
                403,
                "pages of this origin may not ask here; start the server with --allow-origin for "
                "one that may",
                code="origin_refused",
            )
        allowed = {"Allow-Origin": values[0], "Allow-Methods": METHODS, "Allow-Headers": HEADERS}
        pairs = [
            (f"access-control-{name.lower()}".encode(), value.encode())
            for name, value in allowed.items()
        ]
        return [*pairs, (b"vary", b"Origin")]

    def _check_key(self, headers: list[tuple[bytes, bytes]], path: str) -> None:
        if self.rules.key is None or not path.startswith(PRIVATE):
            return
        given = _all(headers, b"authorization")
        kind, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        right = hmac.compare_digest(key.strip().encode(), self.rules.key.encode())
        if kind.lower() != "bearer" or not right:
            raise Refusal(
                401,
                "this server asks for its key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_type(self, headers: list[tuple[bytes, bytes]]) -> None:
        values = _all(headers, b"content-type")
        kind = values[0].partition(";")[0].strip().lower() if len(values) == 1 else ""
        if kind != "application/json":
            raise Refusal(415, "a body must have the header Content-Type: application/json")

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        most = self.rules.max_body_bytes
        length = (_all(headers, b"content-length") or ["0"])[0]
        if length.isascii() and length.isdigit() and int(length[:20]) > most:
            raise _too_long(most)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the client left before its body had come")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _too_long(most)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refusal(408, f"the body did not come in {BODY_SECONDS} s") from None


def _too_long(most: int) -> Refusal:
    return Refusal(413, f"the body is longer than the {most:,} bytes that are read")


def whole(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one piece, and then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return next_message


async def refuse(send: Send, refusal: Refusal) -> None:
    """Send a refusal as JSON."""
    body = b"" if refusal.status == 204 else json.dumps(refusal.body()).encode()
    await answer(send, refusal.status, body, "application/json", refusal.headers)


async def answer(
    send: Send, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
) -> None:
    pairs = {"content-type": kind, "cache-control": "no-store", **(headers or {})}
    if status != 204:
        pairs["content-length"] = str(len(body))
    encoded = [(name.lower().encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _all(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def host_of(value: str) -> str | None:
    """The name of a Host header, without its port; None for what is no host."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(:\d{1,5})?", value)
    return match[1].strip("[]").lower().rstrip(".") if match else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
