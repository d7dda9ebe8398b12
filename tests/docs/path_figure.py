"""The figure of the whole path, from data to actions. ``python tests/docs/path_figure.py`` draws it anew.

All names and numbers in it are read from the default recipe: it is composed, assembled, and one batch of random
windows is sent through it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from typing import Any

import torch
from pages import DOCS
from torch import Tensor

from trajgen.config import Config, compose
from trajgen.core.types import Batch, Space
from trajgen.experiments import build_planner
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

PICTURE = DOCS / "images" / "path.svg"
SPACE = Space(state_dim=4, action_dim=2, goal_dim=2, state_key="observation", goal_key="desired_goal")
"""Of the point mazes, the default data: place and speed, forces, and the place of the goal."""
WINDOWS = 2
"""Sent through; B in the figure."""
INK, SOFT, PAPER, DATA, LEARNT, CODES, ACTING = (
    "#22272e",
    "#57606a",
    "#ffffff",
    "#eef1f4",
    "#e5f0f9",
    "#fdf1dc",
    "#e3f4ec",
)
BOX_WIDTH, BOX_HEIGHT, ACROSS, DOWN, MARGIN = 226, 108, 258, 146, 16


@dataclass(frozen=True)
class Box:
    """A part of the path: what it is, which component does it, and what it hands on."""

    title: str
    name: str
    lines: tuple[str, ...]
    color: str
    cell: tuple[int, int]


def space(config: Config) -> Space:
    """The dimensions of the data, without goals where a recipe has none."""
    return SPACE if config.data.goals != "none" else replace(SPACE, goal_dim=0, goal_key=None)


def shapes(config: Config) -> dict[str, Any]:
    """What passes from part to part under a configuration: shapes, by name, of tensors that really passed."""
    torch.manual_seed(0)
    planner: Any = build_planner(config, SPACE).eval()
    batch = windows(config)
    cond = batch.condition()
    tokenizer = planner.tokenizer
    with torch.no_grad():
        x = planner.view(batch)
        encoding = tokenizer.encode(x)
        codes, inputs = encoding.codes, encoding.inputs
        embedding = planner.prior.conditioner(cond)
        logits = planner.prior.logits(inputs, cond)
        plan = planner.plan(cond, torch.Generator().manual_seed(0))
        offsets = torch.arange(config.data.chunk).expand(len(batch), -1)
        head = planner.action(plan, batch.chunk_states, offsets)
    policy = RecedingHorizonPolicy(
        planner, planner.normalizer, SPACE, config.policy, discount=config.data.discount, chunk=config.data.chunk
    )
    policy.reset(batch=WINDOWS)
    return {
        "schedule": tokenizer.schedule.lengths,
        "vocabulary": tokenizer.vocabulary,
        "code_dim": tokenizer.code_dim,
        "states": batch.states,
        "returns": batch.returns,
        "chunk": batch.chunk_actions,
        "x": x,
        "codes": codes,
        "inputs": inputs,
        "embedding": embedding,
        "logits": logits,
        "sampled": plan.codes,
        "latent": plan.latent,
        "trajectory": plan.trajectory,
        "actions": head,
        "acted": policy.act(observed(batch, WINDOWS)),
    }


def windows(config: Config, count: int = WINDOWS) -> Batch:
    """Random windows of the configuration's shape."""
    data = config.data
    points, chunk = (count, data.horizon), (count, data.chunk)
    several = torch.tensor(data.strides)[torch.arange(count) % len(data.strides)] if data.strides[1:] else None
    return Batch(
        states=torch.randn(*points, SPACE.state_dim),
        actions=torch.randn(*points, data.strides[0] if several is None else 0, SPACE.action_dim),
        rewards=torch.randn(points),
        returns=torch.randn(points),
        mask=torch.ones(points, dtype=torch.bool),
        chunk_states=torch.randn(*chunk, SPACE.state_dim),
        chunk_actions=torch.randn(*chunk, SPACE.action_dim),
        chunk_mask=torch.ones(chunk, dtype=torch.bool),
        goals=torch.randn(count, SPACE.goal_dim) if data.goals != "none" else None,
        time=torch.zeros(count, dtype=torch.long),
        stride=several,
    )


def observed(batch: Batch, count: int) -> dict[str, Any]:
    """Observations of the first windows' first points."""
    observation = {"observation": batch.states[:count, 0].numpy()}
    return observation if batch.goals is None else {**observation, "desired_goal": batch.goals[:count].numpy()}


def boxes(config: Config) -> list[Box]:
    """The parts, with what was measured of them."""
    tensors = shapes(config)
    nodes, data = config.components, config.data

    def shape(name: str, letters: str) -> str:
        value: Tensor = tensors[name]
        numbers = ["B", *(str(size) for size in value.shape[1:])]
        return f"({', '.join(letters)}) = ({', '.join(numbers)})"

    lengths = tensors["schedule"]
    return [
        Box("data", data.id.rpartition("/")[2], ("episodes of states, actions,", "rewards and goals"), DATA, (0, 0)),
        Box(
            "window",
            f"{data.horizon} points, stride {data.stride}",
            (
                f"states {shape('states', 'BTS')}",
                f"returns {shape('returns', 'BT')}",
                f"first actions {shape('chunk', 'BHA')}",
            ),
            DATA,
            (1, 0),
        ),
        Box("view", ", ".join(nodes["view"]["fields"]), (f"x {shape('x', 'BTD')}",), DATA, (2, 0)),
        Box(
            "tokenizer",
            nodes["tokenizer"]["name"],
            (f"codes {shape('codes', 'BL')}", f"codebook (V, C) = ({tensors['vocabulary']}, {tensors['code_dim']})"),
            LEARNT,
            (3, 0),
        ),
        Box(
            "schedule",
            nodes["schedule"]["name"],
            (f"l = ({', '.join(map(str, lengths))})", f"K = {len(lengths)}, L = {sum(lengths)}"),
            CODES,
            (3, 1),
        ),
        Box(
            "conditioner",
            nodes["conditioner"]["name"],
            (
                f"state (B, {SPACE.state_dim}), goal (B, {SPACE.goal_dim}),",
                "return (B)",
                f"embedded {shape('embedding', 'BKE' if tensors['embedding'].shape[1] > 1 else 'B1E')}",
            ),
            LEARNT,
            (1, 1),
        ),
        Box(
            "prior",
            nodes["prior"]["name"],
            (f"sees (B, L − l₁, C) = {_sizes(tensors['inputs'])}", f"logits {shape('logits', 'BLV')}"),
            LEARNT,
            (2, 1),
        ),
        Box(
            "sampler",
            nodes["sampler"]["name"],
            (
                f"codes {shape('sampled', 'BL')}",
                "scale by scale, which add up to",
                f"the latent {shape('latent', 'BNC')}",
            ),
            CODES,
            (2, 2),
        ),
        Box("return_target", nodes["return_target"]["name"], ("the target return, (B)",), LEARNT, (0, 1)),
        Box("decoder", nodes["decoder"]["name"], (f"trajectory {shape('trajectory', 'BTD')}",), LEARNT, (3, 2)),
        Box("action head", nodes["action"]["name"], (f"actions {shape('actions', 'BHA')}",), LEARNT, (1, 2)),
        Box(
            "policy",
            f"a plan every {config.policy.replan_interval} steps",
            (f"one action (B, A) = {_sizes(tensors['acted'])}", "state and reward come back"),
            ACTING,
            (0, 2),
        ),
    ]


def _sizes(value: Any) -> str:
    return f"({', '.join(['B', *(str(size) for size in value.shape[1:])])})"


ARROWS: tuple[tuple[str, str], ...] = (
    ("data", "window"),
    ("window", "view"),
    ("view", "tokenizer"),
    ("tokenizer", "schedule"),
    ("schedule", "prior"),
    ("return_target", "conditioner"),
    ("conditioner", "prior"),
    ("prior", "sampler"),
    ("sampler", "decoder"),
    ("sampler", "action head"),
    ("action head", "policy"),
    ("policy", "return_target"),
)
LEGEND = ((DATA, "data"), (LEARNT, "has weights"), (CODES, "has none"), (ACTING, "acts"))


def figure(config: Config) -> str:
    """The picture, as SVG."""
    parts = boxes(config)
    by_title = {box.title: box for box in parts}
    width, height = 2 * MARGIN + 3 * ACROSS + BOX_WIDTH, 2 * MARGIN + 2 * DOWN + BOX_HEIGHT + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>From data to actions in recipe {escape(config.recipe)}, with the shapes of what is handed on</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *(_arrow(by_title[start], by_title[end]) for start, end in ARROWS),
        *(_box(box) for box in parts),
        *_scales(by_title["schedule"], shapes(config)["schedule"]),
        *_legend(height),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _corner(box: Box) -> tuple[int, int]:
    return MARGIN + box.cell[0] * ACROSS, MARGIN + box.cell[1] * DOWN


def _box(box: Box) -> str:
    x, y = _corner(box)
    lines = [
        f'<text x="{x + 10}" y="{y + 46 + 18 * i}" fill="{INK}">{escape(line)}</text>'
        for i, line in enumerate(box.lines)
    ]
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="{box.color}" stroke="{SOFT}"/>'
        f'<text x="{x + 10}" y="{y + 22}" fill="{INK}" font-weight="bold">{escape(box.title)}'
        f'<tspan font-weight="normal" fill="{SOFT}">  {escape(box.name)}</tspan></text>' + "".join(lines)
    )


def _arrow(start: Box, end: Box) -> str:
    (x, y), (across, down) = _corner(start), _corner(end)
    if y == down:
        x, across = (x + BOX_WIDTH, across) if x < across else (x, across + BOX_WIDTH)
        y = down = y + BOX_HEIGHT // 2
    else:
        x = across = x + BOX_WIDTH // 2
        y, down = (y + BOX_HEIGHT, down) if y < down else (y, down + BOX_HEIGHT)
    return f'<path d="M{x} {y}L{across} {down}" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#tip)"/>'


def _scales(box: Box, lengths: tuple[int, ...]) -> list[str]:
    """A square for each token, a row for each scale."""
    x, y = _corner(box)
    size = min(12.0, (BOX_WIDTH - 20) / max(lengths) - 2, (BOX_HEIGHT - 72) / len(lengths) - 2)
    return [
        f'<rect x="{x + 110 + i * (size + 2):g}" y="{y + 56 + k * (size + 2):g}" width="{size:g}" height="{size:g}" '
        f'fill="{SOFT}"/>'
        for k, length in enumerate(lengths)
        for i in range(length)
    ]


def _legend(height: int) -> list[str]:
    places = [MARGIN, *accumulate((30 + 8 * len(label) for _, label in LEGEND), initial=MARGIN)][1:]
    return [
        f'<rect x="{x}" y="{height - 28}" width="14" height="14" rx="3" fill="{color}" stroke="{SOFT}"/>'
        f'<text x="{x + 20}" y="{height - 17}" fill="{SOFT}">{label}</text>'
        for x, (color, label) in zip(places, LEGEND, strict=False)
    ]


def main() -> None:
    """Draws the figure of the default recipe."""
    PICTURE.write_text(figure(compose([])), encoding="utf-8")
    print(f"wrote docs/images/{PICTURE.name}")


if __name__ == "__main__":
    main()
