"""What `pocketlm serve` bears, and what it costs.

    python benchmarks/serving.py clients MODEL --clients 200 --seconds 300
    python benchmarks/serving.py speed MODEL
    python benchmarks/serving.py malformed MODEL --requests 10000

clients: as many at once for a given time; answers, refusals (503) and lost requests counted, memory
of the server and its processes. speed: time to the first token and tokens a second of one client,
through the server and of the runtime alone, in turns. malformed: requests that are wrong in some
way; each must be a 4xx with a sentence.
"""

import argparse
import asyncio
import collections
import contextlib
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PROMPT = "Write a list of ten things that a kitchen needs, and say of each what it is for."
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MIB = 2**20
LONGEST_WAIT = 5  # seconds that a refused client waits at most


@dataclass(frozen=True)
class Server:
    port: int
    process: psutil.Process

    def memory(self) -> int:
        """Bytes of the server and its processes that are in memory and theirs alone or shared."""
        family = [self.process, *self.process.children(recursive=True)]
        total = 0
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def ask(self, path: str, body: Any) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if data else {}
        connection.request("POST" if data else "GET", path, data, headers)
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer


@contextlib.contextmanager
def served(model: str, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "pocketlm.cli", "serve", model, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            print(line, end="", file=sys.stderr)
            if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        server = Server(int(match[1]), psutil.Process(process.pid))
        while True:
            with contextlib.suppress(OSError):
                if server.ask("/health", None)[0] == 200:
                    break
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait()


# ---- many clients ----


@dataclass
class Counts:
    answered: int = 0
    refused: int = 0
    tokens: int = 0
    lost: collections.Counter[str] = field(default_factory=collections.Counter)
    first: list[float] = field(default_factory=list)


async def one_request(port: int, body: bytes, counts: Counts) -> float:
    """Ask once; seconds after which to ask again."""
    start = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        status = int((await reader.readline()).split()[1])
        wait, text = 0.0, b""
        while (line := await reader.readline()).strip():
            if line.lower().startswith(b"retry-after:"):
                wait = min(LONGEST_WAIT, float(line.split(b":")[1]))
        while b"data: [DONE]" not in text and (block := await reader.read(65536)):
            if not text:
                counts.first.append(time.monotonic() - start)
            text += block
            if status != 200:
                break
        writer.close()
    except (OSError, IndexError, ValueError) as error:
        counts.lost[f"{type(error).__name__}: {error}"] += 1
        return 0.1
    if status == 503 and wait:
        counts.refused += 1
        counts.first.pop()
        return wait
    if status != 200 or b"data: [DONE]" not in text or b'"error"' in text:
        counts.lost[f"status {status}: {text[-80:]!r}"] += 1
        return 0.1
    counts.answered += 1
    usage = re.search(rb'"completion_tokens": (\d+)', text)
    counts.tokens += int(usage[1]) if usage else 0
    return 0.0


async def many(server: Server, clients: int, seconds: float) -> None:
    counts, end = Counts(), time.monotonic() + seconds
    asked = {
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 32,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(asked).encode()

    async def client(number: int) -> None:
        await asyncio.sleep(random.Random(number).random())
        while time.monotonic() < end:
            await asyncio.sleep(await one_request(server.port, body, counts))

    async def watch() -> None:
        while True:
            memory.append(server.memory())
            await asyncio.sleep(seconds / 20)

    memory: list[int] = []
    watching = asyncio.ensure_future(watch())
    start = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(clients)))
    took = time.monotonic() - start
    watching.cancel()
    print(f"{clients} clients, {took:.0f} s: {counts.answered} answered, {counts.refused} refused")
    print(f"lost: {counts.lost.total()} {dict(counts.lost.most_common(5))}")
    print(f"tokens/s of all: {counts.tokens / took:.1f}")
    if counts.first:
        first = sorted(counts.first)
        print(
            f"first bytes after a median of {statistics.median(first):.2f} s, 95 % "
            f"{first[int(0.95 * len(first))]:.2f} s"
        )
    quarters = [memory[int(len(memory) * part)] for part in (0, 0.25, 0.5, 0.75)] + memory[-1:]
    print("MiB at the start, after each quarter:", *(f"{value / MIB:.0f}" for value in quarters))


# ---- one client ----


def speed(model: str, tokens: int, repeats: int, threads: int) -> None:
    """In turns, so that what else the machine does falls on both."""
    from pocketlm.inference.open import open_model

    runtime = open_model(Path(model), threads=threads)
    ids = [*runtime.tokenizer.document_start, *runtime.tokenizer.encode(PROMPT)]
    asked = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True}
    asked["stream_options"] = {"include_usage": True}
    figures: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    with served(model, "--threads", str(threads)) as server:
        for _ in range(repeats + 1):
            # a prompt that no cache knows
            ids = [ids[0], *random.sample(ids[1:], len(ids) - 1)]
            start, times = time.perf_counter(), []
            for _ in runtime.stream(ids, max_new_tokens=tokens, stop_ids=set()):
                times.append(time.perf_counter() - start)
            figures["alone"].append(of(times))
            figures["served"].append(through(server, {**asked, "prompt": ids}))
    for name, values in figures.items():
        first, rate = (statistics.median(part) for part in zip(*values[1:], strict=True))
        print(f"{name}: first token {1000 * first:.1f} ms, then {rate:.1f} tokens/s")
    ratios = [s[1] / a[1] for a, s in zip(figures["alone"], figures["served"], strict=True)][1:]
    print(f"served / alone: {statistics.median(ratios):.3f} (median of {repeats})")


def of(times: list[float]) -> tuple[float, float]:
    """(seconds to the first token, tokens a second after it)."""
    return times[0], (len(times) - 1) / (times[-1] - times[0])


def through(server: Server, body: dict[str, Any]) -> tuple[float, float]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    start, times, made = time.perf_counter(), [], 0
    connection.request("POST", TEXT, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            made = (chunk["usage"] or {}).get("completion_tokens", made)
            if chunk["choices"] and chunk["choices"][0]["text"]:
                times.append(time.perf_counter() - start)
    connection.close()
    return times[0], (made - 1) / (times[-1] - times[0])


# ---- wrong requests ----

WRONG: dict[str, list[Any]] = {
    "messages": [None, 3, "x", {}, [], [3], [{}], [{"role": "me"}], [{"role": "user"}]],
    "temperature": ["hot", -1, [], {}, 1000],
    "top_p": [0, 2, "x", True],
    "max_tokens": [0, -1, 1.5, "x", 2**40],
    "stop": ["", 3, [""], ["x"] * 99, "x" * 999],
    "seed": ["x", 1.5, 2**70],
    "n": [0, 2, "x"],
    "stream": ["yes", 1, []],
    "stream_options": [3, "x", {"include_usage": 3}],
    "logprobs": [3, "x"],
    "tools": [3, [3], [{}], [{"type": "function"}], [{"type": "function", "function": 1}]],
    "tool_choice": [3, {"type": "function"}, "must"],
    "response_format": [3, {}, {"type": "xml"}, {"type": "json_schema"}],
    "logit_bias": [{"5": 1}],
    "chat_template_kwargs": [3, "x", [1]],
    "model": [3, "another", []],
    "frequency_penalty": [1, "x"],
}


def wrong_request(drawn: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """(method, path, body, headers) of a request that is wrong in one way."""
    right = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    headers = {"Content-Type": "application/json"}
    body = json.dumps(right).encode()
    kind = drawn.randrange(8)
    if kind < 3:
        name = drawn.choice(list(WRONG))
        return (
            "POST",
            CHAT,
            json.dumps({**right, name: drawn.choice(WRONG[name])}).encode(),
            headers,
        )
    if kind == 3:
        return "POST", CHAT, body[: drawn.randrange(len(body))], headers
    if kind == 4:
        return "POST", drawn.choice([CHAT, TEXT]), drawn.randbytes(drawn.randrange(300)), headers
    if kind == 5:
        types = ["text/plain", "", "application/x-www-form-urlencoded", "image/png"]
        return "POST", CHAT, body, {"Content-Type": drawn.choice(types)}
    if kind == 6:
        bad = drawn.choice([{"Host": "evil.example"}, {"Origin": "https://evil.example"}])
        return "POST", CHAT, body, headers | bad
    path = "/" + "".join(drawn.choices("abcdefghijklmnop/.%20", k=drawn.randrange(1, 60)))
    return drawn.choice(["GET", "POST", "DELETE", "PUT"]), path, body, headers


def malformed(server: Server, requests: int) -> None:
    drawn, statuses = random.Random(0), collections.Counter[int]()
    silent: list[str] = []
    memory = [server.memory()]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    start = time.monotonic()
    for number in range(requests):
        method, path, body, headers = wrong_request(drawn)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            silent.append(f"{method} {path}: {error!r}")
            connection.close()
            continue
        statuses[response.status] += 1
        try:
            sentence = len(json.loads(data)["error"]["message"]) > 15
        except (ValueError, KeyError, TypeError):
            sentence = False
        if not 400 <= response.status < 500 or not sentence:
            silent.append(f"{method} {path} {body[:200]!r}: {response.status} {data[:100]!r}")
        if (number + 1) % max(1, requests // 4) == 0:
            memory.append(server.memory())
    took = time.monotonic() - start
    print(f"{requests} wrong requests, {took:.0f} s: {dict(sorted(statuses.items()))}")
    print(f"without a 4xx and a sentence: {len(silent)}", *silent[:5], sep="\n  ")
    print("MiB at the start, after each quarter:", *(f"{value / MIB:.0f}" for value in memory))
    print(f"alive: {server.ask('/health', None)[1].decode()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("clients", "speed", "malformed"))
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    if asked.what == "speed":
        speed(asked.model, asked.tokens, asked.repeats, asked.threads)
        return
    with served(asked.model, "--threads", str(asked.threads)) as server:
        if asked.what == "clients":
            asyncio.run(many(server, asked.clients, asked.seconds))
        else:
            malformed(server, asked.requests)


if __name__ == "__main__":
    main()
