"""Programs that try to pass without the right values, or to reach what is outside their worker.

Each is asked solve(1) and solve(2), whose answers are random texts. In a program {answers} is a
file that holds them, {link} a link to it, {folder} a folder that anybody may write in, {port} an
open port, {victim} a process.
"""

import contextlib
import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pocketlm.sandbox.judge import Judgement, Task, judge_once
from pocketlm.sandbox.layers import Layer, Limits, base_python

SOLVE = "def solve(n):\n    return 0\n"
FRAME = "import os, struct, json\nPASS = struct.pack('>cI', b'V', 11) + b'[\"pass\",\"\"]'\n"
EVERY_FD = (
    "for fd in range(64):\n    try:\n        os.write(fd, {what})\n"
    "    except OSError:\n        pass\n"
)
CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
FROM_FILE = "    import json\n    return json.load(open({answers!r}))[str(n)]\n"


def forging(body: str) -> str:
    return FRAME + EVERY_FD.replace("{what}", body) + SOLVE


def in_call(body: str, head: str = "") -> str:
    """A program whose solve() does this, then answers wrongly."""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    return f"{head}\ndef solve(n):\n{lines}    return 0\n"


EQUAL = (
    "    def __eq__(self, other):\n        return True\n"
    "    def __ne__(self, other):\n        return False\n"
    "    def __hash__(self):\n        return 0\n"
)


def equal_to_all(base: str, made: str = "Same()") -> str:
    return f"class Same({base}):\n{EQUAL}\ndef solve(n):\n    return {made}\n"


WORKER = "import sys\nworker = sys.modules['pocketlm.sandbox.worker']\n"

# name -> (program, the verdicts it may get; () for any but "pass")
FORGERIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "int equal to all": (equal_to_all("int"), ("fail",)),
    "object equal to all": (equal_to_all("object"), ("fail",)),
    "str equal to all": (equal_to_all("str"), ("fail",)),
    "list equal to all": (equal_to_all("list"), ("fail",)),
    "dict equal to all": (equal_to_all("dict"), ("fail",)),
    "object that says it is a str": (
        f"class Same:\n{EQUAL}    __class__ = str\ndef solve(n):\n    return Same()\n",
        (),
    ),
    "metaclass equal to all": (
        f"class Meta(type):\n{EQUAL}\nclass Same(metaclass=Meta):\n    pass\n"
        "def solve(n):\n    return Same\n",
        ("fail",),
    ),
    "object that holds and is all": (
        equal_to_all("object")
        + "for name in ('lt', 'gt', 'contains', 'bool', 'iter', 'next', 'len', 'getitem', 'call', "
        "'str', 'repr'):\n    setattr(Same, f'__{name}__', lambda self, *rest: True)\n",
        ("fail",),
    ),
    "fraction equal to all": (
        "from fractions import Fraction\n" + equal_to_all("Fraction", "Same(1, 2)"),
        ("fail",),
    ),
    "not a number": ("def solve(n):\n    return float('nan')\n", ("fail",)),
    "exit 0 while loading": ("import sys\nsys.exit(0)\n", ("fail",)),
    "hard exit 0 while loading": ("import os\nos._exit(0)\n", ("crash",)),
    "exit in the call": (in_call("raise SystemExit(0)"), ("fail",)),
    "hard exit in the call": (in_call("import os\nos._exit(0)"), ("crash",)),
    "AssertionError in the call": (in_call("raise AssertionError"), ("fail",)),
    "StopIteration in the call": (in_call("raise StopIteration"), ("fail",)),
    "KeyboardInterrupt in the call": (in_call("raise KeyboardInterrupt"), ("fail",)),
    "exception with a str of its own": (
        "class Odd(BaseException):\n    def __str__(self):\n        raise SystemExit(0)\n"
        "def solve(n):\n    raise Odd\n",
        ("fail",),
    ),
    "a verdict on every descriptor": (forging("PASS"), ("protocol", "crash")),
    "replies in advance": (forging("struct.pack('>cI', b'R', 4) + b'null'"), ("protocol", "fail")),
    "a question on every descriptor": (forging("struct.pack('>cI', b'Q', 2) + b'[]'"), ()),
    "a frame of four gigabytes": (forging("struct.pack('>cI', b'R', 2**32 - 1)"), ("protocol",)),
    "half a frame": (forging("b'R'") + "import time\ntime.sleep(60)\n", ("timeout",)),
    "verdict printed": ('print(\'["pass", ""]\', flush=True)\n' + SOLVE, ("fail",)),
    "verdict through the worker's own functions": (
        WORKER + "def solve(n):\n    frame = sys._getframe()\n    while frame:\n"
        "        if 'channel' in frame.f_locals:\n"
        "            worker.write_frame(frame.f_locals['channel'], b'V', b'[\"pass\", \"\"]')\n"
        "        frame = frame.f_back\n",
        ("protocol",),
    ),
    "answers in frames and in the heap": (
        "import gc, sys\ndef solve(n):\n"
        "    texts = [o for o in gc.get_objects() if isinstance(o, (str, dict, list))]\n"
        "    frame = sys._getframe()\n    while frame:\n        texts += list(frame.f_locals)\n"
        "        frame = frame.f_back\n"
        "    return next((t for t in texts if isinstance(t, str) and t.startswith('answer')), 0)\n",
        ("fail",),
    ),
    "patched builtins": (
        "import builtins\nbuiltins.AssertionError = KeyError\n"
        "builtins.isinstance = lambda *a: True\n"
        "builtins.len = lambda x: 0\nbuiltins.compile = lambda *a, **k: ''\n" + SOLVE,
        (),
    ),
    "patched encoding": (
        WORKER + 'worker.encode = lambda value, handle: b\'["l", [["h", 0, "str"]]]\'\n' + SOLVE,
        ("fail",),
    ),
    "encoding of no kind": (
        WORKER + 'worker.encode = lambda value, handle: b\'["eval", ["1"]]\'\n' + SOLVE,
        ("protocol",),
    ),
    "deep text as a value": (
        WORKER + "worker.encode = lambda value, handle: b'[' * 10**6 + b']' * 10**6\n" + SOLVE,
        ("protocol",),
    ),
    "handle that does not exist": (
        WORKER + 'worker.encode = lambda value, handle: b\'["h", "x", 3]\'\n' + SOLVE,
        ("protocol",),
    ),
    "set of equal hashes": (
        "def solve(n):\n    return {k * (2**61 - 1) for k in range(2000)}\n",
        (),
    ),
    "text of equal hashes, ready made": (
        WORKER + "import json\ntext = json.dumps(['s', [['i', hex(k * (2**61 - 1))] "
        "for k in range(60000)]]).encode()\nworker.encode = lambda value, handle: text\n" + SOLVE,
        ("timeout",),
    ),
    "debug off": ("import builtins\nvars(builtins)['__debug__'] = False\n" + SOLVE, ("fail",)),
    "trace function": (
        "import sys\ndef trace(frame, event, arg):\n    frame.f_locals['verdict'] = 'pass'\n"
        "    return trace\nsys.settrace(trace)\nsys.setprofile(trace)\n" + SOLVE,
        ("fail",),
    ),
    "function that defines itself as a module": (
        "import sys\nclass Odd(type(sys)):\n    def __getattr__(self, name):\n        return Odd\n"
        "sys.modules['candidate'].__class__ = Odd\n",
        (),
    ),
}

EXHAUSTION: dict[str, tuple[str, tuple[str, ...]]] = {
    "endless loop": (in_call("while True:\n    pass"), ("timeout",)),
    "endless loop in C": (in_call("all(__import__('itertools').repeat(1))"), ("timeout",)),
    "endless loop with signals ignored": (
        "import signal\nfor number in range(1, 65):\n    try:\n"
        "        signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError):\n"
        "        pass\n" + in_call("while True:\n    pass"),
        ("timeout",),
    ),
    "sleep": (in_call("import time\ntime.sleep(600)"), ("timeout",)),
    "four gigabytes": (in_call("return len(bytearray(4 * 2**30))"), ("memory",)),
    "a list without end": (in_call("x = []\nwhile True:\n    x += [x] * 10**6"), ("memory",)),
    "integer of two million digits": (in_call("return 10 ** 2_000_000"), ("fail", "protocol")),
    "integer beyond time": (in_call("return 9 ** 9 ** 9"), ("timeout", "memory")),
    "list nested 100,000 deep": (
        in_call("x = []\nfor _ in range(100_000):\n    x = [x]\nreturn x"),
        ("protocol",),
    ),
    "list in itself": (in_call("x = []\nx.append(x)\nreturn x"), ("protocol",)),
    "text of 64 megabytes": (in_call("return 'x' * 2**26"), ("protocol",)),
    "iterator without end": (in_call("return map(int, iter(int, 1))"), ("fail",)),
    "output without end": (in_call("while True:\n    print('x' * 10_000)"), ("output cap",)),
    "errors without end": (
        in_call("import sys\nwhile True:\n    sys.stderr.write('x' * 10_000)"),
        ("output cap",),
    ),
    "recursion to a crash": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self):\n"
        "        return repr([self])\n" + in_call("repr(A())"),
        ("crash", "memory", "fail"),
    ),
    "null pointer": (in_call("import ctypes\nctypes.string_at(0)"), ("crash",)),
    "abort": (in_call("import os\nos.abort()"), ("crash",)),
    "all descriptors closed": (
        in_call("import os\nos.closerange(0, 64)\nwhile True:\n    pass"),
        ("crash", "timeout"),
    ),
    "limits raised": (
        in_call(
            "import resource\nfor kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS):\n    try:\n"
            "        resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)\n"
            "    except Exception:\n        pass\nwhile True:\n    pass"
        ),
        ("timeout",),
    ),
    "threads without end": (
        in_call("import threading\nwhile True:\n    threading.Thread(target=print).start()"),
        ("fail", "memory"),
    ),
}

OUTSIDE: dict[str, tuple[str, tuple[str, ...]]] = {
    "fork bomb": (in_call("import os\nwhile True:\n    os.fork()"), ("fail",)),
    "orphan by fork": (
        in_call("import os, time\nif os.fork() == 0:\n    time.sleep(600)"),
        ("fail",),
    ),
    "orphan by setsid and double fork": (
        in_call(
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
            "        time.sleep(600)\n    os._exit(0)"
        ),
        ("fail",),
    ),
    "orphan that holds the channel": (
        "import os, time\ntry:\n    child = os.fork()\nexcept OSError:\n    child = 1\n"
        "if child == 0:\n    time.sleep(600)\n" + SOLVE,
        ("fail",),
    ),
    "vfork by a raw call": (in_call("libc.syscall(58)", CALL), ()),
    "clone by a raw call": (in_call("libc.syscall(56, 17, 0, 0, 0, 0)", CALL), ()),
    "shell": (in_call("import os\nos.system('touch {folder}/made; sleep 600 &')"), ("fail",)),
    "another program": (
        in_call("import subprocess\nsubprocess.Popen(['/bin/sleep', '600'], close_fds=False)"),
        ("fail",),
    ),
    "another program in its place": (
        in_call("import os\nos.execv('/bin/true', ['/bin/true'])"),
        ("fail",),
    ),
    "program from memory": (
        in_call(
            "import os\nfd = os.memfd_create('x')\nos.write(fd, b'#!/bin/sh')\nos.execv(fd, ['x'])"
        ),
        ("fail",),
    ),
    "network": (
        in_call("import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)"),
        ("fail",),
    ),
    "datagram": (
        in_call(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "s.sendto(b'x', ('127.0.0.1', {port}))"
        ),
        ("fail",),
    ),
    "unix socket": (
        in_call("import socket\nsocket.socket(socket.AF_UNIX).connect('\\0x')"),
        ("fail",),
    ),
    "victim killed": (in_call("import os\nos.kill({victim}, 9)"), ("fail",)),
    "everything killed": (in_call("import os\nos.kill(-1, 9)"), ("fail",)),
    "judge killed": (in_call("import os\nos.kill(os.getppid(), 15)"), ("fail",)),
    "own group killed": (in_call("import os\nos.killpg(0, 9)"), ("fail", "memory")),
    "judge's limits lowered": (
        in_call("import resource, os\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))"),
        ("fail",),
    ),
    "victim traced": (in_call("return libc.ptrace(16, {victim}, 0, 0) == 0", CALL), ("fail",)),
    "victim's memory": (in_call("return open('/proc/{victim}/mem', 'r+b').seek(0)"), ("fail",)),
    "new namespaces": (in_call("return libc.unshare(0x10000000) == 0", CALL), ("fail",)),
    "a mount": (
        in_call("return libc.mount(b'none', b'{folder}', b'tmpfs', 0, None) == 0", CALL),
        ("fail",),
    ),
    "io_uring": (in_call("return libc.syscall(425, 4, bytes(256)) > 0", CALL), ("fail",)),
    "disk filled": (
        in_call(
            "with open('{folder}/big', 'wb') as f:\n    while True:\n        f.write(bytes(2**20))"
        ),
        ("fail",),
    ),
    "many files": (
        in_call("for i in range(1000):\n    open('{folder}/made%d' % i, 'w').close()"),
        ("fail",),
    ),
    "shared memory filled": (
        in_call("open('/dev/shm/sandbox-made', 'wb').write(bytes(2**20))"),
        ("fail",),
    ),
    "file cut to nothing": (in_call("import os\nos.truncate({answers!r}, 0)"), ("fail",)),
    "file removed": (in_call("import os\nos.unlink({answers!r})"), ("fail",)),
    "folder made": (in_call("import os\nos.mkdir('{folder}/made')"), ("fail",)),
    "rights changed": (in_call("import os\nos.chmod('{folder}', 0)"), ("fail",)),
    "link to the answers": (
        in_call("import os\nos.symlink({answers!r}, '{folder}/made')"),
        ("fail",),
    ),
}

READING: dict[str, tuple[str, tuple[str, ...]]] = {
    "answers read from disk": (f"def solve(n):\n{FROM_FILE}", ("fail",)),
    "answers read by another path": (
        "def solve(n):\n    import json\n"
        "    return json.load(open('/proc/self/root' + {answers!r}))[str(n)]\n",
        ("fail",),
    ),
    "answers read by a link": (
        "def solve(n):\n    import json\n    return json.load(open({link!r}))[str(n)]\n",
        ("fail",),
    ),
    "answers read from a folder's descriptor": (
        "def solve(n):\n    import json, os\n    folder = os.open('/', os.O_RDONLY)\n"
        "    fd = os.open({answers!r}[1:], os.O_RDONLY, dir_fd=folder)\n"
        "    return json.loads(os.read(fd, 9999))[str(n)]\n",
        ("fail",),
    ),
    "passwords": (in_call("return len(open('/etc/passwd').read()) > 0"), ("fail",)),
    "judge's command and environment": (
        in_call("import os\nreturn open('/proc/%d/environ' % os.getppid()).read()"),
        ("fail",),
    ),
}
ATTACKS = FORGERIES | EXHAUSTION | OUTSIDE | READING


def program(name: str, places: dict[str, object]) -> str:
    """The attack with its places filled in."""
    text = ATTACKS[name][0]
    for place, value in places.items():
        text = text.replace(f"{{{place}!r}}", repr(value)).replace(f"{{{place}}}", str(value))
    return text


@dataclass(frozen=True)
class Outside:
    """What an attack may try to reach, and the answers that it does not know."""

    places: dict[str, object]
    answers: dict[str, str]
    victim: subprocess.Popen[bytes]
    server: socket.socket

    def harm(self) -> list[str]:
        """What an attack changed; empty where all is as it was."""
        folder = Path(str(self.places["folder"]))
        names = sorted(path.name for path in folder.iterdir())
        wrong = [] if names == ["answers.json", "link"] else [f"files {names}"]
        if json.loads((folder / "answers.json").read_text()) != self.answers:
            wrong.append("the answers are changed")
        if self.victim.poll() is not None:
            wrong.append("the victim is dead")
        with contextlib.suppress(BlockingIOError):
            self.server.accept()
            wrong.append("a connection came")
        if Path("/dev/shm/sandbox-made").exists():
            wrong.append("a file in shared memory")
        return wrong


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """A folder with the answers, an open port, and a process of any user who can be harmed."""
    answers = {str(n): f"answer {secrets.token_hex(8)}" for n in (1, 2)}
    sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(sleeper) as victim,
    ):
        server.setblocking(False)
        file, link = Path(folder, "answers.json"), Path(folder, "link")
        file.write_text(json.dumps(answers))
        link.symlink_to(file)
        os.chmod(folder, 0o777)
        os.chmod(file, 0o666)
        places: dict[str, object] = {"answers": str(file), "link": str(link), "folder": folder}
        places |= {"port": server.getsockname()[1], "victim": victim.pid}
        try:
            yield Outside(places, answers, victim, server)
        finally:
            victim.kill()


def judged(source: str, world: Outside, layer: Layer, python: str, limits: Limits) -> Judgement:
    """The verdict on a program that is asked for both answers."""
    tests = "".join(f"assert solve({n}) == {text!r}\n" for n, text in world.answers.items())
    return judge_once(Task(program=source, tests=tests, names=("solve",)), layer, python, limits)


LIMITS = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=600 * 2**20)
# for what must end otherwise than by the clock, on a slow or busy machine too
PATIENT = replace(LIMITS, cpu_seconds=20, wall_seconds=60.0)


def python_of(user: int | None) -> str | None:
    """An interpreter that this user may start: ours, or the system's."""
    if user is None:
        return base_python()
    for python in (base_python(), "/usr/bin/python3"):
        try:
            finished = subprocess.run([python, "-c", "pass"], user=user, group=user, env={})
        except OSError:
            continue
        if finished.returncode == 0:
            return os.path.realpath(python)
    return None


def adopt_orphans() -> None:
    """From here on a process whose parent has ended is a child of this one."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def descendants() -> dict[int, str]:
    """All that run of this process's children and theirs, whatever program they have become; their
    commands.
    """
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":  # not ended
                parents[int(folder.name)] = int(parent)
                commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    found: dict[int, str] = {}
    while new := {pid for pid, parent in parents.items() if parent in (os.getpid(), *found)} - {
        *found
    }:
        found |= {pid: commands[pid] for pid in new}
    return found


def orphans(before: Collection[int]) -> list[str]:
    """Commands of what runs below this process and did not before; adopt_orphans came first."""
    return [command[:200] for pid, command in descendants().items() if pid not in before]
