"""math-verify in a process of its own, which is ended when one comparison takes too long.

A written answer may hold 9^{9^{9^9}}, whose evaluation never ends. math-verify's own timeouts are
signals, which only the main thread may set and which a loop in C does not hear. So a worker process
compares, the caller waits for SECONDS, and a worker that has not answered by then is killed: the
answer counts as wrong.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import subprocess
import sys
import threading
from functools import cache
from typing import Any

SECONDS = 10.0  # for one comparison; nearly all take some milliseconds
START_SECONDS = 120.0  # for importing sympy, on a busy machine


class MathJudge:
    """One worker, started when first needed. Threads may share a judge: they take turns."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._worker: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def same_value(self, gold: str, completion: str) -> bool:
        """Whether math-verify finds the value of `gold` in the completion. RuntimeError: the worker
        does not start.
        """
        with self._turn:
            worker = self._started()
            assert worker.stdin is not None
            request = json.dumps([gold, completion]).encode() + b"\n"
            try:
                worker.stdin.write(request)
                worker.stdin.flush()
                verdict = _line(worker, self.seconds)
            except OSError:
                verdict = None
            if verdict not in (b"true\n", b"false\n"):
                self._end()
            return verdict == b"true\n"

    def _started(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "pocketlm.eval.math_judge"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
            )
            if _line(self._worker, START_SECONDS) != b"ready\n":
                self._end()
                raise RuntimeError(
                    "the process that compares mathematical answers does not start; "
                    "is math-verify installed? pip install math-verify"
                )
        return self._worker

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None

    def close(self) -> None:
        """End the worker."""
        with self._turn:
            self._end()


def _line(worker: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The worker's next line, or None where there is none in time. It writes whole lines, one a
    request.
    """
    assert worker.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        return worker.stdout.readline() if selector.select(seconds) else None


@cache
def _judge() -> MathJudge:
    import atexit

    judge = MathJudge()
    atexit.register(judge.close)
    return judge


@cache
def same_value(gold: str, completion: str) -> bool:
    """Whether math-verify finds the value of `gold`, a number or LaTeX, in the completion."""
    return _judge().same_value(gold, completion)


def _serve() -> None:
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    off: Any = None  # accepted, and documented, though annotated as int
    print("ready", flush=True)
    for line in sys.stdin:
        gold, completion = json.loads(line)
        try:
            expected = parse(f"${gold}$", parsing_timeout=off)
            given = parse(completion, parsing_timeout=off)
            same = bool(expected and given and verify(expected, given, timeout_seconds=None))
        except (ValueError, ArithmeticError, TypeError, RecursionError, MemoryError):
            same = False
        print(json.dumps(same), flush=True)


if __name__ == "__main__":
    _serve()
