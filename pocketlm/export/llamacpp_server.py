"""A program of its own: llama.cpp's server with one file open, asked to render prompts.

    python -P llamacpp_server.py FILE.gguf [TEMPLATE] < questions.json > answers.json

Apart, because the server has been seen to wait for ever when it is stopped, and stops its process
over some files. It imports nothing of ours. A question is the body of an /apply-template request;
an answer {"prompt": text}, {"refused": reason}, or for all of them {"cannot_open": reason}.
TEMPLATE: one of llama.cpp's own, in the place of the file's.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from typing import Any

READY_SECONDS, ANSWER_SECONDS = 60, 20
# no proxy: the server is in this process
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> None:
    path, template = sys.argv[1], (sys.argv[2:] or [""])[0]
    answers = answer(path, template, json.load(sys.stdin))
    sys.stdout.write(json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)  # the server is not stopped: see above


def answer(path: str, template: str, questions: list[dict[str, Any]]) -> Any:
    """An answer for each question, or what is wrong with the file."""
    import xllamacpp

    wheel: Any = xllamacpp  # which takes its names from a compiled file
    params = wheel.CommonParams()
    params.model.path, params.chat_template = path, template
    params.n_gpu_layers, params.n_ctx, params.n_batch, params.n_ubatch = 0, 64, 32, 32
    params.n_parallel, params.cache_ram_mib, params.verbosity = 1, 0, -1
    params.warmup = params.fit_params = params.ui = params.endpoint_slots = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    try:
        server = wheel.Server(params)
    except Exception as error:  # whatever the wheel raises
        return {"cannot_open": str(error)}
    wait_until_ready(server.listening_address)
    return [ask(f"{server.listening_address}/apply-template", question) for question in questions]


def wait_until_ready(address: str) -> None:
    start = time.monotonic()
    while time.monotonic() - start < READY_SECONDS:
        try:
            with DIRECT.open(f"{address}/health", timeout=ANSWER_SECONDS):
                return
        except OSError:  # not yet
            time.sleep(0.05)


def ask(url: str, question: dict[str, Any]) -> dict[str, str]:
    request = urllib.request.Request(
        url, json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
        with DIRECT.open(request, timeout=ANSWER_SECONDS) as response:
            return {"prompt": json.load(response)["prompt"]}
    except urllib.error.HTTPError as error:
        return {"refused": reason(error)}
    except OSError as error:
        return {"refused": str(error)}


def reason(error: urllib.error.HTTPError) -> str:
    """The first line of what the server says."""
    try:
        return str(json.load(error)["error"]["message"]).strip().splitlines()[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return f"status {error.code}"


if __name__ == "__main__":
    main()
