"""Sampling by denoising: DDIM or ancestral steps, inpainting, and two kinds of guidance."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.protocols import Guide
from trajgen.core.registry import register
from trajgen.core.types import Cond, KnownCodes, Plan
from trajgen.nn.diffusion import noise_levels
from trajgen.samplers.autoregressive import guided
from trajgen.samplers.scoring import gradient


@register("sampler", "diffusion")
class DiffusionSampler:
    """Takes noise away in a few steps, from pure noise to codes (DDIM, arXiv 2010.02502, equations 12 and 16).

    Known codes are set in before the first step and after every one, the last included (Diffuser, arXiv 2205.09991,
    section 3.3). Noise levels and steps are those of the diffusers library.

    Args:
        prior: a prior that denoises.
        vocabulary: None: only continuous codes can be denoised.
        steps: denoising steps; they divide the prior's levels of noise evenly.
        eta: noise that each step adds: 0 for none (DDIM), 1 for ancestral sampling (DDPM, Diffuser).
        temperature: scale of all noise, at the start and in the steps; Decision Diffuser takes 0.5 (arXiv 2211.15657,
            section 3.3).
        guidance: weight w of classifier-free guidance (arXiv 2207.12598): x̂_0 + w (x̂_0 - x̂_0 without the condition); 0
            leaves it out and costs nothing.
        value_scale: α of guidance by the prior's value network J: a step's mean moves by α Σ ∇J (Diffuser,
            algorithm 1), where Σ is the variance of the ancestral step. ∇J is taken at the step's input, as in
            Diffuser's code; the last step has no variance, and so is not guided. 0 leaves it out.

    Raises:
        ConfigError: for discrete codes, a prior without a value network where one is to
            guide, or an option out of range.
    """

    follows_guide = True
    needs = ("denoise", "timesteps", "beta_schedule")

    def __init__(
        self,
        prior: Any,
        vocabulary: int | None,
        *,
        steps: int = 20,
        eta: float = 0.0,
        temperature: float = 1.0,
        guidance: float = 0.0,
        value_scale: float = 0.0,
    ) -> None:
        _check_prior(prior, vocabulary, value_scale)
        _check_options(steps, eta, temperature, prior.timesteps)
        self.eta, self.temperature = eta, temperature
        self.guidance, self.value_scale = guidance, value_scale
        self._scheduler = noise_levels(prior.timesteps, prior.beta_schedule)
        self._scheduler.set_timesteps(steps)
        # A step's coefficients are differences of numbers close to 1: in single precision their root may be NaN. They
        # stay on the CPU, whence scalars reach any device without waiting for it.
        self._scheduler.alphas_cumprod = self._scheduler.alphas_cumprod.double()
        alphas = [1.0, *self._scheduler.alphas_cumprod.tolist()]  # ᾱ before the first level is 1
        self._steps: list[tuple[int, float]] = []
        for t in self._scheduler.timesteps.tolist():
            now, then = alphas[t + 1], alphas[t + 1 - prior.timesteps // steps]
            self._steps.append((t, (1 - then) / (1 - now) * (1 - now / then)))

    @torch.no_grad()
    def __call__(
        self,
        prior: Any,
        tokenizer: Any,
        cond: Cond,
        rng: Generator | None = None,
        known_codes: KnownCodes | None = None,
        guide: Guide | None = None,
    ) -> Plan:
        """Codes (B, L, C) and their latent for the conditions (B, ·); known codes stay as they are.

        A guide moves what is expected behind the noise by its direction times 1 - ᾱ, the variance that standardized
        codes still have there: for one that is the gradient of a score, exp(score) tilts the distribution of codes
        (without a pass back through the prior, as in arXiv 2311.16424).
        """
        shape = (len(cond), tokenizer.schedule.tokens, tokenizer.code_dim)
        device = cond.state.device

        def noise() -> Tensor:
            return self.temperature * torch.randn(shape, generator=rng, device=device)

        x = noise() if known_codes is None else known_codes.into(noise())
        cfg_cond = cond.cfg_batch() if self.guidance else cond
        for t, variance in self._steps:
            noisy = torch.cat([x, x]) if self.guidance else x
            predicted = guided(prior.denoise(noisy, _level(t, cfg_cond), cfg_cond), self.guidance)
            if guide is not None:
                predicted = predicted + (1 - float(self._scheduler.alphas_cumprod[t])) * guide(predicted, cond)
            added = noise() if self.eta else None
            following: Tensor = self._scheduler.step(predicted, t, x, eta=self.eta, variance_noise=added).prev_sample
            if self.value_scale and variance:
                uphill = gradient(partial(_value_at, prior, t), x, cond)
                following = following + self.value_scale * variance * uphill
            x = following if known_codes is None else known_codes.into(following)
        return Plan(x, tokenizer.layout.latent(tokenizer.vectors(x)))


def _value_at(prior: Any, t: int, x: Tensor, cond: Cond) -> Tensor:
    value: Tensor = prior.value(x, _level(t, cond), cond)
    return value


def _level(t: int, cond: Cond) -> Tensor:
    """The noise level t for each condition (B,)."""
    return torch.full((len(cond),), t, device=cond.state.device)


def _check_prior(prior: Any, vocabulary: int | None, value_scale: float) -> None:
    if vocabulary is not None:
        raise ConfigError(
            "Sampling by diffusion draws continuous codes.",
            got=f"sampler=diffusion with a vocabulary of {vocabulary}",
            fix="tokenizer=identity schedule=single prior=diffusion, or sampler=temperature prior=transformer",
        )
    if value_scale and getattr(prior, "value", None) is None:  # a submodule, which no protocol sees
        raise ConfigError(
            "Guidance by the return needs the prior's value network.",
            got=f"sampler.value_scale={value_scale}, prior.value=false",
            fix="prior.value=true (and train anew), or sampler.value_scale=0",
        )


def _check_options(steps: int, eta: float, temperature: float, timesteps: int) -> None:
    if steps < 1 or timesteps % steps:
        divisors = [n for n in range(1, timesteps + 1) if timesteps % n == 0]
        raise ConfigError(
            "The denoising steps divide the prior's levels of noise evenly.",
            expected="one of " + ", ".join(map(str, divisors)),
            got=f"sampler.steps={steps}, prior.timesteps={timesteps}",
            fix=f"sampler.steps={min(divisors, key=lambda n: abs(n - steps))}",
        )
    check_range("sampler.eta", eta, 0, 1, usual=0)
    check_range("sampler.temperature", temperature, 0, usual=0)
