"""A .gguf in our runtime against llama.cpp's own llama-bench, on the same file, on one thread.

    python benchmarks/random_files.py r1-140m files --formats gguf
    python benchmarks/llama_bench.py files/model.gguf --llama-bench PATH

The two take turns, so that a machine that slows down slows both; what counts is the median of the
ratios of neighbours, and on a busy machine the ratio of the best of each. llama-bench decodes
without choosing tokens, ours chooses them. `inside`: of our own thread's processor time between two
tokens, the share that llama.cpp's decode takes; other work on the machine hardly disturbs it. One
table, one JSON line.

Our llama.cpp is in the `xllamacpp` wheel, without llama-bench, whose source is in the package's
sdist. Linked to the wheel's own library it runs the very same compiled code (a build of its own, by
another compiler, differs by some per cent):

    pip download --no-deps --no-binary :all: xllamacpp==VERSION    # or the .tar.gz from the
    package's page cd xllamacpp-VERSION/thirdparty/llama.cpp LIB=$(python -c 'import importlib.util
    as u; print(u.find_spec("xllamacpp").submodule_search_locations[0])') PY=$(python -c 'import
    sysconfig; print(sysconfig.get_config_var("LIBDIR"))') g++ -O3 -std=c++17
    -D_GLIBCXX_USE_CXX11_ABI=0 -Iinclude -Iggml/include -Icommon -Ivendor -Isrc \\
        tools/llama-bench/main.cpp tools/llama-bench/llama-bench.cpp "$LIB"/xllamacpp*.so \\
        -L"$PY" -lpython3.11 -Wl,-rpath,"$LIB:$PY" -o llama-bench
"""

import argparse
import importlib.metadata
import json
import subprocess
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pocketlm.eval.latency import measure_speed
from pocketlm.inference import libllama
from pocketlm.inference.llamacpp import GgufModel

PHASES = ("prefill", "decode")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a .gguf")
    parser.add_argument("--llama-bench", type=Path, required=True, help="the binary")
    parser.add_argument(
        "--contexts", default="128,1024", help="full lengths, the new tokens included"
    )
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    contexts = [int(part) for part in arguments.contexts.split(",")]
    torch.set_num_threads(1)
    file = arguments.model
    with closing(GgufModel(file, threads=1)) as model:
        found = {
            context: compare(
                arguments.llama_bench, file, model, context, arguments.new_tokens, arguments.rounds
            )
            for context in contexts
        }
    told = {"file": file.name, "rounds": arguments.rounds}
    show({**told, "xllamacpp": importlib.metadata.version("xllamacpp"), "contexts": found})


def compare(
    binary: Path, file: Path, model: GgufModel, context: int, new_tokens: int, rounds: int
) -> dict:
    """Tokens a second of both (medians); ours over theirs: the median of the rounds, and the best
    of each.
    """
    prompt = context - new_tokens
    speeds: dict[str, list[tuple[float, float]]] = {phase: [] for phase in PHASES}
    for number in range(rounds):
        if number % 2:  # who goes first changes
            ours = measure_speed(model, prompt, new_tokens, repeats=1)
        theirs = {
            "prefill": llama_bench(binary, file, ["-p", prompt, "-n", 0]),
            "decode": llama_bench(binary, file, ["-p", 0, "-n", new_tokens, "-d", prompt]),
        }
        if not number % 2:
            ours = measure_speed(model, prompt, new_tokens, repeats=1)
        for phase in PHASES:
            speeds[phase].append((ours[f"{phase}_tokens_per_second"], theirs[phase]))
    return {phase: summary(pairs) for phase, pairs in speeds.items()} | {
        "inside": inside(model, prompt, new_tokens)
    }


def inside(model: GgufModel, prompt: int, new_tokens: int) -> float:
    """Processor time of the thread inside llama_decode as a share of all between two tokens: the
    median.
    """
    library = libllama.library()
    decode, spent = library.llama_decode, []

    def timed(*arguments: Any) -> int:
        started = thread_time()
        code = decode(*arguments)
        spent.append(thread_time() - started)
        return code

    library.llama_decode = timed
    try:
        times = [
            thread_time()
            for _ in model.stream([5] * prompt, max_new_tokens=new_tokens, stop_ids=set())
        ]
    finally:
        library.llama_decode = decode
    steps = [after - before for before, after in pairwise(times)]
    return round(
        median(own / step for own, step in zip(spent[-len(steps) :], steps, strict=True)), 3
    )


def summary(pairs: list[tuple[float, float]]) -> dict[str, float]:
    ratios = [ours / theirs for ours, theirs in pairs]
    figures = {
        "ours": median(ours for ours, _ in pairs),
        "llama_bench": median(theirs for _, theirs in pairs),
    }
    figures |= {
        "ratio": median(ratios),
        "ratio_of_best": max(o for o, _ in pairs) / max(t for _, t in pairs),
    }
    return {name: round(figure, 3) for name, figure in figures.items()}


def llama_bench(binary: Path, file: Path, options: list) -> float:
    """Tokens a second by llama-bench, one run after its own warm-up."""
    command = [binary, "-m", file, "-t", "1", "-r", "1", "-o", "json", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{binary} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)[0]["avg_ts"]


def show(found: dict) -> None:
    table = Table(
        title=f"{found['file']}: tokens a second on one thread, medians of {found['rounds']} rounds"
    )
    for name in ("context", "", "ours", "llama-bench", "ratio", "ratio of best", "inside"):
        table.add_column(name, justify="right")
    for context, phases in found["contexts"].items():
        for phase in PHASES:
            figures = phases[phase]
            speeds = [f"{figures[name]:,.1f}" for name in ("ours", "llama_bench")]
            ratios = [f"{figures[name]:.3f}" for name in ("ratio", "ratio_of_best")]
            table.add_row(
                str(context),
                phase,
                *speeds,
                *ratios,
                f"{phases['inside']:.1%}" if phase == "decode" else "",
            )
    Console(stderr=True).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
