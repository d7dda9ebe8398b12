"""Several plans drawn, the best one kept."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from trajgen.core.critics import Critic
from trajgen.core.errors import ConfigError
from trajgen.core.pairing import check_pair, fitting_samplers, needs
from trajgen.core.protocols import Decoder, FollowsGuide, Tokenizer, Values
from trajgen.core.registry import build, component, register, spec
from trajgen.core.types import Codes, Cond, KnownCodes, Plan
from trajgen.samplers.autoregressive import AutoregressiveSampler, require, require_vocabulary
from trajgen.samplers.scoring import PlanScore, check_judges_partial_plans, final_points, gradient, present_point


@register("sampler", "best_of_n")
class BestOfN:
    """Draws n plans in one batch and keeps the one that is worth most by the critic (arXiv 2503.00535).

    Of plans at several strides, the candidates take turns at them, so that the critic chooses how far ahead is planned.
    The candidates are drawn by another sampler, so that they may be codes or continuous. Costs one plan for B · n
    conditions, their decoding and the critic; of codes at a single stride the first scale is that of B conditions, and
    so are the scales after ``compare_after``. Where a plan is already conditioned on a return, expect no gain from
    choosing by that return (critic=return).

    Args:
        prior: what is drawn from.
        tokenizer: whose scales they are.
        vocabulary: V.
        decoder: latent to trajectory.
        view: features of a window.
        critic: what plans are worth.
        strides: at which plans are drawn, one or several.
        horizon: T.
        n: plans drawn for each condition.
        draws: the sampler that draws them; null for the usual one of the prior.
        temperature: of the draws, an option of that sampler as are the next two; null for its default.
        guidance: weight of classifier-free guidance; null for its default.
        steps: of denoising or of a flow; null for its default.
        compare_after: how many of the coarsest scales are drawn of each candidate; they are compared by what those
            decode to, and the best alone gets the others. In windows that continue a history they are not compared
            before the present point is decided. null for all. Needs codes.
        likely_fraction: fraction of the candidates, the likeliest, among which one is chosen; 1 for all. Needs codes.
        critic_guidance: weight w of the critic's gradient while continuous codes are drawn, which favors plans by
            exp(w · score); 0 leaves it out. Needs a prior of diffusion or flow.

    Raises:
        ConfigError: for a view without what the critic reads, a critic that judges drawn numbers or whole plans where
            it must not, an option that the drawing sampler does not have, or one out of range.
    """

    def __init__(
        self,
        prior: Any,
        tokenizer: Any,
        vocabulary: int | None,
        decoder: Decoder,
        view: Any,
        critic: Critic,
        strides: tuple[int, ...],
        horizon: int,
        *,
        n: int = 8,
        draws: str | None = None,
        temperature: float | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        compare_after: int | None = None,
        likely_fraction: float = 1.0,
        critic_guidance: float = 0.0,
    ) -> None:
        require("n", n, n >= 1, "a whole number of at least 1", "sampler.n=8, or sampler=temperature for one plan")
        expected = f"at least {len(strides)}, one at each of data.stride={list(strides)}"
        require("n", n, n >= len(strides), expected, f"sampler.n={len(strides)}")
        holds = 0 < likely_fraction <= 1
        require("likely_fraction", likely_fraction, holds, "more than 0 and at most 1", "sampler.likely_fraction=1")
        discrete = vocabulary is not None
        name = draws or next(fitting_samplers(prior, discrete=discrete), "temperature")
        check_pair(name, prior, type(prior).__name__, discrete=discrete)
        if "step" in needs(component("sampler", name)):
            require_vocabulary(vocabulary)  # of continuous codes it would draw the mean, n times the same
        options = {"temperature": temperature, "guidance": guidance, "steps": steps}
        options = {option: value for option, value in options.items() if value is not None}
        possible = [option.name for option in spec("sampler", name).options]
        for option, value in options.items():
            holds = option in possible
            require(option, value, holds, f"null where sampler {name} draws", f"sampler.{option}=null")
        self.sampler = build("sampler", {"name": name, **options}, prior=prior, vocabulary=vocabulary)
        scales = tokenizer.schedule.scales
        least = next(k + 1 for k in range(scales) if final_points(tokenizer, k, horizon))
        holds = compare_after is None or least <= compare_after <= scales
        expected = f"null, or from {least}, the first after which a point is decided, to {scales}, the number of scales"
        fix = "sampler.compare_after=null"
        require("compare_after", compare_after, holds, expected, fix)
        by_scale, reason = isinstance(self.sampler, AutoregressiveSampler), "where no codes are drawn scale by scale"
        for option, value, usual in (("likely_fraction", likely_fraction, 1), ("compare_after", compare_after, None)):
            word = "null" if usual is None else str(usual)
            require(option, value, by_scale or value == usual, f"{word} {reason}", f"sampler.{option}={word}")
        if critic_guidance and not isinstance(self.sampler, FollowsGuide):
            raise ConfigError(
                "sampler.critic_guidance needs a prior of diffusion or flow: codes of a vocabulary follow no gradient.",
                got=f"sampler.critic_guidance={critic_guidance} with draws by {name}",
                fix="sampler.critic_guidance=0 with a larger sampler.n, or recipe=dv",
            )
        self.critic_guidance = critic_guidance
        self.n, self.decoder, self.critic, self.strides = n, decoder, critic, strides
        self.likely, self.compared_scale = max(1, round(likely_fraction * n)), (compare_after or scales) - 1
        self.horizon = horizon
        self.score = PlanScore(critic, view)
        check_judges_partial_plans(critic, tokenizer, self.compared_scale, horizon)
        sampled = tokenizer.fields_of_tokens if discrete and isinstance(tokenizer, Values) else ()
        if judged := sorted({*sampled} & {*critic.reads} & {"return", "reward"}):
            raise ConfigError(
                "Where each token is a number of a point, the best of n would be the best of its own draws of returns.",
                got=f"{type(critic).__name__} with tokens of {', '.join(judged)}",
                fix="sampler=beam, which ranks by expected returns, or critic=value",
            )
        compares_complete = len(strides) == 1 and self.likely == n and self.compared_scale == scales - 1
        self.revises = by_scale and compares_complete

    @torch.no_grad()
    def __call__(
        self,
        prior: Any,
        tokenizer: Tokenizer,
        cond: Cond,
        rng: Generator | None = None,
        known_codes: KnownCodes | None = None,
    ) -> Plan:
        """The best codes (B, L) or (B, L, C) and their latent for the conditions (B, ·); known codes stay."""
        repeat = self._repeat
        candidate_cond, copies = cond.map(repeat), self.n
        if len(self.strides) > 1:
            # By fills, since a CUDA graph takes no copy from the host.
            strides = torch.cat([torch.full((1,), stride, device=cond.state.device) for stride in self.strides])
            candidate_cond = replace(candidate_cond, stride=strides.repeat(self.n)[: self.n].repeat(len(cond)))
            cond, copies = candidate_cond, 1
        if known_codes is not None:
            known_codes = KnownCodes(repeat(known_codes.codes), repeat(known_codes.mask), known_codes.tokens)
        if isinstance(self.sampler, AutoregressiveSampler):
            choice = _Choice(self, tokenizer, candidate_cond)
            on_codes = choice.add if self.likely < self.n else None
            plan = self.sampler(prior, tokenizer, cond, rng, known_codes, 0, on_codes, copies, choice.rows_after)
            stride = None if candidate_cond.stride is None else candidate_cond.stride[choice.rows]
            return replace(plan, stride=stride, worth=choice.worth)
        arguments = (prior, tokenizer, candidate_cond, rng, known_codes)
        if self.critic_guidance:
            candidates = self.sampler(*arguments, guide=partial(self._guide, tokenizer))
        else:
            candidates = self.sampler(*arguments)
        return self._best(candidates, candidate_cond)

    @torch.no_grad()
    def revise(
        self, prior: Any, tokenizer: Tokenizer, cond: Cond, codes: Codes, first: int, rng: Generator | None = None
    ) -> tuple[Plan, Tensor]:
        """The best of n revisions of each plan: see `trajgen.core.protocols.RevisesCodes.revise`."""
        assert isinstance(self.sampler, AutoregressiveSampler)  # as `revises` says
        candidate_cond, repeated = cond.map(self._repeat), self._repeat(codes)
        candidates, surprise = self.sampler.revise(prior, tokenizer, candidate_cond, repeated, first, rng)
        return self._best(candidates, candidate_cond), surprise[:: self.n]  # candidates have the same coarse codes

    def _repeat(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self.n, 0)

    def _best(self, candidates: Plan, cond: Cond) -> Plan:
        """The candidates that are chosen of whole plans for B · n conditions."""
        rows, worth = self.best(self.score(self.decoder(candidates.latent, cond), cond))
        stride = None if cond.stride is None else cond.stride[rows]
        return Plan(candidates.codes[rows], candidates.latent[rows], stride=stride, worth=worth)

    def best(self, scores: Tensor, likelihood: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The candidates with the highest scores (B · n,), among the likeliest of each condition: rows, scores (B,)."""
        scores = scores.view(-1, self.n)
        if likelihood is not None:
            likelihood = likelihood.view(-1, self.n)
            least = likelihood.topk(self.likely, dim=1).values[:, -1:]
            scores = scores.masked_fill(likelihood < least, -torch.inf)
        rows = scores.argmax(1) + torch.arange(len(scores), device=scores.device) * self.n
        return rows, scores.amax(1)

    def _guide(self, tokenizer: Tokenizer, codes: Tensor, cond: Cond) -> Tensor:
        """w times the gradient of the score by the codes (B, L, C)."""

        def score(codes: Tensor, cond: Cond) -> Tensor:
            latent = tokenizer.layout.latent(tokenizer.vectors(codes))
            return self.score(self.decoder(latent, cond), cond)

        return self.critic_guidance * gradient(score, codes, cond)


class _Choice:
    """The choice among candidates while their scales are drawn.

    Args:
        sampler: which compares them.
        tokenizer: whose layout tells how much of a plan is decided.
        cond: of the candidates, B · n conditions.
    """

    rows: Tensor
    """The rows (B,) of the candidates that are chosen, once they are."""
    worth: Tensor
    """Their scores (B,)."""

    def __init__(self, sampler: BestOfN, tokenizer: Tokenizer, cond: Cond) -> None:
        self.sampler, self.tokenizer, self.cond = sampler, tokenizer, cond
        self.compared_scale, present = sampler.compared_scale, present_point(cond)
        while final_points(tokenizer, self.compared_scale, sampler.horizon) <= present:
            self.compared_scale += 1
        self.likelihoods: list[Tensor] = []

    def add(self, span: slice, logits: Tensor, codes: Tensor) -> None:
        """Takes in the log likelihoods of the codes (B · n, n_k) of a scale, by the prior's own distribution."""
        of_codes = logits.float().log_softmax(-1).gather(-1, codes.unsqueeze(-1))
        self.likelihoods.append(of_codes.sum((1, 2)))

    def rows_after(self, k: int, partial_latent: Tensor) -> Tensor | None:
        """The rows (B,) of the best candidates, once scale k is the last that is compared; None at other scales."""
        if k != self.compared_scale:
            return None
        trajectory = self.sampler.decoder(partial_latent, self.cond)
        points = final_points(self.tokenizer, k, trajectory.shape[1])
        likelihood = torch.stack(self.likelihoods).sum(0) if self.likelihoods else None
        self.rows, self.worth = self.sampler.best(self.sampler.score(trajectory, self.cond, points), likelihood)
        return self.rows
