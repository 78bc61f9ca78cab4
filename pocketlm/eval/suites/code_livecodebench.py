"""LiveCodeBench's code generation, release v6: programs that read and print, and functions.

Definition: LiveCodeBench/LiveCodeBench@28fef95, lcb_runner. Files: livecodebench/
code_generation_lite on the Hugging Face hub, whose private tests are a JSON text inside a pickle.
It is never unpickled: the text is read, and a pickle that holds anything else is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import keyword
import pickletools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pocketlm.eval.code_scorer import needs_sandbox
from pocketlm.eval.suites.own_problems import check_text
from pocketlm.eval.suites.rows import ADVICE
from pocketlm.eval.suites.suite import Problem, Suite
from pocketlm.inference.sampling import Sampling
from pocketlm.model.json_lines import Span, json_lines
from pocketlm.model.json_shape import OBJECT, TEXT, JsonObject, parse_json
from pocketlm.model.unpacked import first_line
from pocketlm.sandbox.judge import Cases, Task

DATASET = "livecodebench/code_generation_lite"
FOLDER = "livecodebench"  # in the user's folder of benchmarks
FILES = ("test.jsonl", *(f"test{number}.jsonl" for number in range(2, 7)))  # all of release v6
NEWEST = FILES[-1:]  # what release v6 added: the dataset's tag "v6" (code_generation_lite.py)
CASE_SECONDS = 6  # LiveCodeBench's; of processor time here, of the clock there
MOST_BYTES = 2**30  # of one problem's private tests, unpacked
# what a pickle of one text is made of
TEXT_CODES = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
FRAME_CODES = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}

# before every program stand the names of these modules, in LiveCodeBench's order
OPEN_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json"),
)
BEGIN = "".join(
    [
        *(f"from {module} import *\n" for module in (*OPEN_MODULES, "builtins", "typing")),
        *(f"import {module}\n" for module in OPEN_MODULES),
        "sys.setrecursionlimit(50000)\n",
    ]
)
# a method of Solution, or a function; a tuple counts as the list that the tests want
FUNCTIONAL = """
import json
arguments = [json.loads(line) for line in {lines!r}]
try:
    function = Solution().{name}
except AttributeError:
    function = {name}
result = function(*arguments)
if isinstance(result, tuple):
    result = list(result)
assert result == json.loads({output!r})
"""
SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and "
    "will generate a correct Python program that matches the specification and passes all tests. "
    "You will NOT return anything except for the program.\n\n"
)
WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your "
    "code within delimiters."
)
WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows."
)


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """The problems of the hub's JSONL files, in a folder of the user's or fetched. The loading
    script beside them is not run, and no present datasets package would.
    """

    files: tuple[str, ...]

    def load(self, data: Path | None) -> Iterator[Problem]:
        """FileNotFoundError: a file is not there, all of which are the release. ValueError: the hub
        does not give them, or the file and line of a damaged row. Every test is read here once, and
        again from its file when a program is judged: together they are gigabytes.
        """
        folder = self._fetched() if data is None else data / FOLDER
        paths = [folder / name for name in self.files]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise FileNotFoundError(
                f"{folder} holds no {', '.join(missing)}; fetch them from {DATASET} on the Hugging "
                f"Face hub: this suite is {', '.join(self.files)}"
            )
        for path in paths:
            for span in _rows_of(path):
                yield _problem(path, span)

    def _fetched(self) -> Path:
        try:
            import huggingface_hub as hub

            wanted = list(self.files)
            return Path(hub.snapshot_download(DATASET, repo_type="dataset", allow_patterns=wanted))
        except Exception as error:  # network, login and hub errors each have their own kinds
            raise ValueError(
                f"{DATASET} cannot be fetched from the Hugging Face hub ({first_line(error)}); "
                f"{ADVICE} with its files in DIR/{FOLDER}"
            ) from None


def _rows_of(path: Path) -> Iterator[Span]:
    """Where each row stands."""
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Span(start, start + len(line), number)
            start += len(line)


def _row(path: Path, span: Span) -> JsonObject:
    number, content = next(json_lines(path, span=span))
    if not isinstance(content, dict):
        raise ValueError(f"{path}:{number}: expected an object; mend the line, or leave it out")
    return JsonObject(content, f"{path}:{number}")


def _problem(path: Path, span: Span) -> Problem:
    row = _row(path, span)
    question = row.typed("question_content", TEXT)
    starter = row.typed("starter_code", TEXT)
    for _ in _cases(row):
        pass  # what is damaged is said before a model is asked
    task = Cases(
        read=partial(_read_again, path, span, _digest(row)),
        digest=_digest(row),
        cpu_seconds=CASE_SECONDS,
        begin=BEGIN,
    )
    form = (WITH_STARTER, starter) if starter else (WITHOUT_STARTER, "# YOUR CODE HERE")
    prompt = (
        f"### Question:\n{question}\n\n### Format: {form[0]}\n```python\n{form[1]}\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    identity, family = row.typed("question_id", TEXT), row.typed("difficulty", TEXT)
    for text in (identity, family, prompt):
        check_text(text, f"{path}:{span.first_line}")
    return Problem(id=identity, family=family, prompt=prompt, answer="", task=task)


# ---- tests ----


def _digest(row: JsonObject) -> str:
    """Of all that a program of this row is asked."""
    fields = [row[key] for key in ("public_test_cases", "private_test_cases", "metadata")]
    return hashlib.sha256(json.dumps([BEGIN, FUNCTIONAL, fields]).encode()).hexdigest()


def _read_again(path: Path, span: Span, digest: str) -> Iterator[tuple[str, str] | Task]:
    row = _row(path, span)
    if _digest(row) != digest:
        raise ValueError(f"{path}:{span.first_line}: changed while it was read; evaluate anew")
    return _cases(row)


def _cases(row: JsonObject) -> Iterator[tuple[str, str] | Task]:
    """(input, output) of each test, or a call and its result where the row names a function."""
    metadata = parse_json(row.typed("metadata", TEXT), f"{row.file}: metadata")
    if not isinstance(metadata, JsonObject):
        raise row.wrong("metadata", "holds no object")
    name = metadata.typed("func_name", TEXT, None)
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise row.wrong("metadata", "names no function (func_name)")
    number = 0
    for key in ("public_test_cases", "private_test_cases"):
        for test in _tests(row, key):
            stdin, output = test.typed("input", TEXT), test.typed("output", TEXT)
            number += 1
            yield (stdin, output) if name is None else _call(row, key, name, stdin, output)
    if not number:
        raise row.wrong("public_test_cases", "holds no test, and nor do the private ones")


def _call(row: JsonObject, key: str, name: str, stdin: str, output: str) -> Task:
    lines = [line for line in stdin.split("\n") if line.strip()]
    try:
        for text in (*lines, output):
            json.loads(text)
    except (ValueError, RecursionError) as error:
        raise row.wrong(key, f"holds a test of {name} that is no JSON ({error})") from None
    tests = FUNCTIONAL.format(lines=lines, name=name, output=output)
    return Task(program="", tests=tests, names=("Solution", name))


def _tests(row: JsonObject, key: str) -> list[JsonObject]:
    text = row.typed(key, TEXT)
    if not text.lstrip().startswith("["):
        try:
            text = _packed_text(text)
        except (ValueError, zlib.error) as error:
            raise row.wrong(key, f"is neither JSON nor a packed JSON text: {error}") from None
    tests: Any = parse_json(text, f"{row.file}: {key}")
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise row.wrong(key, f"holds something else than {OBJECT} for each test")
    return tests


def _packed_text(text: str) -> str:
    """The text in base64 of a zlib stream of a pickle. ValueError or zlib.error: it holds anything
    else, which is not looked at.
    """
    try:
        packed = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64 ({error})") from None
    stream = zlib.decompressobj()
    content = stream.decompress(packed, MOST_BYTES)
    if stream.unconsumed_tail:
        raise ValueError(f"more than {MOST_BYTES:,} bytes of tests")
    if not stream.eof:
        raise ValueError("the zlib stream is cut")
    texts: list[str] = []
    for code, argument, _ in pickletools.genops(content):  # reads names and texts, makes nothing
        if code.name in TEXT_CODES:
            texts.append(str(argument))
        elif code.name not in FRAME_CODES:
            raise ValueError(f"the pickle holds more than a text ({code.name}); it is not opened")
    if len(texts) != 1:
        raise ValueError(f"the pickle holds {len(texts)} texts")
    return texts[0]


LIVECODEBENCH = Suite(
    name="livecodebench",
    problems=HubFiles(files=FILES),
    kind="generation",
    runs_code=True,
    scorer=needs_sandbox,
    metric="pass@1",
    preamble=SYSTEM,
    prompt_format="{prompt}",
    chat=True,
    stop_strings=("###",),
    max_new_tokens=2000,
    sampling=Sampling(temperature=0.2, top_p=0.95),
    samples=10,
)
LIVECODEBENCH_V6 = replace(LIVECODEBENCH, name="livecodebench_v6", problems=HubFiles(files=NEWEST))
