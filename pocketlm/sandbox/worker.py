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
import operator
import os
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from pocketlm.sandbox.lockdown import lock_down
from pocketlm.sandbox.values import decode, encode, tree_of

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
    numbers: dict[int, int] = {}  # by id: an object that is sent twice is the same there

    def handle(value: Any) -> list[Any]:
        number = numbers.setdefault(id(value), len(objects))
        if number == len(objects):
            objects.append(value)
        return ["h", number, type(value).__name__[:MESSAGE]]

    def of_handle(place: int | str, _: str) -> Any:
        return getattr(module, place) if isinstance(place, str) else objects[place]

    def answer(question: bytes) -> tuple[bytes, bytes]:
        what, target, *rest = decode(question, of_handle)
        result = ANSWERS[what](target, *rest)
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


def _next(iterator: Any) -> list[Any]:
    """[item], or [] at the end."""
    try:
        return [next(iterator)]
    except StopIteration:
        return []


# what is asked of an object of the candidate's: always a value, which the tests then compare
ANSWERS: dict[str, Callable[..., Any]] = {
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "truth": bool,
    "length": len,
    "text": str,
    "repr": repr,
    "iterator": iter,
    "next": _next,
    "item": operator.getitem,
}


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
    """A function, class or object of the candidate's, that is asked for values. It equals itself
    alone: what compares, adds or contains is never the program's own.
    """

    def __init__(self, ask: Callable[..., Any], kind: str, place: int | str) -> None:
        """place: its number among the candidate's objects, or the name that it defines."""
        vars(self).update(_ask=ask, _kind=kind, _place=place)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", self, name, value)

    def __bool__(self) -> bool:
        return self._ask("truth", self)

    def __len__(self) -> int:
        return self._ask("length", self)

    def __str__(self) -> str:
        return self._ask("text", self)

    def __repr__(self) -> str:
        return self._ask("repr", self)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", self, key)

    def __iter__(self) -> Any:
        return self._ask("iterator", self)

    def __next__(self) -> Any:
        for item in self._ask("next", self):
            return item
        raise StopIteration


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
    space = {**space, **{name: Remote(ask, name, name) for name in task["names"]}}
    verdict, detail = "pass", ""
    try:
        exec(code, space)
    except NotPlain:
        pass  # state says it
    except MemoryError:
        verdict = "memory"
    except BaseException as error:
        if not state["verdict"]:
            state["verdict"] = "fail", type(error).__name__  # from here on nothing is asked
            # the text of an error asks what it holds for theirs: a number may be too long to print,
            # and an object that stayed with the candidate may raise anything, or answer no more
            with contextlib.suppress(Exception, NotPlain):
                state["verdict"] = "fail", f"{type(error).__name__}: {error}"
    if state["verdict"]:
        return state["verdict"]
    if verdict == "pass" and not state["calls"]:
        return "infrastructure", "the tests never call what they test"
    return verdict, detail


def _asker(channel: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """ask(question, ...) -> the answer; and what it counts: calls, and a verdict that stands."""
    state: dict[str, Any] = {"calls": 0, "verdict": None}
    objects: dict[int, Remote] = {}

    def of_handle(place: int | str, kind: str) -> Remote:
        if isinstance(place, str):
            raise ValueError("a name in place of a number")
        return objects.setdefault(place, Remote(ask, kind, place))

    def handle(value: Any) -> Any:
        if type(value) is Remote:
            return ["h", value._place, value._kind]
        if isinstance(value, Iterator):
            return ["iterator", [tree_of(item, handle, 1) for item in value]]
        refuse("infrastructure", f"the tests send a {type(value).__name__}")

    def refuse(verdict: str, reason: str) -> NoReturn:
        state["verdict"] = verdict, reason
        raise NotPlain

    def ask(*question: Any) -> Any:
        if state["verdict"]:
            raise NotPlain
        try:
            content = encode(question, handle)
        except (ValueError, RecursionError) as error:  # of values that perhaps came from there
            refuse("protocol" if state["calls"] else "infrastructure", f"the tests send {error}")
        write_frame(channel, QUESTION, content)
        kind, content = read_frame(channel)
        state["calls"] += 1
        if kind == NOT_PLAIN:
            refuse("protocol", content.decode("utf-8", "replace"))
        try:
            if kind == REPLY:
                return decode(content, of_handle)
            name, message = json.loads(content)
        except (ValueError, TypeError, RecursionError) as error:
            refuse("protocol", str(error))
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
