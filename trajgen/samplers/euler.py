"""Sampling along a flow: Euler steps from noise to codes."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.protocols import Guide, HasVelocity, Tokenizer
from trajgen.core.registry import register
from trajgen.core.types import Cond, KnownCodes, Plan
from trajgen.samplers.autoregressive import guided


@register("sampler", "euler")
class EulerSampler:
    """Follows the prior's velocity from noise at time 0 to codes at time 1 in a few even steps.

    Solves dx/dt = v(x, t) (arXiv 2210.02747, equation 1). Known codes are set in before the first step and after each
    one (inpainting, as in Diffuser, arXiv 2205.09991, section 3.3).

    Args:
        prior: a prior with a velocity.
        vocabulary: None: a flow is of continuous codes.
        steps: of equal length.
        temperature: scale of the noise at the start.
        guidance: weight w of classifier-free guidance (arXiv 2207.12598): v + w (v - v without the condition); 0 leaves
            it out and costs nothing.

    Raises:
        ConfigError: for discrete codes, or an option out of range.
    """

    follows_guide = True
    needs = ("velocity",)

    def __init__(
        self,
        prior: HasVelocity,
        vocabulary: int | None,
        *,
        steps: int = 5,
        temperature: float = 1.0,
        guidance: float = 0.0,
    ) -> None:
        if vocabulary is not None:
            raise ConfigError(
                "A flow leads to continuous codes.",
                got=f"sampler=euler with a vocabulary of {vocabulary}",
                fix="tokenizer=identity schedule=single prior=flow, or sampler=temperature prior=transformer",
            )
        check_range("sampler.steps", steps, 1, usual=5)
        check_range("sampler.temperature", temperature, 0, usual=1)
        self.steps, self.temperature, self.guidance = steps, temperature, guidance

    @torch.no_grad()
    def __call__(
        self,
        prior: HasVelocity,
        tokenizer: Tokenizer,
        cond: Cond,
        rng: Generator | None = None,
        known_codes: KnownCodes | None = None,
        guide: Guide | None = None,
    ) -> Plan:
        """Codes (B, L, C) and their latent for the conditions (B, ·); known codes stay as they are.

        A guide moves the codes x + (1 - t) v that the velocity leads to by its direction times
        (1 - t)² / ((1 - t)² + t²), the variance that standardized codes still have at x; see `DiffusionSampler`.
        """
        shape, device = (len(cond), tokenizer.schedule.tokens, tokenizer.code_dim), cond.state.device
        cfg_cond = cond.cfg_batch() if self.guidance else cond

        def with_known(codes: Tensor) -> Tensor:
            return codes if known_codes is None else known_codes.into(codes)

        x = with_known(self.temperature * torch.randn(shape, generator=rng, device=device))
        for step in range(self.steps):
            t = torch.full((len(cfg_cond),), step / self.steps, device=device)
            velocity = guided(prior.velocity(torch.cat([x, x]) if self.guidance else x, t, cfg_cond), self.guidance)
            if guide is not None:
                remaining = 1 - step / self.steps
                end = x + remaining * velocity
                velocity = velocity + remaining / (remaining**2 + (1 - remaining) ** 2) * guide(end, cond)
            x = with_known(x + velocity / self.steps)
        return Plan(x, tokenizer.layout.latent(tokenizer.vectors(x)))
