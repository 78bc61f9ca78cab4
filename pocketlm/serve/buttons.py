"""What the page's buttons ask for beside answers: a program run, a value compared.

The server is given the functions; it neither runs programs nor reads mathematics itself.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from pocketlm.serve.refusal import Refusal

MOST_CHARS = 100_000  # of a program, and of an answer; our choice
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Buttons:
    """run(code): what a Python program printed, as JSON. check(answer, expected): whether two texts
    are one value. None: there is no such button. ValueError and RuntimeError of both are sentences
    for the page.
    """

    run: Callable[[str], Json] | None = None
    check: Callable[[str, str], bool] | None = None


NO_BUTTONS = Buttons()


class Desk:
    """Calls one of the functions at a time, in a thread; who comes meanwhile must wait."""

    def __init__(self, buttons: Buttons) -> None:
        self.buttons, self.taken = buttons, threading.Lock()

    async def run(self, request: Request) -> Json:
        assert self.buttons.run is not None
        (code,) = texts_of(await request.body(), "code")
        return await self._alone(self.buttons.run, code)

    async def check(self, request: Request) -> Json:
        assert self.buttons.check is not None
        answer, expected = texts_of(await request.body(), "answer", "expected")
        return {"equal": await self._alone(self.buttons.check, answer, expected)}

    async def _alone(self, function: Callable[..., Any], *arguments: str) -> Any:
        if not self.taken.acquire(blocking=False):
            raise Refusal(503, "something else is running; try again", headers={"Retry-After": "2"})
        try:
            return await run_in_threadpool(function, *arguments)
        except (ValueError, RuntimeError) as error:
            raise Refusal(500, str(error)) from None
        finally:
            self.taken.release()


def texts_of(body: bytes, *names: str) -> list[str]:
    """These fields of a JSON object, each a text; a Refusal names the one that is not."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON") from None
    if not isinstance(fields, dict):
        raise Refusal(400, f"the body must be an object with {' and '.join(names)}")
    for name in names:
        value = fields.get(name)
        if not isinstance(value, str) or len(value) > MOST_CHARS:
            raise Refusal(
                400, f"{name} must be a text of at most {MOST_CHARS:,} characters", param=name
            )
    return [fields[name] for name in names]
