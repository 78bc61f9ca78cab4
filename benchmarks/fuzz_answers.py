"""Damaged suite files and odd answers: no traceback, nothing of them is run outside the sandbox.

    OMP_NUM_THREADS=1 python benchmarks/fuzz_answers.py --inputs 10000 --seed 7

Two of five inputs are files: one row of a benchmark's has fields dropped, retyped, made extreme or
exchanged, its bytes damaged, or (LiveCodeBench) other pickles in it, some of which would make a
file where they are opened. Each is read, or refused with a ValueError or FileNotFoundError that
names it. The others are answers made of prose, fences, code, attacks of tests/sandbox_attacks.py
and marks that scorers look for: from each a program is taken for every code suite, and text scorers
judge it. `--judged` of the programs run in the sandbox, those of attacks among them.

Python's audit events are watched all the time: a program, a socket, a pickle's class or code that
stands in no file of Python's or ours is a fault. So is a file in the folder that attacks write to.
Printed: counts, and each fault with the number of its input.
"""

import argparse
import base64
import json
import os
import pickle
import random
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from border_changes import changed

from pocketlm.eval.answers_file import documents_digest
from pocketlm.eval.code_scorer import code_scorer, program_of
from pocketlm.eval.scorers import exact_match, gsm8k, match, r1_answer, without_thinking
from pocketlm.eval.suites.code_livecodebench import FILES, FOLDER
from pocketlm.eval.suites.named import load_problems
from pocketlm.eval.suites.protocols import SUITES
from pocketlm.eval.suites.rows import Rows
from pocketlm.eval.suites.suite import Problem
from pocketlm.inference.stop_strings import before_stop
from pocketlm.sandbox.sandbox import Sandbox, open_sandbox

REPOSITORY = Path(__file__).parent.parent
sys.path += [str(REPOSITORY), str(REPOSITORY / "tests")]
import sandbox_attacks as attacking  # type: ignore[import-not-found] # noqa: E402

from tests.unit.test_eval_suites import VALID  # noqa: E402
from tests.unit.test_livecodebench import PAIRS, SQUARES, Attack, packed  # noqa: E402

RUNNING = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"}
RUNNING |= {"pty.spawn", "pickle.find_class", "socket.connect", "ctypes.dlopen"}
SLOW = 0.003  # of answers go to math-verify too, which may take its 10 seconds for one
CODE_SUITES = ("humaneval", "mbpp", "livecodebench")
FENCES = (
    "```",
    "```python",
    "```py",
    "````",
    "~~~",
    "   ```py",
    "```{.python}",
    "```bash",
    "`" * 9,
)
MARKS = (
    "####",
    "#### 1",
    "\\boxed{",
    "\\boxed{{{1}",
    "$",
    "he answer is",
    "final answer is $",
    "}",
)
MARKS += (
    "<think>",
    "</think>",
    "Answer:",
    "9^9^9",
    "1" * 5000,
    "1/0",
    "[DONE]",
    "### ",
    "\\frac{1}",
)
ODD = ("\x00", "\ud800", "\u2028", "\ufeff", "\r", "\r\n", "\t", "\x0c", "\\", "'''", '"""', "\\N{")
DEEP: tuple[Callable[[int], str], ...] = (
    *(lambda n: "(" * n, lambda n: "-" * n + "1", lambda n: "x" + ".y" * n, lambda n: "[" * n),
    *(lambda n: "lambda:" * n + "1", lambda n: "not " * n + "1", lambda n: "f(" * n + ")" * n),
    *(lambda n: "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, n % 150)),),
    *(lambda n: "1+" * n + "1", lambda n: "{" * n, lambda n: "@a\n" * n + "def decode(): pass"),
)
CODE = (
    *("def {name}(x):\n    return x\n", "class {name}:\n    pass\n", "{name} = lambda x: x\n"),
    *(
        "    return 1\n",
        "\treturn 1\n",
        "import math\n",
        "from math import *\n",
        "print({name}(1))\n",
    ),
    *("from __future__ import annotations\n", "async def {name}():\n    pass\n", "def {name}(\n"),
    *(
        "for {name} in []:\n    pass\n",
        "match 1:\n    case {name}:\n        pass\n",
        "del {name}\n",
    ),
    *("x = f'{{x!r:{{y}}}}'\n", "(y := 1)\n", "try:\n    {name}\nexcept* A:\n    pass\n"),
    *("open({trap!r} + '/a', 'w')\n", "import os\nos.system('touch ' + {trap!r} + '/b')\n"),
    *("__import__('os').mkdir({trap!r} + '/c')\n", "exec(\"open({trap!r} + '/d', 'w')\")\n"),
    *("@(lambda f: open({trap!r} + '/e', 'w'))\ndef {name}():\n    pass\n", "global {name}\n"),
    *("def {name}(x=open({trap!r} + '/f', 'w')):\n    pass\n", "import antigravity\n"),
)


@dataclass
class Watch:
    """What was run here while `on`. workers: interpreters that may be started."""

    workers: frozenset[str]
    on: bool = False
    events: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            wrong = not (file.startswith("<frozen") or os.path.isfile(file))
        else:
            started = event == "subprocess.Popen" and str(arguments[0]) not in self.workers
            wrong = started or event in RUNNING
        if wrong:
            self.events.append(f"{event} {str(arguments)[:200]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--judged", type=int, default=200, help="programs that the sandbox runs")
    arguments = parser.parse_args()
    begin, counts, faults = time.monotonic(), Counter[str](), list[str]()
    sandbox = open_sandbox(limits=attacking.LIMITS)
    watch = Watch(frozenset({sandbox.python, sys.executable}))
    sys.addaudithook(watch)
    with tempfile.TemporaryDirectory() as folder:
        trap = Path(folder) / "trap"
        trap.mkdir(mode=0o777)
        trap.chmod(0o777)
        whole = Path(folder) / "whole"  # read again when a program is judged
        whole.mkdir()
        problems = {name: read(name, whole, valid(name)) for name in (*CODE_SUITES, "gsm8k")}
        answer_scores(problems, "x", slow=True)  # imports what it needs, before the watch is on
        watch.on = True
        exec(compile("1", "<planted>", "exec"))
        watch.on = False
        assert len(watch.events) == 1, "the watch does not see what is run here"
        watch.events.clear()
        share = arguments.judged / (arguments.inputs * 3 / 5)
        for number in range(arguments.inputs):
            draw = random.Random(f"{arguments.seed} {number}")
            watch.on = True
            try:
                if number % 5 < 2:
                    kind = file_outcome(draw, Path(folder), trap)
                else:
                    judged = draw.random() < share
                    kind = answer_outcome(draw, problems, sandbox if judged else None, trap)
            except Exception:
                kind = "fault"
                faults.append(f"input {number}: {traceback.format_exc(limit=-3)}")
            watch.on = False
            counts[kind] += 1
            if watch.events or any(trap.iterdir()):
                faults.append(f"input {number}: ran here: {watch.events}, {list(trap.iterdir())}")
                watch.events.clear()
                for file in trap.iterdir():
                    file.rename(Path(folder) / f"{number} {file.name}")
    for fault in faults[:20]:
        print(fault)
    print(
        f"{arguments.inputs:,} inputs in {time.monotonic() - begin:.0f} s, seed {arguments.seed}:"
    )
    print("  " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items())))
    verdicts = ", ".join(f"{count:,} {name}" for name, count in sandbox.counts.most_common())
    print(f"  in the sandbox ({sandbox.description}): {verdicts}")
    ran = sum("ran here" in fault for fault in faults)
    print(f"  tracebacks: {len(faults) - ran}; run outside the sandbox: {ran}")
    sys.exit(bool(faults))


# ---- files ----


def valid(name: str) -> list[dict[str, Any]]:
    return [SQUARES, PAIRS] if name == "livecodebench" else VALID[name]


def read(name: str, folder: Path, rows: list[Any]) -> tuple[Problem, ...]:
    """The problems of a file of these rows, each JSON or bytes."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    source = SUITES[name].problems
    if isinstance(source, Rows):
        (folder / f"{source.file}.jsonl").write_bytes(b"\n".join(lines))
    else:
        (folder / FOLDER).mkdir(exist_ok=True)
        for file in FILES:
            (folder / FOLDER / file).write_bytes(b"\n".join(lines) if file == FILES[0] else b"")
    return load_problems(SUITES[name], folder)


def file_outcome(draw: random.Random, folder: Path, trap: Path) -> str:
    name = draw.choice([*VALID, *("livecodebench",) * 5, *("humaneval", "mbpp") * 2])
    rows: list[Any] = [*valid(name)]
    place = draw.randrange(len(rows))
    row = dict(rows[place])
    if name == "livecodebench" and draw.random() < 0.5:
        row["private_test_cases"] = odd_tests(draw, trap)
        rows[place] = row
    else:
        rows[place] = changed(json.dumps(row).encode(), draw, "row") or b""
    try:
        problems = read(name, folder, rows)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        if "\n" in message or str(folder) not in message:
            raise AssertionError(f"one line with the file is wanted: {message!r}") from None
        return "files refused"
    documents_digest(problems, {})
    for problem in problems:
        SUITES[name].prompt(problem).encode()
        if problem.task is not None:
            program_of(problem.task, answer_text(draw, trap))
            for _ in getattr(problem.task, "read", tuple)():
                pass
    return "files read"


def odd_tests(draw: random.Random, trap: Path) -> str:
    """Private tests that are packed otherwise than they should."""
    text = SQUARES["private_test_cases"]
    protocol = draw.randrange(pickle.HIGHEST_PROTOCOL + 1)
    match draw.randrange(4):
        case 0:
            return packed(Attack(trap / "pickled"), protocol)
        case 1:
            return packed(
                draw.choice([[], {}, 1, None, b"x", "", "[]", "{", [text], text]), protocol
            )
        case 2:
            content = bytearray(zlib.decompress(base64.b64decode(text)))
            for _ in range(draw.randrange(1, 4)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            return base64.b64encode(zlib.compress(bytes(content))).decode()
    damaged = bytearray(base64.b64decode(text))
    damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return base64.b64encode(damaged[: draw.randrange(len(damaged) + 1)]).decode()


# ---- answers ----


def answer_outcome(
    draw: random.Random, problems: dict[str, Any], sandbox: Sandbox | None, trap: Path
) -> str:
    text = answer_text(draw, trap)
    answer_scores(problems, text, slow=draw.random() < SLOW)
    if sandbox is not None:
        problem = draw.choice([one for name in CODE_SUITES for one in problems[name]])
        code_scorer(sandbox)(problem, text)
    return "answers"


def answer_scores(problems: dict[str, Any], text: str, *, slow: bool) -> None:
    for name in CODE_SUITES:
        for problem in problems[name]:
            answer = without_thinking(before_stop(text, SUITES[name].stop_strings), program=True)
            program_of(problem.task, answer)
    (sums,) = problems["gsm8k"]
    answer = without_thinking(text)
    for score in (match, exact_match, *([gsm8k] if slow else [])):
        assert all(0 <= value <= 1 for value in score(sums, answer).values())
    r1_answer(answer)


def answer_text(draw: random.Random, trap: Path) -> str:
    """Prose, fences, code and marks in any order, now and then cut or with a part twice."""
    parts = [piece(draw, trap) for _ in range(draw.randrange(1, 9))]
    text = draw.choice(("\n", "\n", "")).join(parts)
    while draw.random() < 0.4 and text:
        start, stop = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        text = text[:start] + text[start:stop] * draw.choice((0, 2)) + text[stop:]
        text = text[:200_000]
    return text


def piece(draw: random.Random, trap: Path) -> str:
    kind = draw.random()
    if kind < 0.3:
        return draw.choice(FENCES)
    if kind < 0.65:
        name = draw.choice(("a", "b", "pairs", "Solution", "solve"))
        return draw.choice(CODE).format(name=name, trap=str(trap))
    if kind < 0.72:
        places = {"answers": str(trap / "answers"), "link": str(trap / "link"), "folder": str(trap)}
        attack = draw.choice([*attacking.OUTSIDE, *attacking.FORGERIES])
        return attacking.program(attack, {**places, "port": 9, "victim": 2**22})
    if kind < 0.77:
        return draw.choice(DEEP)(draw.choice((3, 90, 201, 3000, 30_000)))
    return draw.choice((*MARKS, *ODD, "Words.", "So we see that:", "é", "日本"))


if __name__ == "__main__":
    main()
