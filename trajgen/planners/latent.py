"""The latent planner: tokenizer, prior, decoder and action head, trained in two stages (MAGE)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.protocols import Decoder, Prior, Tokenizer
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Cond, Losses, Plan, Stage

MOST_DRAWN = 8
"""Scales after which a plan is drawn; of more, these are picked evenly."""


@register("planner", "latent")
class LatentPlanner(nn.Module):
    """Plans in the latent of a tokenizer: MAGE, with L = L_CE + λ_inv L_inv + λ_cond L_cond (section 3).

    Stage ``tokenizer`` trains tokenizer and decoder, stage ``return_target`` the return target, and stage ``prior``
    the prior, the decoder's adapters and the action head, with the tokenizer frozen. Without λ_inv the head has a
    stage ``action`` of its own, of which a step is much cheaper than one of the prior.

    Args:
        view: features of a window.
        tokenizer, prior, decoder, action, sampler, return_target: the components.
        inverse_weight: λ_inv; 0 trains the action head in a stage of its own.
        condition_weight: λ_cond, which also weighs the reconstruction by D′; 0 leaves both out, with their cost and
            whatever the decoder's adapters would have learnt.
        condition_batch: on how many windows of a batch L_cond is computed: decoding is dear, and L_cond is soon small.
        gumbel_temperature: of the relaxation through which L_cond reaches the prior.
        scheduled_sampling: of the plans that the head's own stage reads, the share that the prior draws; the others
            are the data's.

    Raises:
        ConfigError: for a share out of range, or of drawn plans where the head has no stage of its own.
    """

    history = 0

    def __init__(
        self,
        view: Any,
        tokenizer: Any,
        prior: Any,
        decoder: Any,
        action: Any,
        sampler: Any,
        return_target: Any,
        *,
        inverse_weight: float = 1.0,
        condition_weight: float = 0.1,
        condition_batch: int = 32,
        gumbel_temperature: float = 1.0,
        scheduled_sampling: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= scheduled_sampling <= 1:
            raise ConfigError(
                "The plans that the prior draws for the action head are a share of a batch.",
                expected="a number from 0 to 1",
                got=f"planner.scheduled_sampling={scheduled_sampling}",
                fix="planner.scheduled_sampling=0.5",
            )
        if scheduled_sampling and inverse_weight:
            raise ConfigError(
                "The action head learns from drawn plans in a stage of its own, when the prior has been trained.",
                expected="planner.inverse_weight=0",
                got=f"planner.scheduled_sampling={scheduled_sampling} planner.inverse_weight={inverse_weight}",
                fix="planner.inverse_weight=0, or planner.scheduled_sampling=0",
            )
        self.view, self.sampler = view, sampler
        self.tokenizer, self.prior, self.decoder = tokenizer, prior, decoder
        self.action, self.return_target = action, return_target
        self.inverse_weight, self.condition_weight = inverse_weight, condition_weight
        self.condition_batch, self.gumbel_temperature = condition_batch, gumbel_temperature
        self.scheduled_sampling = scheduled_sampling

    def stages(self) -> list[Stage]:
        """The stages of training, in order; one whose component has nothing to learn is empty."""
        adapters, head = self.decoder.adapter_parameters(), list(self.action.parameters())
        together = self.inverse_weight > 0
        return [
            Stage(
                "tokenizer",
                TokenizerTraining(self),
                [*self.tokenizer.parameters(), *self.decoder.base_parameters()],
                self.tokenizer.usage,
            ),
            Stage("return_target", TargetTraining(self.return_target), list(self.return_target.parameters())),
            Stage("prior", PriorTraining(self), [*self.prior.parameters(), *adapters, *(head if together else [])]),
            Stage("action", ActionTraining(self), [] if together else head),
        ]

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """Plans for the conditions (B, ·); without ``decode`` the trajectory is left out unless actions need it."""
        codes = self.sampler(self.prior, self.tokenizer, cond, rng, self.tokenizer.known_codes(cond))
        latent = self.tokenizer.latent(self.tokenizer.vectors(codes))
        seen = decode or self.action.reads_trajectory
        return Plan(codes, latent, self.decoder(latent, cond) if seen else None, acting_noise(self.action, cond, rng))

    @torch.no_grad()
    def refinements(self, plan: Plan, cond: Cond) -> dict[str, Tensor]:
        """The plan decoded after each scale, coarse to fine; after some of them where there are very many."""
        vectors, partial_latent = self.tokenizer.vectors(plan.codes), self.tokenizer.start(len(cond))
        schedule: ScaleSchedule = self.tokenizer.schedule
        shown = {round((k + 1) * schedule.scales / MOST_DRAWN) - 1 for k in range(MOST_DRAWN)} | {0}
        decoded = {}
        for k, span in enumerate(schedule.spans):
            partial_latent = self.tokenizer.extend(partial_latent, vectors[:, span], k)
            if k in shown or schedule.scales <= MOST_DRAWN:
                tokens = "1 token" if schedule.lengths[k] == 1 else f"{schedule.lengths[k]} tokens"
                decoded[f"scale {k + 1} ({tokens})"] = self.decoder(partial_latent, cond)
        return decoded

    def condition_residuals(self, trajectory: Tensor, cond: Cond) -> dict[str, Tensor]:
        """How far trajectories (B, T, D) start from what was asked, per field: state (B, S), place, return (B, 1)."""
        asked = {"state": cond.state, "return": cond.returns.unsqueeze(-1)}
        if "position" in self.view.slices:
            asked["position"] = cond.state[:, self.view.position_indices]
        found = {name: self.view.read(trajectory[:, 0], name) for name in asked}
        return {name: value - asked[name] for name, value in found.items() if value is not None}


class TokenizerTraining(nn.Module):
    """What the tokenizer's stage trains on: a batch to the tokenizer's losses."""

    def __init__(self, planner: LatentPlanner) -> None:
        super().__init__()
        self.view = planner.view
        self.tokenizer: Tokenizer = planner.tokenizer
        self.decoder: Decoder = planner.decoder

    def forward(self, batch: Batch) -> Losses:
        cond = batch.condition()
        return self.tokenizer.loss(batch, self.view(batch), lambda latent: self.decoder.base(latent, cond))


class TargetTraining(nn.Module):
    """What the return target's stage trains on: a batch to the target's losses.

    A stage of its own, since it is cheap and must be accurate: a plan for a return that no path can earn leads
    through walls.
    """

    def __init__(self, return_target: Any) -> None:
        super().__init__()
        self.return_target = return_target

    def forward(self, batch: Batch) -> Losses:
        losses: Losses = self.return_target.loss(batch)
        return {"total": sum(losses.values(), start=batch.returns.new_zeros(())), **losses}


class PriorTraining(nn.Module):
    """What the generator's stage trains on: a batch to L_CE, L_inv and L_cond."""

    def __init__(self, planner: LatentPlanner) -> None:
        super().__init__()
        self.planner = planner

    def train(self, mode: bool = True) -> PriorTraining:
        """Switches the mode of all but the tokenizer, which stays frozen."""
        super().train(mode)
        self.planner.tokenizer.eval()
        return self

    def forward(self, batch: Batch) -> Losses:
        planner, cond = self.planner, batch.condition()
        tokenizer: Tokenizer = planner.tokenizer
        prior: Prior = planner.prior
        x = planner.view(batch)
        with torch.no_grad():
            codes = tokenizer.encode(x)
            vectors = tokenizer.vectors(codes)
            inputs, latent = tokenizer.inputs(vectors), tokenizer.latent(vectors)
        total, prediction = prior(codes, inputs, cond)
        losses = {"prior": total}
        if planner.inverse_weight and list(planner.action.parameters()):
            losses["inverse"] = inverse_loss(planner.action, batch, Plan(codes, latent, x))
            total = total + planner.inverse_weight * losses["inverse"]
        if planner.condition_weight:
            some = slice(planner.condition_batch)
            asked = cond.map(lambda values: values[some])
            losses["condition"] = self._condition(prediction[some], asked)
            losses["reconstruction"] = self._reconstruction(batch, x[some], latent[some], asked)
            total = total + planner.condition_weight * (losses["condition"] + losses["reconstruction"])
        return {"total": total, **losses}

    def _reconstruction(self, batch: Batch, x: Tensor, latent: Tensor, cond: Cond) -> Tensor:
        """Keeps D′ a decoder: L_cond looks at the first point alone, and would let the adapters spoil the others."""
        error = (self.planner.decoder(latent, cond) - x).square().mean(-1)
        return batch.mean(error, lambda batch: batch.mask)

    def _condition(self, prediction: Tensor, cond: Cond) -> Tensor:
        """L_cond: a plan drawn through a straight-through Gumbel-Softmax starts where and as it was asked."""
        planner = self.planner
        if planner.tokenizer.vocabulary is None:
            drawn = prediction
        else:
            drawn = F.gumbel_softmax(prediction.float(), tau=planner.gumbel_temperature, hard=True)
        latent = planner.tokenizer.latent(planner.tokenizer.vectors(drawn))
        residuals = planner.condition_residuals(planner.decoder(latent, cond), cond)
        every = torch.cat(list(residuals.values()), dim=-1) if residuals else prediction.new_zeros(1)
        return every.square().mean()


class ActionTraining(nn.Module):
    """What the action head's own stage trains on: a batch to L_inv, on the data's own plans and on drawn ones.

    The data's own latent tells their next states almost exactly. A head that has seen no other trusts a drawn one too
    far, which is exposure bias, and scheduled sampling (arXiv 1506.03099) is the cure: each scale is drawn given the
    data's coarser ones, so that the plan remains the one that the actions belong to.
    """

    def __init__(self, planner: LatentPlanner) -> None:
        super().__init__()
        self.planner = planner

    def train(self, mode: bool = True) -> ActionTraining:
        """Switches the mode of the action head; all else stays as when acting."""
        super().train(False)
        self.training = mode
        self.planner.action.train(mode)
        return self

    def forward(self, batch: Batch) -> Losses:
        with torch.no_grad():
            plan = self._plan(batch)
        total = inverse_loss(self.planner.action, batch, plan)
        return {"total": total, "inverse": total}

    def _plan(self, batch: Batch) -> Plan:
        """The data's plans, of which the first ones have given way to drawn ones."""
        planner, cond, x = self.planner, batch.condition(), self.planner.view(batch)
        tokenizer: Tokenizer = planner.tokenizer
        codes = tokenizer.encode(x)
        vectors = tokenizer.vectors(codes)
        own = round(planner.scheduled_sampling * len(batch))
        if not own:
            return Plan(codes, tokenizer.latent(vectors), x)
        asked = cond.map(lambda values: values[:own])
        _, prediction = planner.prior(codes[:own], tokenizer.inputs(vectors[:own]), asked)
        codes = torch.cat([self._draw(prediction).to(codes.dtype), codes[own:]])
        latent = tokenizer.latent(tokenizer.vectors(codes))
        if planner.action.reads_trajectory:
            x = torch.cat([planner.decoder(latent[:own], asked), x[own:]])
        return Plan(codes, latent, x)

    def _draw(self, prediction: Tensor) -> Tensor:
        """Codes (B, L) as the sampler chooses them, where it chooses from logits; of continuous ones the mean."""
        if self.planner.tokenizer.vocabulary is None:
            return prediction
        choose = getattr(self.planner.sampler, "choose", None)
        logits = prediction.float()
        return choose(logits, None) if choose else F.gumbel_softmax(logits, hard=True).argmax(-1)


def acting_noise(action: Any, cond: Cond, rng: Generator | None) -> Tensor | None:
    """What plans for these conditions need for an action head that draws: a head may have its own ``noise``."""
    return action.noise(len(cond), rng, cond.state.device) if hasattr(action, "noise") else None


def inverse_loss(action: Any, batch: Batch, plan: Plan) -> Tensor:
    """L_inv over the real steps of the chunk: a head's own ``loss``, or the mean squared error of its actions."""
    steps = batch.chunk_states.shape[1]
    offsets = torch.arange(steps, device=batch.states.device).expand(len(batch), -1)
    if hasattr(action, "loss"):
        error = action.loss(plan, batch.chunk_states, offsets, batch.chunk_actions)
    else:
        error = (action(plan, batch.chunk_states, offsets) - batch.chunk_actions).square().mean(-1)
    return batch.mean(error, lambda batch: batch.chunk_mask)
