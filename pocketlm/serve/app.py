"""The server's application: its routes, behind its guard."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pocketlm.serve.answering import Endpoint
from pocketlm.serve.buttons import Buttons, Desk
from pocketlm.serve.guard import App, Guard, Rules
from pocketlm.serve.jobs import Service
from pocketlm.serve.page import PageFiles
from pocketlm.serve.refusal import Refusal

REASONS = {
    404: "there is nothing at {path}; the API is at /v1/chat/completions, /v1/completions, "
    "/v1/models, /api/model, /metrics and /health",
    405: "{path} does not answer {method}",
    500: "a fault of the server's own; its terminal shows it",
}


def application(
    service: Service, rules: Rules, card: dict[str, Any], created: int, page: Path, buttons: Buttons
) -> App:
    """card: what /api/model says, with which buttons there are beside it. created: seconds since
    1970 of the model's file. page: a folder of static files, opened at /.
    """
    model = {
        "id": service.model,
        "object": "model",
        "created": created,
        "owned_by": "pocketlm",
        "max_model_len": service.backend.max_length,
    }

    async def health(request: Request) -> Response:
        healthy = service.backend.healthy()
        return _json({"status": "ok" if healthy else "failed"}, 200 if healthy else 503)

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != service.model:
            refusal = Refusal(
                404, f"there is no model {name[:80]!r}", code="model_not_found", param="model"
            )
            return _json(refusal.body(), 404)
        return _json(model)

    async def model_card(request: Request) -> Response:
        there = {"run": buttons.run is not None, "check": buttons.check is not None}
        return _json(card | there)

    async def metrics(request: Request) -> Response:
        places = service.places
        text = service.metrics.text(places.running, places.waiting)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    routes: list[BaseRoute] = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/api/model", model_card),
        Route("/metrics", metrics),
        Route("/v1/chat/completions", Endpoint(service, chat=True), methods=["POST"]),
        Route("/v1/completions", Endpoint(service, chat=False), methods=["POST"]),
    ]
    desk = Desk(buttons)
    for name, call, function in (
        ("run", desk.run, buttons.run),
        ("check", desk.check, buttons.check),
    ):
        if function is not None:
            routes.append(Route(f"/api/{name}", _endpoint(call), methods=["POST"]))
    counted = frozenset(route.path for route in routes if isinstance(route, Route))
    routes.append(Route("/v1/models/{name:path}", one_model))
    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        HTTPException: _refused,
        Exception: _refused,
    }
    routed = Starlette(routes=routes, exception_handlers=handlers)
    # not a route: it would match what a route refuses, another method
    routed.router.default = PageFiles(directory=page, html=True)
    return Guard(routed, rules, service.metrics, counted)


def _endpoint(
    call: Callable[[Request], Awaitable[dict[str, Any]]],
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return _json(await call(request))
        except Refusal as refusal:
            response = _json(refusal.body(), refusal.status)
            response.headers.update(refusal.headers)
            return response

    return endpoint


def _json(value: Any, status: int = 200) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    headers = {"cache-control": "no-store"}
    return Response(body, status, headers=headers, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    """What the routes refuse, and a fault, in a sentence."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    reason = REASONS.get(status, "refused")
    reason = reason.format(path=request.url.path[:200], method=request.method)
    response = _json(Refusal(status, reason).body(), status)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response
