"""What views, schedules, conditioners and return targets promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.protocols import DropsCondition
from trajgen.core.registry import build, spec
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Losses
from trajgen.testing.contract import NotApplicableError, contract, require, require_losses, require_shape
from trajgen.testing.fixture import Fixture, select

LENGTHS = (1, 2, 3, 4, 7, 8, 16)
LEARNING_STEPS, LEAST_CORRELATION = 60, 0.4
MANY = 512
"""Conditions among which one is withheld, however rarely that happens."""
UNUSUAL_VALUES = (0, -1, 1, 1000)
"""Values that a schedule's options may be given by mistake."""


@contract("features of every point", "view")
def features(fixture: Fixture) -> None:
    view, batch = fixture.component, fixture.batch()
    require_shape("the features", view(batch), (*batch.states.shape[:2], view.features), "(B, T, features)")
    covered = sorted(i for field in view.slices.values() for i in range(field.start, field.stop))
    require(
        covered == list(range(view.features)),
        f"Each of the {view.features} features belongs to the slice of one field.",
        got=view.slices,
    )
    varies = view(fixture.batch(padded=False)).flatten(0, 1).std(0) > 0
    require(
        varies.all(),
        "A feature is the same at all points of all windows.",
        got=", ".join(str(i) for i in range(view.features) if not varies[i]),
        look="the view's call: products with 0, indices",
    )


@contract("read() finds the fields again", "view")
def read(fixture: Fixture) -> None:
    view, batch = fixture.component, fixture.batch()
    x = view(batch)
    fields = {
        "return": batch.returns.unsqueeze(-1),
        "state": batch.states,
        "action": batch.actions.flatten(2),
        "reward": batch.rewards.unsqueeze(-1),
    }
    if batch.terminals is not None:
        fields["terminal"] = batch.terminals.unsqueeze(-1).float()
    for name in view.slices:
        values, first = view.read(x, name), view.read(x[:, 0], name)
        require(
            values is not None and torch.equal(values[:, 0], first),
            f"read(x, '{name}') reads any (..., D): x[..., slice].",
        )
        if name in fields:
            require(
                values.shape == fields[name].shape and torch.allclose(values, fields[name]),
                f"read() does not give the {name} that the view put there.",
                look="read() and slices",
            )
    for absent in (set(fields) | {"no_such_field"}) - set(view.slices):
        require(view.read(x, absent) is None, f"read() returns None for a field it does not have, as {absent}.")


@contract("lengths that suit a latent", "schedule")
def lengths(fixture: Fixture) -> None:
    schedule = fixture.component
    require(isinstance(schedule, ScaleSchedule), "A schedule returns a ScaleSchedule.", got=type(schedule).__name__)
    n = fixture.part(fixture.planner, "tokenizer").latent_length
    require(
        n in (schedule.lengths[-1], schedule.tokens),
        "The scales end at the latent's length, or add up to it.",
        got=schedule,
    )


@contract("a schedule or a refusal for every length and option", "schedule")
def refusals(fixture: Fixture) -> None:
    node = fixture.composition.nodes["schedule"]
    integers = [option.name for option in spec("schedule", fixture.name).options if type(option.default) is int]
    cases: list[tuple[int, dict[str, Any]]] = [(n, {}) for n in LENGTHS]
    cases += [(8, {name: value}) for name in integers for value in UNUSUAL_VALUES]
    for length, options in cases:
        try:
            first, second = (build("schedule", {**node, **options}, length=length, scale_lengths=()) for _ in range(2))
        except ConfigError as refusal:
            require(
                refusal.got and refusal.fix,
                f"The refusal of a length of {length} with {options or 'its options'} says too little.",
                got=refusal,
            )
        else:
            require(tuple(first) == tuple(second), "The same length gives another schedule.", got=f"{first}, {second}")


@contract("an embedding per scale, or one for all", "conditioner")
def embedding(fixture: Fixture) -> None:
    conditioner, tokenizer = fixture.component, fixture.part(fixture.planner, "tokenizer")
    embedded = conditioner(fixture.cond())
    count = 1
    if tokenizer is not None and embedded.ndim == 3 and embedded.shape[1] != 1:
        schedule = tokenizer.schedule
        of_tokens = schedule.agents[-1] > 1 and embedded.shape[1] == schedule.tokens  # of a team
        count = schedule.tokens if of_tokens else schedule.scales
    require_shape("the embedding", embedded, (6, count, conditioner.width), "(B, K or 1, width)")
    if fixture.composition.nodes["conditioner"].get("fields", True):  # with an empty list there is nothing to embed
        same = torch.equal(embedded, conditioner(fixture.batch(seed=2).condition()))
        require(not same, "All conditions have the same embedding.", look="forward()")


@contract("what is withheld is not looked at", "conditioner")
@torch.no_grad()
def unconditional(fixture: Fixture) -> None:
    conditioner, cond = fixture.component, fixture.cond()
    if isinstance(conditioner, DropsCondition) and not conditioner.learns_unconditional:
        raise NotApplicableError("nothing is withheld: `learns_unconditional` is false")
    optional = getattr(conditioner, "optional", ("return", "goal"))
    others = {"return": replace(cond, returns=cond.returns + 1)}
    if cond.goal is not None:
        others["goal"] = replace(cond, goal=cond.goal + 1)
    read = [name for name, other in others.items() if not torch.equal(conditioner(cond), conditioner(other))]
    if not set(read) & set(optional):
        raise NotApplicableError("it looks at nothing that could be withheld")
    unconditional = conditioner(cond.unconditional())
    for name in (name for name in read if name in optional):
        require(
            torch.equal(unconditional, conditioner(others[name].unconditional())),
            f"A {name} that is withheld still changes the embedding.",
            look="forward(): cond.cond_mask (B,) is false where guidance or dropout withholds the condition",
        )
    mask = torch.arange(len(cond)) % 2 == 0
    mixed = torch.where(mask[:, None, None], conditioner(cond), unconditional)
    require(
        torch.allclose(conditioner(replace(cond, cond_mask=mask)), mixed, atol=1e-6),
        "Withholding some conditions of a batch changes others.",
    )


@contract("conditions are withheld in training", "conditioner")
@torch.no_grad()
def withholds(fixture: Fixture) -> None:
    conditioner = fixture.part(fixture.build()).train()
    if not getattr(conditioner, "learns_unconditional", False):
        raise NotApplicableError("it says of itself that it learns nothing without the condition")
    optional = getattr(conditioner, "optional", ("return", "goal"))
    cond = fixture.cond(1).map(lambda values: values.expand(MANY, *values.shape[1:]))
    other = replace(cond, returns=cond.returns + ("return" in optional))
    if cond.goal is not None:
        other = replace(other, goal=cond.goal + ("goal" in optional))
    embedded = []
    for each in (cond, other):
        torch.manual_seed(0)
        embedded.append(conditioner(each))
    unconditional = (embedded[0] == embedded[1]).flatten(1).all(1)
    require(
        unconditional.any() and not unconditional.all(),
        f"Of {MANY} conditions in training, {'all' if unconditional.all() else 'none'} were withheld, and guidance "
        "compares predictions with and without.",
        look="forward() in training mode: dropout of the optional fields; or learns_unconditional = False",
    )


@contract("one return for each state", "return_target")
@torch.no_grad()
def returns(fixture: Fixture) -> None:
    target, batch = fixture.component, fixture.batch()
    for remaining in (torch.full((6,), torch.nan), torch.linspace(-1, 1, 6)):
        returns = target(batch.states[:, 0], batch.goals, remaining)
        require_shape("the target return", returns, (6,), "(B,)")
        require(
            torch.isfinite(returns).all(),
            "The target return is finite, also where `remaining` is NaN: at an episode's first plan.",
            got=returns.tolist(),
        )


@contract("one goal for each state", "subgoal")
@torch.no_grad()
def subgoals(fixture: Fixture) -> None:
    subgoal, cond = fixture.component, fixture.cond()
    require(cond.goal is not None, "Subgoals are on the way to goals.")
    goals = subgoal(cond.state, cond.goal)
    require_shape("the subgoals", goals, (len(cond), fixture.space.goal_dim), "(B, G)")
    before_fit = fixture.part(fixture.build(fitted=False))(cond.state, cond.goal)
    require(
        torch.isfinite(before_fit).all(),
        "Subgoals are finite before fit() too: shapes are tried without data.",
        look="forward(), which can return the goal",
    )


@contract("a checkpoint holds what it learns of the data", "subgoal")
def fitted_shapes(fixture: Fixture) -> None:
    fresh, fitted = fixture.part(fixture.build(fitted=False)), fixture.part(fixture.build())
    shapes = {name: tuple(value.shape) for name, value in fresh.state_dict().items()}
    require(
        {name: tuple(value.shape) for name, value in fitted.state_dict().items()} == shapes,
        "fit() changes the shapes of what a checkpoint holds, which is loaded into a planner that is not fitted.",
        expected=shapes,
        look="register_buffer(), of a size that the options say",
    )
    fresh.load_state_dict(fitted.state_dict())
    cond = fixture.cond()
    same = torch.equal(fresh(cond.state, cond.goal), fitted(cond.state, cond.goal))
    require(same, "fit() leaves something that no checkpoint holds.", look="register_buffer()")


@contract("losses that can be trained", "return_target")
def target_losses(fixture: Fixture) -> None:
    target, batch = fixture.component, fixture.batch(padded=False)
    losses = target.loss(batch)
    require_losses(losses, total=False)
    require(losses or not list(target.parameters()), "A target with weights has a loss.", look="loss()")
    require_mean(target, batch, losses)


@contract("it learns the return-to-go of a window's first point", "return_target")
def learns_returns(fixture: Fixture) -> None:
    target, batch = fixture.part(fixture.build(perturbed=False)), fixture.batch(32, padded=False)
    goals = None if batch.goals is None else torch.zeros_like(batch.goals)
    batch = replace(batch, goals=goals)  # so that the state alone tells windows apart
    weights = list(target.parameters()) if isinstance(target, nn.Module) else []

    def predicted() -> Tensor:
        with torch.no_grad():
            returns: Tensor = target.eval()(batch.states[:, 0], batch.goals, torch.full((32,), torch.nan))
        return returns

    if not weights or not predicted().std() > 0:
        raise NotApplicableError("it is the same for all states")
    optimizer = torch.optim.Adam(weights, 1e-2)
    for _ in range(LEARNING_STEPS):
        optimizer.zero_grad()
        torch.stack(list(target.train().loss(batch).values())).sum().backward()
        optimizer.step()
    correlation = float(torch.corrcoef(torch.stack([predicted(), batch.returns[:, 0]]))[0, 1])
    require(
        correlation > LEAST_CORRELATION,
        "What it predicts does not follow the return-to-go of the windows that it was trained on.",
        expected=f"a correlation above {LEAST_CORRELATION} with batch.returns[:, 0] after {LEARNING_STEPS} steps",
        got=f"{correlation:.2f}",
        look="loss(): states, goals and returns of the first point, and the sign",
    )


def other_padding(batch: Batch) -> Batch:
    """The batch with other rewards, returns and actions where its windows and chunks are padded."""
    rewards, returns = (torch.where(batch.mask, values, values + 3) for values in (batch.rewards, batch.returns))
    chunk_actions = torch.where(batch.chunk_mask.unsqueeze(-1), batch.chunk_actions, batch.chunk_actions + 3)
    transitions = batch.transitions
    if transitions is not None:
        real = transitions.mask.unsqueeze(1)
        actions = torch.where(transitions.mask.unsqueeze(-1), transitions.actions, transitions.actions + 3)
        rewards = torch.where(real, transitions.rewards, transitions.rewards + 3)
        transitions = replace(transitions, actions=actions, rewards=rewards)
    return replace(batch, rewards=rewards, returns=returns, chunk_actions=chunk_actions, transitions=transitions)


def shares(batch: Batch) -> list[Batch]:
    """The batch in two halves, as several devices or micro-batches get it."""
    halves = (slice(0, len(batch) // 2), slice(len(batch) // 2, len(batch)))
    return [replace(select(batch, half), full_batch=batch) for half in halves]


def require_mean(part: Any, batch: Batch, losses: Losses) -> None:
    """Raises `ContractError` unless the losses of a batch of real steps are the means of those of its windows."""
    windows = [part.loss(select(batch, slice(i, i + 1))) for i in range(len(batch))]
    for name, value in losses.items():
        mean = sum(float(window[name].detach()) for window in windows) / len(windows)
        require(
            abs(float(value.detach()) - mean) <= 1e-3 * abs(mean) + 1e-6,
            f"The loss '{name}' of a batch is not the mean of those of its windows.",
            expected=f"{mean:.4g}",
            got=f"{float(value.detach()):.4g}",
            look="loss(): sums, and (B, 1) beside (B,), whose difference is (B, B)",
        )
