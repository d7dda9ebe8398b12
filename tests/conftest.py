"""What all tests share: one thread, and no display."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import tiny
import torch

from trajgen.core.types import Batch, Cond, Space

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def space() -> Space:
    return tiny.SPACE


@pytest.fixture
def batch() -> Batch:
    return tiny.batch()


@pytest.fixture
def cond() -> Cond:
    return tiny.cond()


@pytest.fixture
def source() -> tiny.RandomSource:
    return tiny.RandomSource()
