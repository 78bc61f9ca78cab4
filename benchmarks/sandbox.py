"""Reference solutions and attacks in the sandbox: false failures, forged passes, milliseconds.

    python benchmarks/sandbox.py DIR                # DIR holds HumanEval.jsonl.gz, mbpp_test.jsonl
    python benchmarks/sandbox.py DIR --unsafe-exec  # with limits alone, where no layer holds

As root the programs run as root and as an ordinary user. `false failures`: references that do not
pass; MBPP's task 367 needs its setup code, which some copies of the test split leave out.
`orphans`: processes that outlive an attack, whatever program they have become.
"""

import argparse
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

from pocketlm.eval.code_scorer import program_of
from pocketlm.eval.suites.named import load_problems
from pocketlm.eval.suites.protocols import SUITES
from pocketlm.sandbox.judge import Task, judge_once
from pocketlm.sandbox.layers import NOBODY
from pocketlm.sandbox.sandbox import Sandbox, open_sandbox

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))
import sandbox_attacks as attacking  # type: ignore[import-not-found] # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with the benchmarks' JSONL files")
    parser.add_argument("--unsafe-exec", action="store_true")
    parser.add_argument("--limit", type=int, help="of each benchmark's first problems")
    arguments = parser.parse_args()
    opened = open_sandbox(unsafe_exec=arguments.unsafe_exec)
    for name, why in opened.refused.items():
        print(f"not {name}: {why}")
    boxes = [opened]
    if os.geteuid() == 0:  # then both kinds of user are tried
        user = None if opened.layer.user else NOBODY
        if python := attacking.python_of(user):
            boxes.append(replace(opened, layer=replace(opened.layer, user=user), python=python))
        else:
            print(f"not user {user}: no interpreter that it may start")
    for sandbox in boxes:
        who = sandbox.layer.user or os.geteuid()
        print(f"layer: {sandbox.layer.name}; user of the programs: {who}; {sandbox.python}")
        for name in ("humaneval", "mbpp"):
            references(name, arguments.data, arguments.limit, sandbox)
        attacks(sandbox)


def references(name: str, data: Path, limit: int | None, sandbox: Sandbox) -> None:
    """The benchmark's own solutions, judged as a model's."""
    seconds, verdicts, begin = [], Counter(), time.monotonic()
    for problem in load_problems(SUITES[name], data, limit):
        assert isinstance(problem.task, Task)
        task = replace(problem.task, program=program_of(problem.task, problem.answer))
        judgement = judge_once(task, sandbox.layer, sandbox.python, sandbox.limits)
        verdicts[judgement.verdict] += 1
        seconds.append(judgement.seconds)
        if judgement.verdict != "pass":
            print(f"    {name} {problem.id}: {judgement.verdict}: {judgement.detail}")
    print(
        f"  {name}: {verdicts['pass']}/{verdicts.total()} references pass, "
        f"false failures: {verdicts.total() - verdicts['pass']}; "
        f"{1000 * median(seconds):.0f} ms each (median), {1000 * max(seconds):.0f} ms the slowest, "
        f"{time.monotonic() - begin:.0f} s in all"
    )


def attacks(sandbox: Sandbox) -> None:
    """Those of the tests, and whether anything outside was reached."""
    names = [
        name
        for name in attacking.ATTACKS
        if sandbox.layer.name != "none" or name not in attacking.READING
    ]
    limits, verdicts, harmful, begin = attacking.LIMITS, Counter(), [], time.monotonic()
    attacking.adopt_orphans()
    with attacking.outside() as world:
        before = attacking.descendants()
        for name in names:
            source = attacking.program(name, world.places)
            verdicts[
                attacking.judged(source, world, sandbox.layer, sandbox.python, limits).verdict
            ] += 1
            if harm := world.harm():
                harmful.append(f"{name}: {harm}")
        left_over = attacking.orphans(before)
    for command in left_over:
        print(f"    still runs: {command}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    print(f"  attacks: {len(names)} tried in {time.monotonic() - begin:.0f} s: {counts}")
    print(
        f"  forged passes: {verdicts['pass']}; orphans: {len(left_over)}; "
        f"harm outside: {harmful or 'none'}"
    )


if __name__ == "__main__":
    main()
