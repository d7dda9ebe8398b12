"""Components whose fault shows where they learn, draw, or are used again: added to the mistakes."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from mistakes import MultiscaleVQ, PlainDecoder, mistake
from promises import AGAIN, FORCED, NO_TRACE, PULL, REACHES, UNCHANGED
from torch import Generator, Tensor

from trajgen.actions.inverse_dynamics import LatentInverseDynamics
from trajgen.conditioners import FieldConditioner
from trajgen.core.types import Batch, Cond, Encoding, Losses, Plan
from trajgen.critics.plans import HorizonCritic
from trajgen.encoders.convolutional import ConvEncoder
from trajgen.planners.latent import LatentPlanner
from trajgen.priors.diffusion import DiffusionPrior
from trajgen.priors.flow import FlowPrior
from trajgen.priors.transformer import TransformerPrior
from trajgen.return_targets import QuantileTarget
from trajgen.samplers.autoregressive import draw
from trajgen.views import FieldView

# Priors


@mistake("prior", FORCED, "differs from logits()", "the codes that it is to predict")
class PriorThatSeesItsCodes(TransformerPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        logits = self.logits(inputs, cond) + torch.eye(self.head.out_features)[codes]
        return self.loss(logits, codes), logits


@mistake("prior", FORCED, "differs from logits()")
class PriorTrainedWithoutItsMask(TransformerPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        mask, self.mask = self.mask, None
        logits = self.logits(inputs, cond)
        self.mask = mask
        return self.loss(logits, codes), logits


@mistake("prior", FORCED, "Other plans that are drawn at the same time")
class PriorOfTheFirstPlan(TransformerPrior):
    def start(self, cond: Cond) -> Any:
        starts = self.__dict__.setdefault("_starts", {})
        state = copy(starts.setdefault(len(cond), super().start(cond)))
        state.cache = [None] * len(self.blocks)
        return state


@mistake("prior", FORCED, "not to the module")
class PriorWithItsCacheOnTheModule(TransformerPrior):
    def start(self, cond: Cond) -> Any:
        self._cache = [None] * len(self.blocks)
        return super().start(cond)

    def step(self, x: Tensor | None, k: int, state: Any) -> Tensor:
        state = copy(state)
        state.cache = self._cache
        return super().step(x, k, state)


@mistake("prior", UNCHANGED, "example.inputs")
class PriorThatStepsInPlace(TransformerPrior):
    def step(self, x: Tensor | None, k: int, state: Any) -> Tensor:
        return super().step(x if x is None else x.mul_(1.0), k, state)


@mistake("prior", REACHES, "The goal changes the conditioner's embedding, and no prediction")
class PriorThatLosesTheGoal(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        return super().logits(inputs, replace(cond, goal=None if cond.goal is None else torch.zeros_like(cond.goal)))


@mistake("prior", REACHES, "The return changes the conditioner's embedding, and no prediction")
class PriorThatLosesTheReturn(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        return super().logits(inputs, replace(cond, returns=torch.zeros_like(cond.returns)))


@mistake("prior", PULL, "not a mean over windows and codes", "means of means")
class PriorOfATinyLoss(TransformerPrior):
    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return super().loss(logits, codes) / logits[0].numel()


@mistake("prior", "it is drawn towards the codes that it learns", "velocity() leads away from the codes")
class FlowThatRunsBackwards(FlowPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        t, noise = torch.rand(len(codes)), torch.randn_like(codes)
        x = noise + t[:, None, None] * (codes - noise)
        velocity = self.velocity(x, t, cond)
        return (velocity - (noise - codes)).square().mean(), x - (1 - t)[:, None, None] * velocity


@mistake("prior", "it is drawn towards the codes that it learns", "denoise() leads away from the codes")
class DenoiserOfTheNoise(DiffusionPrior):
    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        denoised = super().denoise(x, t, cond)
        return denoised if self.training else x - denoised


# Tokenizers


@mistake("tokenizer", "the loss trains, and decodes its latent", "reconstruction does not train the encoder")
class TokenizerWithoutStraightThrough(MultiscaleVQ):
    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        return super().loss(batch, x, lambda latent: decode(latent.detach()))


@mistake("tokenizer", "the loss trains, and decodes its latent", "is not the latent of the codes")
class TokenizerThatDecodesWithoutCodes(MultiscaleVQ):
    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        return super().loss(batch, x, lambda latent: decode(self._latent(x) + 0 * latent))


@mistake("tokenizer", NO_TRACE, "changes the mode of modules", "tokenizer")
class TokenizerThatStaysInEvaluation(MultiscaleVQ):
    def encode(self, x: Tensor) -> Encoding:
        self.eval()
        return super().encode(x)


# Decoders, conditioners, views and encoders


@mistake("decoder", "gradients flow through it to the latent", "parts of the latent that are left out")
class DecoderOfHalfTheChannels(PlainDecoder):
    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        return super().forward(latent * (torch.arange(latent.shape[2]) < 3), cond)


@mistake("decoder", "a trajectory of the right shape", "Some features of points do not depend on the latent")
class DecoderOfTheFirstHalf(PlainDecoder):
    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        decoded = super().forward(latent, cond)
        return decoded * (torch.arange(decoded.shape[1]) < decoded.shape[1] // 2).unsqueeze(-1)


@mistake("decoder", NO_TRACE, "changes the mode of modules", "decoder")
class DecoderThatTurnsToTraining(PlainDecoder):
    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        self.train()
        return super().forward(latent, cond)


@mistake("decoder", NO_TRACE, "changes the state that is saved", "decoder.calls")
class DecoderThatCountsItsCalls(PlainDecoder):
    def __init__(self, features: int, horizon: int, latent_length: int, code_dim: int, *, width: int = 8) -> None:
        super().__init__(features, horizon, latent_length, code_dim, width=width)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        self.calls += 1
        return super().forward(latent, cond)


@mistake("decoder", NO_TRACE, "seeds the global generator")
class DecoderThatSeeds(PlainDecoder):
    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        torch.manual_seed(0)
        return super().forward(latent, cond) + 0.1 * torch.randn(latent.shape[1])[0]


@mistake("decoder", AGAIN, "after other inputs of the same shape", "cached")
class DecoderOfTheFirstLatent(PlainDecoder):
    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        cache = self.__dict__.setdefault("_cache", {})
        return cache.setdefault(latent.shape, super().forward(latent, cond))


@mistake("conditioner", AGAIN, "after other inputs of the same shape")
class ConditionerOfTheFirstBatch(FieldConditioner):
    def forward(self, cond: Cond) -> Tensor:
        cache = self.__dict__.setdefault("_cache", {})
        return cache.setdefault((len(cond), self.training), super().forward(cond))


@mistake("conditioner", "an embedding per scale, or one for all", "All conditions have the same embedding")
class ConditionerOfNothing(FieldConditioner):
    def forward(self, cond: Cond) -> Tensor:
        return super().forward(cond) * 0 + self.mix[0].bias


@mistake("view", "features of every point", "A feature is the same at all points", "got:      1, 2, 3, 4")
class ViewOfZeros(FieldView):
    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(replace(batch, states=torch.zeros_like(batch.states)))


@mistake("encoder", "losses for what is trained, and none for what is not", "grows with the windows")
class EncoderThatSums(ConvEncoder):
    def loss(self, batch: Batch) -> Losses:
        return {name: value * len(batch) for name, value in super().loss(batch).items()}


# Action heads

STEPS = "each step has its own action and its own error"


@mistake("action", STEPS, "All steps of a plan have the same action")
class ActionOfTheFirstStep(LatentInverseDynamics):
    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        return super().forward(plan, states, torch.zeros_like(offsets))


class ActionWithALoss(LatentInverseDynamics):
    def errors(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        return (self(plan, states, offsets) - actions).square()


@mistake("action", STEPS, "changes 1 others, and its own not", "shifted or permuted actions")
class ActionOfTheStepBefore(ActionWithALoss):
    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        return self.errors(plan, states, offsets, actions.roll(1, 1)).mean(-1)


@mistake("action", STEPS, "changes 1 others, and its own not")
class ActionOfAnotherWindow(ActionWithALoss):
    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        return self.errors(plan, states, offsets, actions.roll(1, 0)).mean(-1)


@mistake("action", STEPS, "and its own too", "means over steps")
class ActionOfMeanErrors(ActionWithALoss):
    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        return self.errors(plan, states, offsets, actions).mean((1, 2)).unsqueeze(1).expand(-1, actions.shape[1])


@mistake("action", STEPS, "dimension 1 of one action changes 0 others, and its own not")
class ActionOfOneDimension(ActionWithALoss):
    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        return self.errors(plan, states, offsets, actions)[..., 0]


@mistake("action", "it learns in a few steps", "do not bring actions nearer", "its sign")
class ActionThatClimbs(ActionWithALoss):
    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        return -self.errors(plan, states, offsets, actions).mean(-1)


@mistake("action", "noise of actions is drawn with rng", "The same seed draws other noise")
class ActionOfUnseededNoise(LatentInverseDynamics):
    def noise(self, plans: int, rng: Generator | None, device: torch.device) -> Tensor:
        return torch.rand(plans, 4, 2, device=device)


@mistake("action", "noise of actions is drawn with rng", "or other plans, have the same noise")
class ActionOfSharedNoise(LatentInverseDynamics):
    def noise(self, plans: int, rng: Generator | None, device: torch.device) -> Tensor:
        return torch.rand(1, 4, 2, generator=rng, device=device).expand(plans, -1, -1)


# Samplers

DRAWS = "plans and tokens are drawn independently, and likely ones"


class Loop:
    """Draws scale by scale."""

    needs = ("start", "step")

    @torch.no_grad()
    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        state, layout, scales = prior.start(cond), tokenizer.layout, []
        partial_latent = layout.start(len(cond))
        for k, span in enumerate(tokenizer.schedule.spans):
            logits = prior.step(layout.scale_input(partial_latent, k) if k else None, k, state).float()
            codes = self.pick(logits, rng)
            scales.append(codes if known_codes is None else known_codes.into(codes, span))
            partial_latent = layout.extend(partial_latent, tokenizer.vectors(scales[-1]), k)
        return Plan(torch.cat(scales, dim=1), partial_latent)

    def pick(self, logits: Tensor, rng: Any) -> Tensor:
        return draw(logits, rng)


@mistake("sampler", DRAWS, "All plans of a batch are drawn with the same random numbers")
class SamplerOfOneNoise(Loop):
    def pick(self, logits: Tensor, rng: Any) -> Tensor:
        return (logits - torch.empty_like(logits[:1]).exponential_(generator=rng).log()).argmax(-1)


@mistake("sampler", DRAWS, "All tokens of a scale are drawn with the same random numbers")
class SamplerOfOneNoiseAScale(Loop):
    def pick(self, logits: Tensor, rng: Any) -> Tensor:
        return (logits - torch.empty_like(logits[:, :1]).exponential_(generator=rng).log()).argmax(-1)


@mistake("sampler", DRAWS, "less likely than codes at random", "the sign of logits")
class SamplerOfTheUnlikely(Loop):
    def pick(self, logits: Tensor, rng: Any) -> Tensor:
        return draw(-logits, rng)


@mistake("sampler", "codes of the tokenizer's vocabulary", "The latent of a plan is not that of its codes")
class SamplerWithoutTheFinestScale(Loop):
    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        plan = super().__call__(prior, tokenizer, cond, rng, known_codes)
        vectors, finest = tokenizer.vectors(plan.codes), tokenizer.schedule.spans[-1]
        vectors[:, finest] = 0
        return Plan(plan.codes, tokenizer.layout.latent(vectors))


@mistake("sampler", "each condition has a plan of its own", "Another return changes the conditioner's embedding")
class SamplerWithoutTheCondition(Loop):
    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        return super().__call__(prior, tokenizer, cond.unconditional(), rng, known_codes)


@mistake("sampler", NO_TRACE, "seeds the global generator")
class SamplerThatSeeds(Loop):
    def pick(self, logits: Tensor, rng: Any) -> Tensor:
        torch.manual_seed(0)
        return draw(logits, None)


@mistake("sampler", NO_TRACE, "changes the mode of modules", "prior")
class SamplerInTrainingMode(Loop):
    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        return super().__call__(prior.train(), tokenizer, cond, rng, known_codes)


# Return targets, critics and planners

RETURNS = "it learns the return-to-go of a window's first point"


@mistake("return_target", RETURNS, "does not follow the return-to-go")
class TargetOfTheWrongSign(QuantileTarget):
    def loss(self, batch: Batch) -> Losses:
        return super().loss(replace(batch, returns=-batch.returns))


@mistake("return_target", RETURNS, "states, goals and returns of the first point")
class TargetOfTheLastReturn(QuantileTarget):
    def loss(self, batch: Batch) -> Losses:
        return super().loss(replace(batch, returns=batch.returns.flip(1)))


@mistake("return_target", RETURNS, "states, goals and returns of the first point")
class TargetOfTheLastState(QuantileTarget):
    def loss(self, batch: Batch) -> Losses:
        return super().loss(replace(batch, states=batch.states.flip(1)))


@mistake("critic", "a score for each plan, by its own points", "the present state alone, which all plans for it share")
class CriticOfThePresent(HorizonCritic):
    def forward(self, points: Any, cond: Cond) -> Tensor:
        return super().forward({name: value[:, :1].expand_as(value) for name, value in points.items()}, cond)


@mistake("critic", "losses that can be trained, and target networks that follow", "Rewards and returns of padding")
class CriticOfPadding(HorizonCritic):
    def loss(self, batch: Batch) -> Losses:
        scores = self({"state": batch.states}, batch.condition())
        return {"value": (scores - batch.returns.mean(1)).square().mean()}


WINDOWS = "every window counts in the loss of a stage, and no padded action"


@mistake("planner", WINDOWS, "Actions after an episode's end change the loss of stage 'prior'")
class PlannerOfPaddedActions(LatentPlanner):
    def prior_loss(self, batch: Batch) -> Losses:
        return super().prior_loss(replace(batch, chunk_mask=torch.ones_like(batch.chunk_mask)))


@mistake("planner", WINDOWS, "The last window does not change the loss of stage 'prior'")
class PlannerOfHalfTheBatch(LatentPlanner):
    def prior_loss(self, batch: Batch) -> Losses:
        return super().prior_loss(batch.head(len(batch) // 2))


@mistake("planner", "each condition has a plan of its own", "Another goal changes the conditioner's embedding")
class PlannerWithoutItsGoal(LatentPlanner):
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        return super().plan(replace(cond, goal=None if cond.goal is None else 0 * cond.goal), rng, decode=decode)


@mistake("planner", NO_TRACE, "changes the mode of modules")
class PlannerThatPlansInTraining(LatentPlanner):
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        self.eval()
        plan = super().plan(cond, rng, decode=decode)
        self.train()
        return plan
