"""Starts `pocketlm` in forked processes, one or a rank each, from a server with torch imported."""

import multiprocessing
import os
import socket
import sys

PRELOADED = ("torch.distributed.fsdp", "pocketlm.cli", "pocketlm.runner.run", "pocketlm.train.loop")


def run_on(world_size: int, words: list[str]) -> int:
    """The status of `pocketlm WORDS` on so many ranks of this machine: 0, or that of the first rank
    that failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "CUDA_VISIBLE_DEVICES": "",  # there may be fewer GPUs than ranks
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    ranks = []
    for rank in range(world_size):
        place = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(context.Process(target=as_rank, args=(place, words)))
        ranks[-1].start()
    try:
        for rank in ranks:
            rank.join()
    except KeyboardInterrupt:
        for rank in ranks:
            rank.join()
        raise
    return next((rank.exitcode or 0 for rank in ranks if rank.exitcode), 0)


def as_rank(environment: dict[str, str], words: list[str]) -> None:
    """This process as one rank of the command, on one thread: the ranks share the cores."""
    import torch

    from pocketlm.cli import app

    os.environ |= environment
    if environment["WORLD_SIZE"] != "1":
        torch.set_num_threads(1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = nowhere  # what was made is not for use; progress and errors go to stderr
        app(words)
