"""Threads and processes of the tests of tensor parallelism."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # the jobs of this folder are imported by new processes too


@pytest.fixture
def one_thread():
    """Leave the cores to the simulated ranks and the processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
