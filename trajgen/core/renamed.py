"""What has another name since 0.1, so that an old name is refused with the new one."""

from __future__ import annotations

import re
from typing import Any

OPTIONS = {
    r"target": "return_target",
    r"(action|conditioner|return_target)\.octaves": r"\1.fourier_frequencies",
    r"(action|tokenizer)\.bins": r"\1.num_bins",
    r"(action|tokenizer)\.limit": r"\1.bin_limit",
    r"data\.power": "data.return_power",
    r"data\.best_share": "data.top_fraction",
    r"data\.held_out": "data.val_fraction",
    r"data\.desired_share": "data.relabel_ratio",
    r"data\.goal_ends": "data.terminate_at_goal",
    r"data\.absorbing": "data.absorbing_terminals",
    r"engine\.stages\.target": "engine.stages.return_target",
    r"engine\.stages\.(\w+)\.optimiser": r"engine.stages.\1.optimizer",
    r"engine\.stages\.(\w+)\.clip": r"engine.stages.\1.grad_clip",
    r"engine\.stages\.(\w+)\.ema": r"engine.stages.\1.ema_decay",
    r"planner\.drawn": "planner.end_to_end",
    r"policy\.replan": "policy.replan_interval",
    r"return_target\.place": "return_target.position_only",
    r"return_target\.spend": "return_target.subtract_rewards",
    r"sampler\.every": "sampler.select_every",
    r"sampler\.expand": "sampler.expansions",
    r"sampler\.penalty": "sampler.prob_weight",
    r"sampler\.threshold": "sampler.prob_threshold",
    r"sampler\.width": "sampler.beam_width",
    r"tokenizer\.given": "tokenizer.inpaint",
    r"tokenizer\.goal": "tokenizer.inpaint_goal",
    r"tokenizer\.revive_below": "tokenizer.dead_code_threshold",
}
"""Options by their dotted names (patterns), in the order in which they are applied."""

VALUES = {
    ("data.goals", "desired"): "dataset",
    ("tokenizer", "fsq"): "multiscale tokenizer.quantizer=fsq",
    ("tokenizer", "hierarchical_vq"): "multiscale",
    ("tokenizer", "lfq"): "multiscale tokenizer.quantizer=lfq",
    ("tokenizer", "multiscale_vq"): "multiscale",
    ("tokenizer", "simvq"): "multiscale tokenizer.quantizer=simvq",
    ("tokenizer", "vq"): "multiscale",
    ("view.fields", "place"): "position",
}
"""Components by kind, and values of options."""


def new_name(option: str) -> str | None:
    """The present name of an option of 0.1, such as ``policy.replan``, or None if it was never another."""
    name = option
    for pattern, new in OPTIONS.items():
        name = re.sub(rf"^{pattern}(?=\.|$)", new, name)
    return None if name == option else name


def new_value(option: str, value: Any) -> str | None:
    """The present name of a component or value of 0.1, or None if it was never another."""
    return VALUES.get((option.partition("[")[0], value)) if isinstance(value, str) else None


def replacement(option: str, value: Any) -> str | None:
    """What is written today in place of ``option=value`` of 0.1, or None if nothing of it was renamed.

    A value of None leaves the new option's value open.
    """
    name = new_name(option)
    if option == "data.desired_share":  # the ratio is of the others
        share = _number(value)
        return f"{name}=… (1 - desired_share)" if share is None else f"{name}={1 - share:g}"
    if option == "planner.drawn":  # a share of the plans, which are now all drawn or none
        return f"{name}=false" if _number(value) == 0 else f"{name}=true planner.sampled_prefixes=true"
    new = new_value(name or option, value)
    if name is None and new is None:
        return None
    shown = new or ("…" if value is None or isinstance(value, dict) else value)
    return f"{name or option}={shown}"


def _number(value: Any) -> float | None:
    """A value as a number, which may have been typed as text; None if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
