"""Every registered planner, and which loss of the latent planner reaches which weights."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from accepts import cells, check_cell
from torch import nn

from trajgen.core.errors import ConfigError
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Losses, Plan
from trajgen.planners.latent import MAX_REFINEMENTS


@cells("planner")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("planner", name, words, advice)


def stage_of(planner: Any, name: str) -> Stage:
    return next(stage for stage in planner.stages() if stage.name == name)


def losses_of(planner: Any, name: str, batch: Batch) -> Losses:
    """The losses of a stage that has just begun, with no gradients yet."""
    stage = stage_of(planner, name)
    stage.begin(planner)
    planner.zero_grad(set_to_none=True)
    return stage.loss(batch)


def reached(module: nn.Module) -> set[str]:
    """The names of the weights with a gradient other than zero."""
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def names_of(planner: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    ids = {id(p) for p in parameters}
    return {name for name, p in planner.named_parameters() if id(p) in ids}


def parts(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("schedule", tiny.schedules())
def test_the_last_refinement_is_the_trajectory(schedule: str, cond: Cond) -> None:
    planner = tiny.ready_planner(schedule=schedule, tokenizer="multiscale").eval()
    plan = planner.plan(cond, torch.Generator().manual_seed(3))
    assert plan.trajectory.shape == (6, tiny.HORIZON, 5)
    assert planner.plan(cond, decode=False).trajectory is None
    refined = planner.refinements(plan, cond)
    assert len(refined) == planner.tokenizer.schedule.scales
    torch.testing.assert_close(list(refined.values())[-1], plan.trajectory)


def test_of_many_scales_some_are_refinements(cond: Cond) -> None:
    planner = tiny.ready_planner(tokenizer="identity", schedule="unit", decoder="identity", sampler="greedy").eval()
    plan = planner.plan(cond)
    refined = planner.refinements(plan, cond)
    assert 2 < len(refined) <= MAX_REFINEMENTS + 1 < planner.tokenizer.schedule.scales
    torch.testing.assert_close(list(refined.values())[-1], plan.trajectory)


@pytest.mark.parametrize("schedule", ["geometric", "single", "two_level"])
def test_the_condition_loss_reaches_prior_and_adapters_through_the_sample(schedule: str, batch: Batch) -> None:
    planner = tiny.ready_planner(schedule=schedule, decoder="adapter", conditioner={"dropout": 0.0})
    losses_of(planner, "prior", batch)["condition"].backward()
    names = reached(planner)
    left = {f"prior.{name}" for name, _ in planner.prior.named_parameters()} - names
    left = {name for name in left if "missing" not in name and not name.endswith("qkv.bias")}
    if schedule == "single":  # no code is read where there is no coarser scale
        left -= names_of(planner, list(planner.prior.input_proj.parameters()))
    assert not left
    adapters = names_of(planner, planner.decoder.adapter_parameters())
    frozen = names_of(planner, [*planner.decoder.base_parameters(), *planner.tokenizer.parameters()])
    assert adapters and adapters <= names and frozen and not frozen & names
    assert not parts(names) & {"action", "return_target"}


def test_the_plain_decoder_lets_the_condition_loss_reach_the_prior_too(batch: Batch) -> None:
    planner = tiny.ready_planner(decoder="plain")
    losses_of(planner, "prior", batch)["condition"].backward()
    assert "prior.head.weight" in reached(planner)


def test_the_prior_loss_reaches_the_prior_alone(batch: Batch) -> None:
    planner = tiny.ready_planner()
    losses_of(planner, "prior", batch)["prior"].backward()
    assert parts(reached(planner)) == {"prior"}


def test_the_reconstruction_reaches_the_adapters_alone_and_not_through_padding(batch: Batch) -> None:
    planner = tiny.ready_planner()
    loss = losses_of(planner, "prior", batch)["reconstruction"]
    loss.backward()
    assert reached(planner) == names_of(planner, planner.decoder.adapter_parameters())
    with torch.no_grad():
        x = planner.view(batch)
        error = planner.decoder(planner.tokenizer.encode(x).latent, batch.condition()) - x
    torch.testing.assert_close(loss.detach(), error[batch.mask].square().mean())


def test_the_total_is_the_weighted_sum(batch: Batch) -> None:
    losses = losses_of(tiny.ready_planner(planner={"inverse_weight": 2.0, "condition_weight": 0.5}), "prior", batch)
    guided = losses["condition"] + losses["reconstruction"]
    torch.testing.assert_close(losses["total"], losses["prior"] + 2 * losses["inverse"] + 0.5 * guided)
    without = losses_of(tiny.ready_planner(planner={"condition_weight": 0.0}), "prior", batch)
    assert "condition" not in without


def test_the_return_target_learns_in_a_stage_of_its_own(batch: Batch) -> None:
    planner = tiny.ready_planner(return_target="quantile")
    losses = losses_of(planner, "return_target", batch)
    torch.testing.assert_close(losses["total"], losses["distribution"])
    losses["total"].backward()
    assert parts(reached(planner)) == {"return_target"}
    constant = tiny.ready_planner(return_target="constant")
    assert not stage_of(constant, "return_target").parameters  # nothing to learn: the engine skips it


def test_the_action_head_learns_with_the_prior_in_a_stage_of_its_own_or_in_both(batch: Batch) -> None:
    joint = tiny.ready_planner(planner={"end_to_end": False})
    separate = tiny.ready_planner(planner={"inverse_weight": 0.0, "end_to_end": False})
    both = tiny.ready_planner(planner={"action_stage": True})
    assert not stage_of(joint, "action").parameters and stage_of(both, "action").parameters
    losses_of(both, "prior", batch)["total"].backward()
    assert "action" in parts(reached(both))
    losses = losses_of(separate, "prior", batch)
    losses["total"].backward()
    assert "inverse" not in losses and "action" not in parts(reached(separate))
    losses = losses_of(separate, "action", batch)
    losses["total"].backward()
    assert parts(reached(separate)) == {"action"}
    assert not separate.tokenizer.training and separate.action.training
    joint.load_state_dict(separate.state_dict())
    torch.testing.assert_close(losses["inverse"], losses_of(joint, "prior", batch)["inverse"])


@pytest.fixture
def likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples are the likeliest codes."""

    def sample(logits: torch.Tensor, tau: float, hard: bool) -> torch.Tensor:
        soft = logits.softmax(-1)
        return F.one_hot(logits.argmax(-1), logits.shape[-1]) + (soft - soft.detach())

    monkeypatch.setattr(F, "gumbel_softmax", sample)


@pytest.mark.parametrize("sampled_prefixes", [False, True])
def test_in_its_own_stage_the_action_head_reads_latents_that_the_prior_generates(
    sampled_prefixes: bool, batch: Batch, monkeypatch: pytest.MonkeyPatch, likeliest: None
) -> None:
    """Each scale is the likeliest given the data's coarser ones, or given the likeliest ones."""
    planner = tiny.ready_planner(planner={"action_stage": True, "sampled_prefixes": sampled_prefixes})
    plans, loss = list[Plan](), planner.action.loss
    monkeypatch.setattr(planner.action, "loss", lambda plan, *others: plans.append(plan) or loss(plan, *others))
    losses_of(planner, "action", batch)["total"].backward()
    assert parts(reached(planner)) == {"action"}
    assert planner.action.training and not planner.prior.training
    layout, vectors, cond = planner.tokenizer.layout, planner.tokenizer.vectors, batch.condition()
    encoding = planner.tokenizer.encode(planner.view(batch))
    codes = planner.prior.logits(encoding.inputs, cond).argmax(-1)
    if sampled_prefixes:
        teacher_forced, codes = codes, planner.prior.logits(layout.inputs(vectors(codes)), cond).argmax(-1)
        assert not codes.equal(teacher_forced)
    assert not codes.equal(encoding.codes) and plans[0].codes.equal(codes)
    torch.testing.assert_close(plans[0].latent, layout.latent(vectors(codes)))


def test_the_prior_s_losses_read_sampled_prefixes_too(batch: Batch, likeliest: None) -> None:
    swaps = [{"conditioner": {"dropout": 0.0}, "planner": {"sampled_prefixes": value}} for value in (False, True)]
    one, other = (tiny.ready_planner(**swap) for swap in swaps)
    losses = [losses_of(planner, "prior", batch) for planner in (one, other)]
    torch.testing.assert_close(losses[0]["prior"], losses[1]["prior"])
    assert not torch.allclose(losses[0]["inverse"], losses[1]["inverse"])
    losses[1]["inverse"].backward()
    assert {"prior", "action"} <= parts(reached(other))


@pytest.mark.parametrize(
    "swaps",
    [
        {"sampler": "best_of_n"},
        {"action": "state"},
        {"action": {"name": "latent_state", "num_bins": 5}},
        {"tokenizer": "identity", "schedule": "unit", "sampler": "greedy"},
    ],
)
def test_the_head_s_own_stage_works_with_every_kind_of_sampler_and_head(batch: Batch, swaps: dict[str, Any]) -> None:
    planner = tiny.ready_planner(planner={"action_stage": True, "sampled_prefixes": True}, **swaps)
    assert losses_of(planner, "action", batch)["inverse"].isfinite()


def test_a_prior_without_prefixes_has_none_that_could_be_sampled() -> None:
    swaps = {"tokenizer": "identity", "decoder": "identity", "schedule": "single", "sampler": "diffusion"}
    with pytest.raises(ConfigError, match=r"planner\.sampled_prefixes"):
        tiny.planner(planner={"sampled_prefixes": True}, prior="diffusion", action="state", **swaps)


@pytest.mark.parametrize(
    "options",
    [{"condition_batch": 0}, {"gumbel_temperature": 0.0}, {"inverse_weight": -1.0}, {"condition_weight": -1.0}],
)
def test_options_that_would_spoil_the_losses_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"planner.{next(iter(options))} is out of range"):
        tiny.planner(planner=options)


def test_padded_steps_do_not_count_in_the_inverse_loss(batch: Batch) -> None:
    planner = tiny.ready_planner()
    torch.manual_seed(1)
    before = losses_of(planner, "prior", batch)["inverse"]
    assert not batch.chunk_mask[-1, -1]
    batch.chunk_actions[-1, -1] += 100
    torch.manual_seed(1)
    torch.testing.assert_close(losses_of(planner, "prior", batch)["inverse"], before)


def test_residuals_by_hand(batch: Batch) -> None:
    cond, trajectory = batch.condition(), torch.randn(6, tiny.HORIZON, 5)
    residuals = tiny.planner().condition_residuals(trajectory, cond)
    torch.testing.assert_close(residuals["return"][:, 0], trajectory[:, 0, 0] - cond.returns)
    torch.testing.assert_close(residuals["state"], trajectory[:, 0, 1:] - cond.state)
    states = tiny.planner(view={"fields": ("state",)})
    assert set(states.condition_residuals(trajectory[..., 1:], cond)) == {"state"}
    actions = tiny.ready_planner(view={"fields": ("action",)})
    assert float(losses_of(actions, "prior", batch)["condition"]) == 0


@pytest.mark.parametrize(
    ("action", "options"),
    [
        *((action, {"sampled_prefixes": True}) for action in ("latent_state", "state")),
        *((action, {}) for action in ("latent_state", "state")),
        ("latent_state", {"end_to_end": False}),
    ],
)
def test_the_head_learns_the_same_of_prepared_windows(action: str, options: dict[str, Any], batch: Batch) -> None:
    planner = tiny.ready_planner(action=action, planner=tiny.node("planner", "latent", action_stage=True, **options))
    stage = stage_of(planner, "action")
    stage.begin(planner)
    assert stage.prepare is not None
    totals = []
    for prepare in (stage.prepare, lambda batch: batch):
        torch.manual_seed(3)
        totals.append(stage.loss(prepare(batch))["total"])
    torch.testing.assert_close(*totals, rtol=1e-6, atol=0)
    prepared = stage.prepare(batch)
    assert prepared.states.shape[1] == 1 and len(prepared.states) == len(batch.states)


def test_windows_of_which_the_head_reads_all_points_are_not_prepared() -> None:
    planner = tiny.ready_planner(action="state", planner=tiny.node("planner", "latent", end_to_end=False))
    assert stage_of(planner, "action").prepare is None
