"""The results of a study: scores of each variant over seeds and episodes, and differences from the reference."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import CheckpointError, TrajgenError
from trajgen.core.files import read_json
from trajgen.core.options import entry
from trajgen.evaluation.evaluate import hardware, plain
from trajgen.evaluation.protocol import episode_options
from trajgen.evaluation.statistics import (
    Array,
    bootstrap_interval,
    interquartile_mean,
    mean,
    mean_difference,
    mean_ratio,
    ratio_difference,
)
from trajgen.experiments.cells import BY_TIME, Cell, Row
from trajgen.experiments.definition import Study, option_of
from trajgen.experiments.published import add_reached
from trajgen.experiments.run_folder import load_config, read_evaluation, trained_stages
from trajgen.experiments.versions import versions

RATIO, RETURN, ACTION_ERROR = "ratio to the controller", "return", "action error"
FIRST = {RATIO: "ratio_to_controller", ACTION_ERROR: "action_error"}
"""What is compared where all evaluations have this figure; else it is the return."""
RETURNS = ("episode_returns", "policy")
BY_EPISODE = {ACTION_ERROR: ("episode_action_errors",)}
"""Where an evaluation has what is compared, of each episode; else it is the policy's returns."""
SAME_EPISODES = ("env", "protocol_name", "goals", "seeds")
"""Entries of an evaluation without which its episodes are others."""
Evaluations = Mapping[int, Mapping[str, Any]]
"""The evaluation.json of each seed."""


def gather(study: Study, cells: Sequence[Cell], failed: Mapping[str, str]) -> dict[str, Any]:
    """The results of all cells as plain values.

    Args:
        study: its definition.
        cells: all of them, in the table's order.
        failed: why cells failed, by name.
    """
    by_row: dict[str, list[Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row.name, []).append(cell)
    finished = {name: [c for c in row_cells if c.name not in failed] for name, row_cells in by_row.items()}
    evaluations = {
        name: {cell.seed: read_evaluation(cell.out / "evaluation.json") for cell in row_cells}
        for name, row_cells in finished.items()
    }
    flat = [evaluation for by_seed in evaluations.values() for evaluation in by_seed.values()]
    measured = {unit: all(e.get(figure) is not None for e in flat) for unit, figure in FIRST.items()}
    unit = next((unit for unit in FIRST if flat and measured[unit]), RETURN)
    # Of a variant whose data name no environment, beside others that have one, nothing can be compared.
    comparable = {name: by_seed if _has_any(by_seed, unit) else {} for name, by_seed in evaluations.items()}
    reference = next((n for n in (study.reference, study.reference + BY_TIME) if evaluations.get(n)), None)
    rows, curves = [], _curves([row_cells[0].row for row_cells in by_row.values()])
    for name, by_seed in evaluations.items():
        row = by_row[name][0].row
        is_reference = row.variant == study.reference
        compared = reference is not None and not is_reference and not study.published
        compared = compared and _episodes_of(finished[name]) == _episodes_of(finished[reference or name])
        rows.append(
            {
                "name": name,
                "variant": row.variant,
                "equal": row.equal,
                "curve": curves.get(name),
                "reference": is_reference and not study.published,
                "seeds": list(by_seed),
                **scores(comparable[name], unit),
                **differences(comparable[name], comparable[reference or name] if compared else {}, unit),
                **_means(by_seed.values()),
                **_training([cell.run for cell in finished[name]]),
            }
        )
    results: dict[str, Any] = plain(
        {
            "study": study.name,
            "question": study.question,
            "unit": unit,
            "normalized": ", ".join(dict.fromkeys(n for e in flat if (n := entry(e, ("normalized", "name"))))) or None,
            "reference": study.reference,
            "seeds": study.seeds,
            "protocol": next((e.get("protocol") for e in flat), None),
            "rows": rows,
            "published": add_reached(study.published, rows),
            "failed": dict(failed),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": next((e["hardware"] for e in flat if "hardware" in e), None) or hardware(),
            "versions": versions(),
        }
    )
    return results


def _episodes_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """The options that decide the episodes of a row, besides their seeds."""
    if not cells:
        return {}
    path = cells[0].run / "data.json"
    named_env = read_json(path).get("env") if path.exists() else None
    row = cells[0].row
    return episode_options(row.config.to_plain()["data"] | row.overrides.get("data", {}), named_env or {})


def episode_returns(evaluations: Evaluations, player: str) -> Array:
    """Returns (seeds, episodes) of the policy or the controller; NaN where an episode failed.

    Raises:
        CheckpointError: if a seed has none, or another number of episodes.
    """
    return _by_episode(evaluations, ("episode_returns", player), f"returns of the {player}")


def _compared(evaluations: Evaluations, unit: str) -> Array:
    """What is compared, of each episode (seeds, episodes), before it is divided by the controller's."""
    what = "action errors" if unit == ACTION_ERROR else "returns of the policy"
    return _by_episode(evaluations, BY_EPISODE.get(unit, RETURNS), what)


def _has_any(evaluations: Evaluations, unit: str) -> bool:
    """Whether one of them has what is compared."""
    return any(entry(evaluation, BY_EPISODE.get(unit, RETURNS)) for evaluation in evaluations.values())


def _by_episode(evaluations: Evaluations, path: Sequence[str], what: str) -> Array:
    rows = [entry(evaluation, path) or [] for evaluation in evaluations.values()]
    if len({len(row) for row in rows}) > 1 or not rows[0]:
        raise CheckpointError(
            f"All seeds of a variant need the {what} on the same episodes, at least one.",
            got=", ".join(f"{len(row)} under seed {seed}" for seed, row in zip(evaluations, rows, strict=True)),
            fix="remove the evaluation.json that differs, and give the same command again",
        )
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def drop_failed(*samples: Array) -> list[Array]:
    """Samples (seeds, episodes) without the episodes that failed in any of them, under any seed."""
    good = np.all([np.isfinite(sample).all(0) for sample in samples], axis=0)
    return [sample[:, good] for sample in samples]


def scores(evaluations: Evaluations, unit: str) -> dict[str, Any]:
    """Mean, interquartile mean and interval of one variant, over seeds and episodes, in units of the controller."""
    empty: dict[str, Any] = {"mean": None, "iqm": None, "ci95": None, "by_seed": {}}
    if not evaluations:
        return empty
    returns = _compared(evaluations, unit)
    units = episode_returns(evaluations, "controller") if unit == RATIO else np.ones_like(returns)
    samples = drop_failed(returns, units)
    if samples[0].size == 0:
        return empty
    flat = [sample.ravel() for sample in samples]
    by_seed = [mean_ratio(*pair) for pair in zip(*samples, strict=True)]
    return {
        "mean": mean_ratio(*flat),
        "iqm": interquartile_mean(flat[0]) / mean(flat[1]),
        "ci95": bootstrap_interval(mean_ratio, *samples, draw_rows=True),
        "by_seed": dict(zip(evaluations, by_seed, strict=True)),
    }


def differences(evaluations: Evaluations, reference: Evaluations, unit: str) -> dict[str, Any]:
    """The mean less the reference's, on the seeds that both have, and its interval; resamples are paired.

    There is none where the episodes are not the same.
    """
    empty = {"difference": None, "difference_ci95": None}
    seeds = [seed for seed in evaluations if seed in reference]
    if not seeds or any(evaluations[s].get(key) != reference[s].get(key) for s in seeds for key in SAME_EPISODES):
        return empty
    pair = [{seed: by_seed[seed] for seed in seeds} for by_seed in (evaluations, reference)]
    samples: list[Array] = []
    for by_seed in pair:  # a disturbance, say, changes what the controller earns too
        samples += [_compared(by_seed, unit), *([episode_returns(by_seed, "controller")] if unit == RATIO else [])]
    samples = drop_failed(*samples)
    if samples[0].size == 0:
        return empty
    statistic = ratio_difference if unit == RATIO else mean_difference
    return {
        "difference": statistic(*(sample.ravel() for sample in samples)),
        "difference_ci95": bootstrap_interval(statistic, *samples, draw_rows=True),
    }


def score(folder: Path) -> float:
    """What a search maximizes: a run's return over the controller's, or without one its return.

    Where the data name no environment it is the negative action error.

    Raises:
        CheckpointError: if the evaluation of the run folder cannot be read, or has neither.
    """
    path = folder / "evaluation.json"
    figures = read_evaluation(path)
    ratio, mean_return = figures.get("ratio_to_controller"), (figures.get("return") or {}).get("mean")
    value = mean_return if ratio is None else ratio
    if (error := entry(figures, ("action_error", "mean"))) is not None:
        value = -error
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(
            f"{path} has no mean return.",
            got=f"ratio_to_controller {ratio}, mean return {mean_return}",
            fix=f"trajgen evaluate run={folder} out={folder}",
        )
    return float(value)


def _means(evaluations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds of figures that are not known by episode."""
    paths = {
        "normalized": ("normalized", "mean"),
        "success": ("success",),
        "condition_state": ("condition_error", "state"),
        "condition_return": ("condition_error", "return"),
        "decision_ms": ("decision_ms", "batch_1", "median"),
    }
    evaluations = list(evaluations)
    return {name: _mean(entry(evaluation, path) for evaluation in evaluations) for name, path in paths.items()}


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def _curves(rows: Iterable[Row]) -> dict[str, str]:
    """For each row that differs from another in its training's budget alone, what their names have in common."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.equal == "steps":
            others = [word for word in row.words if option_of(word) != "engine.budget"]
            alike.setdefault((*others, str(row.overrides)), []).append(row.name)
    curves: dict[str, str] = {}
    for names in alike.values():
        common = "".join(letters[0] for letters in takewhile(lambda each: len({*each}) == 1, zip(*names, strict=False)))
        curves |= dict.fromkeys(names, common.strip(" ,=") or names[0]) if len(names) > 1 else {}
    return curves


def _training(folders: Sequence[Path]) -> dict[str, Any]:
    """The cost of training: minutes, steps of each stage, and the number of parameters."""
    stages = [trained_stages(folder / "metrics.jsonl") for folder in folders]
    return {
        "minutes": _mean(sum(s["minutes"] for s in each) for each in stages if each),
        "steps": {s["name"]: s["steps"] for s in stages[0]} if stages else {},
        "parameters": _count_parameters(folders[0]) if folders else None,
    }


def _count_parameters(folder: Path) -> int | None:
    """How many numbers a run trains; None if its planner cannot be built any more."""
    from trajgen.experiments import build_planner

    try:
        return sum(p.numel() for p in build_planner(*load_config(folder)).parameters())
    except TrajgenError:
        return None
