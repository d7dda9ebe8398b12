"""These tests run on a GPU, or on a simulated one where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from simulated import SimulatedCuda

HAS_GPU = torch.cuda.is_available()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a real one")
    config.addinivalue_line("markers", "simulated: makes the simulated device by itself")


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    marks = {mark.name for mark in request.node.iter_markers()}
    if "gpu" in marks and not HAS_GPU:
        pytest.skip("torch finds no CUDA device")
    if "simulated" in marks and HAS_GPU:
        pytest.skip("there is a GPU, on which the other tests run")
    if HAS_GPU or "simulated" in marks:
        yield
    else:
        with SimulatedCuda():
            yield
