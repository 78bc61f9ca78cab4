"""What a worker gives up before it reads any program: limits, and Linux's own filters.

Landlock leaves reading of Python's libraries; seccomp leaves the calls that a computation needs: no
process, no network, no signal to others, no file opened for writing. Neither can be undone. Only
the standard library: a worker runs this file's text. Numbers: linux/landlock.h, linux/seccomp.h,
asm/unistd_64.h, asm-generic/unistd.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from typing import Any

# call numbers, by machine: (AUDIT_ARCH, openat, all others that are allowed)
X86_64 = (
    *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),  # read write close ... rt_sigreturn
    *(17, 19, 20, 21, 23, 24, 25, 28, 32, 33, 35, 36, 37, 38, 39),  # pread64 ... getpid
    *(60, 63, 79, 89, 96, 98, 99, 100, 102, 104, 107, 108, 110, 115),  # exit ... getgroups
    *(131, 186, 201, 202, 204, 217, 218, 219, 228, 229, 230, 231),  # sigaltstack ... exit_group
    *(262, 267, 269, 270, 271, 292, 318, 324, 332, 334, 439),  # newfstatat ... faccessat2
)
AARCH64 = (
    *(17, 23, 24, 48, 57, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80),  # getcwd ... fstat
    *(93, 94, 96, 98, 101, 102, 103, 113, 114, 115, 123, 124, 128, 132, 134, 135, 139),
    *(153, 160, 165, 169, 172, 173, 174, 175, 176, 177, 178, 179),  # times ... sysinfo
    *(214, 215, 216, 222, 226, 233, 278, 283, 291, 293, 439),  # brk ... faccessat2
)
MACHINES = {"x86_64": (0xC000003E, 257, X86_64), "aarch64": (0xC00000B7, 56, AARCH64)}
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # DENY: the call fails with EPERM
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld word, jeq, jset, ret
NR, ARCH, OPEN_FLAGS = 0, 4, 32  # offsets in struct seccomp_data; openat's third argument
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILE_ACCESS = ((1, 13), (2, 14), (3, 15), (5, 16))  # (version of Landlock, how many rights it has)


def lock_down(limits: dict[str, int], landlock: bool) -> list[str]:
    """Set the limits, then the filters; names of those that hold ("landlock", "seccomp").

    limits: cpu_seconds, memory_bytes. Without `landlock` files stay readable.
    """
    _never_survive_the_judge()
    cpu = limits["cpu_seconds"]
    _limit("RLIMIT_CPU", cpu, cpu + 1)
    _limit("RLIMIT_AS", limits["memory_bytes"], limits["memory_bytes"])
    for name, most in (("FSIZE", 0), ("CORE", 0), ("NOFILE", 32), ("NPROC", 0)):
        _limit(f"RLIMIT_{name}", most, most)
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    # ends with the judge, however that ends; seccomp keeps a program from taking it back
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # no process of the same user reads this memory
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return []
    filters = [("landlock", _landlock)] * landlock + [("seccomp", _seccomp)]
    return [name for name, install in filters if install(libc)]


def _never_survive_the_judge() -> None:
    """Where memory runs out, the kernel ends this process first."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _limit(name: str, soft: int, hard: int) -> None:
    """As far as the platform knows it and lets us: macOS refuses a limit of address space."""
    kind = getattr(resource, name, None)
    if kind is None:
        return
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (soft, hard))


def readable_folders() -> list[str]:
    """Where Python's modules and the C libraries are."""
    folders = [
        os.path.join(sys.base_prefix, "lib"),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"),
    ]
    return [folder for folder in folders if os.path.isdir(folder)]


def _landlock(libc: Any) -> bool:
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = max(count for since, count in FILE_ACCESS if version >= since)
    # struct landlock_ruleset_attr: files, network (TCP), scopes (abstract sockets, signals)
    fields = [(1 << rights) - 1, *([3] if version >= 4 else []), *([3] if version >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    paths = [(path, READ_FILE | READ_DIR) for path in readable_folders()]
    paths += [(path, READ_FILE) for path in ("/dev/null", "/dev/zero", "/dev/urandom")]
    for path, access in paths:
        try:
            place = os.open(path, os.O_RDONLY if access == READ_FILE else os.O_PATH)
        except OSError:
            continue
        added = libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", access, place), 0)
        os.close(place)
        if added != 0:
            return False
    restricted = libc.syscall(LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
    return restricted == 0


def _seccomp(libc: Any) -> bool:
    """All calls fail with EPERM but those of the list, and openat for reading."""
    if os.uname().machine not in MACHINES or sys.maxsize < 2**32:
        return False
    architecture, openat, allowed = MACHINES[os.uname().machine]
    program = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NR),
        (EQUAL, 0, 4, openat),
        (LOAD, 0, 0, OPEN_FLAGS),
        (ANY_BIT, 1, 0, WRITING),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, DENY),
        *((EQUAL, len(allowed) - i, 0, number) for i, number in enumerate(allowed)),
        (RETURN, 0, 0, DENY),
        (RETURN, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    steps = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(steps)))
    return libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0) == 0
