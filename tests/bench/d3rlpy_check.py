"""Scores of another library under trajgen's protocol: ``d3rlpy_check.py iql|dt MINARI_ID --steps N --out FILE.json``.

d3rlpy's IQL and Decision Transformer learn from the same Minari set and play the same episodes, one for each reset
seed. Nothing of trajgen is imported, so that an error of its reading or its rollouts would show as a difference.
d3rlpy 2.8.1 requires gymnasium 1.0.0, which gymnasium-robotics 1.4.2 refuses, but works with 1.4.0:

    pip install 'minari[hdf5]==0.5.4' gymnasium==1.4.0 gymnasium-robotics==1.4.2 'mujoco<3.12' torch pillow
    pip install gym tqdm click structlog colorama dataclasses-json scikit-learn
    pip install --no-deps d3rlpy==2.8.1
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
PACKAGES = ("d3rlpy", "torch", "gymnasium", "gymnasium-robotics", "minari", "mujoco", "numpy")


@dataclass(frozen=True)
class Family:
    """The settings of IQL's paper (arXiv 2110.06169) for some environments, and how trajgen's presets play them."""

    expectile: float = 0.7
    weight_temp: float = 3.0
    dropout: float | None = None
    reward: str = "spread"  # over the spread of the data's returns; "shift": minus one; "none"
    info: str = "success"
    at_least: float = 1.0
    ends_at_goal: bool = False
    limits_of_data: bool = False
    env_options: dict[str, bool] = field(default_factory=dict)

    def good(self, info: Mapping[str, Any]) -> bool | None:
        """Whether a step is good; None if the environment does not say."""
        value = info.get(self.info)
        count = len(value) if isinstance(value, list | tuple | set) else value
        return None if count is None else float(count) >= self.at_least


HAND = Family(weight_temp=0.5, dropout=0.1, reward="none")
ANT = Family(0.9, 10.0, reward="shift", ends_at_goal=True, limits_of_data=True, env_options={"continuing_task": False})
ONCE = {"terminate_on_tasks_completed": True, "remove_task_when_completed": True}
KITCHEN = replace(HAND, info="episode_task_completions", at_least=4.0, env_options=ONCE)
FAMILIES = {"AntMaze": ANT, "AdroitHand": HAND, "FrankaKitchen": KITCHEN}


def flat(observation: Any) -> Array:
    """An observation as one vector, batched or not; the kitchen's goals never change, and are left out."""
    if isinstance(observation, Mapping):
        has_goal_vector = not isinstance(observation["achieved_goal"], Mapping)
        keys = ["achieved_goal", "observation", "desired_goal"] if has_goal_vector else ["observation"]
        observation = np.concatenate([np.asarray(observation[key]) for key in keys], axis=-1)
    return np.asarray(observation, dtype=np.float32)


def episodes_of(raws: list[Any], low: Array, high: Array, ends_at_goal: bool, make: Callable[..., Any]) -> list[Any]:
    """The episodes of a Minari set as d3rlpy's; ``ends_at_goal`` ends one at every arrival, as the evaluation does.

    d3rlpy keeps no observation after the last step, and so drops the last step of an episode that a time limit ended:
    what it leads to is not known. One more row brings that observation in. It is the row that is dropped then: no
    transition and no window begins or ends there.
    """
    episodes = []
    for raw in raws:
        observations, actions = flat(raw.observations), raw.actions.astype(np.float32).clip(low, high)
        step_rewards, first = raw.rewards.astype(np.float32)[:, None], 0
        ends = {len(step_rewards): bool(raw.terminations[-1])}
        if ends_at_goal:  # data that go on after an arrival fall into pieces of one step while they stay there
            ends |= {int(step) + 1: True for step in np.flatnonzero(step_rewards > 0)}
        for last in sorted(ends):
            rows = np.arange(first, last if ends[last] else last + 1)
            if last - first > 1 or not ends_at_goal:
                real, last_action = rows[: last - first], np.minimum(rows, last - 1)
                rewards = np.concatenate([step_rewards[real], np.zeros((len(rows) - len(real), 1), np.float32)])
                episodes.append(make(observations[rows], actions[last_action], rewards, ends[last]))
            first = last
    return episodes


def learner(d3rlpy: Any, options: argparse.Namespace, family: Family, episodes: list[Any], shared: Any) -> Any:
    """IQL, or the Decision Transformer of arXiv 2106.01345, with the settings of their papers."""
    pre, optimizers, encoder = d3rlpy.preprocessing, d3rlpy.optimizers, d3rlpy.models.VectorEncoderFactory
    returns = [each.compute_return() for each in episodes]
    if options.method == "dt":
        warmup = optimizers.WarmupSchedulerFactory(warmup_steps=min(10_000, max(1, options.steps // 10)))
        longest = max(options.max_steps or 1000, *map(len, episodes))
        config = d3rlpy.algos.DecisionTransformerConfig(
            batch_size=options.batch or 64,
            optim_factory=optimizers.GPTAdamWFactory(
                weight_decay=1e-4, clip_grad_norm=0.25, lr_scheduler_factory=warmup
            ),
            encoder_factory=encoder([128], exclude_last_activation=True),
            # the paper's scale of returns in the thousands; small ones, as of the kitchen, stay what they are
            reward_scaler=pre.MultiplyRewardScaler(0.001 if max(map(abs, returns)) > 100 else 1.0),
            context_size=20,
            max_timestep=longest + 2,  # steps count from 1
            **shared,
        )
        return config.create(device="cpu")
    scaler: Any = pre.ConstantShiftRewardScaler(shift=-1.0) if family.reward == "shift" else None
    if family.reward == "spread":
        scaler = pre.ReturnBasedRewardScaler(max(returns), min(returns), multiplier=1000.0)
    falling = optimizers.CosineAnnealingLRFactory(T_max=options.steps)
    config = d3rlpy.algos.IQLConfig(
        batch_size=options.batch or 256,
        expectile=options.expectile or family.expectile,
        weight_temp=options.weight_temp or family.weight_temp,
        actor_encoder_factory=encoder([256, 256], dropout_rate=family.dropout),
        actor_optim_factory=optimizers.AdamFactory(lr_scheduler_factory=falling),
        reward_scaler=scaler,
        **shared,
    )
    return config.create(device="cpu")


def play(env: Any, seed: int, act: Callable[[Array, float], Any], family: Family) -> tuple[float, int, int]:
    """One episode: its return, its steps, and at how many the environment said success (-1 if it never says)."""
    observation, info = env.reset(seed=seed)
    total, reward, steps, over = 0.0, 0.0, 0, False
    good = [family.good(info)]
    while not over:
        action = act(flat(observation), reward)
        observation, step_reward, terminated, truncated, info = env.step(action.astype(env.action_space.dtype))
        reward, steps, over = float(step_reward), steps + 1, bool(terminated or truncated)
        total += reward
        good.append(family.good(info))
    known_good = [each for each in good if each is not None]
    return total, steps, sum(known_good) if known_good else -1


def main(options: argparse.Namespace) -> None:
    """Trains, plays, writes the file, and prints one line."""
    import minari
    import torch

    d3rlpy, structlog = importlib.import_module("d3rlpy"), importlib.import_module("structlog")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))  # warnings alone
    torch.set_num_threads(options.threads)
    d3rlpy.seed(options.seed)

    dataset = minari.load_dataset(options.id)
    about, raws = dataset.storage.metadata, list(dataset.iterate_episodes())
    env_id = json.loads(about.get("eval_env_spec") or about["env_spec"])["id"]
    family = next((family for name, family in FAMILIES.items() if env_id.startswith(name)), Family())
    limit = {"max_episode_steps": options.max_steps} if options.max_steps else {}
    low, high = dataset.action_space.low.astype(np.float32), dataset.action_space.high.astype(np.float32)
    if family.limits_of_data:
        low = np.maximum(low, np.min([raw.actions.min(0) for raw in raws], axis=0)).astype(np.float32)
        high = np.minimum(high, np.max([raw.actions.max(0) for raw in raws], axis=0)).astype(np.float32)
    episodes = episodes_of(raws, low, high, family.ends_at_goal, d3rlpy.dataset.Episode)
    rows = np.concatenate([each.observations for each in episodes]).astype(np.float64)
    shared = {  # fitted here: d3rlpy fits them transition by transition, in a slow loop
        "observation_scaler": d3rlpy.preprocessing.StandardObservationScaler(rows.mean(0), rows.std(0)),
        "action_scaler": d3rlpy.preprocessing.MinMaxActionScaler(low, high),
    }
    returns = [each.compute_return() for each in episodes]
    target = float(np.percentile(returns, 90)) if options.target_return is None else options.target_return
    algo = learner(d3rlpy, options, family, episodes, shared)
    buffer = d3rlpy.dataset.ReplayBuffer(d3rlpy.dataset.InfiniteBuffer(), episodes=episodes)
    quiet = {"logger_adapter": d3rlpy.logging.NoopAdapterFactory(), "show_progress": False}
    began, busy = time.perf_counter(), time.process_time()
    algo.fit(buffer, n_steps=options.steps, n_steps_per_epoch=options.steps, **quiet)
    trained, busy = time.perf_counter() - began, time.process_time() - busy  # they differ on a machine that is shared
    began, played = time.perf_counter(), []
    for seed in range(options.first_seed, options.first_seed + options.episodes):
        wrapper = algo.as_stateful_wrapper(target) if options.method == "dt" else None

        def act(observation: Array, reward: float, wrapper: Any = wrapper) -> Any:
            action = wrapper.predict(observation, reward) if wrapper else algo.predict(observation[None])[0]
            return np.clip(action, low, high)

        # A new environment for each, as for trajgen's episodes: a reset leaves something of the last one in some.
        env = dataset.recover_environment(eval_env=True, **family.env_options, **limit)
        played.append(play(env, seed, act, family))
        env.close()
    earned, lengths, good = map(np.array, zip(*played, strict=True))
    resampled = np.random.default_rng(0).integers(len(earned), size=(10_000, len(earned)))
    low_end, high_end = np.percentile(earned[resampled].mean(1), [2.5, 97.5])
    success = None if (good < 0).all() else float((good >= options.success_steps).mean())
    worst, best = about.get("ref_min_score"), about.get("ref_max_score")
    result = {
        "options": {name: str(value) if name == "out" else value for name, value in vars(options).items()},
        "env": {"id": env_id, **family.env_options, **limit},
        "data": {"episodes": len(episodes), "least_deviation": float(rows.std(0).min())},
        "target_return": target if options.method == "dt" else None,
        "return": {"mean": float(earned.mean()), "ci95": [float(low_end), float(high_end)]},
        "score": None if worst is None or best is None else 100 * float(earned.mean() - worst) / (best - worst),
        "success": success,
        "episodes": {"returns": earned.tolist(), "lengths": lengths.tolist(), "good_steps": good.tolist()},
        "minutes": {"training": trained / 60, "evaluation": (time.perf_counter() - began) / 60},
        "processor_ms_per_step": 1000 * busy / options.steps,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    success_text = "" if success is None else f", success {success:.2f}"
    cost = f"{trained / 60:.1f} min of training, {1000 * busy / options.steps:.1f} ms a step of processor"
    print(f"{options.method} {options.id}: {earned.mean():.2f} ({low_end:.2f} to {high_end:.2f}){success_text}; {cost}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("method", choices=["iql", "dt"])
    parser.add_argument("id", help="a Minari set of this machine")
    parser.add_argument("--out", type=Path, required=True)
    for name, default in {"seed": 0, "steps": 50_000, "episodes": 48, "first-seed": 0, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--success-steps", type=int, default=1, help="good steps that make a success")
    parser.add_argument("--max-steps", type=int, help="of an episode; the environment's own if not given")
    parser.add_argument("--batch", type=int, help="256 for iql, 64 for dt if not given")
    for name in ("expectile", "weight-temp"):
        parser.add_argument(f"--{name}", type=float, help="of iql; its paper's for the environment if not given")
    parser.add_argument("--target-return", type=float, help="of dt; the data's 90th percentile if not given")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
