"""Success and milliseconds by the number of plans that a critic chooses among.

``python tests/bench/candidates.py RUN [sampler=best_of_n critic=length …]``. The first line is one plan of the drawing
sampler alone, which the ratios are to.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

import trajgen
from trajgen.bench.decision import time_decisions
from trajgen.bench.timing import Timing
from trajgen.core.tables import Table, percent
from trajgen.envs.eval_env import make_eval_env
from trajgen.evaluation.evaluate import EvaluationOptions, evaluate
from trajgen.experiments.loading import load_run
from trajgen.experiments.run_folder import recorded_env

COUNTS = (1, 2, 4, 8, 16, 32, 64)


def timing(policy: Any, repeats: int) -> Timing:
    """One plan and its action, eagerly."""
    lines, _ = time_decisions(policy.planner, policy.space, (1,), ("eager",), repeats)
    return lines[0][2]


def curve(
    run: Path, changes: Mapping[str, Any], counts: Sequence[int], options: EvaluationOptions | None, repeats: int
) -> list[list[str]]:
    """The cells of a line for each number of plans; without episodes nothing is played."""
    config, _ = load_run(run, overrides=changes)
    eval_env, rows = make_eval_env(config.data, recorded_env(run)), []
    baseline: Timing | None = None
    for count in (None, *counts):
        if count is None and len(config.data.strides) > 1:
            continue  # of several strides a critic has to choose
        policy: Any = trajgen.load_policy(run, overrides={**changes, "sampler.n": count or 1})
        if count is None:
            policy.planner.sampler = policy.planner.sampler.sampler
        time = timing(policy, repeats)
        baseline = baseline or time
        ratio = f"{min(time.values) / min(baseline.values):.2f}"
        cells = ["one, not chosen" if count is None else str(count), *time.cells(), f"{min(time.values):.3g}", ratio]
        if options is not None:
            figures = evaluate(policy, eval_env, options).figures
            success, returns = figures["success"], figures["return"]
            low, high = returns["ci95"]
            cells += [percent(success), f"{returns['mean']:.3g} [{low:.3g}, {high:.3g}]"]
        rows.append(cells)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("changes", nargs="*", help="options of the run that are replaced: critic=length")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--episodes", type=int, default=48, help="0 for milliseconds alone")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    played: dict[str, Any] = {"seed": arguments.first_seed, "reference": False, "latency": False}
    options = EvaluationOptions(episodes=arguments.episodes, **played) if arguments.episodes else None
    changes = {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in arguments.changes)}
    rows = curve(arguments.run, changes, arguments.counts, options, arguments.repeats)
    columns = ["plans", "median ms", "p95 ms", "spread ms", "fastest ms", "ratio of the fastest"]
    columns += ["success", "return"] if arguments.episodes else []
    Console().print(Table(columns, rows).rich(f"{arguments.run}", f"{arguments.threads} threads"))


if __name__ == "__main__":
    main()
