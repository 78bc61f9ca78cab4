"""What runs in a worker: the model's program, or the tests that ask it. One role a process.

candidate: loads a program, then answers calls of what it defines. tests: runs trusted tests, in
which the names under test stand for calls to the candidate, and says the verdict; it never sees the
program. program: runs it with its own input and output. Only the standard library, values.py and
lockdown.py: a worker runs this file's text.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

from pocketlm.sandbox.lockdown import lock_down
from pocketlm.sandbox.values import decode, encode

# kinds of frames: one byte, then the length of what follows
STARTED, PROGRAM, LOADED, QUESTION, REPLY, RAISED, NOT_PLAIN, VERDICT = (
    bytes([letter]) for letter in b"SPLQRXCV"
)
HEADER = struct.Struct(">cI")
NO_MEMORY = 71  # exit status of a program without memory
MESSAGE = 500  # characters of an error that are kept


def main(settings: dict[str, Any]) -> None:
    """settings: role, fd (of the channel to the judge), limits, landlock (whether to install)."""
    held = lock_down(settings["limits"], settings["landlock"])
    channel: int = settings["fd"]
    write_frame(channel, STARTED, json.dumps(held).encode())
    _, content = read_frame(channel)
    role = settings["role"]
    if role == "candidate":
        answer_calls(channel, content.decode("utf-8", "surrogatepass"))
    elif role == "tests":
        verdict, detail = run_tests(channel, json.loads(content))
        write_frame(channel, VERDICT, json.dumps([verdict, detail[:MESSAGE]]).encode())
    else:
        os.close(channel)
        run_program(content.decode("utf-8", "surrogatepass"))


def write_frame(channel: int, kind: bytes, content: bytes) -> None:
    """All of it, or OSError."""
    rest = memoryview(HEADER.pack(kind, len(content)) + content)
    while rest:
        rest = rest[os.write(channel, rest) :]


def read_frame(channel: int) -> tuple[bytes, bytes]:
    """The next frame. EOFError: the judge has gone."""
    kind, length = HEADER.unpack(_read(channel, HEADER.size))
    return kind, _read(channel, length)


def _read(channel: int, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        chunk = os.read(channel, length - len(content))
        if not chunk:
            raise EOFError
        content += chunk
    return bytes(content)


# ---- candidate ----


def answer_calls(channel: int, program: str) -> None:
    """Load the program, then answer questions until the judge ends this process."""
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    objects: list[Any] = []

    def handle(value: Any) -> list[Any]:
        objects.append(value)
        return ["h", len(objects) - 1, type(value).__name__[:MESSAGE]]

    def answer(question: bytes) -> tuple[bytes, bytes]:
        what, target, *rest = decode(question, lambda number, _: objects[number])
        if what == "get":
            result = getattr(target, rest[0])
        elif what == "set":
            result = setattr(target, rest[0], rest[1])
        else:
            function = getattr(module, target) if isinstance(target, str) else target
            result = function(*rest[0], **rest[1])
        try:
            return REPLY, encode(result, handle)
        except (ValueError, RecursionError) as error:
            return NOT_PLAIN, str(error)[:MESSAGE].encode()

    def load(source: bytes) -> tuple[bytes, bytes]:
        code = compile(source, "candidate.py", "exec", dont_inherit=True, optimize=0)
        exec(code, module.__dict__)
        return LOADED, b""

    work: Callable[[bytes], tuple[bytes, bytes]] = load
    content = program.encode("utf-8", "replace")
    while True:
        try:
            kind, reply = work(content)
        except BaseException as error:  # a model's program raises what it likes
            kind, reply = RAISED, _described(error)
        write_frame(channel, kind, reply)
        work = answer
        content = read_frame(channel)[1]


def _described(error: BaseException) -> bytes:
    try:
        message = str(error)[:MESSAGE]
    except BaseException:  # its __str__ is the program's too
        message = ""
    return json.dumps([type(error).__name__[:MESSAGE], message]).encode()


# ---- tests ----


class NotPlain(BaseException):
    """The candidate's answer is no value: no test may catch it."""


class Raised(Exception):
    """The candidate raised an exception of its own."""


class Remote:
    """A function, class or object of the candidate's. It equals itself alone, and has no truth."""

    def __init__(self, ask: Callable[..., Any], target: Any, number: int | None = None) -> None:
        vars(self).update(_ask=ask, _target=target, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        me = self if self._number is not None else self._target
        return self._ask("call", me, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", self, name, value)

    def __bool__(self) -> bool:
        raise TypeError(f"an object of type {self._target} has no truth here")


def run_tests(channel: int, task: dict[str, Any]) -> tuple[str, str]:
    """(verdict, detail). task: prelude (trusted code that the tests use), tests, names (what stands
    for the candidate's), all of them from the benchmark.
    """
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(task["prelude"], "prelude.py", "exec", dont_inherit=True, optimize=0), space)
        code = compile(task["tests"], "tests.py", "exec", dont_inherit=True, optimize=0)
    except BaseException as error:
        return "infrastructure", f"the benchmark's own code fails: {type(error).__name__}: {error}"
    ask, state = _asker(channel)
    space = {**space, **{name: Remote(ask, name) for name in task["names"]}}
    verdict, detail = "pass", ""
    try:
        exec(code, space)
    except NotPlain:
        pass  # state says it
    except MemoryError:
        verdict = "memory"
    except BaseException as error:
        verdict, detail = "fail", type(error).__name__
        with contextlib.suppress(Exception):  # it may hold a number too long to print
            detail += f": {error}"
    if state["verdict"]:
        return state["verdict"]
    if verdict == "pass" and not state["calls"]:
        return "infrastructure", "the tests never call what they test"
    return verdict, detail


def _asker(channel: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """ask(question, ...) -> the answer; and what it counts: calls, and a verdict that stands."""
    state: dict[str, Any] = {"calls": 0, "verdict": None}

    def of_handle(number: int, kind: str) -> Remote:
        return Remote(ask, kind, number)

    def handle(value: Any) -> list[Any]:
        if type(value) is Remote and value._number is not None:
            return ["h", value._number, value._target]
        state["verdict"] = "infrastructure", f"the tests send a {type(value).__name__}"
        raise NotPlain

    def refuse(reason: str) -> None:
        state["verdict"] = "protocol", reason
        raise NotPlain

    def ask(*question: Any) -> Any:
        if state["verdict"]:
            raise NotPlain
        write_frame(channel, QUESTION, encode(question, handle))
        kind, content = read_frame(channel)
        state["calls"] += 1
        if kind == NOT_PLAIN:
            refuse(content.decode("utf-8", "replace"))
        try:
            if kind == REPLY:
                return decode(content, of_handle)
            name, message = json.loads(content)
        except (ValueError, TypeError, RecursionError) as error:
            return refuse(str(error))
        raise _exception(name, message)

    return ask, state


def _exception(name: Any, message: Any) -> Exception:
    """The built-in exception of this name, or Raised."""
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    ends = (StopIteration, StopAsyncIteration)  # they would end a loop of the tests' own
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, ends):
        try:
            return kind(str(message))
        except TypeError:  # as UnicodeDecodeError, made of five parts
            pass
    return Raised(f"{name}: {message}")


# ---- program ----


def run_program(source: str) -> None:
    """As `python program.py` would, without a file."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    try:
        code = compile(source.encode("utf-8", "replace"), "program.py", "exec", 0, True, 0)
        exec(code, module.__dict__)
    except MemoryError:
        os._exit(NO_MEMORY)
