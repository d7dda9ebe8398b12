"""Sampling of codes scale by scale, with the usual ways of shaping the distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Generator, Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.protocols import Autoregressive, PredictsPrefix, Tokenizer
from trajgen.core.registry import register
from trajgen.core.types import Cond, KnownCodes, Plan


@runtime_checkable
class Selectable(Protocol):
    """The state of a stepwise prediction (what ``prior.start`` returns) whose rows can be selected.

    A prior whose state lacks it can be searched as well: its steps are then repeated after every selection.
    """

    def rows(self, index: Tensor) -> Selectable:
        """The state of the rows ``index`` (R,), in that order; a row may be selected more than once, or not at all."""
        ...


class PriorSteps:
    """The steps of a prior whose rows are selected between them.

    Args:
        prior: that predicts one scale after the other.
        cond: B conditions, the first rows.
    """

    def __init__(self, prior: Autoregressive, cond: Cond) -> None:
        self.prior, self.cond, self.state = prior, cond, prior.start(cond)
        self.inputs: list[Tensor | None] = []

    def __call__(self, x: Tensor | None, k: int, selection: Tensor | None) -> Tensor:
        """The prediction (R, l_k, V or C) of scale k, of the rows ``selection`` (R,); None for the same as before."""
        if isinstance(self.state, Selectable):
            self.state = self.state if selection is None else self.state.rows(selection)
            return self.prior.step(x, k, self.state)
        if selection is not None:
            self.cond = self.cond.map(lambda values: values[selection])
            self.state = self.prior.start(self.cond)
            self.inputs = [before if before is None else before[selection] for before in self.inputs]
            for number, before in enumerate(self.inputs):
                self.prior.step(before, number, self.state)
        self.inputs.append(x)
        return self.prior.step(x, k, self.state)

    @property
    def takes_prefix(self) -> bool:
        """Whether leading scales that are known can be read in one pass."""
        return isinstance(self.prior, PredictsPrefix) and isinstance(self.state, Selectable)

    def prefix(self, tokenizer: Tokenizer, codes: Tensor, scales: int, guidance: float = 0.0) -> tuple[Tensor, Tensor]:
        """The partial latent of known codes (B, n) of the first scales, and the predictions of these and the next one.

        The first rows of the prior are the conditions, with guidance the second ones those without a condition.
        """
        partial_latent, inputs = tokenizer.layout.start(len(codes)), []
        for k, span in enumerate(tokenizer.schedule.spans[:scales]):
            partial_latent = tokenizer.layout.extend(partial_latent, tokenizer.vectors(codes[:, span]), k)
            inputs.append(tokenizer.layout.scale_input(partial_latent, k + 1))
        x = torch.cat(inputs, dim=1)
        logits = cast(PredictsPrefix, self.prior).predict_prefix(
            torch.cat([x, x]) if guidance else x, scales, self.state
        )
        return partial_latent, guided(logits, guidance)


@dataclass(frozen=True)
class AutoregressiveSampler:
    """Samples each scale given the coarser ones: one loop for every schedule and every distribution.

    Args:
        sample_fn: from logits (B, l_k, V) and a generator to token ids (B, l_k).
        guidance: weight w of classifier-free guidance (arXiv 2207.12598): logits + w (logits - logits without
            the condition); 0 leaves it out and costs nothing.
    """

    sample_fn: Callable[[Tensor, Generator | None], Tensor]
    guidance: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("start", "step")
    revises: ClassVar[bool] = True

    @torch.no_grad()
    def __call__(
        self,
        prior: Autoregressive,
        tokenizer: Tokenizer,
        cond: Cond,
        rng: Generator | None = None,
        known_codes: KnownCodes | None = None,
        first: int = 0,
        on_codes: Callable[[slice, Tensor, Tensor], None] | None = None,
        copies: int = 1,
        select_fn: Callable[[int, Tensor], Tensor | None] | None = None,
    ) -> Plan:
        """Codes (R, L), or the mean of continuous ones (R, L, C), and their latent, for the conditions (B, ·).

        Args:
            prior: that is sampled.
            tokenizer: whose layout gives each scale its input.
            cond: B conditions.
            rng: of the draws.
            known_codes: each takes the place of the sampled one, before the next scale is sampled; of B · copies rows.
            first: number of the first scale that is not known in all rows. It and those before it are predicted in one
                pass, where the prior can.
            on_codes: called with spans of tokens, their logits (R, n, V) and codes (R, n).
            copies: plans of each condition, side by side, for which the first scale is predicted once.
            select_fn: called after each scale with its number and the partial latent (R, N, C); gives the rows that go
                on, or None for all of them.
        """
        layout, spans, rows = tokenizer.layout, tokenizer.schedule.spans, len(cond)
        steps = PriorSteps(prior, cond.cfg_batch() if self.guidance else cond)
        partial_latent = layout.start(rows)
        scales: list[Tensor] = []
        x: Tensor | None = None
        logits: Tensor | None = None
        selection: Tensor | None = None
        if first and known_codes is not None and steps.takes_prefix:
            prefix = slice(spans[first].start)
            codes = known_codes.codes[:, prefix]
            partial_latent, logits = steps.prefix(tokenizer, codes, first, self.guidance)
            scales += [codes[:, span] for span in spans[:first]]
            if on_codes is not None:
                on_codes(prefix, logits[:, prefix], codes)
            logits = logits[:, spans[first]]
        for k, span in enumerate(spans[len(scales) :], start=len(scales)):
            if logits is None:
                x = layout.scale_input(partial_latent, k) if k else None
                x = torch.cat([x, x]) if self.guidance and x is not None else x
                if selection is not None and self.guidance:
                    selection = torch.cat([selection, selection + rows])
                logits = guided(steps(x, k, selection), self.guidance)
                rows, selection = len(logits), None
            if k == 0 and copies > 1:
                selection = torch.arange(rows, device=logits.device).repeat_interleave(copies)
                logits, partial_latent = logits[selection], partial_latent[selection]
            codes = logits if tokenizer.vocabulary is None else self.sample_fn(logits.float(), rng)
            scales.append(codes if known_codes is None else known_codes.into(codes, span))
            if on_codes is not None:
                on_codes(span, logits, scales[-1])
            partial_latent, logits = layout.extend(partial_latent, tokenizer.vectors(scales[-1]), k), None
            chosen = None if select_fn is None else select_fn(k, partial_latent)
            if chosen is not None:
                scales, partial_latent = [codes[chosen] for codes in scales], partial_latent[chosen]
                selection = chosen if selection is None else selection[chosen]
                if known_codes is not None:
                    known_codes = KnownCodes(known_codes.codes[chosen], known_codes.mask[chosen], known_codes.tokens)
        return Plan(torch.cat(scales, dim=1), partial_latent)

    def revise(
        self,
        prior: Autoregressive,
        tokenizer: Tokenizer,
        cond: Cond,
        codes: Tensor,
        first: int,
        rng: Generator | None = None,
    ) -> tuple[Plan, Tensor]:
        """Plans whose scales from ``first`` on are drawn anew, and how surprising the coarser codes are.

        The coarser scales take one pass of the prior together, so that a revision costs K - first passes where a plan
        costs K.

        See `trajgen.core.protocols.RevisesCodes.revise` for arguments and results.
        """
        count = tokenizer.schedule.spans[first].start
        surprises: list[Tensor] = []

        def add(span: slice, logits: Tensor, codes: Tensor) -> None:
            if span.stop <= count:
                log_probs = logits.float().log_softmax(-1)
                expected = (log_probs.exp() * log_probs).sum(-1)
                surprises.append((expected - log_probs.gather(-1, codes.unsqueeze(-1)).squeeze(-1)).sum(1))

        stays = torch.arange(codes.shape[1], device=codes.device) < count
        known_codes = KnownCodes(codes, stays.expand(len(codes), -1))
        plan = self(prior, tokenizer, cond, rng, known_codes, first, add)
        return plan, torch.stack(surprises).sum(0)


@register("sampler", "greedy")
def greedy(*, guidance: float = 0.0) -> AutoregressiveSampler:
    """The likeliest code at every place; of continuous codes the mean, which is the mode of their Gaussian.

    Args:
        guidance: weight of classifier-free guidance; 0 leaves it out and costs nothing.
    """
    return AutoregressiveSampler(lambda logits, _: logits.argmax(-1), guidance)


@register("sampler", "temperature")
def temperature(vocabulary: int | None, *, temperature: float = 0.5, guidance: float = 0.0) -> AutoregressiveSampler:
    """Draws from softmax(logits / temperature).

    Args:
        vocabulary: V.
        temperature: below 1 for likelier codes, above 0.
        guidance: weight of classifier-free guidance; 0 leaves it out and costs nothing.

    Raises:
        ConfigError: for continuous codes, or an option out of range.
    """
    require_vocabulary(vocabulary)
    require("temperature", temperature, temperature > 0, "a positive number", "sampler=greedy for the likeliest code")
    return AutoregressiveSampler(lambda logits, rng: draw(logits / temperature, rng), guidance)


@register("sampler", "top_k")
def top_k(
    vocabulary: int | None, *, k: int = 16, temperature: float = 1.0, guidance: float = 0.0
) -> AutoregressiveSampler:
    """Draws among the k likeliest codes (arXiv 1805.04833, section 5.4).

    Args:
        vocabulary: V.
        k: how many are kept, at least 1.
        temperature: by which the logits are divided first.
        guidance: weight of classifier-free guidance; 0 leaves it out and costs nothing.

    Raises:
        ConfigError: for continuous codes, or an option out of range.
    """
    require_vocabulary(vocabulary)
    require(
        "k", k, k >= 1, "a whole number of at least 1", "sampler.k=1 for the likeliest code, or sampler=temperature"
    )
    require("temperature", temperature, temperature > 0, "a positive number", "sampler=greedy for the likeliest code")
    return AutoregressiveSampler(lambda logits, rng: draw(keep_top_k(logits / temperature, k), rng), guidance)


@register("sampler", "top_p")
def top_p(
    vocabulary: int | None, *, p: float = 0.9, temperature: float = 1.0, guidance: float = 0.0
) -> AutoregressiveSampler:
    """Draws among the likeliest codes that hold a share p of the probability (arXiv 1904.09751).

    Args:
        vocabulary: V.
        p: the share, above 0 and at most 1.
        temperature: by which the logits are divided first.
        guidance: weight of classifier-free guidance; 0 leaves it out and costs nothing.

    Raises:
        ConfigError: for continuous codes, or an option out of range.
    """
    require_vocabulary(vocabulary)
    require("p", p, 0 < p <= 1, "a share above 0 and at most 1", "sampler.p=0.9, or sampler=temperature for all codes")
    require("temperature", temperature, temperature > 0, "a positive number", "sampler=greedy for the likeliest code")
    return AutoregressiveSampler(lambda logits, rng: draw(keep_top_p(logits / temperature, p), rng), guidance)


def guided(prediction: Tensor, weight: float) -> Tensor:
    """Predictions (B, ·) by classifier-free guidance, from those for `Cond.cfg_batch` (2B, ·); as they are without."""
    if not weight:
        return prediction
    conditional, unconditional = prediction.chunk(2)
    return conditional + weight * (conditional - unconditional)


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


def require_vocabulary(vocabulary: int | None) -> None:
    """Raises a `ConfigError` for continuous codes: of these a prior predicts the mean alone."""
    if vocabulary is None:
        raise ConfigError(
            "This sampler chooses among the codes of a vocabulary.",
            got="continuous codes, of which an autoregressive prior tells the mean",
            fix="sampler=greedy or tokenizer=multiscale",
        )


def require(name: str, value: object, holds: bool, expected: str, fix: str) -> None:
    """Raises a `ConfigError` if an option of a sampler is out of its range."""
    if not holds:
        raise ConfigError(f"A sampler's {name} is {expected}.", got=f"sampler.{name}={value}", fix=fix)
