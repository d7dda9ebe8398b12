"""Critics, samplers and conditioners whose fault shows in what they are for alone: added to the mistakes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from harmful_use import Loop
from mistakes import mistake
from torch import Generator, Tensor, nn

from trajgen.actions.inverse_dynamics import LatentInverseDynamics
from trajgen.conditioners import FieldConditioner
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Losses, Plan
from trajgen.critics.plans import HorizonCritic, PlanLength, PlannedReturn, _Untrained
from trajgen.critics.values import ExpectileValue
from trajgen.nn.target import follow
from trajgen.planners.direct import PlansNoTrajectory
from trajgen.planners.latent import return_target_stage
from trajgen.samplers.autoregressive import draw
from trajgen.subgoals import LandmarkGraph

FOLLOW = "targets follow the weights that are trained"
STEPS = "what a step leads to, brings and ends changes the loss"
EARNED = "scores rise with what was earned"
STRENGTHS = "temperature and guidance have an effect"
UNITS = "the same in any normalization of the data"


@mistake("critic", FOLLOW, "target.0.weight")
class CriticWhoseTargetStays(ExpectileValue):
    def after_step(self) -> None: ...


@mistake("critic", FOLLOW, "after_step(): the rate")
class CriticWhoseTargetFollowsAtRate0(ExpectileValue):
    def after_step(self) -> None:
        follow(self.target, self.network, 0.0)


def with_transitions(batch: Batch, **changes: Tensor) -> Batch:
    assert batch.transitions is not None
    return replace(batch, transitions=replace(batch.transitions, **changes))


@mistake("critic", STEPS, "Other ends of the task have the same losses")
class CriticWithoutEnds(ExpectileValue):
    def loss(self, batch: Batch) -> Losses:
        assert batch.transitions is not None
        return super().loss(with_transitions(batch, terminals=torch.zeros_like(batch.transitions.terminals)))


@mistake("critic", STEPS, "Other rewards have the same losses")
class CriticWithoutRewards(ExpectileValue):
    def loss(self, batch: Batch) -> Losses:
        assert batch.transitions is not None
        return super().loss(with_transitions(batch, rewards=torch.zeros_like(batch.transitions.rewards)))


@mistake("critic", STEPS, "Other states have the same losses")
class CriticThatStays(ExpectileValue):
    def loss(self, batch: Batch) -> Losses:
        return super().loss(with_transitions(batch, next_states=batch.chunk_states))


@mistake("critic", EARNED, "scores do not follow")
class CriticOfTheWrongLoss(ExpectileValue):
    def loss(self, batch: Batch) -> Losses:
        return {name: -value for name, value in super().loss(batch).items()}


@mistake("critic", EARNED, "scores do not follow")
class CriticOfTheWrongSign(ExpectileValue):
    def forward(self, points: Any, cond: Cond) -> Tensor:
        return -super().forward(points, cond)


@mistake("critic", EARNED, "the goals")
class CriticWithoutItsGoal(ExpectileValue):
    def forward(self, points: Any, cond: Cond) -> Tensor:
        assert cond.goal is not None
        return super().forward(points, replace(cond, goal=torch.zeros_like(cond.goal)))


@mistake("critic", EARNED, "which state and reward belong together")
class CriticOfTheNextReturn(HorizonCritic):
    def loss(self, batch: Batch) -> Losses:
        return super().loss(replace(batch, returns=batch.returns.roll(-1, 1)))


@mistake("critic", UNITS, "normalizer.goal.inverse")
class CriticOfDistancesBetweenNormalizedValues(_Untrained):
    reads = ("state", "position")

    def forward(self, points: Any, cond: Cond) -> Tensor:
        positions = points["position"] if "position" in points else points["state"][..., :2]
        assert cond.goal is not None
        return -(positions[:, -1] - cond.goal).norm(dim=-1)


@mistake("critic", UNITS, "other scores")
class CriticWithoutTheUnitsOfTheGoal(PlanLength):
    def forward(self, points: Any, cond: Cond) -> Tensor:
        assert cond.goal is not None
        return super().forward(points, replace(cond, goal=self._normalizer[0].goal(cond.goal)))


@mistake("critic", UNITS, "other scores")
class CriticOfNormalizedReturns(PlannedReturn):
    """Adds them to rewards in the units of the data."""

    def forward(self, points: Any, cond: Cond) -> Tensor:
        returns = self._normalizer[0].returns(points["return"])
        return super().forward({**points, "return": returns}, cond)


class SoundCriticOfNormalizedReturns(_Untrained):
    """Ranks plans as their returns in the units of the data would."""

    reads = ("return",)

    def __init__(self, goal_dim: int) -> None:
        super().__init__()

    def forward(self, points: Any, cond: Cond) -> Tensor:
        return points["return"][:, :, 0].mean(1)


@mistake("subgoal", UNITS, "normalizer.state.inverse")
class SubgoalOfNormalizedStates(LandmarkGraph):
    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return super().forward(self._normalizer[0].state(state), goal)


@mistake("subgoal", UNITS, "normalizer.goal")
class SubgoalInUnitsOfTheGoal(LandmarkGraph):
    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return self._normalizer[0].goal.inverse(super().forward(state, goal))


@mistake("sampler", "a scale is drawn from those before it", "Scale 3 is not predicted from all codes before it")
class SamplerOfTheFirstScale(Loop):
    @torch.no_grad()
    def __call__(self, prior: Any, tokenizer: Any, cond: Cond, rng: Any = None, known_codes: Any = None) -> Plan:
        state, layout, scales = prior.start(cond), tokenizer.layout, []
        first = partial_latent = layout.start(len(cond))
        for k, span in enumerate(tokenizer.schedule.spans):
            codes = self.pick(prior.step(layout.scale_input(first, k) if k else None, k, state), rng)
            scales.append(codes if known_codes is None else known_codes.into(codes, span))
            partial_latent = layout.extend(partial_latent, tokenizer.vectors(scales[-1]), k)
            first = first if k else partial_latent
        return Plan(torch.cat(scales, dim=1), partial_latent)


@mistake("sampler", STRENGTHS, "The codes are the same for temperature")
class SamplerWithoutTemperature(Loop):
    def __init__(self, *, temperature: float = 1.0) -> None: ...


@mistake("sampler", STRENGTHS, "The codes are the same for guidance")
class SamplerWithoutGuidance(Loop):
    def __init__(self, *, temperature: float = 1.0, guidance: float = 0.0) -> None:
        self.temperature = temperature

    def pick(self, logits: Tensor, rng: Any) -> Tensor:
        return draw(logits / self.temperature, rng)


@mistake("conditioner", "conditions are withheld in training", "none were withheld")
class ConditionerThatTellsInTraining(FieldConditioner):
    def forward(self, cond: Cond) -> Tensor:
        dropout, self.dropout = self.dropout, 0.0
        embedded = super().forward(cond)
        self.dropout = dropout
        return embedded


class SureConditioner(FieldConditioner):
    """Withholds nothing, and says so: no mistake."""

    def __init__(self, schedule: Any, state_dim: int, goal_dim: int, *, width: int = 128) -> None:
        super().__init__(schedule, state_dim, goal_dim, width=width, dropout=0.0)

    def forward(self, cond: Cond) -> Tensor:
        return super().forward(replace(cond, cond_mask=None))


class SoundSpectralHead(LatentInverseDynamics):
    """Spectral normalization, whose buffers each call in training moves on: no mistake."""

    def __init__(self, latent_length: int, code_dim: int, action_dim: int, chunk: int, *, width: int = 32) -> None:
        super().__init__(latent_length, code_dim, action_dim, chunk, width=width, depth=2)
        for module in self.network:
            if isinstance(module, nn.Linear):
                nn.utils.parametrizations.spectral_norm(module)


class SoundLSTM(nn.Module):
    """An LSTM, which rounds otherwise where no gradients are kept: no mistake."""

    def __init__(self, schedule: Any, code_dim: int, vocabulary: int, conditioner: Any, *, width: int = 32) -> None:
        super().__init__()
        self.schedule, self.conditioner = schedule, conditioner
        self.cond_proj, self.input_proj = nn.Linear(conditioner.width, width), nn.Linear(code_dim, width)
        self.network, self.head = nn.LSTM(width, width, batch_first=True), nn.Linear(width, vocabulary)

    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        logits = self.logits(inputs, cond)
        return self.loss(logits, codes), logits

    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        return F.cross_entropy(logits.transpose(1, 2), codes)

    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        x = F.pad(self.input_proj(inputs), (0, 0, self.schedule.lengths[0], 0)) + self.start(cond)[0]
        return self.head(self.network(x)[0])

    def start(self, cond: Cond) -> list[Any]:
        return [self.cond_proj(self.conditioner(cond)[:, :1]), None]

    def step(self, x: Tensor | None, k: int, state: list[Any]) -> Tensor:
        x = state[0].expand(-1, self.schedule.lengths[k], -1) + (0 if x is None else self.input_proj(x))
        out, state[1] = self.network(x, state[1])
        return self.head(out)


class PlannerOfEmbeddedGoals(PlansNoTrajectory):
    """Gives the policy that it is made of embedded goals, of another width than those of the data: no mistake."""

    def __init__(self, direct_level: Any, return_target: Any, goal_dim: int, *, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(goal_dim, width) if goal_dim else None
        self.return_target = return_target
        goals: dict[str, Any] = {"goal_dim": width if goal_dim else 0, "goal_state": (), "relative_goals": False}
        self.low = direct_level(return_target=nn.Identity(), **goals)

    @property
    def action(self) -> Any:
        return self.low.action

    def embedded(self, goals: Tensor | None) -> Tensor | None:
        return goals if goals is None or self.embed is None else self.embed(goals)

    def policy_loss(self, batch: Batch) -> Losses:
        return self.low.policy_loss(replace(batch, goals=self.embedded(batch.goals)))

    def stages(self) -> list[Stage]:
        embed = [] if self.embed is None else [*self.embed.parameters()]
        return [
            *([return_target_stage(self.return_target)] if list(self.return_target.parameters()) else []),
            Stage("policy", self.policy_loss, [*embed, *self.low.parameters()]),
        ]

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        return self.low.plan(replace(cond, goal=self.embedded(cond.goal)), rng, decode=decode)
