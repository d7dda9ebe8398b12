"""The critic that learns values of states by expectile regression, with target networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.core.types import Batch, Cond, GoalSampling, Losses, Transitions
from trajgen.nn.layers import FourierFeatures, PlanStrides, mlp
from trajgen.nn.target import follow, target_of


@register("critic", "value")
class ExpectileValue(nn.Module):
    """V(s, g), an expectile of what the data's steps lead to (IQL, arXiv 2110.06169; HIQL, arXiv 2307.11949).

    Without actions V learns from r + γ V'(s', g), where V' is its target network (HIQL, equation 4). With actions it
    learns from the lower of two target networks Q'(s, a, g), and both Q from r + γ V(s', g) (IQL, equations 5 and 6).
    A step is the chunk of H environment steps, r its return and a all of its actions, so that values travel H steps at
    once; with ``data.chunk=1`` it is the papers'. Rewards, and where they end, are those of the data's options.

    Args:
        state_dim: S.
        goal_dim: G; 0 without goals.
        action_dim: A.
        chunk: H.
        strides: environment steps between the points of a plan, one or several.
        discount: per environment step.
        goal_radius: within which a goal is rewarded; None where rewards are the data's own.
        normalizer: of the data.
        actions: whether Q is learnt.
        expectile: τ; 0.5 is the mean, near 1 the best of the data.
        width: units of each hidden layer.
        depth: linear layers.
        fourier_frequencies: Fourier frequencies of each value of state and goal.
        target_rate: by which target networks move at each step.
        jump_weight: how much gains of value that no step can bring count against a plan.
        further_goals: goals of each window, besides its own, for which values are learnt.
        current_goals: fraction of these that are reached at once.
        random_goals: fraction of these that are reached anywhere in the data; the others are reached later.

    Raises:
        ConfigError: for an option out of range.
    """

    reads = ("state",)

    def __init__(
        self,
        state_dim: int,
        goal_dim: int,
        action_dim: int,
        chunk: int,
        strides: tuple[int, ...],
        discount: float,
        goal_radius: float | None,
        normalizer: Normalizer,
        *,
        actions: bool = False,
        expectile: float = 0.7,
        width: int = 256,
        depth: int = 4,
        fourier_frequencies: int = 4,
        target_rate: float = 0.005,
        jump_weight: float = 1.0,
        further_goals: int = 1,
        current_goals: float = 0.2,
        random_goals: float = 0.3,
    ) -> None:
        super().__init__()
        check_range("critic.expectile", expectile, 0, 1, usual=0.7)
        check_range("critic.target_rate", target_rate, 0, 1, usual=0.005)
        check_range("critic.further_goals", further_goals, 0, usual=1)
        check_range("critic.current_goals", current_goals, 0, 1, usual=0.2)
        check_range("critic.random_goals", random_goals, 0, 1 - current_goals, usual=0)
        self.discount, self.strides = discount, PlanStrides(strides)
        self.expectile, self.target_rate = expectile, target_rate
        self.jump_weight = jump_weight if goal_radius is not None else 0.0
        self.transitions = GoalSampling(further_goals, current_goals, random_goals)
        self._normalizer = [normalizer]  # in a list: its buffers belong to the planner, not to this module
        self.features = FourierFeatures(state_dim + goal_dim, fourier_frequencies)
        inputs = self.features.out_features
        self.network = mlp(inputs, width, 1, depth=depth)
        bootstrapped: nn.Module = self.network
        self.q_networks: nn.ModuleList | None = None
        if actions:
            inputs += chunk * action_dim
            self.q_networks = bootstrapped = nn.ModuleList(mlp(inputs, width, 1, depth=depth) for _ in range(2))
        self.target = target_of(bootstrapped)

    def forward(self, points: Mapping[str, Tensor], cond: Cond) -> Tensor:
        """Scores (B,) of plans: the mean value of their states, less the jumps, in the data's (discounted) units.

        With rewards for being at a goal, no path of M environment steps leads from a value v to one above v / γ^M. What
        a plan's points gain beyond that counts against it ``jump_weight`` times: it passes where nothing can. Of plans
        at several strides values and gains are means over the time which all of them cover.

        Args:
            points: states (B, T, S) of the plans.
            cond: whose goals (B, G) they are judged by.
        """
        states = points["state"]
        goals = None if cond.goal is None else cond.goal.unsqueeze(1).expand(-1, states.shape[1], -1)
        values = self.value(states, goals)  # (B, T)
        scores = self.strides.mean(values, cond.stride)
        if self.jump_weight and values.shape[1] > 1:
            gain = self.discount ** self.strides.of(cond.stride) * values[:, 1:] - values[:, :-1]
            is_common = self.strides.is_common(values.shape[1], cond.stride, values.device)[:, 1:]
            jumps = (gain.clamp(min=0) * is_common).sum(1) / is_common.sum(1).clamp(min=1)
            scores = scores - self.jump_weight * jumps
        return scores

    def value(self, states: Tensor, goals: Tensor | None) -> Tensor:
        """V (…) of normalized states (…, S) and goals (…, G), in the data's units."""
        return self._in_units(self.network(self._features(states, goals)))

    def loss(self, batch: Batch) -> Losses:
        """The expectile loss of V, and with actions the squared errors of both Q; in full precision."""
        with torch.autocast(batch.states.device.type, enabled=False):
            errors = self._errors(batch)
            losses = {"value": self._mean(batch, expectile_weight(errors, self.expectile) * errors.square())}
            if self.q_networks is not None:
                transitions = transitions_of(batch)
                last = _per_goal(transitions.next_states[:, -1], transitions)
                with torch.no_grad():
                    target = chunk_target(transitions, self.value(last, transitions.goals), self.discount)
                inputs = self._action_features(batch, transitions)
                first, second = ((self._in_units(q(inputs)) - target).square() for q in self.q_networks)
                losses["q"] = self._mean(batch, first + second)
            return losses

    @torch.no_grad()
    def advantage(self, batch: Batch) -> Tensor:
        """How much more the chunks (B,) are worth for the windows' own goals than V expects, in the data's units."""
        with torch.autocast(batch.states.device.type, enabled=False):
            return self._errors(batch)[:, 0]

    def after_step(self) -> None:
        """Moves the target network."""
        follow(self.target, self.q_networks or self.network, self.target_rate)

    def _errors(self, batch: Batch) -> Tensor:
        """What V learns from, less V (B, Q)."""
        transitions = transitions_of(batch)
        with torch.no_grad():
            if isinstance(self.target, nn.ModuleList):
                inputs = self._action_features(batch, transitions)
                target = torch.minimum(*(self._in_units(q(inputs)) for q in self.target))
            else:
                last = _per_goal(transitions.next_states[:, -1], transitions)
                after = self._in_units(self.target(self._features(last, transitions.goals)))
                target = chunk_target(transitions, after, self.discount)
        return target - self.value(_per_goal(batch.chunk_states[:, 0], transitions), transitions.goals)

    def _features(self, states: Tensor, goals: Tensor | None) -> Tensor:
        features: Tensor = self.features(states if goals is None else torch.cat([states, goals], dim=-1))
        return features

    def _action_features(self, batch: Batch, transitions: Transitions) -> Tensor:
        """States, goals and the actions of the chunks (B, Q, ·)."""
        features = self._features(_per_goal(batch.chunk_states[:, 0], transitions), transitions.goals)
        actions = transitions.actions * transitions.mask.unsqueeze(-1)
        return torch.cat([features, _per_goal(actions.flatten(1), transitions)], dim=-1)

    def _in_units(self, output: Tensor) -> Tensor:
        """What a network's output (…, 1), in deviations of the data's returns, stands for (…)."""
        low, high = self._deviations(output)
        return (low + high) / 2 + output.squeeze(-1) * (high - low) / 2

    def _deviations(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The returns one deviation below and above the data's mean."""
        low, high = self._normalizer[0].returns.inverse(torch.stack([-like.new_ones(()), like.new_ones(())])).unbind()
        return low, high

    def _mean(self, batch: Batch, errors: Tensor) -> Tensor:
        """The mean of squared errors (B, Q), in deviations of the data's returns."""
        low, high = self._deviations(errors)
        mean = batch.mean(errors.mean(1), lambda each: transitions_of(each).mask[:, 0])
        return mean / ((high - low) / 2).square()


def expectile_weight(errors: Tensor, expectile: float) -> Tensor:
    """|τ - 1(u < 0)| of errors u (IQL, section 4.1)."""
    return torch.where(errors < 0, 1 - expectile, expectile)


def chunk_target(transitions: Transitions, after: Tensor, discount: float) -> Tensor:
    """The return (B, Q) of a chunk's steps, and the value ``after`` (B, Q) them unless the task ended before."""
    real = transitions.mask.unsqueeze(1)  # (B, 1, H)
    goes_on = (~(transitions.terminals & real)).float().cumprod(-1)  # after each step
    reached = torch.cat([torch.ones_like(goes_on[..., :1]), goes_on[..., :-1]], dim=-1) * real
    steps = torch.arange(real.shape[-1], device=after.device)
    rewards = (transitions.rewards * reached * discount**steps).sum(-1)
    return rewards + goes_on[..., -1] * discount ** real.sum(-1) * after


def transitions_of(batch: Batch) -> Transitions:
    """The transitions of a batch.

    Raises:
        ValueError: if the stage did not ask for them.
    """
    if batch.transitions is None:
        raise ValueError("values are learnt from batches with transitions: Stage(…, transitions=critic.transitions)")
    return batch.transitions


def _per_goal(values: Tensor, transitions: Transitions) -> Tensor:
    """Values (B, n) once for each goal, (B, Q, n)."""
    return values.unsqueeze(1).expand(-1, transitions.rewards.shape[1], -1)
