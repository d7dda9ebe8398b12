"""A trained policy in its world: evaluated, and asked for samples of its plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.config import Config, merged
from trajgen.core.errors import ConfigError
from trajgen.core.files import write_json
from trajgen.core.observations import put
from trajgen.core.options import nested
from trajgen.experiments.loading import load_policy
from trajgen.experiments.preparation import prepare_imports
from trajgen.experiments.run_folder import (
    free_path,
    load_config,
    trained_stages,
    write_summary,
)

if TYPE_CHECKING:
    from rich.console import Console

    from trajgen.envs.eval_env import EvalEnv
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy


CONDITIONS = 256
"""First states from which the condition error is measured."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Which plans ``trajgen sample`` draws."""

    seed: int = 0
    """Episode of the world whose first state and goal the plans are made for."""
    state: tuple[float, ...] | None = None
    """Another state to plan from, (S,)."""
    goal: tuple[float, ...] | None = None
    """Another goal, (G,)."""
    returns: float | None = None
    """Return-to-go to ask for, discounted, in the data's units; None for the policy's own target."""
    plans: int = 8
    """How many plans."""


def evaluate(
    folder: Path,
    console: Console,
    *,
    device: str = "auto",
    imports: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a run in its world, and writes evaluation.json, plots/ and summary.md.

    Args:
        folder: of the run.
        console: where figures are shown.
        device: auto, cpu, cuda or cuda:N.
        imports: own modules that register components.
        overrides: plain values that replace those of the run, as for `load_policy`.
        out: where the files are written; None for the run folder, or, where something is overridden, for a new
            folder ``evaluations/N`` in it, so that the run's own evaluation stays.
    """
    from trajgen.envs.eval_env import make_eval_env
    from trajgen.evaluation.evaluate import evaluate as play
    from trajgen.evaluation.evaluate import plain
    from trajgen.viz.plans import draw_run
    from trajgen.viz.summary import print_evaluation

    prepare_imports(imports)
    config, _ = load_config(folder)
    overrides = nested((overrides or {}).items())
    config = Config.from_plain(merged(config.to_plain(), overrides))
    trained_stages(folder / "metrics.jsonl")  # refuses now what could not be drawn in the end
    policy = load_policy(folder, device=device, imports=imports, overrides=overrides)
    eval_env = make_eval_env(config.data)
    with console.status("evaluating"):
        result = play(policy, eval_env, config.evaluation)
    seeds = range(config.evaluation.seed, config.evaluation.seed + CONDITIONS)
    figures = result.to_dict() | {"condition_error": condition_error(policy, eval_env, seeds)}
    if overrides:
        figures["overrides"] = overrides
    out = out or (free_path(folder / "evaluations") if overrides else folder)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "evaluation.json", plain(figures))
    seed, stride = config.evaluation.seed, config.data.stride
    plots = draw_run(out, folder / "metrics.jsonl", policy, eval_env, result, seed, stride=stride)
    write_summary(folder, out, config, figures, plots)
    print_evaluation(figures, console)
    console.print(f"{out / 'summary.md'}", style="bold", markup=False)
    return figures


def sample(
    folder: Path,
    console: Console,
    request: SampleRequest,
    *,
    device: str = "auto",
    imports: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Draws plans from one state into a new ``plots/sample-N.png``, and returns and prints their condition error."""
    from trajgen.envs.eval_env import make_eval_env
    from trajgen.evaluation.rollout import environments
    from trajgen.viz.plans import draw_plans

    policy = load_policy(folder, device=device, imports=imports, overrides=overrides)
    config, space = load_config(folder)
    eval_env = make_eval_env(config.data)
    with environments(eval_env, 1) as (environment,):
        observation = eval_env.reset(environment, request.seed)[0]
    if request.goal is not None and space.goal_key is None:
        raise ConfigError(
            "Only a run that plans for goals can be given one.",
            expected="no goal=…",
            got=f"goal={list(request.goal)}",
            fix="leave it out",
        )
    for key, values in ((space.state_key, request.state), (space.goal_key, request.goal)):
        if values is not None:
            observation = put(observation, key, np.asarray(values, dtype=np.float32))
    cond, plan, refinements = policy.preview([observation] * request.plans, request.returns)
    if plan.trajectory is None:
        console.print(f"Planner '{config.components['planner']['name']}' makes no trajectory to draw.", markup=False)
        return {}
    errors = policy.condition_error(cond, plan)
    path = free_path(folder / "plots", "sample-{}.png")
    path.parent.mkdir(exist_ok=True)
    draw_plans(path, policy, eval_env, observation, refinements)
    own = float(policy.normalizer.returns.inverse(cond.returns[:1]))
    console.print(f"{request.plans} plans, asked for a return-to-go of {own:.1f}: {path}", markup=False)
    for name in ("state", "return"):
        if name in errors:
            console.print(
                f"condition error of the first {name}: {errors[name + '_units']:.3g} in the data's units, "
                f"{errors[name]:.3g} of its standard deviation (root mean square)"
            )
    return errors


def condition_error(policy: RecedingHorizonPolicy, eval_env: EvalEnv, seeds: range) -> dict[str, float]:
    """How far decoded plans start from what was asked, over first states and goals of the world."""
    from trajgen.evaluation.rollout import environments

    with environments(eval_env, 1) as (environment,):
        seen = [eval_env.reset(environment, seed)[0] for seed in seeds]
    cond, plan, _ = policy.preview(seen)
    return policy.condition_error(cond, plan)
