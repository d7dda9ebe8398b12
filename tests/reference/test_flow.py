"""Flow matching against one Gaussian, whose velocity and flow are known in closed form (arXiv 2210.02747).

On the straight path x_t = (1 - t) x_0 + t x_1 with noise x_0 ~ N(0, 1) and codes x_1 ~ N(m, s²), x_t has the variance
v = (1 - t)² + t² s², and E[x_1 - x_0 | x_t] = m + (t s² - (1 - t)) / v (x_t - t m).
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.protocols import Guide
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond, KnownCodes
from trajgen.samplers.euler import EulerSampler

MEAN, DEVIATION = 0.8, 0.5
TOKENIZER: Any = SimpleNamespace(
    schedule=ScaleSchedule((1,)),
    code_dim=1,
    vectors=lambda codes: codes,
    layout=SimpleNamespace(latent=lambda vectors: vectors),
)


def exact(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The velocity; where the condition is withheld, that of a Gaussian around 0."""
    mean = torch.full_like(t, MEAN) if cond.cond_mask is None else MEAN * cond.cond_mask
    t, mean = t.view(-1, 1, 1), mean.view(-1, 1, 1)
    variance = (1 - t) ** 2 + t**2 * DEVIATION**2
    return mean + (t * DEVIATION**2 - (1 - t)) / variance * (x - t * mean)


def draw(size: int, guide: Guide | None = None, velocity: Any = exact, **options: Any) -> tuple[Tensor, Tensor]:
    """Noise (size,), and the codes that it is carried to."""
    cond = Cond(state=torch.zeros(size, 1), returns=torch.zeros(size))
    prior: Any = SimpleNamespace(velocity=velocity)
    rng = torch.Generator().manual_seed(0)
    codes = EulerSampler(prior, None, **options)(prior, TOKENIZER, cond, rng, None, guide).codes
    noise = torch.randn(size, 1, 1, generator=torch.Generator().manual_seed(0))
    return noise.flatten(), codes.flatten()


def test_many_steps_carry_noise_along_the_flow() -> None:
    """The flow keeps (x_t - t m) / √v as it is: noise z ends at m + s z."""
    errors = []
    for steps in (10, 100, 1000):
        noise, codes = draw(400, steps=steps)
        errors.append(float((codes - (MEAN + DEVIATION * noise)).abs().max()))
    assert errors[2] < 0.005 and errors[2] < errors[1] / 5 < errors[0] / 25  # Euler: in proportion to the step


def test_one_and_two_steps_by_hand() -> None:
    noise, codes = draw(5, steps=1)
    torch.testing.assert_close(codes, torch.full((5,), MEAN))  # z + v(z, 0) = z + m - z
    half = noise + (MEAN - noise) / 2
    slope = (0.5 * DEVIATION**2 - 0.5) / (0.25 + 0.25 * DEVIATION**2)
    expected = half + (MEAN + slope * (half - MEAN / 2)) / 2
    torch.testing.assert_close(draw(5, steps=2)[1], expected)


def test_guidance_goes_beyond_the_condition() -> None:
    """With w = 1 each velocity is that of a Gaussian around 2 m, which the flow is linear in."""
    guided, twice = draw(50, steps=20, guidance=1.0)[1], draw(50, steps=20)[1]
    shift = draw(50, steps=20, temperature=0.0)[1]  # where the mean alone leads
    torch.testing.assert_close(guided, twice + shift)


def of_unit_deviation(mean: float) -> Any:
    def velocity(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        t = t.view(-1, 1, 1)
        return mean + (t - (1 - t)) / ((1 - t) ** 2 + t**2) * (x - t * mean)

    return velocity


def test_a_guide_of_constant_slope_tilts_the_distribution() -> None:
    """N(0, 1) tilted by exp(slope · x_1) is N(slope, 1)."""
    guided = draw(20, guide=lambda codes, cond: torch.full_like(codes, 1.5), velocity=of_unit_deviation(0.0))[1]
    torch.testing.assert_close(guided, draw(20, velocity=of_unit_deviation(1.5))[1])


def flow_prior(**options: Any) -> Any:
    swaps: dict[str, Any] = {"view": {"fields": ("state",)}, "tokenizer": {"name": "identity", "inpaint": ()}}
    swaps |= {"schedule": "single", "decoder": "identity", "sampler": "euler", "action": "state"}
    return tiny.planner(prior={"name": "flow", **options}, **swaps).prior


def test_the_loss_of_the_exact_velocity_is_what_cannot_be_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Var(x_1 - x_0 | x_t) = s² / v, whose mean over t from 0 to 1 is s π / 2: substitute u = t s / (1 - t)."""
    torch.manual_seed(0)
    prior = flow_prior()
    codes = MEAN + DEVIATION * torch.randn(20_000, tiny.HORIZON, 4)
    cond = Cond(state=torch.zeros(len(codes), 4), returns=torch.zeros(len(codes)))
    losses = []
    for scale in (1.0, 0.9, 1.1):
        monkeypatch.setattr(prior, "velocity", lambda x, t, cond, scale=scale: scale * exact(x, t, cond))
        loss, prediction = prior(codes, codes[:, :0], cond)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(DEVIATION * math.pi / 2, rel=0.01)
    assert losses[0] < min(losses[1:])
    assert prediction.shape == codes.shape


def test_the_prediction_is_where_the_velocity_leads_and_known_codes_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prior = flow_prior()
    clean = torch.randn(8, tiny.HORIZON, 4)
    mask = torch.zeros(1, tiny.HORIZON, 4, dtype=torch.bool)
    mask[:, 0] = True
    prior._known_codes = lambda cond: KnownCodes(clean, mask)
    cond = Cond(state=torch.zeros(8, 4), returns=torch.zeros(8))
    inputs = []

    def velocity(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        inputs.append(x)
        return (clean - x) / (1 - t).view(-1, 1, 1)  # straight to the codes

    monkeypatch.setattr(prior, "velocity", velocity)
    loss, prediction = prior(clean, clean[:, :0], cond)
    assert torch.equal(inputs[0][:, 0], clean[:, 0]) and not torch.equal(inputs[0][:, 1], clean[:, 1])
    torch.testing.assert_close(prediction, clean)
    assert float(loss) < 1e-6


def test_times_run_from_zero_to_one_on_the_scale_of_noise_levels() -> None:
    prior, diffusion = flow_prior(), tiny.planner(
        view={"fields": ("state",)}, tokenizer="identity", schedule="single", decoder="identity", action="state",
        prior={"name": "diffusion", "timesteps": 10}, sampler="diffusion",
    ).prior  # fmt: skip
    torch.testing.assert_close(prior.time.frequency, 10 * diffusion.time.frequency)
