"""A user's reward function in a process of its own, so that one that hangs can be ended."""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

START_SECONDS = 120.0  # for what the user's file imports, on a busy machine


class UserReward:
    """function(prompt, answer, row) of a file. ValueError where the file cannot be imported, and at
    a call that raises or takes longer than `seconds`, naming the prompt.
    """

    def __init__(self, file: Path, function: str, seconds: float) -> None:
        self.name, self.seconds = f"{file}:{function}", seconds
        path = os.pathsep.join(part for part in sys.path if part)
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "pocketlm.eval.user_reward", str(file), function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        answer = self._line(START_SECONDS)
        if answer != {"ready": True}:
            self.close()
            problem = answer["error"] if answer else "its process did not start in time"
            raise ValueError(f"reward {self.name}: {problem}")

    def __call__(self, prompt: str, answer: str, row: dict[str, Any]) -> Any:
        where = f"for the prompt {prompt[:80]!r}"
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(json.dumps([prompt, answer, row]).encode() + b"\n")
            self._worker.stdin.flush()
        except OSError:
            raise ValueError(f"reward {self.name}: its process ended {where}") from None
        result = self._line(self.seconds)
        if result is None:
            raise ValueError(f"reward {self.name}: it took more than {self.seconds:g} s {where}")
        if "error" in result:
            raise ValueError(f"reward {self.name}: {result['error']} {where}")
        return result["value"]

    def _line(self, seconds: float) -> dict[str, Any] | None:
        """What the worker says next; None where it says nothing in time."""
        assert self._worker.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._worker.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
            line = self._worker.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else {"error": "its process ended"}

    def close(self) -> None:
        self._worker.kill()
        self._worker.communicate()

    def __enter__(self) -> UserReward:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _serve(file: Path, name: str) -> None:
    """Answers lines of [prompt, answer, row]. What the user's code prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(content: dict[str, Any]) -> None:
        out.write(json.dumps(content) + "\n")
        out.flush()

    try:
        spec = importlib.util.spec_from_file_location("user_reward", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
    except BaseException as error:
        say({"error": f"it cannot be imported: {_told(error)}"})
        return
    say({"ready": True})
    for line in sys.stdin:
        try:
            value = function(*json.loads(line))
            # numpy's and torch's numbers are numbers too
            value = value.item() if hasattr(value, "item") else value
            say({"value": value})
        except BaseException as error:
            say({"error": f"it raised {_told(error)}"})


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2])
