"""A .gguf as a backend: the llama-server of the xllamacpp wheel, in a process of its own.

It is reached over a Unix socket in a folder that only this user may enter, so no page of a browser
and no other user reaches it. It is given ids, never text: what a word of a prompt means is decided
by our tokenizer, as for every other model.
"""

import asyncio
import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from pocketlm.inference.stop_strings import StopText
from pocketlm.model.tokenizer import Tokenizer
from pocketlm.serve.backend import Piece, Score, Unavailable, Wanted
from pocketlm.serve.refusal import Refusal
from pocketlm.serve.unix_http import posted

PROGRAM = Path(__file__).with_name("llama_process.py")
LOG_TAIL = 2000  # bytes of what llama.cpp printed, for an error
LONGEST_SOCKET = 100  # bytes of a Unix socket's path, of the 104 to 108 systems allow
SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
LIKELIEST = ["penalties", "top_k"]  # the others would look at every word for nothing
SEEDS = 2**32 - 1  # llama.cpp's last one stands for a random seed


class LlamaBackend:
    """See `Backend`. context: tokens of each slot. threads: of llama.cpp. draft: a smaller .gguf of
    the same vocabulary, which proposes tokens that this one checks several at once; what is
    answered stays this one's. llama.cpp has no log-probabilities of proposed tokens, so answers
    that want them come from another process without the draft, started when one is asked for.
    """

    kind = "gguf"
    constrains = True

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer,
        *,
        context: int,
        slots: int,
        threads: int,
        draft: Path | None = None,
    ) -> None:
        self.tokenizer, self.max_length, self.slots = tokenizer, context, slots
        self._settings = {
            "model": str(path),
            "slots": slots,
            "context": context,
            "threads": threads,
            "draft": str(draft) if draft else None,
        }
        self._lock = threading.Lock()
        # by whether it computes log-probabilities beside a draft
        self._processes = {False: _Process(self._settings)}

    async def answer(self, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        drafted = self._settings["draft"] is not None
        scored = drafted and wanted.top_logprobs is not None
        process = await asyncio.to_thread(self._alive, scored)
        # the counts of a draft stand in the timings, which each token then brings
        counted = {"timings_per_token": drafted and not scored}
        body = json.dumps(_request(wanted) | counted).encode()
        ending, made = StopText(wanted.stop_strings), 0
        try:
            async with posted(process.socket, "/completion", body, process.key) as reply:
                async for line in reply.lines:
                    event = _event(line, reply.status)
                    if event is None:
                        continue
                    piece, made = _piece(event, made, wanted, ending)
                    yield piece
                    if piece.ended:
                        return
        except OSError as error:
            raise Unavailable(f"llama.cpp gives no answer: {error}") from None
        raise Unavailable("llama.cpp ended an answer in the middle")

    def _alive(self, scored: bool) -> "_Process":
        """The process, started where there is none, and again if it has ended."""
        with self._lock:
            process = self._processes.get(scored)
            if process is not None and process.ended():
                print(
                    f"llama.cpp's server ended ({process.log()}); it is started again",
                    file=sys.stderr,
                )
                process.close()
                process = None
            if process is None:
                settings = self._settings | ({"draft": None} if scored else {})
                try:
                    process = self._processes[scored] = _Process(settings)
                except ValueError as error:
                    raise Unavailable(str(error)) from None
            return process

    def healthy(self) -> bool:
        return not any(process.ended() for process in self._processes.values())

    def close(self) -> None:
        for process in self._processes.values():
            process.close()


class _Process:
    """llama_process.py, running, with its socket; ValueError where it cannot open the file."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pocketlm-"))  # mode 0700
        self.socket, self.key = self.folder / "llama.sock", secrets.token_hex(16)
        if len(str(self.socket).encode()) > LONGEST_SOCKET:
            self.folder.rmdir()
            raise ValueError(
                f"{self.folder}: too long a path for a Unix socket; set TMPDIR to a shorter one"
            )
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to act on
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        line = json.dumps(settings | {"socket": str(self.socket), "key": self.key})
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if b"ready" not in answer:
            reason = json.loads(answer)["cannot_open"] if answer else "its process ended"
            log = self.log()
            self.close()
            raise ValueError(f"{settings['model']}: llama.cpp cannot open it: {reason} ({log})")

    def ended(self) -> bool:
        return self._process.poll() is not None

    def log(self) -> str:
        """The end of what it printed, in one line."""
        text = (self.folder / "log").read_bytes()[-LOG_TAIL:].decode("utf-8", "replace")
        return " ".join(text.split()) or "it printed nothing"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _request(wanted: Wanted) -> dict[str, Any]:
    """The body of llama-server's /completion. Its samplers run in the order of ours."""
    sampling = wanted.sampling
    scores = {} if wanted.top_logprobs is None else {"n_probs": max(1, wanted.top_logprobs)}
    return {
        "prompt": wanted.ids,
        "n_predict": wanted.max_new_tokens,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": True,
        "samplers": SAMPLERS if sampling.temperature else LIKELIEST,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k if sampling.temperature else 1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": len(wanted.ids) + wanted.max_new_tokens,
        "seed": sampling.seed % SEEDS,
        **scores,
        **wanted.grammar,
    }


def _event(line: bytes, status: int) -> dict[str, Any] | None:
    """What a line of the answer says; None for an empty one. An error is raised."""
    data = line.removeprefix(b"data:").removeprefix(b"error:").strip()
    if not data or data == b"[DONE]" or line.startswith(b":"):
        return None
    event = json.loads(data)
    if status != 200 or "error" in event:
        error = event.get("error", event)
        message = error.get("message", "no reason given") if isinstance(error, dict) else error
        if 400 <= status < 500:
            raise Refusal(400, f"llama.cpp refuses: {message}")
        raise Unavailable(f"llama.cpp fails: {message}")
    return event


def _piece(event: dict[str, Any], made: int, wanted: Wanted, ending: StopText) -> tuple[Piece, int]:
    """(what an event adds, tokens made with it). The token that ends an answer is not counted."""
    if event["stop"]:
        ended = "length" if event["stop_type"] == "limit" else "stop"
        text = ending.give(event["content"], final=True)
        # a character that the limit cut in two: its tokens are counted, and were not sent
        new = event["tokens_predicted"] - made if ended == "length" else 0
        return Piece(text=text, tokens=new, ended=ended, **_counts(event)), made + new
    if wanted.stop_ids.intersection(event["tokens"]):
        return Piece(text=ending.give("", final=True), ended="stop", **_counts(event)), made
    new = event["tokens_predicted"] - made
    scores = tuple(
        _score(entry, wanted.top_logprobs or 0)
        for entry in event.get("completion_probabilities", ())
    )
    text = ending.give(event["content"])
    ended = "stop" if ending.stopped else None
    counts = _counts(event) if ended else {}
    return Piece(text=text, tokens=new, scores=scores, ended=ended, **counts), made + new


def _counts(event: dict[str, Any]) -> dict[str, Any]:
    """What the last event tells of a whole answer; where it does not, nothing."""
    timings = event.get("timings", {})
    names = {"cached": "cache_n", "drafted": "draft_n", "accepted": "draft_n_accepted"}
    return {name: int(timings.get(field, 0)) for name, field in names.items()}


def _score(entry: dict[str, Any], count: int) -> Score:
    return Score(
        data=bytes(entry["bytes"]),
        logprob=entry["logprob"],
        likeliest=tuple(_score(other, 0) for other in entry.get("top_logprobs", ())[:count]),
    )
