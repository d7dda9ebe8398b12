"""The latent planner: tokenizer, prior, decoder and action head, trained stage by stage (MAGE)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.critics import Critic
from trajgen.core.errors import ConfigError
from trajgen.core.planning import InitializesCodes, Misfit
from trajgen.core.protocols import (
    Autoregressive,
    HasActionLoss,
    Inpaints,
    RevisesCodes,
    SamplesActions,
    SkipsCodes,
)
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.stages import Stage, with_total
from trajgen.core.types import Batch, Codes, Cond, FollowedPlan, Losses, Plan
from trajgen.nn.layers import columns
from trajgen.planners.misfit import check_misfit, critic_misfit, state_misfit

MAX_REFINEMENTS = 8
"""Scales after which a plan is decoded for a picture; of more, these are picked evenly."""
REPORTED_WINDOWS = 32
"""Windows on which the gradient norms of the losses are computed for the log."""


@register("planner", "latent")
class LatentPlanner(nn.Module):
    """Plans in the latent of a tokenizer: MAGE, with L = L_CE + λ_inv L_inv + λ_cond L_cond (section 3).

    Stage ``tokenizer`` trains tokenizer and decoder, stage ``return_target`` the return target, and stage ``prior``
    the prior, the decoder's adapters and the action head, with the tokenizer frozen. A stage ``action`` can follow,
    which trains the head alone; its steps are much cheaper than those of the prior. Where the sampler
    chooses among plans, stage ``critic`` trains its critic.

    Args:
        view: features of a window.
        tokenizer, prior, decoder, action, sampler, return_target: the components.
        strides: environment steps between the points of a plan, one or several.
        inverse_weight: λ_inv; with 0, stage ``action`` alone trains the action head.
        condition_weight: λ_cond, which also weighs the reconstruction by D′; 0 leaves both out, and the decoder's
            adapters untrained.
        condition_batch: windows of a batch on which L_cond is computed; decoding is expensive.
        gumbel_temperature: of the relaxation through which L_inv and L_cond reach the prior.
        end_to_end: whether L_inv reads the latent that the prior generates, in both stages, so that it trains the prior
            too, and the head is used to sampled latents; false reads the data's latent.
        sampled_prefixes: whether each scale of the generated latent is sampled given coarser scales that are sampled as
            well, in one more pass (parallel scheduled sampling, arXiv 1906.04331); false gives it the data's.
        action_stage: whether stage ``action`` follows where λ_inv is above 0.

    Raises:
        ConfigError: for sampled prefixes of a prior that has none, a first code that nothing gives, or an option out of
            range.
    """

    history = 0
    condition: Callable[[Batch], Cond] = staticmethod(Batch.condition)
    """What is known of windows when a plan for them is made."""

    def __init__(
        self,
        view: Any,
        tokenizer: Any,
        prior: Any,
        decoder: Any,
        action: Any,
        sampler: Any,
        return_target: Any,
        strides: tuple[int, ...],
        *,
        inverse_weight: float = 1.0,
        condition_weight: float = 0.1,
        condition_batch: int = 32,
        gumbel_temperature: float = 1.0,
        end_to_end: bool = True,
        sampled_prefixes: bool = False,
        action_stage: bool = False,
    ) -> None:
        super().__init__()
        check_range("planner.inverse_weight", inverse_weight, 0, usual=1)
        check_range("planner.condition_weight", condition_weight, 0, usual=0.1)
        check_range("planner.condition_batch", condition_batch, 1, usual=32)
        check_range("planner.gumbel_temperature", gumbel_temperature, 0.01, usual=1)
        if sampled_prefixes and not isinstance(prior, Autoregressive):
            raise ConfigError(
                "planner.sampled_prefixes needs a prior that predicts each scale from the coarser ones.",
                got=f"{type(prior).__name__}",
                fix="planner.sampled_prefixes=false",
            )
        first_is_known = isinstance(tokenizer, Inpaints) and tokenizer.known_tokens[0]
        if isinstance(prior, SkipsCodes) and prior.skipped and not first_is_known:
            raise ConfigError(
                "prior.prefix=false predicts no first code, which then has to follow from the condition.",
                got=f"{type(tokenizer).__name__}, whose first code is to be learnt",
                fix="prior.prefix=true, or tokenizer=bins 'tokenizer.inpaint=[state]'",
            )
        self.view, self.sampler, self.strides = view, sampler, strides
        self.tokenizer, self.prior, self.decoder = tokenizer, prior, decoder
        self.action, self.return_target = action, return_target
        self.critic: Critic | None = getattr(sampler, "critic", None)
        self.inverse_weight, self.condition_weight = inverse_weight, condition_weight
        self.condition_batch, self.gumbel_temperature = condition_batch, gumbel_temperature
        self._last_batch: Batch | None = None
        self.end_to_end, self.sampled_prefixes, self.action_stage = end_to_end, sampled_prefixes, action_stage

    def stages(self) -> list[Stage]:
        """The stages of training, in order; one whose component has nothing to learn has no parameters."""
        adapters, head = self.decoder.adapter_parameters(), list(self.action.parameters())
        head_with_prior = head if self.inverse_weight else []
        head_alone = head if self.action_stage or not self.inverse_weight else []
        tokenizer = [*self.tokenizer.parameters(), *self.decoder.base_parameters()]
        reads_data = not self.end_to_end and getattr(self.action, "reads_trajectory", False)
        return [
            Stage(
                "tokenizer",
                self.tokenizer_loss,
                tokenizer,
                after_step=self.tokenizer.after_step,
                report=self.tokenizer.usage,
            ),
            return_target_stage(self.return_target),
            Stage(
                "prior",
                self.prior_loss,
                [*self.prior.parameters(), *adapters, *head_with_prior],
                frozen=[self.tokenizer],
                report=self.gradient_norms,
            ),
            Stage(
                "action",
                self.action_loss,
                head_alone,
                frozen=[self.tokenizer, self.prior, self.decoder],
                prepare=None if reads_data else self.with_codes,
            ),
            *([] if self.critic is None else [critic_stage(self.critic)]),
        ]

    def tokenizer_loss(self, batch: Batch) -> Losses:
        """The tokenizer's losses, with the decoder's base."""
        tokenizer, is_share = self.tokenizer, batch.full_batch is not None
        if self.training and is_share and isinstance(tokenizer, InitializesCodes) and not tokenizer.initialized:
            tokenizer.initialize(self.view(batch.full_batch))  # from all windows, however they are split
        cond = self.condition(batch)
        losses: Losses = tokenizer.loss(batch, self.view(batch), lambda latent: self.decoder.base(latent, cond))
        return losses

    def prior_loss(self, batch: Batch) -> Losses:
        """L_CE; L_inv and L_cond on the latent that the prior generates; and the reconstruction by D′.

        The generated latent is a straight-through Gumbel-Softmax sample of every scale, so that the gradients of L_inv
        and L_cond reach the prior.
        """
        if self.training:  # not of validation
            self._last_batch = batch
        x, cond = self.view(batch), self.condition(batch)
        encoding = self.tokenizer.encode(self.modelled(x, batch))
        total, prediction = self.prior(encoding.codes, encoding.inputs, cond)
        losses = {"prior": total}
        trains_head = self.inverse_weight > 0 and bool(list(self.action.parameters()))
        rows = slice(batch.first(self.condition_batch))
        end_to_end = trains_head and self.end_to_end
        if end_to_end or self.condition_weight:
            used = slice(None) if end_to_end else rows
            part = cond.map(lambda values: values[used])
            generated = self._generated(prediction[used], encoding.codes[used], part, decode=end_to_end)
        if trains_head:
            data_plan = Plan(encoding.codes, encoding.latent, x, stride=cond.stride, goal=cond.goal)
            plan = generated if end_to_end else data_plan
            losses["inverse"] = inverse_loss(self.action, batch, plan)
            total = total + self.inverse_weight * losses["inverse"]
        if self.condition_weight:
            cond, latent = cond.map(lambda values: values[rows]), generated.latent[rows]
            # L_cond: the decoded plan starts as the condition says. That constrains the first point alone, so that the
            # reconstruction has to keep D′ a decoder.
            residuals = list(self.condition_residuals(self.decoder(latent, cond), cond).values())
            square = torch.cat(residuals, dim=-1).square() if residuals else latent.new_zeros(())
            losses["condition"] = square.mean()
            error = (self.decoder(encoding.latent[rows], cond) - x[rows]).square().mean(-1)
            losses["reconstruction"] = batch.mean(error, lambda batch: batch.mask)
            total = total + self.condition_weight * (losses["condition"] + losses["reconstruction"])
        return {"total": total, **losses}

    def modelled(self, x: Tensor, batch: Batch) -> Tensor:
        """Windows x (B, T, D) of a batch as the prior learns them."""
        return x

    def gradient_norms(self) -> dict[str, float]:
        """The norm of each loss's gradient at the prior's weights, on windows of the last batch: which losses train it.

        A loss that can be met without the prior has a norm near 0; one that reaches no weight at all has 0.
        """
        batch, weights = self._last_batch, [p for p in self.prior.parameters() if p.requires_grad]
        if batch is None or not weights or not self.prior.training:
            return {}
        with torch.enable_grad():
            losses = self.prior_loss(batch.head(REPORTED_WINDOWS))
        self._last_batch = batch  # a replayed CUDA graph fills the tensors of the batch that it was captured with
        norms = {}
        for name in ("prior", "inverse", "condition"):
            if name in losses:
                squares = [losses[name].new_zeros(())]
                if losses[name].requires_grad:
                    gradients = torch.autograd.grad(losses[name], weights, retain_graph=True, allow_unused=True)
                    squares += [g.square().sum() for g in gradients if g is not None]
                norms[f"gradient_norm/{name}"] = float(torch.stack(squares).sum().sqrt())
        return norms

    def action_loss(self, batch: Batch) -> Losses:
        """L_inv in the head's own stage, on latents that the prior generates, or on the data's."""
        with torch.no_grad():
            cond = self.condition(batch)
            codes = self._codes(batch) if batch.codes is None else batch.codes
            latent = self.tokenizer.layout.latent(self.tokenizer.vectors(codes))
            trajectory = None
            if self.action.reads_trajectory:
                trajectory = self.decoder(latent, cond) if self.end_to_end else self.view(batch)
            plan = Plan(codes, latent, trajectory, stride=cond.stride, goal=cond.goal)
        total = inverse_loss(self.action, batch, plan)
        return {"total": total, "inverse": total}

    @torch.no_grad()
    def with_codes(self, batch: Batch) -> Batch:
        """The batch with the codes that the action head learns from, and the first points of its windows alone."""
        first = {name: getattr(batch, name)[:, :1] for name in ("states", "actions", "rewards", "returns", "mask")}
        return replace(batch, codes=self._codes(batch), terminals=None, **first)

    def _codes(self, batch: Batch) -> Tensor:
        """The codes that the prior generates for windows, teacher-forced, or those of the data."""
        cond, encoding = self.condition(batch), self.tokenizer.encode(self.view(batch))
        if not self.end_to_end:
            codes: Tensor = encoding.codes
            return codes
        _, prediction = self.prior(encoding.codes, encoding.inputs, cond)
        return self._generated(prediction, encoding.codes, cond, decode=False).codes

    def _generated(self, prediction: Tensor, data_codes: Codes, cond: Cond, *, decode: bool) -> Plan:
        """Relaxed samples of teacher-forced logits (B, L, V), or continuous predictions (B, L, C), as plans.

        With ``decode`` they have a trajectory if the action head reads it.
        """
        codes, layout = self._with_known(self._relaxed_codes(prediction), data_codes, cond), self.tokenizer.layout
        if self.sampled_prefixes:
            inputs = layout.inputs(self.tokenizer.vectors(codes.detach()))
            codes = self._with_known(self._relaxed_codes(self.prior.logits(inputs, cond)), data_codes, cond)
        ids = codes if self.tokenizer.vocabulary is None else codes.argmax(-1)
        latent = layout.latent(self.tokenizer.vectors(codes))
        trajectory = self.decoder(latent, cond) if decode and self.action.reads_trajectory else None
        return Plan(ids, latent, trajectory, stride=cond.stride, goal=cond.goal)

    def _relaxed_codes(self, prediction: Tensor) -> Tensor:
        """One-hot samples (B, L, V) with the gradient of a softmax; continuous codes (B, L, C) as they are."""
        if self.tokenizer.vocabulary is None:
            return prediction
        return F.gumbel_softmax(prediction.float(), tau=self.gumbel_temperature, hard=True)

    def _with_known(self, relaxed: Tensor, codes: Codes, cond: Cond) -> Tensor:
        """Relaxed codes, with the data's ``codes`` in place of those that are known when acting."""
        known_codes, size = self.tokenizer.known_codes(cond), self.tokenizer.vocabulary
        if known_codes is None:
            return relaxed
        mask = known_codes.mask if size is None else known_codes.mask.unsqueeze(-1)
        return torch.where(mask, (codes if size is None else F.one_hot(codes, size)).to(relaxed.dtype), relaxed)

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """Plans for the conditions (B, ·); without ``decode`` the trajectory is left out unless actions need it."""
        plan = self.sampler(self.prior, self.tokenizer, cond, rng, self.tokenizer.known_codes(cond))
        return self._completed(plan, cond, rng, decode)

    def check_revision(self, first: int, misfit: Misfit) -> None:
        """Refuses scales that do not exist, parts that do not draw one after the other, and what has no misfit."""
        scales = self.tokenizer.schedule.scales
        if not isinstance(self.sampler, RevisesCodes) or not self.sampler.revises:
            with_codes = isinstance(self.prior, Autoregressive) and self.tokenizer.vocabulary is not None
            raise ConfigError(
                "A plan is revised by a sampler that draws one scale after the other, at one stride.",
                got=f"policy.revise={first + 1} with {type(self.sampler).__name__}",
                fix="sampler=temperature, or policy.revise=null" if with_codes else "policy.revise=null",
            )
        if scales < 2 or self.tokenizer.layout.decoded_fraction(0) < 1:
            raise ConfigError(
                "A plan is revised where its first scales sketch all of it.",
                got=f"policy.revise={first + 1} with the schedule {self.tokenizer.schedule}",
                fix="policy.revise=null, or train with schedule=geometric",
            )
        if not 1 <= first < scales:
            raise ConfigError(
                f"policy.revise is from 2 to {scales}, the number of scales, or null.",
                got=f"policy.revise={first + 1}",
                fix=f"policy.revise={scales}" if first else "policy.revise=null policy.replan_interval=1",
            )
        check_misfit(misfit, self.view, self.critic)

    @torch.no_grad()
    def revise(
        self,
        followed: FollowedPlan,
        cond: Cond,
        first: int,
        rng: Generator | None = None,
        *,
        misfit: Misfit = "likelihood",
        decode: bool = True,
    ) -> tuple[Plan, Tensor]:
        """Plans whose scales before ``first`` stay, and their misfit (B,): see `RevisesPlans.revise`."""
        plan, surprise = self.sampler.revise(self.prior, self.tokenizer, cond, followed.codes, first, rng)
        plan = self._completed(plan, cond, rng, decode)
        if misfit == "state":
            latent = self.tokenizer.layout.latent(self.tokenizer.vectors(followed.codes))
            return plan, state_misfit(self.view, self.decode(latent, cond), followed, cond, self.strides[0])
        return plan, critic_misfit(followed, plan) if misfit == "critic" else surprise

    def decode(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latents (B, N, C) as trajectories (B, T, D) from the current point on."""
        trajectory: Tensor = self.decoder(latent, cond)
        return trajectory

    def _completed(self, plan: Plan, cond: Cond, rng: Generator | None, decode: bool) -> Plan:
        """The plan with what acting needs beside its codes."""
        cond = replace(cond, stride=plan.stride)
        trajectory = self.decode(plan.latent, cond) if decode or self.action.reads_trajectory else None
        return replace(plan, trajectory=trajectory, noise=action_noise(self.action, cond, rng), goal=cond.goal)

    @torch.no_grad()
    def refinements(self, plan: Plan, cond: Cond) -> dict[str, Tensor]:
        """The plan decoded after each scale, coarse to fine; after some of them where there are many."""
        schedule: ScaleSchedule = self.tokenizer.schedule
        picked = {round((k + 1) * schedule.scales / MAX_REFINEMENTS) - 1 for k in range(MAX_REFINEMENTS)} | {0}
        cond = replace(cond, stride=plan.stride)
        vectors, partial_latent = self.tokenizer.vectors(plan.codes), self.tokenizer.layout.start(len(cond))
        decoded = {}
        for k, span in enumerate(schedule.spans):
            partial_latent = self.tokenizer.layout.extend(partial_latent, vectors[:, span], k)
            if k in picked or schedule.scales <= MAX_REFINEMENTS:
                tokens = "1 token" if schedule.lengths[k] == 1 else f"{schedule.lengths[k]} tokens"
                decoded[f"scale {k + 1} ({tokens})"] = self.decode(partial_latent, cond)
        return decoded

    def condition_residuals(self, trajectory: Tensor, cond: Cond) -> dict[str, Tensor]:
        """Start of trajectories (B, T, D) minus the condition, per field: state (B, S), position, return (B, 1)."""
        condition = {"state": cond.state, "return": cond.returns.unsqueeze(-1)}
        if "position" in self.view.slices:
            condition["position"] = columns(cond.state, self.view.position_indices)
        starts = {name: self.view.read(trajectory[:, 0], name) for name in condition}
        return {name: start - condition[name] for name, start in starts.items() if start is not None}


def return_target_stage(return_target: Any) -> Stage:
    """The stage of a return target.

    It is separate since it is cheap and must be accurate: a plan for a return that no path can earn leads through
    walls.
    """
    loss = with_total(lambda batch: return_target.loss(batch))  # looked up late: a level without a target has none
    return Stage("return_target", loss, list(return_target.parameters()))


def critic_stage(critic: Critic) -> Stage:
    """The stage of a critic; that of one which learns nothing has no parameters."""
    parameters, loss = list(critic.parameters()) if isinstance(critic, nn.Module) else [], with_total(critic.loss)
    return Stage("critic", loss, parameters, after_step=critic.after_step, transitions=critic.transitions)


def action_noise(action: Any, cond: Cond, rng: Generator | None) -> Tensor | None:
    """The noise of a plan's actions, for an action head that samples them."""
    return action.noise(len(cond.state), rng, cond.state.device) if isinstance(action, SamplesActions) else None


def inverse_loss(action: Any, batch: Batch, plan: Plan, weight: Tensor | None = None) -> Tensor:
    """L_inv: the mean error of a chunk's actions, over its real steps.

    Args:
        action: a head; its own ``loss`` is the error, or the mean square of its actions' errors.
        batch: of B windows.
        plan: B plans for them.
        weight: of each window (B,); None weighs all alike.
    """
    windows, steps = batch.chunk_states.shape[:2]
    offsets = torch.arange(steps, device=batch.states.device).expand(windows, -1)
    if isinstance(action, HasActionLoss):
        errors = action.loss(plan, batch.chunk_states, offsets, batch.chunk_actions)
    else:
        errors = (action(plan, batch.chunk_states, offsets) - batch.chunk_actions).square().mean(-1)
    return batch.mean(errors if weight is None else errors * weight.unsqueeze(1), lambda batch: batch.chunk_mask)
