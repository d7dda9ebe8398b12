"""Ancestral sampling, scale by scale, with the usual ways of shaping the distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.protocols import Prior, Tokenizer
from trajgen.core.registry import register
from trajgen.core.types import Codes, Cond


@dataclass(frozen=True)
class Ancestral:
    """Draws each scale given the coarser ones: one loop for every schedule and every way of choosing.

    Args:
        choose: from logits (B, l_k, V) and a generator to token ids (B, l_k).
        guidance: weight w of classifier-free guidance (arXiv 2207.12598): logits + w (logits - logits without
            the condition); 0 leaves it out and costs nothing.
    """

    choose: Callable[[Tensor, Generator | None], Tensor]
    guidance: float = 0.0

    @torch.no_grad()
    def __call__(self, prior: Prior, tokenizer: Tokenizer, cond: Cond, rng: Generator | None = None) -> Codes:
        """Codes (B, L) or (B, L, C) for the conditions (B, ·)."""
        asked = _doubled(cond) if self.guidance else cond
        state, canvas = prior.start(asked), tokenizer.start(len(cond))
        drawn: list[Tensor] = []
        for k in range(tokenizer.schedule.scales):
            x = tokenizer.view(canvas, k) if k else None
            logits = prior.step(torch.cat([x, x]) if self.guidance and x is not None else x, k, state)
            if self.guidance:
                given, withheld = logits.chunk(2)
                logits = given + self.guidance * (given - withheld)
            drawn.append(logits if tokenizer.vocabulary is None else self.choose(logits.float(), rng))
            canvas = tokenizer.extend(canvas, tokenizer.vectors(drawn[-1]), k)
        return torch.cat(drawn, dim=1)


@register("sampler", "greedy")
def greedy(*, guidance: float = 0.0) -> Ancestral:
    """The likeliest code at every place."""
    return Ancestral(lambda logits, _: logits.argmax(-1), guidance)


@register("sampler", "temperature")
def temperature(*, temperature: float = 0.5, guidance: float = 0.0) -> Ancestral:
    """Draws from softmax(logits / temperature)."""
    _check_positive("temperature", temperature)
    return Ancestral(lambda logits, rng: draw(logits / temperature, rng), guidance)


@register("sampler", "top_k")
def top_k(*, k: int = 16, temperature: float = 1.0, guidance: float = 0.0) -> Ancestral:
    """Draws among the k likeliest codes."""
    _check_positive("k", k)
    _check_positive("temperature", temperature)
    return Ancestral(lambda logits, rng: draw(keep_top_k(logits / temperature, k), rng), guidance)


@register("sampler", "top_p")
def top_p(*, p: float = 0.9, temperature: float = 1.0, guidance: float = 0.0) -> Ancestral:
    """Draws among the likeliest codes that hold a share p of the probability (arXiv 1904.09751)."""
    _check_positive("p", p)
    _check_positive("temperature", temperature)
    return Ancestral(lambda logits, rng: draw(keep_top_p(logits / temperature, p), rng), guidance)


def draw(logits: Tensor, rng: Generator | None) -> Tensor:
    """Ids (B, n) drawn from softmax(logits (B, n, V)): the place of the largest of logits plus Gumbel noise."""
    noise = torch.empty_like(logits).exponential_(generator=rng)
    return (logits - noise.log()).argmax(-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (B, n, V) with all but the k largest set to -inf."""
    if k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (B, n, V) with all set to -inf but the fewest likeliest ones that together reach probability p."""
    ordered, index = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # what the likelier ones hold already
    dropped = (before >= p).scatter(-1, index, before >= p)
    return logits.masked_fill(dropped, -torch.inf)


def _doubled(cond: Cond) -> Cond:
    """The conditions twice: as they are, then withheld."""
    twice = cond.map(lambda values: torch.cat([values, values]))
    given = torch.arange(len(twice), device=cond.state.device) < len(cond)
    return replace(twice, given=given if twice.given is None else given & twice.given)


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ConfigError(
            f"A sampler's {name} is positive.",
            got=f"sampler.{name}={value}",
            fix="sampler=greedy for the mode",
        )
