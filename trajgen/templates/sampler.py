"""A sampler of one's own: how codes are sampled from the prior."""

from typing import Any

import torch
from torch import Generator

from trajgen import register
from trajgen.core.errors import ConfigError
from trajgen.core.types import Cond, KnownCodes, Plan


@register("sampler", "mine")
class MineSampler:
    """Samples among the codes that are not much less likely than the likeliest (min-p sampling).

    Args:
        vocabulary: V; None for continuous codes.
        min_p: the fraction of the likeliest code's probability below which a code is left out.
    """

    needs = ("start", "step")  # what it uses of a prior; one that lacks it is refused

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, vocabulary: int | None, *, min_p: float = 0.1) -> None:
        if vocabulary is None:  # what cannot work is refused
            raise ConfigError(
                "This sampler samples token ids.",
                expected="a tokenizer with a vocabulary",
                got="continuous codes",
                fix="recipe=mage",
            )
        self.min_p = min_p

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
            probs = logits.float().softmax(-1)
            probs = probs * (probs >= self.min_p * probs.amax(-1, keepdim=True))
            codes = torch.multinomial(probs.flatten(0, 1), 1, generator=rng).view(probs.shape[:2])
            scales.append(codes if known_codes is None else known_codes.into(codes, span))
            partial_latent = layout.extend(partial_latent, tokenizer.vectors(scales[-1]), k)
        return Plan(torch.cat(scales, dim=1), partial_latent)
