"""Evaluating the policy of a run folder, and drawing samples of its plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trajgen.core.errors import ConfigError, is_out_of_memory
from trajgen.core.files import free_path, new_folder, require_writable, write_json
from trajgen.core.observations import put
from trajgen.core.options import nested
from trajgen.core.terminal import progress
from trajgen.experiments.loading import load_policy, load_run
from trajgen.experiments.options import SampleRequest
from trajgen.experiments.preparation import build_planner
from trajgen.experiments.run_folder import (
    contents,
    data_returns,
    evaluation_folder,
    load_config,
    recorded_env,
    trained_stages,
    write_summary,
)
from trajgen.experiments.starting import trained_weights
from trajgen.experiments.versions import recorded_versions

if TYPE_CHECKING:
    from rich.console import Console

    from trajgen.envs.eval_env import EvalEnv
    from trajgen.evaluation.rollout import Progress
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy


CONDITIONS = 256
"""First states from which the condition error is measured."""


def evaluate(
    folder: Path,
    console: Console,
    *,
    device: str = "auto",
    imports: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a run in its environment, and writes evaluation.json, plots/ and summary.md.

    Where its data name no environment, its actions are compared with theirs (`trajgen.evaluation.on_data`).

    Args:
        folder: of the run.
        console: for the scores.
        device: auto, cpu, cuda or cuda:N.
        imports: own modules that register components.
        overrides: plain values that replace those of the run, as for `load_policy`.
        out: where the files are written; None for the run folder, or, where something is overridden, for a new
            folder in its ``evaluations/``, named by what differs, so that the run's own evaluation stays.
    """
    from trajgen.envs.replay import env_of_run
    from trajgen.evaluation.evaluate import evaluate as play
    from trajgen.evaluation.evaluate import plain
    from trajgen.evaluation.on_data import compare_with_data
    from trajgen.evaluation.pool import environments
    from trajgen.viz.plans import draw_run
    from trajgen.viz.summary import print_evaluation

    overrides = nested((overrides or {}).items())
    config, _ = load_run(folder, imports, overrides)
    # Damaged files of the run are refused before the episodes are played.
    trained_stages(folder / "metrics.jsonl")
    recorded_versions(folder)
    returns = data_returns(folder)
    policy = load_policy(folder, device=device, imports=imports, overrides=overrides)
    eval_env = env_of_run(config.data, recorded_env(folder))
    if out is not None and (out / "config.json").exists() and out.resolve() != folder.resolve():
        raise ConfigError("An evaluation is not written into another run.", got=f"out={out}", fix="out=ANOTHER")
    require_writable(out or folder, "out=ANOTHER, or mend the permissions")
    with environments(eval_env, 1) as (environment,):
        eval_env.require_fits(environment, policy.space)
    episodes = min(config.evaluation.episodes, eval_env.replayed_episodes or config.evaluation.episodes)
    show = partial(episode_progress, console, episodes, eval_env.max_steps)
    if eval_env.replayed_episodes:
        deviations = None if policy.space.choices else policy.normalizer.action.scale.cpu().numpy()
        result = compare_with_data(policy, eval_env, config.evaluation, deviations, progress=show)
    else:
        result = play(policy, eval_env, config.evaluation, progress=show)
    seeds = range(config.evaluation.seed, config.evaluation.seed + CONDITIONS)
    figures = result.to_dict() | {"condition_error": condition_error(policy, eval_env, seeds, result.rollouts.states)}
    trained_config, space = load_config(folder)
    if trained_config.train_only:
        figures["trained_weights"] = trained_weights(build_planner(trained_config, space), trained_config.train_only)
    if overrides:
        figures["overrides"] = overrides
    if returns is not None:
        figures["data_returns"] = returns
    out = out or (evaluation_folder(folder, overrides) if overrides else folder)
    with nullcontext(out) if contents(out) else new_folder(out) as target:
        write_json(target / "evaluation.json", plain(figures))
        seed, stride = config.evaluation.seed, config.data.strides[0]
        plots = draw_run(target, folder / "metrics.jsonl", policy, eval_env, result, seed, stride=stride)
        write_summary(folder, target, config, figures, plots)
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
    from trajgen.envs.replay import env_of_run
    from trajgen.evaluation.pool import environments
    from trajgen.viz.plans import draw_plans

    policy = load_policy(folder, device=device, imports=imports, overrides=overrides)
    config, space = load_run(folder, imports, overrides)
    eval_env = env_of_run(config.data, recorded_env(folder))
    if request.goal is not None and space.goal_key is None:
        raise ConfigError("The run was trained without goals.", got=f"goal={list(request.goal)}", fix="leave it out")
    if request.state is not None and space.image_shape:
        raise ConfigError("The state of this run is made of images.", got="state=…", fix="seed=N for another one")
    sizes = {"state": (space.state_dim, request.state), "goal": (space.goal_dim, request.goal)}
    for name, (size, values) in sizes.items():
        if values is not None and len(values) != size:
            raise ConfigError(
                f"The {name} of this run has {size} values.",
                got=f"{name}={list(values)}",
                fix=f"'{name}=[{','.join('0' * size)}]', of the numbers that you mean",
            )
    with environments(eval_env, 1) as (environment,):
        observation = eval_env.reset(environment, request.seed)[0]
    for key, values in ((space.state_key, request.state), (space.goal_key, request.goal)):
        if values is not None:
            observation = put(observation, key, np.asarray(values, dtype=np.float64))
    cond, plan, refinements = policy.preview([observation] * request.plans, request.return_)
    if plan.trajectory is None:
        console.print(f"Planner '{config.components['planner']['name']}' makes no trajectory to draw.", markup=False)
        return {}
    errors = policy.condition_error(cond, plan)
    path = free_path(folder / "plots", "sample-{}.png")
    path.parent.mkdir(exist_ok=True)
    draw_plans(path, policy, eval_env, observation, refinements, cond=cond)
    return_to_go = float(policy.normalizer.returns.inverse(cond.returns[:1]))
    console.print(f"{request.plans} plans for a target return-to-go of {return_to_go:.1f}: {path}")
    for name in ("state", "return"):
        if name in errors:
            console.print(
                f"condition error of the first {name}: {errors[name + '_units']:.3g} in the data's units, "
                f"{errors[name]:.3g} of its standard deviation (root mean square)"
            )
    return errors


@contextmanager
def episode_progress(console: Console, episodes: int, max_steps: int, player: str) -> Iterator[Progress]:
    """Shows the steps of a player's episodes with the time left, and how many have ended."""
    with progress(console, player, episodes * max_steps) as show:
        yield lambda steps, ended: show(steps, [f"{ended}/{episodes} ended"])


def condition_error(
    policy: RecedingHorizonPolicy, eval_env: EvalEnv, seeds: range, states: Sequence[NDArray[Any]]
) -> dict[str, float]:
    """Distance of the plans' first state and return from the condition, over the first states of episodes.

    The other plans of its control are for the same goals, from states along episodes: where all episodes start alike,
    plans for the first states are alike too. With images, of which episodes record none, it is left out.

    Args:
        policy: makes the plans.
        eval_env: whose episodes start.
        seeds: of the first states.
        states: of the policy's episodes, each (steps + 1, S).

    Returns:
        The errors by name; empty where no episode can be started, or so many plans do not fit into the memory of the
        device.
    """
    from trajgen.evaluation.rollout import first_observations

    observations = [*first_observations(eval_env, seeds).values()]
    if not observations:
        return {}
    try:
        cond, plan = policy.preview(observations)[:2]
        other = None
        visited = [state for episode in states for state in episode]
        if visited and not policy.space.image_shape:
            spread = len(visited) * (2 * np.arange(len(observations)) + 1) // (2 * len(observations))
            key = policy.space.state_key
            later = [put(first, key, visited[i]) for first, i in zip(observations, spread, strict=True)]
            other = policy.preview(later)[1]
        return policy.condition_error(cond, plan, other)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {}
