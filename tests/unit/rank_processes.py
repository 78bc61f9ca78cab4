"""Ranks as processes of this computer, started as torchrun would start them but from a server that
has imported torch.
"""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from pocketlm.train.distributed.ranks import joined, lost_rank_as_error

# to import
SLOW = (
    "torch.distributed.fsdp",
    "torch._dynamo",
    "pocketlm.train.loop",
    "pocketlm.runner.run",
    "pocketlm.cli",
)


def start_ranks(
    world_size: int, job: Callable[..., None], *arguments: Any, nodes: int = 1
) -> list[BaseProcess]:
    """Processes that call the job, each with RANK and the rest in its environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(SLOW))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size // nodes),
    }
    started = []
    for rank in range(world_size):
        arguments_of_rank = (environment | {"RANK": str(rank)}, job, arguments)
        started.append(context.Process(target=_as_rank, args=arguments_of_rank))  # type: ignore[attr-defined]
        started[-1].start()
    return started


def _as_rank(environment: dict[str, str], job: Callable[..., None], arguments: tuple) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    job(*arguments)


def on_ranks(
    world_size: int, folder: Path, job: Callable[..., Any], *arguments: Any, nodes: int = 1
) -> list[Any]:
    """What the job gave, or raised, on each of the ranks that joined; None from one that was
    killed.
    """
    answer = folder / f"answer-{world_size}"
    for process in start_ranks(world_size, _answered, answer, job, arguments, nodes=nodes):
        process.join(120)
    files = [answer.with_suffix(f".{rank}") for rank in range(world_size)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]  # noqa: S301


def _answered(answer: Path, job: Callable[..., Any], arguments: tuple) -> None:
    result: Any
    with joined():
        try:
            with lost_rank_as_error():
                result = job(*arguments)
        except BaseException as error:
            result = error
        answer.with_suffix(f".{os.environ['RANK']}").write_bytes(pickle.dumps(result))
