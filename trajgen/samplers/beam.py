"""Beam search over codes: the plans of the highest value among those that the prior finds likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from trajgen.core.checks import check_range
from trajgen.core.critics import Critic
from trajgen.core.protocols import Autoregressive, Decoder, Tokenizer, Values
from trajgen.core.registry import register
from trajgen.core.types import Cond, KnownCodes, Plan
from trajgen.samplers.autoregressive import PriorSteps, draw, keep_top_k, keep_top_p, require, require_vocabulary
from trajgen.samplers.scoring import PlanScore, check_judges_partial_plans, final_points, present_point


@register("sampler", "beam")
class Beam:
    """Beam search: W partial plans are each expanded E times, and the best W of them are kept.

    Follows Trajectory Transformer (arXiv 2106.02039, section 2.3) and TAP (arXiv 2208.10291, section 3.3), for any
    schedule: the codes of a scale of several tokens are independent of each other given the coarser scales, and are
    expanded jointly. A plan is expanded at its first scale after each selection, into W · E candidates in all; scales
    until the next selection continue each candidate once. No two candidates are the same; where E is above 1, the
    likeliest is among them.

    Where each token is a number of a point (`trajgen.core.protocols.Values`), plans are ranked by the rewards and
    returns that the prior expects, not by those that it drew: a search would otherwise select its own noise. What is
    expected is their normalized values, of returns to the power ``data.return_power``.

    Cost of a plan, per condition: W rows of the prior at each scale that is expanded, W · E rows at the others, one row
    for leading scales that are known, in one pass where the prior can; W · E decodings per selection; one or two copies
    of the prior's cache per selection.

    Args:
        prior: what is searched, scale by scale.
        tokenizer: whose tokens are drawn; where they are numbers of a point, it tells of which field.
        vocabulary: V.
        decoder: partial latent to trajectory, for the value of partial plans.
        view: features of a window.
        critic: what partial plans are worth.
        horizon: T.
        beam_width: W, the plans that are kept.
        expansions: E, the ways in which each is continued.
        temperature: of the draws of candidates; null takes the E likeliest, exactly, instead of drawing.
        top_k: candidates are among the k likeliest codes; null for all.
        top_p: candidates are among the likeliest codes that hold this share of the probability; null for all.
        distinct: whether the candidates of a plan differ in the codes of the scale at which it is expanded. False draws
            each by itself, so that numbers of a narrow distribution stay likely (Trajectory Transformer).
        branch_fields: the fields of a point whose tokens are expanded and drawn, where each token is a number of a
            point; the others are the likeliest. Trajectory Transformer draws actions. Null for all.
        score: what is kept: the plans that are worth most by the critic, or the likeliest.
        select_every: scales between two selections; null selects after each scale that makes more points final, or
            refines all of them; with score=likelihood after each scale.
        prob_threshold: β; a plan less likely than β to the power of L ranks lower by α per unit of log likelihood
            that it lacks (TAP, section 3.3); null judges plans by the critic alone.
        prob_weight: α, above the range of the critic's scores.

    Raises:
        ConfigError: for continuous codes, a view without what the critic reads, a critic that judges whole plans alone
            where points are decided one after the other, fields that no token stands for, or an option out of range.
    """

    needs = ("start", "step")

    def __init__(
        self,
        prior: Any,
        tokenizer: Any,
        vocabulary: int | None,
        decoder: Decoder,
        view: Any,
        critic: Critic,
        horizon: int,
        *,
        beam_width: int = 16,
        expansions: int = 4,
        temperature: float | None = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        distinct: bool = True,
        branch_fields: tuple[str, ...] | None = None,
        score: Literal["critic", "likelihood"] = "critic",
        select_every: int | None = None,
        prob_threshold: float | None = 0.05,
        prob_weight: float = 500.0,
    ) -> None:
        require_vocabulary(vocabulary)
        counts = {"beam_width": beam_width, "expansions": expansions, "top_k": top_k, "select_every": select_every}
        for name, count in counts.items():
            check_range(f"sampler.{name}", count, 1, usual=4)
        holds = temperature is None or temperature > 0
        require("temperature", temperature, holds, "a positive number or null", "sampler.temperature=null to draw none")
        holds = top_p is None or 0 < top_p <= 1
        require("top_p", top_p, holds, "a share above 0 and at most 1, or null", "sampler.top_p=null for all codes")
        holds = prob_threshold is None or 0 < prob_threshold < 1
        require(
            "prob_threshold",
            prob_threshold,
            holds,
            "a share between 0 and 1, or null",
            "sampler.prob_threshold=null for none",
        )
        require(
            "prob_weight",
            prob_weight,
            prob_weight > 0,
            "a positive number",
            "sampler.prob_threshold=null to leave it out",
        )
        fields = tokenizer.fields_of_tokens if isinstance(tokenizer, Values) else ()
        unknown = [field for field in branch_fields or () if field not in fields]
        require(
            "branch_fields",
            branch_fields,
            not unknown and branch_fields != (),
            f"some of {', '.join(dict.fromkeys(fields))}" if fields else "null: its tokens are no numbers of a point",
            "sampler.branch_fields=null",
        )
        self.roles = _Roles.of(fields, branch_fields)
        self.beam_width, self.expansions, self.temperature = beam_width, expansions, temperature
        self.top_k, self.top_p, self.distinct = top_k, top_p, distinct
        self.select_every, self.prob_threshold, self.prob_weight = select_every, prob_threshold, prob_weight
        self.decoder, self.horizon = decoder, horizon
        self.critic = critic if score == "critic" else None
        self.score = PlanScore(critic, view) if score == "critic" else None
        if score == "critic":
            check_judges_partial_plans(critic, tokenizer, 0, horizon)

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
        steps, scales = PriorSteps(prior, cond), tokenizer.schedule.scales
        is_known = [False] * scales if known_codes is None else _known_scales(known_codes, tokenizer)
        plans, logits, first = _Beam.empty(tokenizer, cond), None, 0
        if known_codes is not None and is_known[0] and not all(is_known) and steps.takes_prefix:
            first = is_known.index(False)
            plans, logits = plans.from_prefix(steps, tokenizer, known_codes.codes, first)
        may_expand = True  # nothing has been expanded since the last selection
        for k, span in list(enumerate(tokenizer.schedule.spans))[first:]:
            if logits is None:
                x = tokenizer.layout.scale_input(plans.partial_latent, k) if k else None
                logits = steps(x, k, plans.take_selection())
            fixed = None if known_codes is None else plans.known_rows(known_codes, span)
            expands = may_expand and not is_known[k] and self.roles.branches(span)
            ways = max(1, self.beam_width * self.expansions // plans.rows_per_cond) if expands else 1
            ids, likelihood = self._candidates(logits.float(), span, fixed, ways, rng)
            valued = self.roles.tell_value(span)
            is_expected = any(valued) and not is_known[k]
            expected = tokenizer.vectors(logits.float().softmax(-1)) if is_expected else None
            plans, logits = plans.expanded(tokenizer, k, ids, likelihood, expected, valued), None
            may_expand = may_expand and not expands
            if k + 1 == scales or (not may_expand and self._selects_after(tokenizer, k)):
                plans = plans.select(self._scores(plans, tokenizer, k, cond), self.beam_width if k + 1 < scales else 1)
                may_expand = True
        return Plan(plans.codes, plans.partial_latent)

    def _selects_after(self, tokenizer: Tokenizer, k: int) -> bool:
        """Whether plans are selected after scale k."""
        if self.select_every is not None:
            return (k + 1) % self.select_every == 0
        if self.score is None:
            return True
        now, before = final_points(tokenizer, k, self.horizon), final_points(tokenizer, k - 1, self.horizon) if k else 0
        return now > before or now == self.horizon

    def _candidates(
        self, logits: Tensor, span: slice, fixed: KnownCodes | None, ways: int, rng: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Ids (R, E, n) that continue R plans, and their log likelihoods (R, E), -inf for impossible ones."""
        likelihood = logits.log_softmax(-1)
        shaped = self.roles.narrowed(likelihood, span)
        shaped = shaped if self.top_k is None else keep_top_k(shaped, self.top_k)
        shaped = shaped if self.top_p is None else keep_top_p(shaped, self.top_p)
        shaped = shaped if self.temperature is None else shaped / self.temperature
        if fixed is not None:
            only = torch.zeros_like(shaped).scatter_(-1, fixed.codes.unsqueeze(-1), 1).log()
            shaped = torch.where(fixed.mask.unsqueeze(-1), only, shaped)
        if self.temperature is None:
            ids = likeliest(shaped, ways)
        elif self.distinct:
            ids = sample_candidates(shaped, ways, rng)
        else:
            ids = draw(shaped.unsqueeze(1).expand(-1, ways, -1, -1), rng)
        alternatives = ids.transpose(1, 2)  # (R, n, E)
        possible = shaped.gather(-1, alternatives).isfinite().all(1)
        possible = possible & ~is_repeated(ids) if self.distinct else possible
        return ids, likelihood.gather(-1, alternatives).sum(1).masked_fill(~possible, -torch.inf)

    def _scores(self, plans: _Beam, tokenizer: Tokenizer, k: int, cond: Cond) -> Tensor:
        """The scores (R,) by which plans are selected after scale k."""
        points = final_points(tokenizer, k, self.horizon)
        if self.score is None or points <= present_point(cond):
            return plans.likelihood
        repeated = cond.map(lambda values: values.repeat_interleave(plans.rows_per_cond, 0))
        scores = self.score(self.decoder(plans.expected_latent(tokenizer), repeated), repeated, points)
        if self.prob_threshold is not None:
            lowest = math.log(self.prob_threshold) * tokenizer.schedule.tokens
            scores = scores + self.prob_weight * (plans.likelihood - lowest).clamp(max=0)
        return scores.masked_fill(plans.likelihood == -torch.inf, -torch.inf)


@dataclass(frozen=True)
class _Roles:
    """What a search does with each token of a point: those that are branched, and those that tell the value.

    Args:
        branched: for each token of a point, whether it is expanded and drawn; the others are the likeliest.
        valued: for each token of a point, whether it is a reward or a return.
    """

    branched: tuple[bool, ...] = (True,)
    valued: tuple[bool, ...] = (False,)

    @classmethod
    def of(cls, fields: tuple[str, ...], branch_fields: tuple[str, ...] | None) -> _Roles:
        """The roles of tokens that stand for these fields of a point; of others, the usual ones."""
        if not fields:
            return cls()
        branched = tuple(branch_fields is None or field in branch_fields for field in fields)
        return cls(branched, tuple(field in ("reward", "return") for field in fields))

    def branches(self, span: slice) -> bool:
        """Whether a token of the span is branched."""
        return any(self._in(span, self.branched))

    def tell_value(self, span: slice) -> list[bool]:
        """Which tokens of the span are a reward or a return."""
        return self._in(span, self.valued)

    def narrowed(self, logits: Tensor, span: slice) -> Tensor:
        """Logits (R, n, V) that leave only the likeliest code to the tokens of the span that are not branched."""
        branched = self._in(span, self.branched)
        if all(branched):
            return logits
        mode = logits.masked_fill(logits < logits.amax(-1, keepdim=True), -torch.inf)
        return torch.cat([(logits if b else mode)[:, i : i + 1] for i, b in enumerate(branched)], dim=1)

    @staticmethod
    def _in(span: slice, roles: tuple[bool, ...]) -> list[bool]:
        return [roles[token % len(roles)] for token in range(span.start, span.stop)]


@dataclass
class _Beam:
    """Partial plans of a batch, R = B · ``rows_per_cond`` rows: those of one condition are adjacent."""

    codes: Tensor  # (R, tokens so far)
    partial_latent: Tensor  # (R, ·, C)
    likelihood: Tensor  # (R,) log
    rows_per_cond: int
    expected: dict[int, Tensor]  # for some scales, the expected code vectors (R, l_k, C)
    selection: Tensor | None = None  # (R,) rows of the prior's state; None for the same rows

    @classmethod
    def empty(cls, tokenizer: Tokenizer, cond: Cond) -> _Beam:
        """One empty plan for each condition."""
        empty = cond.state.new_zeros(len(cond), 0, dtype=torch.int64)
        return cls(empty, tokenizer.layout.start(len(cond)), cond.state.new_zeros(len(cond)), 1, {})

    def from_prefix(self, steps: PriorSteps, tokenizer: Tokenizer, codes: Tensor, scales: int) -> tuple[_Beam, Tensor]:
        """Plans whose first scales are those of codes (B, L), in one pass, and the prediction of the next scale."""
        spans = tokenizer.schedule.spans
        codes = codes[:, : spans[scales].start]
        partial_latent, logits = steps.prefix(tokenizer, codes, scales)
        log_probs = logits[:, : codes.shape[1]].float().log_softmax(-1)
        likelihood = log_probs.gather(-1, codes.unsqueeze(-1)).squeeze(-1).sum(1)
        return _Beam(codes, partial_latent, likelihood, 1, {}), logits[:, spans[scales]]

    def take_selection(self) -> Tensor | None:
        """The selection that the prior's state has to follow before its next step; it is then cleared."""
        selection, self.selection = self.selection, None
        return selection

    def known_rows(self, known_codes: KnownCodes, span: slice) -> KnownCodes:
        """The known codes of a span for each of the rows."""
        codes, mask = (
            v[:, span].repeat_interleave(self.rows_per_cond, 0) for v in (known_codes.codes, known_codes.mask)
        )
        return KnownCodes(codes, mask)

    def expanded(
        self,
        tokenizer: Tokenizer,
        k: int,
        ids: Tensor,
        likelihood: Tensor,
        expected: Tensor | None,
        valued: Sequence[bool],
    ) -> _Beam:
        """Each plan continued in E ways by ids (R, E, n).

        A plan is worth what follows from the code vectors (R, n, C) that are expected of the ``valued`` tokens, and
        from those of the others as they were drawn.
        """
        ways = ids.shape[1]
        rows = torch.arange(len(self.codes), device=self.codes.device).repeat_interleave(ways)
        plans = self if ways == 1 else self._rows(rows, self.rows_per_cond * ways)
        new = ids.flatten(0, 1)
        vectors = tokenizer.vectors(new)
        partial_latent = tokenizer.layout.extend(plans.partial_latent, vectors, k)
        codes = torch.cat([plans.codes, new], dim=1)
        of_scales = plans.expected
        if expected is not None:
            expected_vectors = expected.repeat_interleave(ways, 0)
            tokens = [(expected_vectors if v else vectors)[:, i : i + 1] for i, v in enumerate(valued)]
            of_scales = {**of_scales, k: torch.cat(tokens, dim=1)}
        likelihoods = plans.likelihood + likelihood.flatten()
        return _Beam(codes, partial_latent, likelihoods, plans.rows_per_cond, of_scales, plans.selection)

    def expected_latent(self, tokenizer: Tokenizer) -> Tensor:
        """The partial latent (R, N, C), with expected code vectors in place of drawn ones where there are some."""
        latent = self.partial_latent
        for k, vectors in self.expected.items():
            latent = tokenizer.layout.extend(latent, vectors, k)
        return latent

    def select(self, scores: Tensor, count: int) -> _Beam:
        """For each condition the ``count`` plans of the highest scores (R,)."""
        if self.rows_per_cond <= count:
            return self
        indices = scores.view(-1, self.rows_per_cond).topk(count, dim=1).indices
        first = torch.arange(len(indices), device=indices.device).unsqueeze(1) * self.rows_per_cond
        return self._rows((indices + first).flatten(), count)

    def _rows(self, index: Tensor, rows_per_cond: int) -> _Beam:
        selection = index if self.selection is None else self.selection[index]
        expected = {k: vectors[index] for k, vectors in self.expected.items()}
        codes, partial_latent = self.codes[index], self.partial_latent[index]
        return _Beam(codes, partial_latent, self.likelihood[index], rows_per_cond, expected, selection)


def _known_scales(known_codes: KnownCodes, tokenizer: Tokenizer) -> list[bool]:
    """For each scale, whether all its codes are known for all conditions, so that there is nothing to search."""
    known_tokens = known_codes.mask.all(0).tolist() if known_codes.tokens is None else known_codes.tokens
    return [all(known_tokens[span]) for span in tokenizer.schedule.spans]


def likeliest(logits: Tensor, count: int) -> Tensor:
    """The ``count`` likeliest of all joint choices of n independent tokens, exactly.

    The best choices of i + 1 tokens continue best choices of i tokens by one of the best tokens.

    Args:
        logits: (R, n, V), of which sums are compared: log probabilities up to a constant per token.
        count: E; fewer are returned where there are fewer.

    Returns:
        Ids (R, E, n), the likeliest first.
    """
    best, ids = logits.new_zeros(len(logits), 1), logits.new_zeros(len(logits), 1, 0, dtype=torch.int64)
    for token in logits.unbind(1):
        top, index = token.topk(min(count, token.shape[-1]), dim=-1)
        sums = (best.unsqueeze(2) + top.unsqueeze(1)).flatten(1)
        best, pick = sums.topk(min(count, sums.shape[1]), dim=-1)
        before = (pick // top.shape[1]).unsqueeze(-1).expand(-1, -1, ids.shape[-1])
        last = index.gather(1, pick % top.shape[1]).unsqueeze(-1)
        ids = torch.cat([ids.gather(1, before), last], dim=-1)
    return ids


def sample_candidates(logits: Tensor, count: int, rng: Generator | None) -> Tensor:
    """Ids (R, E, n) sampled from softmax(logits (R, n, V)); of more than one, the likeliest is the first.

    A single token is drawn without replacement: the E largest of logits plus Gumbel noise (arXiv 1903.06059). Joint
    draws of several tokens may repeat.
    """
    mode = logits.argmax(-1)
    if logits.shape[1] > 1:
        ids = draw(logits.unsqueeze(1).expand(-1, count, -1, -1), rng)
        return torch.cat([mode.unsqueeze(1), ids[:, 1:]], dim=1) if count > 1 else ids
    perturbed = logits[:, 0] - torch.empty_like(logits[:, 0]).exponential_(generator=rng).log()
    if count > 1:
        perturbed = perturbed.scatter(-1, mode, torch.inf)
    return perturbed.topk(min(count, logits.shape[-1]), dim=-1).indices.unsqueeze(-1)


def is_repeated(ids: Tensor) -> Tensor:
    """Whether a candidate (R, E, n) equals an earlier one, (R, E)."""
    same = (ids.unsqueeze(1) == ids.unsqueeze(2)).all(-1)
    return same.tril(-1).any(-1)
