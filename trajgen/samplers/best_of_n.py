"""Several plans drawn, the best one kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from trajgen.core.normalizer import Normalizer
from trajgen.core.protocols import Autoregressive, Decoder, Tokenizer
from trajgen.core.registry import register
from trajgen.core.types import Cond, KnownCodes, Plan
from trajgen.samplers.autoregressive import AutoregressiveSampler, draw, require, require_vocabulary
from trajgen.samplers.value import PlanValue


@register("sampler", "best_of_n")
class BestOfN:
    """Draws n plans at a temperature and keeps the one that promises the highest return.

    Costs one plan for B · n conditions and their decoding. Where a plan is already conditioned on the return that the
    condition names, expect no gain from it.

    Args:
        prior: what is drawn from, scale by scale.
        vocabulary: V.
        decoder: latent to trajectory.
        view: features of a window.
        normalizer: of the data.
        discount: per environment step.
        stride: environment steps between points.
        n: plans drawn for each condition.
        temperature: of the distribution that plans are drawn from; lower is less varied.
        guidance: weight of classifier-free guidance; 0 leaves it out.

    Raises:
        ConfigError: for continuous codes, a view without rewards and returns, or an option out of range.
    """

    needs = ("start", "step")

    def __init__(
        self,
        prior: Any,
        vocabulary: int | None,
        decoder: Decoder,
        view: Any,
        normalizer: Normalizer,
        discount: float,
        stride: int,
        *,
        n: int = 8,
        temperature: float = 1.0,
        guidance: float = 0.0,
    ) -> None:
        require_vocabulary(vocabulary)
        require("n", n, n >= 1, "a whole number of at least 1", "sampler.n=8, or sampler=temperature for one plan")
        require("temperature", temperature, temperature > 0, "a positive number", "sampler=greedy for the likeliest")
        self.n, self.decoder = n, decoder
        self.value = PlanValue(view, normalizer, discount, stride)
        self.sampler = AutoregressiveSampler(lambda logits, rng: draw(logits / temperature, rng), guidance)

    @torch.no_grad()
    def __call__(
        self,
        prior: Autoregressive,
        tokenizer: Tokenizer,
        cond: Cond,
        rng: Generator | None = None,
        known_codes: KnownCodes | None = None,
    ) -> Plan:
        """The best codes (B, L) and their latent for the conditions (B, ·); known codes stay as they are."""

        def repeat(values: Tensor) -> Tensor:
            return values.repeat_interleave(self.n, 0)

        candidate_cond = cond.map(repeat)
        if known_codes is not None:
            known_codes = KnownCodes(repeat(known_codes.codes), repeat(known_codes.mask))
        candidates = self.sampler(prior, tokenizer, candidate_cond, rng, known_codes)
        values = self.value(self.decoder(candidates.latent, candidate_cond))
        best = values.view(len(cond), self.n).argmax(1)
        rows = best + torch.arange(len(cond), device=best.device) * self.n
        return Plan(candidates.codes[rows], candidates.latent[rows])
