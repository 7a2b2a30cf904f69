"""Two processes of one run on this machine, connected by gloo."""

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

# Seen once in about a hundred runs of FSDP2 with gloo: the process died of glibc's "malloc_consolidate(): unaligned fastbin chunk". Memcheck and
# malloc's own checks find nothing in this project's code (docs/LOG.md), so such a death is retried once; a fault of this project would recur.
FATAL_SIGNALS = {"SIGABRT", "SIGSEGV"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port


def join_run(rank: int, port: int) -> None:
    """Initialise this process as one of the two ranks of a run, as torchrun does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS="1")
    os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    torch.set_num_threads(1)


def run_in_two(worker: Callable[..., None], *arguments: Any) -> None:
    """Run worker(rank, port, *arguments) in two new processes."""
    os.environ["PYTHONFAULTHANDLER"] = "1"  # print where a death without an exception happened
    try:
        mp.spawn(worker, (free_port(), *arguments), nprocs=2)
    except mp.ProcessExitedException as death:
        if death.signal_name not in FATAL_SIGNALS:
            raise
        print(f"a process died of {death.signal_name}; once more", file=sys.stderr)
        mp.spawn(worker, (free_port(), *arguments), nprocs=2)
