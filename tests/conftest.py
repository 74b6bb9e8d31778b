"""What holds for all tests, and fixtures that several packages of them use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# Triton's kernels run on the CPU where there is no GPU. It asks once, when it is imported, as torch does by itself.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from dynroute import planner

# Tests are many small computations: threads would spend their time waiting for each other.
torch.set_num_threads(1)
# What was tuned on this machine is none of the tests' business; those of tuning name files of their own.
os.environ["DYNROUTE_TUNING"] = "off"


@pytest.fixture
def no_tuning() -> Iterator[None]:
    """The test begins and ends with the model's plans."""
    planner.forget_tuning()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    planner.forget_tuning()
