"""The receding-horizon policy: plan, follow the plan for some steps or revise it meanwhile, plan again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajgen.core.choices import likeliest, numbers_of
from trajgen.core.errors import TrajgenError
from trajgen.core.normalizer import Affine, Normalizer
from trajgen.core.planning import Decodes, Observation, ReviseFn, with_subgoals
from trajgen.core.types import Cond, FollowedPlan, Plan, Space
from trajgen.export.backends import plan_fn, revise_fn
from trajgen.policies.history import History
from trajgen.policies.inputs import ObservationReader, episode_count, episode_indices, per_episode
from trajgen.policies.options import PolicyOptions


class RecedingHorizonPolicy:
    """Acts in one environment or a batch of them, each with its own clock, plan and remaining return.

    Args:
        planner: satisfies `trajgen.core.planning.Planner`.
        normalizer: of the data that the planner was trained on.
        space: how observations are read and actions bounded.
        options: see `PolicyOptions`.
        discount: by which the remaining return grows as rewards come in.
        chunk: for how many steps the action head can follow a plan.

    Raises:
        ConfigError: if a plan would be followed for longer than the action head can, or the backend is not available.
    """

    def __init__(
        self, planner: Any, normalizer: Normalizer, space: Space, options: PolicyOptions, *, discount: float, chunk: int
    ) -> None:
        self.replan_interval = options.steps(planner, chunk)
        self.planner, self.normalizer, self.space = planner, normalizer, space
        self.options, self.discount = options, discount
        self._reader = ObservationReader(space)
        self.device = next(planner.parameters()).device
        self._batched = False
        self._low = torch.tensor(space.action_low or (-torch.inf,) * space.action_dim, device=self.device)
        self._high = torch.tensor(space.action_high or (torch.inf,) * space.action_dim, device=self.device)
        planner.eval()
        self._plan_fn = plan_fn(options.backend, planner)
        self._revise_fn: ReviseFn | None = None
        if options.revise is not None:
            self._revise_fn = revise_fn(options.backend, planner, options.revise - 1, options.revise_misfit)
        self._start(0)

    def reset(self, *, batch: int | None = None, ids: Sequence[int] | None = None) -> None:
        """Starts ``batch`` episodes, or restarts those of ``ids``, or starts one unbatched episode.

        Args:
            batch: B.
            ids: numbers of episodes, or a truth value for each of the batch.

        Raises:
            TrajgenError: if there is no such number of episodes, or no such episode.
        """
        if ids is not None:
            self._restart(episode_indices(ids, self._episodes))
            return
        episodes = 1 if batch is None else episode_count(batch)
        self._batched = batch is not None
        self._start(episodes)

    def seed_noise(self, offset: int) -> None:
        """Starts the sampler's random numbers anew, from ``options.seed + offset``; `reset` takes offset 0."""
        self._rng = torch.Generator(self.device).manual_seed(self.options.seed + offset)

    def _start(self, episodes: int) -> None:
        self._episodes = episodes
        self._age = torch.zeros(episodes, dtype=torch.long)  # steps since the episode's start
        self._plan_age = torch.full_like(self._age, self.replan_interval)  # steps since the plan was made as a whole
        self._offset = torch.zeros_like(self._age)  # steps since it was made or revised
        self._drawn_in = torch.zeros(episodes, self.space.state_dim, device=self.device)  # the state then
        self._misfit: tuple[Tensor, Tensor] | None = None  # whether that of plans just revised is high
        self._remaining = torch.full((episodes,), torch.nan)  # of the first target; NaN until there is one
        self._plan: Plan | None = None
        self._goals: np.ndarray | None = None  # of the last step
        self.seed_noise(0)
        self._history: History | None = None
        if self.planner.history:
            points, space = self.planner.history, self.space
            self._history = History(episodes, points, space.state_dim, space.action_dim, self.device)

    def _restart(self, index: Tensor) -> None:
        self._age[index] = 0
        self._plan_age[index] = self.replan_interval
        self._remaining[index] = torch.nan

    @torch.inference_mode()
    def act(self, observation: Observation) -> np.ndarray:
        """Actions (B, A), or (A,) for an unbatched episode, in the environment's own units and bounds.

        Discrete ones are the numbers of the likeliest choices, (B,) or (B, parts).

        Raises:
            TrajgenError: before `reset`; if the observation is not that of as many episodes, or not finite; or if an
                action is not.
        """
        if not self._episodes:
            raise TrajgenError("The policy must be reset before it acts.", fix="policy.reset()")
        state, goal, goals = self._read(observation)
        if len(state) != self._episodes:
            raise TrajgenError(
                f"The policy acts in {self._episodes} episodes, and gets {len(state)} observations.",
                fix=f"policy.reset(batch={len(state)}) starts as many",
            )
        if self._history is not None:
            self._history.push(state, self._on_device(self._age))
        plan_is_due = self._plan_age >= self.replan_interval
        if goals is not None and self.options.replan_on_new_goal:
            if self._goals is not None:
                plan_is_due |= torch.from_numpy((goals != self._goals).any(1))
            self._goals = goals.copy()  # the environment may go on with its own array
        self._draw(plan_is_due, state, goal, self._new_plan)
        if self._plan is None:
            raise RuntimeError("no episode of a new batch was due")
        if self._revise_fn is not None:
            is_due = ~plan_is_due & (self._offset >= self.options.revise_interval)
            self._draw(is_due, state, goal, partial(self._revised_plan, self._revise_fn, self._plan))
        offsets = self._on_device(self._offset).unsqueeze(-1)
        action = self.planner.action(self._plan, state.unsqueeze(1), offsets).squeeze(1)
        for clock in (self._age, self._plan_age, self._offset):
            clock += 1
        in_units, choices = self.normalizer.action.inverse(action), self.space.choices
        bounded = likeliest(in_units, choices) if choices else torch.clamp(in_units, self._low, self._high)
        if self._history is not None:
            self._history.record_action(self.normalizer.action(bounded))
        on_host = (in_units if choices else bounded).float().cpu()
        if not on_host.isfinite().all():
            raise TrajgenError(
                "A plan gives an action that is not finite.",
                got=f"{on_host[~on_host.isfinite().all(1)][0].tolist()} at step {int(self._age.max()) - 1}",
                fix="return_target.subtract_rewards=false, where the target return outgrows the data; or train anew",
            )
        result: np.ndarray = (likeliest(on_host, choices) if choices else on_host).numpy()
        if self._misfit is not None:  # read once the actions are here, so that nothing more is waited for
            rows, is_high = self._misfit
            self._plan_age[rows[is_high.cpu()]] = self.replan_interval
            self._misfit = None
        if choices:
            result = numbers_of(result, choices)
        return result if self._batched else result[0]

    def observe(self, reward: Any, done: Any) -> None:
        """Subtracts rewards from the remaining returns; an episode that is done starts anew.

        Raises:
            TrajgenError: if there is not one finite reward and one truth value for each episode.
        """
        rewards = per_episode(reward, self._episodes, "reward", np.float32)
        is_done = per_episode(done, self._episodes, "done", bool)
        self._remaining = (self._remaining - rewards) / self.discount
        if self._history is not None:
            self._history.record_reward(self.normalizer.reward(self._on_device(rewards)))
        self._restart(is_done)

    def condition(self, observation: Observation, returns: float | None = None) -> Cond:
        """The condition of a plan made now.

        Args:
            observation: batched or not, as from the environment.
            returns: the target return-to-go, in the data's (discounted) units; None takes the return target's.
        """
        state, goal, _ = self._read(observation)
        first_plan = torch.full((len(state),), torch.nan, device=self.device)
        time = torch.zeros(len(state), dtype=torch.long, device=self.device)
        cond = with_subgoals(self.planner, Cond(state, first_plan, goal, time=time))
        if returns is None:
            target_return = self.planner.return_target(state, cond.goal, first_plan)
        else:
            target_return = self.normalizer.returns(torch.full((len(state),), float(returns), device=self.device))
        return replace(cond, returns=target_return)

    @torch.inference_mode()
    def preview(self, observation: Observation, returns: float | None = None) -> tuple[Cond, Plan, dict[str, Tensor]]:
        """The plan that would be made now and its refinements; the episode under way is left as it is.

        Args:
            observation: batched or not, as from the environment, or a list of them.
            returns: the target return-to-go, in the data's (discounted) units; None takes the return target's.

        Returns:
            The condition, the plan, and trajectories (B, T, D) by scale, coarse to fine; all normalized.
        """
        cond = self.condition(observation, returns)
        rng = torch.Generator(self.device).manual_seed(self.options.seed)
        plan = self.planner.plan(cond, rng)
        return cond, plan, self.planner.refinements(plan, cond)

    @torch.inference_mode()
    def condition_error(self, cond: Cond, plan: Plan, other: Plan | None = None) -> dict[str, float]:
        """How far decoded plans start from the state and the return that they are conditioned on.

        The same error is measured with another plan's latent and with a latent of zeros: a decoder that copies its
        condition meets it with any latent, and the error then says nothing about the plan.

        Args:
            cond: B conditions.
            plan: the plans made for them, decoded.
            other: B plans for other conditions, whose latents are decoded for these; None leaves that control out.

        Returns:
            Root mean squares over plans: ``state``, ``position`` and ``return`` in standard deviations of the data,
            ``state_units`` and so on in the data's own units, ``state_other_latent``, ``state_zero_latent`` and so on
            for the two controls; empty for plans without a trajectory.
        """
        if plan.trajectory is None:
            return {}
        errors: dict[str, float] = {}
        maps: dict[str, Affine] = {"state": self.normalizer.state, "return": self.normalizer.returns}
        condition = {"state": cond.state, "return": cond.returns.unsqueeze(-1)}
        residuals = self.planner.condition_residuals(plan.trajectory, cond)
        if "position" in residuals:
            indices = self.planner.view.position_indices
            condition["position"], maps["position"] = cond.state[:, indices], self.normalizer.state.part(indices)
        for name, residual in residuals.items():
            in_units = maps[name].inverse(condition[name] + residual) - maps[name].inverse(condition[name])
            errors[name], errors[f"{name}_units"] = _rms(residual), _rms(in_units)
        has_latent = isinstance(self.planner, Decodes)
        if has_latent:
            others = {} if other is None else {"other_latent": other.latent}
            for control, latent in (others | {"zero_latent": torch.zeros_like(plan.latent)}).items():
                trajectory = self.planner.decode(latent, cond)
                for name, residual in self.planner.condition_residuals(trajectory, cond).items():
                    errors[f"{name}_{control}"] = _rms(residual)
        return errors

    def _draw(
        self, is_due: Tensor, state: Tensor, goal: Tensor | None, draw: Callable[[Tensor, Cond], tuple[Tensor, Plan]]
    ) -> None:
        """Gives the episodes that are due (B,) the plans that ``draw`` makes of their indices and conditions."""
        due = is_due.nonzero().squeeze(-1)
        if not len(due):
            return
        all_due, rows = len(due) == self._episodes, self._on_device(due)
        if not all_due:
            state, goal = state[rows], None if goal is None else goal[rows]
        remaining = self.normalizer.returns(self._on_device(self._remaining[due]))
        age, past = self._on_device(self._age[due]), None
        if self._history is not None:
            past = self._history.past()
            past = past if all_due else past.map(lambda values: values[rows])
        target_return, plan = draw(due, Cond(state, remaining, goal, time=age, past=past))
        if self._history is not None:
            self._history.record_return(target_return, rows)
        if bool(self._remaining[due].isnan().any()):  # an episode's first plan; later ones leave nothing to wait for
            first = self.normalizer.returns.inverse(target_return).cpu()
            self._remaining[due] = torch.where(self._remaining[due].isnan(), first, self._remaining[due])
        self._offset[due] = 0
        if self._revise_fn is not None:
            self._drawn_in = state if all_due else self._drawn_in.index_copy(0, rows, state)
        if all_due or self._plan is None:
            self._plan = plan
        else:
            self._plan = self._plan.with_rows(rows, plan)

    def _new_plan(self, due: Tensor, cond: Cond) -> tuple[Tensor, Plan]:
        self._plan_age[due] = 0
        return self._plan_fn(cond, self._rng)

    def _revised_plan(self, revise_fn: ReviseFn, plan: Plan, due: Tensor, cond: Cond) -> tuple[Tensor, Plan]:
        followed = FollowedPlan(plan.codes, self._drawn_in, self._on_device(self._offset), plan.worth)
        if len(due) < self._episodes:
            rows = self._on_device(due)
            followed = followed.map(lambda values: values[rows])
        target_return, revised, misfit = revise_fn(cond, followed, self._rng)
        if self.options.revise_threshold is not None:
            self._misfit = due, misfit > self.options.revise_threshold
        return target_return, revised

    def _read(self, observation: Observation) -> tuple[Tensor, Tensor | None, np.ndarray | None]:
        """States (B, S) and goals (B, G), normalized, and the goals in their own units on the host."""
        states, goals, images = self._reader(observation)
        goal = None if goals is None else self.normalizer.goal(self._on_device(torch.tensor(goals)))
        state = self._on_device(torch.tensor(states))
        if images is not None:
            features = self.planner.encoder(self._on_device(torch.tensor(images)))
            state = torch.cat([state, features], dim=-1)
        return self.normalizer.state(state), goal, goals

    def _on_device(self, values: Tensor) -> Tensor:
        """Values of the host on the device; from pinned memory, so that the host waits for nothing that runs there."""
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
