"""A sampler of one's own: how codes are drawn from the prior."""

from typing import Any

import torch
from torch import Generator

from trajgen import register
from trajgen.core.errors import ConfigError
from trajgen.core.types import Cond, KnownCodes, Plan


@register("sampler", "mine")
class MineSampler:
    """Draws among the codes that are not much less likely than the likeliest.

    Args:
        prior: what is drawn from.
        vocabulary: V; None for continuous codes.
        share: of the likeliest code's probability, below which a code is left out.
    """

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, prior: Any, vocabulary: int | None, *, share: float = 0.1) -> None:
        if vocabulary is None or not hasattr(prior, "step"):  # what cannot work is refused
            raise ConfigError(
                "This sampler draws token ids, scale by scale.",
                expected="a prior with start and step, and a tokenizer with a vocabulary",
                got=f"{type(prior).__name__}, vocabulary {vocabulary}",
                fix="recipe=mage",
            )
        self.share = share

    @torch.no_grad()
    def __call__(
        self,
        prior: Any,
        tokenizer: Any,
        cond: Cond,
        rng: Generator | None = None,
        known_codes: KnownCodes | None = None,
    ) -> Plan:
        """Codes (B, L) and their latent for the conditions (B, ·); known codes stay as they are."""
        state, layout, scales = prior.start(cond), tokenizer.layout, []
        partial_latent = layout.start(len(cond))
        for k, span in enumerate(tokenizer.schedule.spans):
            logits = prior.step(layout.scale_input(partial_latent, k) if k else None, k, state)  # (B, l_k, V)
            shares = logits.float().softmax(-1)
            shares = shares * (shares >= self.share * shares.amax(-1, keepdim=True))
            codes = torch.multinomial(shares.flatten(0, 1), 1, generator=rng).view(shares.shape[:2])
            scales.append(codes if known_codes is None else known_codes.into(codes, span))
            partial_latent = layout.extend(partial_latent, tokenizer.vectors(scales[-1]), k)
        return Plan(torch.cat(scales, dim=1), partial_latent)
