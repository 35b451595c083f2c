"""Processes started as torchrun starts them, one by one, so that a test can freeze or kill any of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist

from gpuedu.distributed.watch import run_store


@contextmanager
def ranks(world_size: int, command: Sequence[str]) -> Iterator[list[subprocess.Popen]]:
    """``python *command`` on each of ``world_size`` ranks, as soon as all are at work; killed at the end."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": server.port,
              "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}  # fmt: skip
    processes = []
    try:
        for rank in range(world_size):
            of_rank = {k: str(v) for k, v in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command], env=os.environ | of_rank, stderr=subprocess.PIPE, text=True
                )
            )
        store = run_store("127.0.0.1", server.port)
        while not all(store.add(f"beat/{rank}", 0) > 2 for rank in range(world_size)):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()


def last_words(process: subprocess.Popen) -> str:
    """The last line that a process wrote before it ended with exit code 1."""
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    return errors.strip().splitlines()[-1]
