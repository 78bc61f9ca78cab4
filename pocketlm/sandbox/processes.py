"""Workers as processes: started in a session, spoken to in frames, ended with it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pocketlm.sandbox.layers import Layer, Limits, command_of
from pocketlm.sandbox.worker import HEADER, NO_MEMORY

CHUNK = 2**16
HASH_SEED = {"PYTHONHASHSEED": "0"}  # the order of a set is the same in every run
SWEEP = 1.0  # seconds for killed processes to go
TRUSTED = 16  # how many times more than a candidate the tests may send in one message
GRACE = 2.0  # seconds for a process whose channel closed to end by itself
KEPT = 2000  # bytes of what a worker printed, for a message


class Ended(Exception):
    """A worker said what ends the conversation: (verdict, detail)."""

    def __init__(self, verdict: str, detail: str) -> None:
        super().__init__(verdict, detail)
        self.verdict, self.detail = verdict, detail


@dataclass
class Worker:
    """One process. outputs: what it printed, by descriptor (a program has one for its errors).
    Frames wait in inbox and outbox, a program's input in to_stdin.
    """

    role: str
    process: subprocess.Popen[bytes]
    channel: socket.socket
    outputs: dict[int, bytearray]
    limits: Limits
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)
    to_stdin: bytearray = field(default_factory=bytearray)
    closed: bool = False  # its channel has ended
    ended: set[int] = field(default_factory=set)  # outputs that have
    status: int | None = None
    cpu_seconds: float = 0.0
    killed: bool = False  # it did not end by itself: `stop` ended it

    def send(self, kind: bytes, content: bytes) -> None:
        self.outbox += HEADER.pack(kind, len(content)) + content

    def frame(self) -> tuple[bytes, bytes] | None:
        """The next frame if it is whole. Ended: it is longer than a value may be."""
        if len(self.inbox) < HEADER.size:
            return None
        kind, length = HEADER.unpack_from(self.inbox)
        candidate = self.role == "candidate"  # the tests are trusted, and send its values on
        if length > self.limits.value_bytes * (1 if candidate else TRUSTED):
            raise Ended("protocol", f"{length:,} bytes in one message of the {self.role}")
        end = HEADER.size + length
        if len(self.inbox) < end:
            return None
        content = bytes(self.inbox[HEADER.size : end])
        del self.inbox[:end]
        return kind, content


def start(layer: Layer, python: str, role: str, limits: Limits) -> Worker:
    """A fresh interpreter that has read no program yet. OSError: it cannot be started."""
    here, there = socket.socketpair()
    with there:
        program = role == "program"
        user = {} if layer.user is None else {"user": layer.user, "group": layer.user}
        process = subprocess.Popen(
            command_of(layer, python, role, there.fileno(), limits),
            stdin=subprocess.PIPE if program else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if program else subprocess.STDOUT,
            pass_fds=(there.fileno(),),
            start_new_session=True,
            env=HASH_SEED,
            cwd="/",
            extra_groups=None if layer.user is None else (),
            **user,  # type: ignore[arg-type]
        )
    pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe]
    for end in (here.fileno(), *(pipe.fileno() for pipe in (process.stdin, *pipes) if pipe)):
        os.set_blocking(end, False)
    outputs = {pipe.fileno(): bytearray() for pipe in pipes}
    return Worker(role, process, here, outputs, limits)


def next_frame(workers: Sequence[Worker], deadline: float) -> tuple[Worker, bytes, bytes] | None:
    """(worker, kind, content) of the next frame; None for a deadline without one.

    A worker whose channel ended gives the kind b"". Ended: one printed more than it may.
    """
    while True:
        for worker in workers:
            if frame := worker.frame():
                return worker, *frame
        for worker in workers:
            if worker.closed:
                return worker, b"", b""
        if not exchange(workers, deadline):
            return None


def exchange(workers: Sequence[Worker], deadline: float) -> bool:
    """Move the bytes that are ready, or wait for some; False once the deadline has passed."""
    rest = deadline - time.monotonic()
    if rest <= 0:
        return False
    poll, owners = select.poll(), {}
    for worker in workers:
        stdin = worker.process.stdin
        wanted = [(pipe, select.POLLIN) for pipe in worker.outputs if pipe not in worker.ended]
        if not worker.closed:
            events = select.POLLIN | select.POLLOUT * bool(worker.outbox)
            wanted.append((worker.channel.fileno(), events))
        if stdin and not stdin.closed:
            wanted.append((stdin.fileno(), select.POLLOUT))
        for end, events in wanted:
            owners[end] = worker
            poll.register(end, events)
    for end, events in poll.poll(1000 * rest):
        _move(owners[end], end, events)
    return True


def _move(worker: Worker, end: int, events: int) -> None:
    stdin = worker.process.stdin
    if end in worker.outputs:
        _read_output(worker, end)
    elif end == worker.channel.fileno():
        try:
            if events & select.POLLOUT and worker.outbox:
                del worker.outbox[: os.write(end, worker.outbox[:CHUNK])]
            if events & ~select.POLLOUT:
                chunk = os.read(end, CHUNK)
                worker.inbox += chunk
                worker.closed = not chunk
        except BlockingIOError:
            pass
        except OSError:  # the process has gone
            worker.closed = True
    elif stdin:
        try:
            del worker.to_stdin[: os.write(end, worker.to_stdin[:CHUNK])]
        except BlockingIOError:
            pass
        except OSError:  # the program reads no input
            worker.to_stdin.clear()
        if not worker.to_stdin:
            stdin.close()


def _read_output(worker: Worker, pipe: int) -> None:
    try:
        chunk = os.read(pipe, CHUNK)
    except BlockingIOError:
        return
    if not chunk:
        worker.ended.add(pipe)
    worker.outputs[pipe] += chunk
    if len(worker.outputs[pipe]) > worker.limits.output_bytes:
        raise Ended("output cap", f"more than {worker.limits.output_bytes:,} bytes printed")


def printed(worker: Worker) -> str:
    """The end of what it printed, for a message."""
    return b"".join(worker.outputs.values())[-KEPT:].decode("utf-8", "replace").strip()


def stop(worker: Worker, grace: float = 0.0) -> None:
    """End the process and its whole session, after so many seconds to end by itself; status and
    cpu_seconds are known then.
    """
    if worker.status is None:
        pid, deadline = worker.process.pid, time.monotonic() + grace
        while not (over := _reap(worker, os.WNOHANG)) and time.monotonic() < deadline:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if not over:
            worker.killed = True
            _reap(worker, 0)
        _await_writers(worker)
    worker.channel.close()
    for pipe in (worker.process.stdin, worker.process.stdout, worker.process.stderr):
        if pipe:
            pipe.close()


def _await_writers(worker: Worker) -> None:
    """Until no process holds the worker's output: a wrapper's child dies a moment after it."""
    for pipe in worker.outputs:
        poll = select.poll()
        poll.register(pipe, 0)  # POLLHUP alone
        poll.poll(1000 * SWEEP)


def _reap(worker: Worker, options: int) -> bool:
    pid, status, usage = os.wait4(worker.process.pid, options)
    if pid == 0:
        return False
    worker.status = worker.process.returncode = os.waitstatus_to_exitcode(status)
    worker.cpu_seconds = usage.ru_utime + usage.ru_stime
    return True


def death_of(worker: Worker) -> tuple[str, str]:
    """(verdict, detail) of a worker that ended without being asked to, or that closed its channel
    or outputs and did not end; `stop` came before.
    """
    status = worker.status if worker.status is not None else 0
    number = -status if status < 0 else status - 128  # a wrapper gives the signal this way
    busy = worker.cpu_seconds > 0.8 * worker.limits.cpu_seconds  # its clock is coarse
    if number == signal.SIGXCPU or (number == signal.SIGKILL and busy):
        return "timeout", f"{worker.limits.cpu_seconds} seconds of processor time"
    if worker.killed:
        return "crash", "closed what it speaks through, and did not end"
    if status == NO_MEMORY or number == signal.SIGKILL:
        return "memory", "ended for want of memory"
    if number > 0:
        return "crash", f"ended by signal {number}"
    return "crash", f"ended with status {status}"
