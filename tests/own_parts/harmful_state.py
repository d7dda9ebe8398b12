"""More components that do harm silently: they change their inputs, look at the batch, share state, or sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from mistakes import MultiscaleVQ, PlainDecoder, mistake, plain_decoder
from promises import ALONE, NO_HIDDEN, OWN_ROWS, UNCHANGED, UNSHARED, of_first
from torch import Tensor, nn

from trajgen.actions.inverse_dynamics import LatentInverseDynamics
from trajgen.conditioners import FieldConditioner
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Cond, Encoding, Losses, Plan
from trajgen.critics.plans import HorizonCritic
from trajgen.planners.latent import LatentPlanner
from trajgen.priors.transformer import TransformerPrior
from trajgen.return_targets import QuantileTarget
from trajgen.samplers.autoregressive import AutoregressiveSampler, draw
from trajgen.subgoals import LandmarkGraph
from trajgen.tokenizers.layouts import ResidualPyramid
from trajgen.views import FieldView

# Inputs that are changed in place


@mistake("view", UNCHANGED, "batch.states")
class ViewThatChangesTheBatch(FieldView):
    def __call__(self, batch: Batch) -> Tensor:
        batch.states.clamp_(-5, 5)
        return super().__call__(batch)


@mistake("conditioner", UNCHANGED, "cond.state")
class ConditionerThatChangesTheCondition(FieldConditioner):
    def forward(self, cond: Cond) -> Tensor:
        cond.state.sub_(0.1)
        return super().forward(cond)


@mistake("prior", UNCHANGED, "example.inputs")
class PriorThatChangesItsInputs(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        inputs.add_(0.1)
        return super().logits(inputs, cond)


@mistake("prior", UNCHANGED, "cond.returns")
class PriorThatClipsTheReturn(TransformerPrior):
    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        cond.returns.clamp_(-1, 1)
        return super().forward(codes, inputs, cond)


@mistake("tokenizer", UNCHANGED, "example.x")
class TokenizerThatChangesTheWindow(MultiscaleVQ):
    def encode(self, x: Tensor) -> Encoding:
        return super().encode(x.clamp_(-5, 5))


@mistake("tokenizer", UNCHANGED, "example.x")
class TokenizerThatLearnsInPlace(MultiscaleVQ):
    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        x[~batch.mask] = 0
        return super().loss(batch, x, decode)


class PyramidInPlace(ResidualPyramid):
    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        partial_latent += super().extend(partial_latent, vectors, k) - partial_latent
        return partial_latent


class PyramidOfChangedInputs(ResidualPyramid):
    def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
        return super().scale_input(partial_latent.mul_(0.9) if not torch.is_grad_enabled() else partial_latent, k)


@mistake(
    "tokenizer",
    "the partial latent, extended step by step, agrees with inputs() and latent()",
    "extend() changes the partial latent",
)
class TokenizerThatExtendsInPlace(MultiscaleVQ):
    def __init__(self, schedule: Callable[[int], ScaleSchedule], features: int, horizon: int) -> None:
        super().__init__(schedule, features, horizon)
        self.layout = PyramidInPlace(self.schedule, 6, 4)


@mistake("tokenizer", UNCHANGED, "A partial latent is changed in place")
class TokenizerThatShrinksTheSum(MultiscaleVQ):
    def __init__(self, schedule: Callable[[int], ScaleSchedule], features: int, horizon: int) -> None:
        super().__init__(schedule, features, horizon)
        self.layout = PyramidOfChangedInputs(self.schedule, 6, 4)


mistake("decoder", UNCHANGED, "example.latent")(
    plain_decoder(torch.clone, before=lambda latent: latent if latent.requires_grad else latent.mul_(1.1))
)


@mistake("action", UNCHANGED, "batch.chunk_states")
class ActionThatChangesTheStates(LatentInverseDynamics):
    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        states.clamp_(-5, 5)
        return super().forward(plan, states, offsets)


@mistake("return_target", UNCHANGED, "batch.returns")
class TargetThatChangesTheBatch(QuantileTarget):
    def loss(self, batch: Batch) -> Losses:
        batch.returns.clamp_(-1, 1)
        return super().loss(batch)


@mistake("sampler", UNCHANGED, "cond.returns")
class SamplerThatHopes:
    """Asks for more than it was told, in place."""

    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        cond.returns.add_(0.5)
        return AutoregressiveSampler(draw)(prior, tokenizer, cond, rng, known_codes)


@mistake("planner", UNCHANGED, "batch.states")
class PlannerThatAugmentsInPlace(LatentPlanner):
    def prior_loss(self, batch: Batch) -> Losses:
        batch.states.add_(0.01)
        return super().prior_loss(batch)


# Batch statistics


class Normalized(nn.Module):
    """Batch normalization of the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).view_as(x)


@mistake("conditioner", OWN_ROWS, "in training", "batch normalization")
class ConditionerWithBatchNorm(FieldConditioner):
    def __init__(self, schedule: ScaleSchedule, state_dim: int, goal_dim: int) -> None:
        super().__init__(schedule, state_dim, goal_dim, width=16)
        self.norm = Normalized(16)

    def forward(self, cond: Cond) -> Tensor:
        return self.norm(super().forward(cond))


@mistake("prior", OWN_ROWS, "in training")
class PriorWithBatchNorm(TransformerPrior):
    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        if not hasattr(self, "norm"):
            self.norm = Normalized(self.head.out_features).train(self.training)
        return self.norm(super().logits(inputs, cond))


mistake("decoder", OWN_ROWS, "in training")(
    type(
        "DecoderWithBatchNorm",
        (PlainDecoder,),
        {"forward": lambda self, latent, cond=None: F.batch_norm(
            PlainDecoder.forward(self, latent, cond), torch.zeros(16), torch.ones(16), training=self.training
        )},
    )
)  # fmt: skip


@mistake("action", OWN_ROWS, "in training")
class ActionThatCenters(LatentInverseDynamics):
    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        actions = super().forward(plan, states, offsets)
        return actions - actions.mean(0) if self.training else actions


@mistake("return_target", OWN_ROWS, "in training")
class TargetThatStandardizes(QuantileTarget):
    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        returns = super().forward(state, goal, remaining)
        return returns - returns.mean() if self.training else returns


# State that is shared or left behind


@mistake("conditioner", UNSHARED, "once another one of its kind")
class ConditionerWithAClassCache(FieldConditioner):
    offset: ClassVar[float] = 0.0

    def forward(self, cond: Cond) -> Tensor:
        embedded = super().forward(cond) + self.offset
        type(self).offset = float(self.mix[0].bias.detach().sum())
        return embedded


@mistake("decoder", UNSHARED, "attributes of the class")
class DecoderWithAClassScale(PlainDecoder):
    scale: ClassVar[float] = 1.0

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        decoded = super().forward(latent, cond) * self.scale
        type(self).scale = 1 + float(next(self.parameters()).detach().norm())
        return decoded


@mistake("view", NO_HIDDEN, "The tensor in 'scale' of ViewWithAClassTensor")
class ViewWithAClassTensor(FieldView):
    scale = torch.full((1,), 1.0)

    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch) * self.scale


@mistake("sampler", NO_HIDDEN, "The tensor in 'sample_fn' of AutoregressiveSampler")
def biased(vocabulary: int | None, *, weight: float = 1.0) -> AutoregressiveSampler:
    """Prefers later codes."""
    bias = torch.linspace(0, weight, vocabulary or 1)
    return AutoregressiveSampler(lambda logits, rng: draw(logits + bias, rng))


@mistake("sampler", NO_HIDDEN, "The tensor in 'sample_fn' of AutoregressiveSampler")
def defaulted(vocabulary: int | None, *, weight: float = 1.0) -> AutoregressiveSampler:
    """Prefers later codes."""
    bias = torch.linspace(0, weight, vocabulary or 1)
    return AutoregressiveSampler(lambda logits, rng, bias=bias: draw(logits + bias, rng))


@mistake("conditioner", NO_HIDDEN, "The tensor in 'shift' of ConditionerWithAClosure")
class ConditionerWithAClosure(FieldConditioner):
    def __init__(self, schedule: ScaleSchedule, state_dim: int, goal_dim: int) -> None:
        super().__init__(schedule, state_dim, goal_dim, width=16)
        offset = torch.linspace(0, 1, 16)
        self.shift = lambda x: x + offset

    def forward(self, cond: Cond) -> Tensor:
        return self.shift(super().forward(cond))


# Losses of other kinds


@mistake("return_target", "losses that can be trained", "is not the mean", "(B, 1) beside (B,)")
class TargetThatBroadcasts(QuantileTarget):
    def loss(self, batch: Batch) -> Losses:
        error = batch.returns[:, 0] - self._predict(batch.states[:, 0], batch.goals)
        return {"quantile": torch.maximum(0.9 * error, -0.1 * error).mean()}


@mistake("return_target", "losses that can be trained", "is not the mean")
class TargetThatSums(QuantileTarget):
    def loss(self, batch: Batch) -> Losses:
        return {name: value * len(batch) for name, value in super().loss(batch).items()}


@mistake("critic", "losses that can be trained, and target networks that follow", "(B, 1) beside (B,)")
class CriticThatBroadcasts(HorizonCritic):
    def loss(self, batch: Batch) -> Losses:
        scores = self({"state": batch.states}, batch.condition())
        return {"value": (scores.unsqueeze(-1) - batch.returns[:, 0]).square().mean()}


@mistake("critic", ALONE)
class CriticOfTheFirstGoal(HorizonCritic):
    def forward(self, points: Any, cond: Cond) -> Tensor:
        return super().forward(points, cond.map(of_first))


@mistake("critic", UNCHANGED, "batch.returns")
class CriticThatChangesTheBatch(HorizonCritic):
    def loss(self, batch: Batch) -> Losses:
        batch.returns.clamp_(-1, 1)
        return super().loss(batch)


@mistake("tokenizer", "the loss trains, and decodes its latent", "sums over the batch")
class TokenizerThatSums(MultiscaleVQ):
    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        return {name: value * len(batch) for name, value in super().loss(batch, x, decode).items()}


@mistake("action", "actions are read off the plan, and can be learnt", "should have the shape (B, H)")
class ActionOfBroadcastErrors(LatentInverseDynamics):
    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        return (self(plan, states, offsets) - actions).square().mean((1, 2))


@mistake("planner", "the loss of a stage is a mean over windows", "grows with the windows")
class PlannerThatSums(LatentPlanner):
    def prior_loss(self, batch: Batch) -> Losses:
        return {name: value * len(batch) for name, value in super().prior_loss(batch).items()}


# Subgoals

FITTED = "a checkpoint holds what it learns of the data"


@mistake("subgoal", UNCHANGED, "cond.goal")
class SubgoalThatMovesTheGoal(LandmarkGraph):
    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return super().forward(state, goal.add_(0.1))


@mistake("subgoal", OWN_ROWS, "when the other windows change")
class SubgoalOfTheWholeBatch(LandmarkGraph):
    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return super().forward(state, goal).mean(0).expand_as(goal)


@mistake("subgoal", "one goal for each state", "should have the shape (B, G)")
class SubgoalWithAnAxisTooMany(LandmarkGraph):
    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return super().forward(state, goal).unsqueeze(1)


@mistake("subgoal", "one goal for each state", "before fit() too")
class SubgoalThatDividesByItsData(LandmarkGraph):
    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return super().forward(state, goal) * self.positions.std() / self.positions.std()


@mistake("subgoal", FITTED, "changes the shapes")
class SubgoalAsLargeAsTheData(LandmarkGraph):
    def fit(self, positions: np.ndarray, starts: np.ndarray) -> None:
        super().fit(positions, starts)
        self.positions = torch.tensor(positions, dtype=torch.float32)


@mistake("subgoal", FITTED, "no checkpoint holds")
class SubgoalThatForgets(LandmarkGraph):
    farthest = 0.0

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return super().forward(state, goal) + self.farthest

    def fit(self, positions: np.ndarray, starts: np.ndarray) -> None:
        super().fit(positions, starts)
        self.farthest = float(np.abs(positions).max())
