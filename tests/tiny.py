"""Small compositions and made-up data, for tests of all rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trajgen.assemble import USUAL, WindowShape, assemble
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build, names, spec
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Cond, Space, Transitions
from trajgen.testing.fixture import perturb as shake

HORIZON, LATENT, CHUNK, STRIDE = 16, 4, 4, 3
WINDOW = WindowShape(horizon=HORIZON, stride=STRIDE, chunk=CHUNK, return_power=1.0, goal_state=(0, 1), goal_radius=0.5)
SPACE = Space(
    state_dim=4,
    action_dim=2,
    goal_dim=2,
    state_key="observation",
    goal_key="desired_goal",
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    agents=2,
)
GOALS: dict[str, Any] = {
    "goal_dim": 2,
    "goal_state": (0, 1),
    "normalizer": Normalizer(4, 2, 2),
    "relative_goals": False,
}
"""What a component is given about goals."""
SMALL = {
    "latent_length": LATENT,
    "code_dim": 6,
    "codebook_size": 12,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "bottleneck": 8,
    "fourier_frequencies": 2,
    "k": 5,
    "scales": 3,
    "lengths": (1, 3, LATENT),
    "levels": (3, 4),
    "num_bins": 8,
    "timesteps": 10,
    "steps": 5,
    "expansions": 2,
    "n": 3,
}
"""Sizes for whatever component has an option of this name."""

UNUSED = {
    "vq": {"levels"},
    "fsq": {"code_dim", "codebook_size"},
    "lfq": {"codebook_size", "levels"},
    "simvq": {"levels"},
}
"""Sizes that a quantizer does not have."""

STAGES = ("tokenizer", "return_target", "prior", "action")
TRAIN = [
    "data=pointmaze/umaze-dwell",
    "device=cpu",
    "engine.precision=float32",
    "engine.log_every=5",
    "engine.checkpoint_every=5",
    *(f"engine.stages.{stage}.{option}" for stage in STAGES for option in ("steps=24", "batch_size=32")),
    "engine.budget=0.5",
    "tokenizer.width=16",
    "tokenizer.codebook_size=16",
    "conditioner.width=16",
    "prior.width=16",
    "prior.depth=1",
    "prior.heads=2",
    "decoder.width=16",
    "action.width=16",
    "return_target.width=16",
    "evaluation.episodes=2",
    "data.max_episode_steps=40",
]
"""A training of seconds, in 12 steps a stage."""

LEFT_BY_TRAINING: set[str] = set()
"""What the tiny run left in the folder where its command was given."""

MAGE = {
    "view": "fields",
    "schedule": "geometric",
    "tokenizer": "multiscale",
    "conditioner": "fields",
    "prior": "transformer",
    "decoder": "adapter",
    "action": "latent_state",
    "sampler": "temperature",
    "return_target": "constant",
    "planner": "latent",
}


def small(name: str, quantizer: str = "vq") -> dict[str, Any]:
    """The sizes that a component may have."""
    unused = UNUSED[quantizer] if name == "multiscale" else {"steps"} if name == "best_of_n" else ()
    return {option: size for option, size in SMALL.items() if option not in unused}


def node(kind: str, name: str, **options: Any) -> dict[str, Any]:
    """The configuration of a component at a small size."""
    possible = small(name, options.get("quantizer", "vq"))
    sizes = {o.name: possible[o.name] for o in spec(kind, name).options if o.name in possible}
    if kind == "action":
        sizes.pop("num_bins", None)  # no size there, but another way of learning
    return {"name": name, **sizes, **options}


def shrunk(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Component nodes at small sizes, all else as it is."""
    sizes = {kind: small(node["name"], node.get("quantizer", "vq")) for kind, node in nodes.items()}
    return {kind: {**node, **{k: sizes[kind][k] for k in node if k in sizes[kind]}} for kind, node in nodes.items()}


def nodes(**swaps: str | dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of a small MAGE, some of them swapped by name or changed by options."""
    result = {}
    for kind, usual in {**{kind: USUAL[kind] for kind in swaps}, **MAGE}.items():
        swap = swaps.get(kind, usual)
        options = {"name": swap} if isinstance(swap, str) else {"name": usual, **swap}
        result[kind] = node(kind, **options)
    return result


def planner(*, space: Space = SPACE, seed: int = 0, **swaps: Any) -> Any:
    """A small planner with fresh weights."""
    torch.manual_seed(seed)
    return assemble(nodes(**swaps), space, replace(WINDOW, goal_state=WINDOW.goal_state[: space.goal_dim]))


def hiql(**options: Any) -> Any:
    """A small planner of two policies over one value."""
    torch.manual_seed(0)
    kinds = {"conditioner": "fields", "action": "latent", "critic": "value", "return_target": "constant"}
    parts = {kind: node(kind, name) for kind, name in kinds.items()}
    parts["conditioner"] |= {"fields": ("state", "goal"), "dropout": 0.0}
    return assemble({**parts, "planner": node("planner", "subgoals", subgoal=2, **options)}, SPACE, WINDOW)


def schedules() -> list[str]:
    """The names of all registered schedules."""
    return names("schedule")


def schedule(name: str, length: int = LATENT) -> ScaleSchedule:
    """A registered schedule at the small size."""
    return build("schedule", node("schedule", name), length=length, scale_lengths=())


def ready_planner(**swaps: Any) -> Any:
    """A small planner with perturbed weights, whose first stage has seen a batch, so that its codes are in use."""
    built = planner(**swaps)
    shake(built)
    first = built.stages()[0]
    first.begin(built)
    first.loss(batch(64))
    return built


def check_cure(refusal: ConfigError) -> None:
    """A refusal says the rule, what was found, and what to do."""
    assert refusal.rule and refusal.got and refusal.fix


def batch(size: int = 6, *, seed: int = 1, space: Space = SPACE, stride: int = STRIDE, chunk: int = CHUNK) -> Batch:
    """Random windows, the last ones of which are padded."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=random)

    mask = torch.ones(size, HORIZON, dtype=torch.bool)
    mask[size // 2 :, HORIZON // 2 :] = False
    chunk_mask = torch.ones(size, chunk, dtype=torch.bool)
    chunk_mask[-1, 1:] = False
    batch = Batch(
        states=draw(HORIZON, space.state_dim),
        actions=draw(HORIZON, stride, space.action_dim),
        rewards=draw(HORIZON),
        returns=draw(HORIZON),
        mask=mask,
        chunk_states=draw(chunk, space.state_dim),
        chunk_actions=draw(chunk, space.action_dim),
        chunk_mask=chunk_mask,
        goals=draw(space.goal_dim) if space.goal_dim else None,
        time=torch.arange(size),
    )
    batch = replace(batch, terminals=batch.returns > 1)
    goals = None if batch.goals is None else torch.stack([batch.goals, draw(space.goal_dim)], dim=1)
    count = 1 if goals is None else goals.shape[1]
    rewards, terminals = draw(count, chunk), draw(count, chunk) > 1
    following = draw(chunk, space.state_dim)
    return replace(
        batch, transitions=Transitions(batch.chunk_actions, following, rewards, terminals, chunk_mask, goals)
    )


def cond(size: int = 6, seed: int = 1) -> Cond:
    """A random condition."""
    return batch(size, seed=seed).condition()


def windows(batch: Batch) -> Tensor:
    """The (return, state) windows (B, T, 5) of a batch."""
    return torch.cat([batch.returns.unsqueeze(-1), batch.states], dim=-1)


@dataclass
class RandomSource:
    """A source of random batches: a pure function of seed and step."""

    seed: int = 0

    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        return batch(size, seed=self.seed + 1000 * rank + step)


def moved(cond: Cond, **changes: float) -> Cond:
    """The condition with some of its fields moved."""
    return replace(cond, **{name: getattr(cond, name) + by for name, by in changes.items()})
