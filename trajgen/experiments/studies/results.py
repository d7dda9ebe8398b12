"""What came of a study: figures of each variant over seeds and episodes, and differences from the reference."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import CheckpointError, TrajgenError
from trajgen.evaluation.evaluate import hardware, plain
from trajgen.evaluation.statistics import (
    Array,
    bootstrap_interval,
    interquartile_mean,
    mean,
    mean_difference,
    mean_ratio,
    ratio_difference,
)
from trajgen.experiments.run_folder import load_config, read_evaluation, trained_stages, versions
from trajgen.experiments.studies.cells import BY_TIME, Cell
from trajgen.experiments.studies.definition import Study
from trajgen.experiments.studies.published import beside

RATIO, RETURN = "ratio to the controller", "return"


def gather(study: Study, cells: Sequence[Cell], failed: Mapping[str, str]) -> dict[str, Any]:
    """The results of all cells as plain values.

    Args:
        study: what was asked.
        cells: all of them, in the table's order.
        failed: why cells failed, by name.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    runs: dict[str, dict[int, Path]] = {}
    for cell in cells:
        evaluations = found.setdefault(cell.row.name, {})
        if cell.name not in failed:
            evaluations[cell.seed] = read_evaluation(cell.out / "evaluation.json")
            runs.setdefault(cell.row.name, {})[cell.seed] = cell.run
    every = [evaluation for evaluations in found.values() for evaluation in evaluations.values()]
    unit = RATIO if every and all(e.get("ratio_to_controller") is not None for e in every) else RETURN
    variants = {cell.row.name: cell.row for cell in cells}
    reference = next((n for n in (study.reference, study.reference + BY_TIME) if found.get(n)), None)
    rows = []
    for name, evaluations in found.items():
        row = variants[name]
        rows.append(
            {
                "name": name,
                "variant": row.variant,
                "equal": row.equal,
                "reference": row.variant == study.reference and not study.published,
                "seeds": list(evaluations),
                **scores(evaluations, unit),
                "difference": None,
                "difference_ci95": None,
                **_means(evaluations.values()),
                **_training(runs.get(name, {})),
            }
        )
        if reference is not None and row.variant != study.reference and not study.published:
            rows[-1] |= differences(evaluations, found[reference], unit)
    result: dict[str, Any] = plain(
        {
            "study": study.name,
            "question": study.question,
            "unit": unit,
            "normalized": ", ".join(dict.fromkeys(n for e in every if (n := _at(e, ("normalized", "name"))))) or None,
            "reference": study.reference,
            "seeds": study.seeds,
            "protocol": next((e.get("protocol") for e in every), None),
            "rows": rows,
            "published": beside(study.published, rows),
            "failed": dict(failed),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": hardware(),
            "versions": versions(),
        }
    )
    return result


def returns_of(evaluations: Mapping[int, Mapping[str, Any]], who: str) -> Array:
    """Returns (seeds, episodes) of the policy or the controller; NaN where an episode failed.

    Raises:
        CheckpointError: if a seed has none, or another number of episodes.
    """
    rows = [(evaluation.get("episode_returns") or {}).get(who) or [] for evaluation in evaluations.values()]
    if len({len(row) for row in rows}) > 1 or not rows[0]:
        raise CheckpointError(
            "All seeds of a variant are evaluated on the same episodes.",
            expected=f"as many returns of the {who} under each seed, at least one",
            got=", ".join(f"{len(row)} under seed {seed}" for seed, row in zip(evaluations, rows, strict=True)),
            fix="remove the evaluation.json that differs, and give the same command again",
        )
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def complete(*samples: Array) -> list[Array]:
    """Samples (seeds, episodes) without the episodes that failed in any of them, under any seed."""
    good = np.all([np.isfinite(sample).all(0) for sample in samples], axis=0)
    return [sample[:, good] for sample in samples]


def scores(evaluations: Mapping[int, Mapping[str, Any]], unit: str) -> dict[str, Any]:
    """Mean, interquartile mean and interval of one variant, over seeds and episodes, in units of the controller."""
    nothing: dict[str, Any] = {"mean": None, "iqm": None, "ci95": None, "by_seed": {}}
    if not evaluations:
        return nothing
    own = returns_of(evaluations, "policy")
    samples = complete(own, returns_of(evaluations, "controller") if unit == RATIO else np.ones_like(own))
    if samples[0].size == 0:
        return nothing
    statistic = mean_ratio if unit == RATIO else _mean_of_first
    flat = [sample.ravel() for sample in samples]
    each = [statistic(*pair) for pair in zip(*samples, strict=True)]
    return {
        "mean": statistic(*flat),
        "iqm": interquartile_mean(flat[0]) / mean(flat[1]),
        "ci95": bootstrap_interval(statistic, *samples, draw_rows=True),
        "by_seed": dict(zip(evaluations, each, strict=True)),
    }


def _mean_of_first(values: Array, _: Array) -> Array:
    return mean(values)


def differences(
    evaluations: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]], unit: str
) -> dict[str, Any]:
    """The mean less the reference's, on the seeds that both have, and its interval; the same draws for both."""
    common = [seed for seed in evaluations if seed in reference]
    if not common or any(evaluations[s].get("seeds") != reference[s].get("seeds") for s in common):
        return {"difference": None, "difference_ci95": None}
    one, two = ({seed: found[seed] for seed in common} for found in (evaluations, reference))
    samples = [returns_of(one, "policy"), returns_of(two, "policy")]
    samples = complete(*samples, *([returns_of(one, "controller")] if unit == RATIO else []))
    if samples[0].size == 0:
        return {"difference": None, "difference_ci95": None}
    statistic = ratio_difference if unit == RATIO else mean_difference
    return {
        "difference": statistic(*(sample.ravel() for sample in samples)),
        "difference_ci95": bootstrap_interval(statistic, *samples, draw_rows=True),
    }


def _means(evaluations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of what has no episodes to draw."""
    known = list(evaluations)
    paths = {
        "normalized": ("normalized", "mean"),
        "success": ("success",),
        "condition_state": ("condition_error", "state"),
        "condition_return": ("condition_error", "return"),
        "decision_ms": ("decision_ms", "batch_1", "median"),
    }
    return {name: _mean(_at(evaluation, path) for evaluation in known) for name, path in paths.items()}


def _at(values: Any, path: Sequence[str]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None


def _training(runs: Mapping[int, Path]) -> dict[str, Any]:
    """What training cost: minutes, steps of each stage, and the number of parameters."""
    stages = [trained_stages(folder / "metrics.jsonl") for folder in runs.values()]
    first = next(iter(runs.values()), None)
    return {
        "minutes": _mean(sum(s["minutes"] for s in each) for each in stages if each),
        "steps": {s["name"]: s["steps"] for s in stages[0]} if stages else {},
        "parameters": None if first is None else _parameters(first),
    }


def _parameters(folder: Path) -> int | None:
    """How many numbers a run trains; None if its planner cannot be built any more."""
    from trajgen.experiments import build_planner

    try:
        return sum(p.numel() for p in build_planner(*load_config(folder)).parameters())
    except TrajgenError:
        return None


def score(folder: Path) -> float:
    """What a search makes as large as it can: a run's return over the controller's, or where there is none its return.

    Raises:
        CheckpointError: if the evaluation of the run folder cannot be read, or holds neither.
    """
    path = folder / "evaluation.json"
    figures = read_evaluation(path)
    ratio, mean = figures.get("ratio_to_controller"), (figures.get("return") or {}).get("mean")
    value = mean if ratio is None else ratio
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(
            "An evaluation has a mean return.",
            expected=f"{path}, as trajgen wrote it",
            got=f"ratio_to_controller {ratio}, mean return {mean}",
            fix=f"trajgen evaluate run={folder} out={folder}",
        )
    return float(value)
