"""What critics promise: scores of plans, by their points and goals, and losses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from trajgen.core.critics import ContrastsWindows, HasAdvantage
from trajgen.core.types import Batch
from trajgen.testing.common import points_of
from trajgen.testing.contract import NotApplicableError, contract, require, require_losses, require_shape
from trajgen.testing.fixture import Fixture
from trajgen.testing.inputs import other_padding, require_mean, shares

LEARNING_STEPS, LEARNING_RATE, TARGET_STEPS, LEAST_CORRELATION = 60, 1e-2, 20, 0.85
"""Of a short training; targets are moved several times a step, since they follow slowly."""
PRESENT = ("state", "position")
"""Fields whose first point is the present one, whatever was decoded."""


@contract("a score for each plan, by its own points", "critic")
@torch.no_grad()
def scores(fixture: Fixture) -> None:
    critic, example = fixture.component, fixture.example()
    points = points_of(fixture, fixture.planner, example)
    read = [name for name in critic.reads if name in points]
    require(read, "A critic reads fields of a plan's points.", got=critic.reads, look="reads")
    first = critic(points, example.cond)
    require_shape("the scores", first, (len(example.cond),), "(B,)")
    others = {name: value.flip(0) if name in read else value for name, value in points.items()}
    same = torch.allclose(first, critic(others, example.cond))
    require(not same, "Other points have the same scores.", look="the fields that `reads` names")
    later = {n: torch.cat([v[:, :1], v[:, 1:].flip(0)], 1) if n in PRESENT else v.flip(0) for n, v in points.items()}
    has_later = max(values.shape[1] for values in points.values()) > 1
    require(
        not (has_later and torch.allclose(first, critic(later, example.cond))),
        "Scores depend on the present state alone, which all plans for it share.",
        look="the points after the first, points[name][:, 1:]",
    )
    unread = {name: value for name, value in points.items() if name in critic.reads}
    require(
        torch.allclose(first, critic(unread, example.cond)),
        "Scores depend on a field that is not declared.",
        expected="every field that it looks at among `reads`",
    )


@contract("partial plans have scores", "critic")
@torch.no_grad()
def partial_plans(fixture: Fixture) -> None:
    critic, example = fixture.component, fixture.example()
    points = points_of(fixture, fixture.planner, example)
    for count in (1, 2):
        partial = critic({name: value[:, :count] for name, value in points.items()}, example.cond)
        require_shape(f"the scores of plans of {count} points", partial, (len(example.cond),), "(B,)")
        require(torch.isfinite(partial).all(), "Scores of partial plans are finite.", got=partial.tolist())


@contract("losses that can be trained, and target networks that follow", "critic")
def critic_losses(fixture: Fixture) -> None:
    critic, batch = fixture.part(fixture.build_ready()), fixture.batch(16, padded=False)
    losses = critic.loss(batch)
    require_losses(losses, total=False)
    if not isinstance(critic, ContrastsWindows):
        require_mean(critic, batch, losses)
    learns = isinstance(critic, nn.Module) and bool(list(critic.parameters()))
    require(bool(losses) == learns, "A critic with weights has a loss, and one without has none.", look="loss()")
    if critic.transitions is None and learns:
        bare = critic.loss(replace(batch, transitions=None))
        require(bare.keys() == losses.keys(), "Without `transitions`, batches carry none.", look="transitions")
    weights = {name: p.clone() for name, p in critic.named_parameters()} if learns else {}
    with torch.no_grad():
        critic.after_step()
    moved = [name for name, p in critic.named_parameters() if not torch.equal(p, weights[name])] if learns else []
    padded = fixture.batch(16)
    torch.manual_seed(0)
    expected = critic.loss(padded)
    torch.manual_seed(0)
    for name, value in critic.loss(other_padding(padded)).items():
        same = torch.allclose(value, expected[name], rtol=1e-4)
        require(same, f"Rewards and returns of padding change the loss '{name}'.", look="batch.mean(…, real)")
    for name, value in {} if isinstance(critic, ContrastsWindows) else expected.items():
        of_shares = [float(critic.loss(share)[name].detach()) for share in shares(padded)]
        require(
            abs(sum(of_shares) / len(of_shares) - float(value.detach())) <= 1e-3 * abs(float(value.detach())) + 1e-6,
            f"The loss '{name}' of a batch differs where it is shared out to several devices or micro-batches.",
            look="batch.mean(errors, real), which counts the points of the full batch",
        )
    require(not moved, "after_step() moves targets, not the weights that are trained.", got=", ".join(moved))


@contract("targets follow the weights that are trained", "critic")
@torch.no_grad()
def targets(fixture: Fixture) -> None:
    critic = fixture.part(fixture.build(perturbed=False))
    weights = list(critic.parameters()) if isinstance(critic, nn.Module) else []
    copies = {  # constants, such as biases of 0, are equal by chance
        name: buffer
        for name, buffer in (critic.named_buffers() if weights else ())
        if (buffer != buffer.flatten()[:1]).any() and any(torch.equal(buffer, weight) for weight in weights)
    }
    if not copies:
        raise NotApplicableError("it has no target networks")
    before = {name: buffer.clone() for name, buffer in copies.items()}
    for weight in weights:
        weight.add_(1.0)
    critic.after_step()
    still = [name for name, buffer in copies.items() if torch.equal(buffer, before[name])]
    require(not still, "Copies of weights stay as they were.", got=", ".join(still), look="after_step(): the rate")


@contract("what a step leads to, brings and ends changes the loss", "critic")
def steps(fixture: Fixture) -> None:
    critic, batch = fixture.component, fixture.batch(16, padded=False)
    transitions = batch.transitions
    if critic.transitions is None or isinstance(critic, ContrastsWindows) or transitions is None:
        raise NotApplicableError("it does not learn from transitions, one by one")

    def losses(batch: Batch) -> list[float]:
        torch.manual_seed(0)
        return [float(value.detach()) for value in critic.loss(batch).values()]

    expected = losses(batch)
    others = {
        "states": replace(transitions, next_states=transitions.next_states + 1),
        "rewards": replace(transitions, rewards=transitions.rewards + 1),
        "ends of the task": replace(transitions, terminals=~transitions.terminals),
    }
    for name, other in others.items():
        changed = losses(replace(batch, transitions=other)) != expected
        require(changed, f"Other {name} have the same losses.", look="loss(): batch.transitions")


@contract("scores rise with what was earned", "critic")
def learns_worth(fixture: Fixture) -> None:
    critic, batch = fixture.part(fixture.build(perturbed=False)), fixture.batch(32, padded=False)
    weights = list(critic.parameters()) if isinstance(critic, nn.Module) else []
    transitions = batch.transitions
    if not weights or "state" not in critic.reads or isinstance(critic, ContrastsWindows) or transitions is None:
        raise NotApplicableError("it does not learn what states are worth")
    first = batch.states[:, :1]
    plans, earned = [batch.states, first], first[:, 0, 0]  # it can be read off states and goals
    batch = replace(batch, returns=batch.states[..., 0], chunk_states=torch.cat([first, batch.chunk_states[:, 1:]], 1))
    if critic.transitions is not None:  # the task ends with its first step
        rewards = earned[:, None, None].expand_as(transitions.rewards)
        rewards = rewards if transitions.goals is None else rewards + transitions.goals[..., :1]
        transitions = replace(transitions, rewards=rewards, terminals=torch.ones_like(transitions.terminals))
        plans, earned, batch = [first], rewards[:, 0, 0], replace(batch, transitions=transitions)
    optimizer = torch.optim.Adam(weights, LEARNING_RATE)
    for _ in range(LEARNING_STEPS):
        optimizer.zero_grad()
        torch.stack(list(critic.train().loss(batch).values())).sum().backward()
        optimizer.step()
        for _ in range(TARGET_STEPS):
            critic.after_step()
    with torch.no_grad():
        scores = [critic.eval()({"state": states}, batch.condition()) for states in plans]
    correlation = max(float(torch.corrcoef(torch.stack([each, earned]))[0, 1]) for each in scores)
    require(
        correlation > LEAST_CORRELATION,
        "The higher a score, the better: here scores do not follow what the states that were trained on earned.",
        expected=f"a correlation above {LEAST_CORRELATION} after {LEARNING_STEPS} steps",
        got=f"{correlation:.2f}",
        look="the signs of loss() and of scores, the goals, and which state and reward belong together",
    )


@contract("the advantage of what was done", "critic")
def advantage(fixture: Fixture) -> None:
    critic, batch = fixture.component, fixture.batch()
    if not isinstance(critic, HasAdvantage):
        raise NotApplicableError("it does not compare actions")
    advantages = critic.advantage(batch)
    require_shape("the advantage", advantages, (len(batch),), "(B,)")
    require(not advantages.requires_grad, "An advantage weighs a loss, and carries no gradient.", look="advantage()")
    require(torch.isfinite(advantages).all(), "Advantages are finite.", got=advantages.tolist())
