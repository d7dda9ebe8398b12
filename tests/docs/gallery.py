"""The gallery of the front page: plans, coarse to fine, in the three mazes, and the paths that followed.

``python tests/docs/gallery.py RUN RUN RUN [out=docs/images]`` writes ``gallery_MAZE.png`` for the maze of each run.
Nothing is chosen by how well it looks: of the first episodes, the one whose goal lies farthest from its start is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trajgen.core.errors import ConfigError
from trajgen.envs.eval_env import EvalEnv
from trajgen.envs.pointmaze import MAZES
from trajgen.evaluation.rollout import first_observations, rollout
from trajgen.experiments.loading import open_run
from trajgen.viz.plans import draw_plans

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
EPISODES = 24
"""Episodes of which one is drawn."""


def draw(folder: Path, out: Path) -> Path:
    """Draws the plan for one episode of a run, and the path that followed.

    Raises:
        ConfigError: if the run's environment is no maze, or it plans no states.
    """
    run = open_run(folder, device="cpu")
    maze = next((name for name, maze in MAZES.items() if maze.env_id == run.eval_env.name), None)
    if maze is None:
        raise ConfigError("The gallery shows mazes.", got=f"{folder}: {run.eval_env.name}", fix="a run in a maze")
    seed, observation = farthest(run.eval_env)
    executed = rollout(run.policy, run.eval_env, [seed]).states[0]
    _, _, refinements = run.policy.preview([observation])
    path, stride = out / f"gallery_{maze}.png", run.config.data.stride
    if not draw_plans(path, run.policy, run.eval_env, observation, refinements, executed, stride=stride):
        raise ConfigError("The gallery shows plans of states.", got=f"{folder}", fix="a run of recipe mage")
    return path


def farthest(eval_env: EvalEnv) -> tuple[int, dict[str, np.ndarray]]:
    """Of the first episodes, the seed and the first observation of the one with the farthest goal."""
    observations = first_observations(eval_env, range(EPISODES))
    distances = {s: np.linalg.norm(each["desired_goal"] - each["achieved_goal"]) for s, each in observations.items()}
    seed = max(distances, key=lambda s: float(distances[s]))
    return seed, observations[seed]


def main(words: Sequence[str]) -> None:
    """Draws the gallery of the runs that are named."""
    out = next((Path(word.removeprefix("out=")) for word in words if word.startswith("out=")), IMAGES)
    for run in (Path(word) for word in words if not word.startswith("out=")):
        print(draw(run, out))


if __name__ == "__main__":
    main(sys.argv[1:])
