"""Normalization: hand-computed values, and back again."""

from __future__ import annotations

import pytest
import torch

from trajgen.core.normalizer import Affine, Normalizer, PowerAffine


def test_mean_and_deviation_by_hand() -> None:
    affine = Affine(2)
    affine.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert affine.mean.tolist() == [2, 5] and affine.scale.tolist() == [1, 1]  # a constant keeps its own unit
    assert affine(torch.tensor([[4.0, 7.0]])).tolist() == [[2, 2]]


def test_features_that_hardly_vary_are_named() -> None:
    normalizer, noise = (
        Normalizer(5, 1),
        torch.randn(1000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    state = torch.tensor([3.0, 0.0, 1e4, 0.0, 0.0]) + noise * torch.tensor([1e-9, 0.0, 1.0, 5e-4, 1.0])
    normalizer.fit(
        {"state": state.float(), "action": noise[:, :1].float(), "reward": torch.zeros(9, 1), "returns": noise[:, 0]}
    )
    constant, small = normalizer.remarks()
    assert constant == "Constant features: state 0, state 1, reward 0"
    assert small.startswith("Features of very small deviation: state 2 (") and "state 3 (" in small
    assert normalizer.state.scale[3] == pytest.approx(5e-4, rel=0.1)  # and they are learnt
    normalizer.fit({"state": torch.zeros(9, 5)})
    assert "and" not in normalizer.remarks()[0]
    many = Normalizer(20, 1)
    many.fit({"state": torch.zeros(9, 20)})
    assert many.remarks() == [f"Constant features: {', '.join(f'state {n}' for n in range(8))} and 12 more"]


def test_many_values_keep_their_precision() -> None:
    affine = Affine(1)
    affine.fit(1e4 + torch.randn(100_000, 1) * 0.5)
    assert float(affine.scale) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_there_and_back(power: float) -> None:
    affine = PowerAffine(power)
    values = torch.tensor([-16.0, -1.0, 0.0, 0.25, 81.0])
    affine.fit(values)
    torch.testing.assert_close(affine.inverse(affine(values)), values, atol=1e-3, rtol=1e-4)
    normal = affine(values)
    assert float(normal.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normal.std(unbiased=False)) == pytest.approx(1, abs=1e-5)


def test_a_power_by_hand() -> None:
    affine = PowerAffine(0.5)
    assert affine(torch.tensor([-4.0, 0.0, 9.0])).tolist() == [-2, 0, 3]
    assert affine.inverse(torch.tensor([-2.0, 3.0])).tolist() == [-4, 9]


def test_a_normalizer_travels_in_its_weights() -> None:
    first, second = Normalizer(3, 2, 1, 0.5), Normalizer(3, 2, 1, 0.5)
    first.fit(
        {"state": torch.randn(9, 3), "action": torch.randn(9, 2), "goal": torch.randn(9, 1), "returns": torch.rand(9)}
    )
    second.load_state_dict(first.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(first.state(x), second.state(x)) and not torch.equal(first.state(x), x)
