"""What is done with a run: train it, load its policy, evaluate it, draw samples from it."""

from trajgen.runs.acting import SampleRequest, evaluate, sample
from trajgen.runs.loading import load_policy
from trajgen.runs.preparation import build_planner, dry_run, load_episodes, prepare, prepare_imports, ready
from trajgen.runs.training import train

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
