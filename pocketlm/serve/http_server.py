"""A model behind HTTP: the socket, the terminal's lines, and the end."""

import ipaddress
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from pocketlm.inference.open import label_of
from pocketlm.serve.app import application
from pocketlm.serve.backend import Backend
from pocketlm.serve.buttons import NO_BUTTONS, Buttons
from pocketlm.serve.card import card_of
from pocketlm.serve.guard import HEADER_BYTES, LOOPBACK, App, Rules, host_of
from pocketlm.serve.jobs import Service
from pocketlm.serve.metrics import Metrics
from pocketlm.serve.open_backend import Opening, open_backend
from pocketlm.serve.request_fields import Defaults
from pocketlm.serve.waiting import Places

PAGE = Path(__file__).with_name("web")
KEEP_ALIVE_SECONDS = 30  # of a connection that asks nothing
GRACE_SECONDS = 2  # for answers that are being made when the server is stopped


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """host, port: where the server listens; port 0 takes a free one. queue: requests that may wait
    for a place. hosts: further names of this server. origins: pages elsewhere that may ask.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    name: str | None = None
    api_key: str | None = None
    queue: int = 64
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 2**20
    defaults: Defaults = field(default_factory=Defaults)
    opening: Opening = field(default_factory=Opening)

    def __post_init__(self) -> None:
        if self.queue < 0:
            raise ValueError(f"queue {self.queue} is below 0; 0 refuses whoever finds no place")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port {self.port} is not from 0 to 65535")
        if self.max_body_bytes < 1:
            raise ValueError(f"max_body_bytes {self.max_body_bytes} is below 1")
        if self.defaults.max_tokens < 1:
            raise ValueError(f"max_tokens {self.defaults.max_tokens} is below 1")
        if self.api_key is not None and not self.api_key.isascii():
            raise ValueError("an API key goes into a header: ASCII characters only")
        for host in self.hosts:
            if host_of(host) != host.strip("[]").lower():
                raise ValueError(f"host {host!r} is no name of a host; give it without a port")
        for origin in self.origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or origin == "*":
                raise ValueError(
                    f"origin {origin!r} is no origin; give it as http://localhost:3000"
                )


def serve(path: Path, config: ServeConfig, buttons: Buttons) -> None:
    """Answer until the process is asked to stop."""
    listening = bound(config)  # before the model is read: a port in use is known at once
    with listening:
        backend = open_backend(path, config.opening)
        try:
            listening.listen()  # who comes from now on waits, and is not refused
            print(greeting(path, backend, config, listening), file=sys.stderr)
            server(app_of(path, backend, config, buttons)).run(sockets=[listening])
        finally:
            backend.close()


def app_of(path: Path, backend: Backend, config: ServeConfig, buttons: Buttons = NO_BUTTONS) -> App:
    """The application that answers for a model's file."""
    name = config.name or label_of(path.resolve())
    service = Service(
        backend=backend,
        model=name,
        places=Places(backend.slots, config.queue),
        metrics=Metrics(),
        defaults=config.defaults,
    )
    rules = Rules(
        hosts=LOOPBACK | {host.strip("[]").lower() for host in config.hosts},
        any_address=not is_loopback(config.host),
        origins=frozenset(origin.lower() for origin in config.origins),
        key=config.api_key,
        max_body_bytes=config.max_body_bytes,
    )
    card = card_of(path, name, backend)
    return application(service, rules, card, int(path.stat().st_mtime), PAGE, buttons)


def server(app: App) -> uvicorn.Server:
    """uvicorn with its limits; it logs what goes wrong, and no request."""
    return uvicorn.Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            http="h11",
            loop="asyncio",
            ws="none",
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def bound(config: ServeConfig) -> socket.socket:
    """The socket that listens; OSError names what is wrong with its address."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        raise OSError(
            f"{config.host}:{config.port}: {error.strerror or error}; choose another --port or "
            "--host"
        ) from None
    return listening


def greeting(path: Path, backend: Backend, config: ServeConfig, listening: socket.socket) -> str:
    """The lines of the terminal: where, what, and a warning where others can reach it."""
    port = listening.getsockname()[1]
    address = f"[{config.host}]" if ":" in config.host else config.host
    lines = [
        f"{path}: {backend.kind}, {backend.max_length:,} tokens of context, {backend.slots} "
        f"answered side by side, {config.queue} may wait",
        f"http://{address}:{port} is a page to talk on, and /v1 speaks OpenAI's API; stop with "
        "Ctrl-C",
    ]
    if not is_loopback(config.host):
        lines.append(warning(config))
    return "\n".join(lines)


def warning(config: ServeConfig) -> str:
    stars = "*" * 76
    key = (
        "They need the API key, which travels unencrypted."
        if config.api_key
        else "There is NO API KEY: anybody there may use it. Give one with --api-key."
    )
    return (
        f"{stars}\nWARNING: {config.host} is not this machine alone: every machine of your "
        f"network can\nreach this server. {key}\nThe safe address is 127.0.0.1 (leave --host "
        f"out).\n{stars}"
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
