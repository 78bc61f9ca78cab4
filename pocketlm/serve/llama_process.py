"""A program of its own: llama.cpp's server with one file open, on a Unix socket.

    python -P llama_process.py < settings.json

Apart, because llama.cpp stops its process over some files, and its server has been seen to wait for
ever when it is stopped. It imports nothing of ours. It writes one line of JSON, {"ready": true} or
{"cannot_open": reason}, and ends when its standard input does: with the process that started it.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    # what llama.cpp prints goes to stderr; the line is ours alone
    line = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = open_server(settings)
    line.write(json.dumps(answer) + "\n")
    line.flush()
    if "ready" in answer:
        sys.stdin.read()
    os._exit(0)  # the server is not stopped: see above


def open_server(settings: dict[str, Any]) -> dict[str, Any]:
    try:
        import xllamacpp

        wheel: Any = xllamacpp  # which takes its names from a compiled file
        params = wheel.CommonParams()
        params.model.path = settings["model"]
        params.hostnames, params.api_keys = [settings["socket"]], [settings["key"]]
        params.n_parallel = settings["slots"]
        params.n_ctx = settings["slots"] * settings["context"]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
        params.n_gpu_layers, params.cache_ram_mib, params.verbosity = 0, 0, -1
        if settings["draft"] is not None:
            kinds, draft = wheel.common_speculative_type, params.speculative.draft
            params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            draft.mparams.path, draft.n_gpu_layers = settings["draft"], 0
            draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = settings["threads"]
        params.warmup = params.fit_params = params.ui = params.cache_idle_slots = False
        params.endpoint_slots = params.endpoint_props = params.ctx_shift = False
        settings["server"] = wheel.Server(params)  # kept from being freed
    except Exception as error:  # whatever the wheel raises
        return {"cannot_open": str(error)}
    return {"ready": True}


if __name__ == "__main__":
    main()
