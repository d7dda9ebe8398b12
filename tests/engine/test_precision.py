"""The precision of a stage: decided by the device and by the size of its matrix products."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import tiny
import torch
from torch import Tensor, nn

from trajgen.core.stages import Stage
from trajgen.core.types import Batch
from trajgen.engine import precision
from trajgen.engine.precision import choose_precision, mean_product

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WINDOWS = 6


class Model(nn.Module):
    """Two products, of (6, 4) by (4, 16) and of (6, 16) by (16, 2), and a codebook that learns in training."""

    codes: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16, bias=False), nn.Linear(16, 2, bias=False)
        self.register_buffer("codes", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.codes += self.training
        self.count += 1
        return {"total": self.second(self.first(batch.states[:, 0]).relu()).square().mean()}


def choose(device: torch.device, option: str = "auto", fast: bool = True) -> str:
    model = Model()
    stage = Stage("one", model.loss, list(model.parameters()))
    with patch.object(precision, "_has_fast_bfloat16", lambda device: fast):
        return choose_precision(stage, lambda: tiny.batch(WINDOWS), model, device, option)


def test_products_are_counted_and_the_model_stays_as_it_is() -> None:
    model = Model()
    stage = Stage("one", model.loss, list(model.parameters()))
    by_hand = (2 * WINDOWS * 4 * 16 + 2 * WINDOWS * 16 * 2) / 2
    assert mean_product(stage, tiny.batch(WINDOWS), model) == by_hand
    assert model.count == model.codes == 0 and model.training


def test_small_products_are_float32_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(CPU) == "bfloat16"
    assert choose(CUDA) == "float32"
    monkeypatch.setattr(precision, "CUDA_PRODUCT", 2 * WINDOWS * 4 * 16 // 2)
    assert choose(CUDA) == "bfloat16"


def test_what_is_asked_for_is_taken_and_slow_bfloat16_is_not() -> None:
    assert choose(CUDA, "bfloat16") == "bfloat16"
    assert choose(CPU, "float32") == "float32"
    assert choose(CPU, fast=False) == choose(CUDA, fast=False) == "float32"
