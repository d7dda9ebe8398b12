"""The diffusion sampler against distributions whose posterior mean E[x_0 | x_t] is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from trajgen.core.protocols import Guide
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond, KnownCodes
from trajgen.nn.diffusion import noise_levels
from trajgen.samplers.diffusion import DiffusionSampler

LEVELS = 1000
Mean = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From x_t (B, 1, C), √ᾱ_t and √(1 - ᾱ_t) to E[x_0 | x_t]."""


class Exact:
    """A prior that needs no training: it knows the posterior mean, and the values J if it is to guide."""

    beta_schedule = "squaredcos_cap_v2"

    def __init__(self, mean: Mean, value: Mean | None = None, timesteps: int = LEVELS) -> None:
        self.timesteps = timesteps
        alphas = noise_levels(timesteps, self.beta_schedule).alphas_cumprod.double()
        self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()  # the a and σ of x_t = a x_0 + σ noise
        self.mean = mean
        self._value = value
        self.value = None if value is None else self._values

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.mean(x.double(), *self._at(t)).float()

    def _values(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert self._value is not None
        return self._value(x, *(part.float() for part in self._at(t))).flatten(1).sum(1)

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.signal[t].view(-1, 1, 1), self.noise[t].view(-1, 1, 1)


LAYOUT = SimpleNamespace(latent=lambda vectors: vectors)


def draw(
    prior: Any,
    size: int,
    width: int = 1,
    *,
    seed: int = 0,
    known_codes: KnownCodes | None = None,
    guide: Guide | None = None,
    **options: Any,
) -> Tensor:
    """Samples (size, width): each window is one token of this width."""
    tokenizer = SimpleNamespace(
        schedule=ScaleSchedule((1,)), code_dim=width, vocabulary=None, vectors=lambda codes: codes, layout=LAYOUT
    )
    cond = Cond(state=torch.zeros(size, 1), returns=torch.zeros(size))
    rng = torch.Generator().manual_seed(seed)
    sampler = DiffusionSampler(prior, None, **options)
    return sampler(prior, tokenizer, cond, rng, known_codes, guide).codes[:, 0].double()


def gaussian(mean: Tensor, covariance: Tensor) -> Mean:
    """E[x_0 | x_t] of x_0 ~ N(mean, covariance): m + a S (a² S + σ² I)⁻¹ (x_t - a m)."""
    mean, covariance = mean.double(), covariance.double()

    def posterior(x: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
        spread = a**2 * covariance + sigma**2 * torch.eye(len(mean), dtype=torch.float64)
        gain = a * covariance @ torch.linalg.inv(spread)
        return mean + (x - a * mean) @ gain.transpose(-1, -2)

    return posterior


def mixture(weights: list[float], means: list[float], deviations: list[float]) -> Mean:
    """E[x_0 | x_t] of a mixture of Gaussians: that of each, weighed by how well it explains x_t."""
    w, m, s = (torch.tensor(each, dtype=torch.float64) for each in (weights, means, deviations))

    def posterior(x: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
        spread = (a * s) ** 2 + sigma**2
        explains = (w.log() - 0.5 * spread.log() - 0.5 * (x - a * m) ** 2 / spread).softmax(-1)
        return (explains * (m + a * s**2 / spread * (x - a * m))).sum(-1, keepdim=True)

    return posterior


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_mixture_of_gaussians_is_sampled(eta: float) -> None:
    """0.3 N(-2, 0.3²) + 0.7 N(1.5, 0.5²), from 20,000 samples in 100 steps.

    Tolerances are four standard errors of the samples (weight 0.0032, means 0.0039 and 0.0042), plus 0.01 for the
    steps not being small.
    """
    x = draw(Exact(mixture([0.3, 0.7], [-2.0, 1.5], [0.3, 0.5])), 20_000, steps=100, eta=eta).squeeze(-1)
    low, high = x[x < -0.5], x[x >= -0.5]  # four deviations and more from either mean
    assert len(low) / len(x) == pytest.approx(0.3, abs=0.023)
    assert low.mean().item() == pytest.approx(-2.0, abs=0.026)
    assert high.mean().item() == pytest.approx(1.5, abs=0.027)
    assert low.std().item() == pytest.approx(0.3, rel=0.05)
    assert high.std().item() == pytest.approx(0.5, rel=0.05)
    assert x.mean().item() == pytest.approx(0.45, abs=0.06)  # 0.3 · (-2) + 0.7 · 1.5
    assert x.var().item() == pytest.approx(2.7745, rel=0.05)  # 0.3 (0.09 + 4) + 0.7 (0.25 + 2.25) - 0.45²


def test_ddim_is_the_closed_form_map_of_one_gaussian() -> None:
    """A step from (a, σ) to (a', σ') scales the distance to the mean by (a a' s² + σ σ') / (a² s² + σ²), s² = 0.49."""
    prior = Exact(gaussian(torch.tensor([0.8]), torch.tensor([[0.49]])))
    start = torch.randn(500, 1, generator=torch.Generator().manual_seed(3)).double()
    a = [*prior.signal[49::50].flip(0).tolist(), 1.0]  # levels 999, 949, ..., 49, then no noise
    sigma = [*prior.noise[49::50].flip(0).tolist(), 0.0]
    factor = math.prod(
        (a[i] * a[i + 1] * 0.49 + sigma[i] * sigma[i + 1]) / (a[i] ** 2 * 0.49 + sigma[i] ** 2) for i in range(20)
    )
    expected = 0.8 + (start - a[0] * 0.8) * factor
    torch.testing.assert_close(draw(prior, 500, seed=3, steps=20), expected, atol=2e-6, rtol=0)


def test_many_ddim_steps_follow_the_probability_flow() -> None:
    """The flow keeps (x_t - a m) / √(a² s² + σ²) as it is, so noise z ends at m + s z, but for the error of steps."""
    prior = Exact(gaussian(torch.tensor([0.8]), torch.tensor([[0.49]])))
    start = torch.randn(500, 1, generator=torch.Generator().manual_seed(3)).double()
    errors = [(draw(prior, 500, seed=3, steps=n) - (0.8 + 0.7 * start)).abs().max().item() for n in (20, 100, 500)]
    assert errors[2] < 0.01 and errors[2] < errors[1] / 3 < errors[0] / 9


def ancestral(variance: float, steps: int, tilt: float = 0.0) -> tuple[float, float]:
    """Mean and variance of ancestral samples of N(0, variance), guided by J_t = a x_t with this weight.

    Each step is linear: with x̂_0 = g x its mean is c x + tilt Σ a, where c follows from equation 7 of arXiv 2006.11239,
    and it adds noise of variance Σ, which is a little less than what it should be unless steps are small.
    """
    prior = Exact(gaussian(torch.zeros(1), torch.eye(1)))
    stride = LEVELS // steps
    levels = [*zip(prior.signal.tolist(), prior.noise.tolist(), strict=True)][stride - 1 :: stride]
    mean, spread = 0.0, 1.0
    for (a, sigma), (less_a, less) in zip(levels[::-1], [*levels[-2::-1], (1.0, 0.0)], strict=True):
        gain, alpha = a * variance / (a**2 * variance + sigma**2), (a / less_a) ** 2
        factor = (less_a * (1 - alpha) * gain + math.sqrt(alpha) * less**2) / sigma**2
        added = less**2 / sigma**2 * (1 - alpha)
        mean, spread = factor * mean + tilt * added * a, factor**2 * spread + added
    return mean, spread


@pytest.mark.parametrize("steps", [10, 100])
def test_ancestral_steps_have_the_variance_of_the_closed_form(steps: int) -> None:
    """40,000 samples, so that the variance has a standard error of 0.7 %."""
    x = draw(Exact(gaussian(torch.zeros(1), torch.tensor([[0.49]]))), 40_000, steps=steps, eta=1.0)
    assert x.var().item() == pytest.approx(ancestral(0.49, steps)[1], rel=0.025)
    assert abs(x.mean().item()) < 0.014
    assert ancestral(0.49, 1000)[1] == pytest.approx(0.49, rel=0.01)  # with small steps it is that of the data


def test_two_numbers_of_a_code_keep_their_correlation() -> None:
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    x = draw(Exact(gaussian(torch.tensor([1.0, -1.0]), covariance)), 20_000, 2, steps=100)
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -1.0]).double(), atol=0.04, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), covariance.double(), atol=0.05, rtol=0)


def test_temperature_scales_all_noise() -> None:
    prior = Exact(gaussian(torch.tensor([0.0]), torch.tensor([[0.49]])))
    for eta in (0.0, 1.0):
        warm = draw(prior, 100, steps=10, eta=eta)
        cool = draw(prior, 100, steps=10, eta=eta, temperature=0.5)
        torch.testing.assert_close(cool, 0.5 * warm, atol=1e-6, rtol=0)  # the map is linear, as the mean is 0
    still = draw(prior, 3, steps=10, eta=1.0, temperature=0.0)
    assert torch.equal(still, torch.zeros_like(still))


def given_first(size: int, value: float) -> KnownCodes:
    """The first of two numbers is known."""
    mask = torch.tensor([True, False]).expand(size, 1, 2)
    return KnownCodes(torch.full((size, 1, 2), value).masked_fill(~mask, torch.nan), mask)


CORRELATED = torch.tensor([[1.0, 0.8], [0.8, 1.0]])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_inpainting_is_exact_if_the_prior_knows_what_is_given(eta: float) -> None:
    """x_2 given x_1 = 1.5 is N(0.8 · 1.5, 1 - 0.8²), which a prior draws that was trained with x_1 without noise."""

    def posterior(x: Tensor, a: Tensor, sigma: Tensor) -> Tensor:
        given, noisy = x.unbind(-1)
        a, sigma = a.squeeze(-1), sigma.squeeze(-1)
        mean = 0.8 * given
        free = mean + a * 0.36 / (a**2 * 0.36 + sigma**2) * (noisy - a * mean)
        return torch.stack([torch.zeros_like(given), free], dim=-1)  # what it says of the given one must not matter

    x = draw(Exact(posterior), 20_000, 2, known_codes=given_first(20_000, 1.5), steps=100, eta=eta)
    assert (x[:, 0] == 1.5).all()
    assert x[:, 1].mean().item() == pytest.approx(1.2, abs=0.03)
    assert x[:, 1].var().item() == pytest.approx(ancestral(0.36, 100)[1] if eta else 0.36, rel=0.06)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_inpainting_pulls_a_prior_that_takes_the_given_for_noisy(eta: float) -> None:
    """Setting known numbers into x_t is approximate for such a prior: x_2's mean moves from 0 towards 1.2.

    By about 0.6 of the way in DDIM's steps, and 0.75 in ancestral ones, which can mend what earlier steps did.
    """
    x = draw(
        Exact(gaussian(torch.zeros(2), CORRELATED)), 20_000, 2, known_codes=given_first(20_000, 1.5), steps=100, eta=eta
    )
    assert (x[:, 0] == 1.5).all()
    assert 0.5 < x[:, 1].mean().item() / 1.2 < 0.9


def test_guidance_by_a_linear_value_is_the_step_of_algorithm_1() -> None:
    """Two levels; the prior says x̂_0 = x_t. From x: a' x + σ'/σ (x - a x) + α Σ g, and the last step leaves it so."""
    slope = torch.tensor([2.0, -1.0])
    prior = Exact(lambda x, a, sigma: x, lambda x, a, sigma: x @ slope, timesteps=2)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(4)).double()
    (a_less, a), (less, sigma) = prior.signal.tolist(), prior.noise.tolist()
    variance = less**2 / sigma**2 * (1 - a**2 / a_less**2)
    expected = a_less * x + less / sigma * (x - a * x) + 0.7 * variance * slope.double()
    guided = draw(prior, 5, 2, seed=4, steps=2, value_scale=0.7)
    torch.testing.assert_close(guided, expected, atol=1e-6, rtol=0)
    unguided = draw(prior, 5, 2, seed=4, steps=2)
    torch.testing.assert_close((guided - unguided)[0], 0.7 * variance * slope.double(), atol=1e-6, rtol=0)


def test_guidance_by_value_tilts_the_distribution() -> None:
    """N(0, 1) tilted by exp(α x_0) is N(α, 1). Behind x_t, E[x_0 | x_t] = a x_t, so J_t = a x_t is exact for it."""
    prior = Exact(gaussian(torch.zeros(1), torch.eye(1)), lambda x, a, sigma: a * x)
    x = draw(prior, 20_000, steps=200, eta=1.0, value_scale=1.5)
    mean, variance = ancestral(1.0, 200, tilt=1.5)
    assert x.mean().item() == pytest.approx(mean, abs=0.03)  # four standard errors
    assert x.var().item() == pytest.approx(variance, rel=0.04)
    assert ancestral(1.0, 1000, tilt=1.5) == pytest.approx((1.5, 1.0), abs=0.02)  # and small steps give N(α, 1)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_guide_of_constant_slope_tilts_the_distribution(eta: float) -> None:
    """N(0, 1) tilted by exp(slope · x_0) is N(slope, 1), whose posterior mean is a x_t + σ² slope."""
    slope = torch.tensor([1.5, -0.5])
    plain, tilted = (Exact(gaussian(mean, torch.eye(2))) for mean in (torch.zeros(2), slope))
    guided = draw(plain, 50, 2, steps=20, eta=eta, guide=lambda codes, cond: slope.expand_as(codes))
    torch.testing.assert_close(guided, draw(tilted, 50, 2, steps=20, eta=eta), atol=1e-5, rtol=0)


def test_a_guide_leads_to_the_optimum_of_a_quadratic_score() -> None:
    """With -k/2 (x_0 - 2)² and x̂_0 = a x_t of N(0, 1), two steps by hand; stronger guides come closer to 2."""
    prior = Exact(gaussian(torch.zeros(1), torch.eye(1)), timesteps=2)

    def by_hand(x: float, k: float) -> float:
        for t, (a, sigma) in zip((1, 0), zip(prior.signal.flip(0), prior.noise.flip(0), strict=True), strict=True):
            predicted = float(a) * x + float(sigma) ** 2 * k * (2 - float(a) * x)
            a_less, less = (float(prior.signal[0]), float(prior.noise[0])) if t else (1.0, 0.0)
            x = a_less * predicted + less / float(sigma) * (x - float(a) * predicted)
        return x

    ends = []
    for k in (0.0, 0.2, 0.5, 0.8):
        guided = draw(prior, 30, steps=2, guide=lambda codes, cond, k=k: -k * (codes - 2))
        noise = torch.randn(30, 1, 1, generator=torch.Generator().manual_seed(0)).flatten().tolist()
        torch.testing.assert_close(guided[:, 0], torch.tensor([by_hand(x, k) for x in noise]).double())
        ends.append(float((guided - 2).abs().mean()))
    assert ends == sorted(ends, reverse=True) and ends[-1] < 0.5 * ends[0]


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear"])
@pytest.mark.parametrize("timesteps", [1, 10, 100, 1000])
def test_the_last_level_is_almost_all_noise(schedule: str, timesteps: int) -> None:
    alphas = noise_levels(timesteps, schedule).alphas_cumprod
    assert alphas.shape == (timesteps,) and (alphas.diff() < 0).all() and (alphas > 0).all()
    if timesteps > 1:
        assert alphas[-1] < 1e-3 and alphas[0] > 0.5


def test_the_cosine_schedule_by_hand() -> None:
    """ᾱ_t = f(t + 1) / f(0), f(n) = cos²((n / 10 + 0.008) / 1.008 · π/2) (arXiv 2102.09672, equation 17)."""
    alphas = noise_levels(10, "squaredcos_cap_v2").alphas_cumprod
    f = [math.cos((n / 10 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(10)]
    torch.testing.assert_close(alphas[:9], torch.tensor([f[n] / f[0] for n in range(1, 10)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("timesteps", "steps"), [(1, 1), (100, 10), (256, 2), (1000, 5), (1000, 1000)])
def test_every_step_is_finite(timesteps: int, steps: int) -> None:
    """In single precision, the ancestral step from the last level would be the root of a negative number for some."""
    prior = Exact(gaussian(torch.zeros(1), torch.eye(1)), timesteps=timesteps)
    assert draw(prior, 10, steps=steps, eta=1.0).isfinite().all()
