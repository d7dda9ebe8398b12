"""Experiments as functions: train a run, load its policy, evaluate it, draw samples from it, and compare many runs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajgen.experiments import training as training
    from trajgen.experiments.definition import Study, Variant
    from trajgen.experiments.evaluating import evaluate, sample
    from trajgen.experiments.loading import load_policy
    from trajgen.experiments.options import SampleRequest
    from trajgen.experiments.preparation import build_planner, dry_run, load_episodes, prepare, prepare_imports, ready
    from trajgen.experiments.search import run_search
    from trajgen.experiments.search_space import Search
    from trajgen.experiments.study import run_study
    from trajgen.experiments.table import Look
    from trajgen.experiments.training import train

__all__ = [
    "Look", "SampleRequest", "Search", "Study", "Variant", "build_planner", "dry_run", "evaluate", "load_episodes",
    "load_policy", "prepare", "prepare_imports", "ready", "run_search", "run_study", "sample", "train",
]  # fmt: skip

_MODULES = {
    "definition": ("Study", "Variant"),
    "evaluating": ("evaluate", "sample"),
    "loading": ("load_policy",),
    "options": ("SampleRequest",),
    "preparation": ("build_planner", "dry_run", "load_episodes", "prepare", "prepare_imports", "ready"),
    "search": ("run_search",),
    "search_space": ("Search",),
    "study": ("run_study",),
    "table": ("Look",),
    "training": ("train",),
}


def __getattr__(name: str) -> Any:
    """Imports a public name, or the module that has it, when it is first used: a study is refused without torch."""
    for module, names in _MODULES.items():
        if name in (module, *names):
            imported = importlib.import_module(f"trajgen.experiments.{module}")
            return imported if name == module else getattr(imported, name)
    raise AttributeError(f"module 'trajgen.experiments' has no attribute {name!r}")
