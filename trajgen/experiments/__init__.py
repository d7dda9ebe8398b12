"""What is done with a run: train it, load its policy, evaluate it, draw samples from it."""

from trajgen.experiments.evaluating import SampleRequest, evaluate, sample
from trajgen.experiments.loading import load_policy
from trajgen.experiments.preparation import build_planner, dry_run, load_episodes, prepare, prepare_imports, ready
from trajgen.experiments.training import train

__all__ = [
    "SampleRequest",
    "build_planner",
    "dry_run",
    "evaluate",
    "load_episodes",
    "load_policy",
    "prepare",
    "prepare_imports",
    "ready",
    "sample",
    "train",
]
