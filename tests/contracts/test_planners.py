"""Every registered planner: stages that can be trained, plans, and which loss reaches which weights."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from kept import accepted, check_kept
from torch import nn

from trajgen.config import recipe_files
from trajgen.core.errors import ConfigError
from trajgen.core.registry import names
from trajgen.core.types import Batch, Cond, Plan, Stage
from trajgen.planners.latent import MAX_REFINEMENTS

PLANNERS = names("planner")
COMPOSITIONS = [
    *(("latent", name) for name in recipe_files() if name not in ("bc", "dt", "hierarchy", "hd")),
    *(("latent", f"mage schedule={name}") for name in tiny.schedules() if name not in ("unit", "geometric")),
    ("latent", "flat_ar prior=gpt sampler=beam"),
    ("latent", "diffuser conditioner.fields=[state,return] planner.condition_weight=0.1"),
    ("direct", "bc"),
    ("direct", "bc action=latent return_target=quantile"),
    ("history", "dt"),
    ("history", "dt view.fields=[state,action] return_target=constant"),
    *(("hierarchy", name) for name in ("hierarchy", "hd", "mage", "hierarchy tokenizer=multiscale schedule=single")),
]


def ready(**swaps: Any) -> Any:
    """A planner whose codebook has seen a batch and whose weights are moved."""
    made = tiny.planner(**swaps)
    tiny.shake(made)
    first = made.stages()[0]
    first.begin(made)
    first.loss(tiny.batch(64))
    return made


def stage_of(made: Any, name: str) -> Stage:
    """A stage of its training, by name."""
    return next(stage for stage in made.stages() if stage.name == name)


def moved(module: nn.Module) -> set[str]:
    """The names of the weights that a gradient reached."""
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize(("name", "words"), COMPOSITIONS)
def test_contracts_are_kept_in_every_composition(name: str, words: str) -> None:
    assert check_kept("planner", name, words)


@pytest.mark.parametrize("name", PLANNERS)
def test_each_planner_accepts_a_recipe(name: str) -> None:
    assert name in {planner for planner, _ in COMPOSITIONS} and accepted("planner", name, recipe_files())


@pytest.mark.parametrize("schedule", tiny.schedules())
def test_plans_of_the_latent_planner_are_drawn_to_their_last_refinement(schedule: str, cond: Cond) -> None:
    made = ready(schedule=schedule)
    made.eval()
    plan = made.plan(cond, torch.Generator().manual_seed(3))
    assert plan.trajectory.shape == (6, tiny.HORIZON, 5)
    assert made.plan(cond, torch.Generator().manual_seed(3), decode=False).trajectory is None
    refined = made.refinements(plan, cond)
    assert len(refined) == made.tokenizer.schedule.scales
    torch.testing.assert_close(list(refined.values())[-1], plan.trajectory)


def test_of_many_scales_some_are_drawn(cond: Cond) -> None:
    made = ready(tokenizer={"name": "identity"}, schedule="unit", decoder="identity", sampler="greedy")
    made.eval()
    plan = made.plan(cond)
    refined = made.refinements(plan, cond)
    assert 2 < len(refined) <= MAX_REFINEMENTS + 1 < made.tokenizer.schedule.scales
    torch.testing.assert_close(list(refined.values())[-1], plan.trajectory)


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    made = ready()
    stage_of(made, "prior").begin(made)
    assert not made.tokenizer.training and not any(m.training for m in made.tokenizer.modules())
    assert made.prior.training and made.action.training
    assert not any(p.requires_grad for p in made.tokenizer.parameters())


def test_the_prior_stage_leaves_the_codebook_alone(batch: Batch) -> None:
    made = ready()
    before = {k: v.clone() for k, v in made.tokenizer.state_dict().items()}
    stage = stage_of(made, "prior")
    stage.begin(made)
    stage.loss(batch)["total"].backward()
    after = made.tokenizer.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("schedule", ["geometric", "single", "two_level"])
def test_the_condition_loss_reaches_prior_and_adapters_through_the_draw(schedule: str, batch: Batch) -> None:
    made = ready(schedule=schedule, decoder="adapter", conditioner={"dropout": 0.0})
    stage = stage_of(made, "prior")
    stage.begin(made)
    made.zero_grad(set_to_none=True)
    stage.loss(batch)["condition"].backward()
    reached = moved(made)
    of_prior = {n for n, _ in made.named_parameters() if n.startswith("prior.")}
    silent = {n for n in of_prior - reached if "missing" not in n and not n.endswith("qkv.bias")}
    if schedule == "single":  # nothing is read where there is no coarser scale
        silent = {n for n in silent if not n.startswith("prior.input_proj.")}
    assert not silent
    adapters = {id(p) for p in made.decoder.adapter_parameters()}
    names_of_adapters = {n for n, p in made.named_parameters() if id(p) in adapters}
    assert names_of_adapters and names_of_adapters <= reached
    base = {id(p) for p in made.decoder.base_parameters()}
    frozen = {n for n, p in made.named_parameters() if id(p) in base or n.startswith("tokenizer.")}
    assert frozen and not frozen & reached
    assert not any(n.startswith(("action.", "return_target.")) for n in reached)


def test_the_plain_decoder_lets_the_condition_loss_reach_the_prior_too(batch: Batch) -> None:
    made = ready(decoder="plain")
    stage = stage_of(made, "prior")
    stage.begin(made)
    stage.loss(batch)["condition"].backward()
    assert "prior.head.weight" in moved(made)


def test_the_reconstruction_reaches_the_adapters_alone_and_not_through_padding(batch: Batch) -> None:
    made = ready()
    stage = stage_of(made, "prior")
    stage.begin(made)
    made.zero_grad(set_to_none=True)
    losses = stage.loss(batch)
    losses["reconstruction"].backward()
    adapters = {id(p) for p in made.decoder.adapter_parameters()}
    assert moved(made) == {n for n, p in made.named_parameters() if id(p) in adapters}
    with torch.no_grad():
        x = made.view(batch)
        latent = made.tokenizer.encode(x).latent
        error = (made.decoder(latent, batch.condition()) - x)[batch.mask].square().mean()
    torch.testing.assert_close(losses["reconstruction"].detach(), error)


def test_the_prior_loss_reaches_the_prior_alone(batch: Batch) -> None:
    made = ready()
    stage = stage_of(made, "prior")
    stage.begin(made)
    made.zero_grad(set_to_none=True)
    stage.loss(batch)["prior"].backward()
    assert {n.split(".")[0] for n in moved(made)} == {"prior"}


def test_the_total_is_the_weighted_sum(batch: Batch) -> None:
    made = ready(planner={"inverse_weight": 2.0, "condition_weight": 0.5})
    stage = stage_of(made, "prior")
    stage.begin(made)
    losses = stage.loss(batch)
    guided = losses["condition"] + losses["reconstruction"]
    expected = losses["prior"] + 2 * losses["inverse"] + 0.5 * guided
    torch.testing.assert_close(losses["total"], expected)


def test_the_target_learns_in_a_stage_of_its_own(batch: Batch) -> None:
    made = ready(return_target="quantile")
    stage = stage_of(made, "return_target")
    stage.begin(made)
    made.zero_grad(set_to_none=True)
    losses = stage.loss(batch)
    torch.testing.assert_close(losses["total"], losses["quantile"])
    losses["total"].backward()
    assert {n.split(".")[0] for n in moved(made)} == {"return_target"}
    assert not stage_of(
        ready(return_target="constant"), "return_target"
    ).parameters  # nothing to learn: the engine passes it over


def test_without_its_weight_the_action_head_learns_in_a_stage_of_its_own(batch: Batch) -> None:
    together, alone = ready(planner={"end_to_end": False}), ready(planner={"inverse_weight": 0.0})
    assert not stage_of(together, "action").parameters
    stage = stage_of(alone, "prior")
    stage.begin(alone)
    losses = stage.loss(batch)
    assert "inverse" not in losses
    alone.zero_grad(set_to_none=True)
    losses["total"].backward()
    assert "action" not in {n.split(".")[0] for n in moved(alone)}
    stage = stage_of(alone, "action")
    stage.begin(alone)
    alone.zero_grad(set_to_none=True)
    losses = stage.loss(batch)
    losses["total"].backward()
    assert {n.split(".")[0] for n in moved(alone)} == {"action"}
    tiny.shake(together)
    alone.load_state_dict(together.state_dict())
    stage_of(together, "prior").begin(together)
    expected = stage_of(together, "prior").loss(batch)["inverse"]
    torch.testing.assert_close(stage.loss(batch)["inverse"], expected)
    assert not alone.tokenizer.training and alone.action.training


def test_the_action_head_learns_from_plans_as_the_prior_draws_them(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each scale is the likeliest given the data's coarser ones, in the first half of the batch alone."""
    made = ready(planner={"inverse_weight": 0.0, "scheduled_sampling": 0.5}, sampler="greedy")
    seen: list[Plan] = []
    loss = made.action.loss
    monkeypatch.setattr(made.action, "loss", lambda plan, *others: seen.append(plan) or loss(plan, *others))
    stage = stage_of(made, "action")
    stage.begin(made)
    made.zero_grad(set_to_none=True)
    stage.loss(batch)["total"].backward()
    assert {n.split(".")[0] for n in moved(made)} == {"action"}
    assert made.action.training and not made.prior.training
    half = len(batch) // 2
    encoding = made.tokenizer.encode(made.view(batch))
    codes = encoding.codes
    logits = made.prior(codes, encoding.inputs, batch.condition())[1]
    expected = torch.cat([logits.argmax(-1)[:half], codes[half:]])
    assert not expected.equal(codes)
    assert seen[0].codes.equal(expected)
    torch.testing.assert_close(seen[0].latent, made.tokenizer.layout.latent(made.tokenizer.vectors(expected)))


@pytest.mark.parametrize(
    "swaps",
    [
        {"sampler": "best_of_n"},
        {"action": "state"},
        {"action": {"name": "latent_state", "num_bins": 5}},
        {"tokenizer": "identity", "schedule": "unit", "sampler": "greedy"},
    ],
)
def test_whatever_draws_the_plans_and_reads_them_can_learn(batch: Batch, swaps: dict[str, Any]) -> None:
    made = ready(planner={"inverse_weight": 0.0, "scheduled_sampling": 1.0}, **swaps)
    stage = stage_of(made, "action")
    stage.begin(made)
    assert stage.loss(batch)["inverse"].isfinite()


@pytest.mark.parametrize(
    "options",
    [{"scheduled_sampling": 1.5}, {"scheduled_sampling": -0.1}, {"scheduled_sampling": 0.5, "inverse_weight": 1.0}],
)
def test_drawn_plans_are_a_share_of_what_the_heads_own_stage_reads(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"planner\.scheduled_sampling"):
        tiny.planner(planner={"inverse_weight": 0.0, **options})


def test_without_its_weight_the_condition_loss_is_not_computed(batch: Batch) -> None:
    made = ready(planner={"condition_weight": 0.0})
    stage = stage_of(made, "prior")
    stage.begin(made)
    assert "condition" not in stage.loss(batch)


def test_padded_steps_do_not_count_in_the_inverse_loss(batch: Batch) -> None:
    made = ready()
    stage = stage_of(made, "prior")
    stage.begin(made)
    torch.manual_seed(1)
    before = stage.loss(batch)["inverse"]
    assert not batch.chunk_mask[-1, -1]
    batch.chunk_actions[-1, -1] += 100
    torch.manual_seed(1)
    torch.testing.assert_close(stage.loss(batch)["inverse"], before)


def test_the_condition_loss_by_hand(batch: Batch) -> None:
    made = ready()
    known = batch.condition()
    trajectory = torch.randn(6, tiny.HORIZON, 5)
    residuals = made.condition_residuals(trajectory, known)
    torch.testing.assert_close(residuals["return"][:, 0], trajectory[:, 0, 0] - known.returns)
    torch.testing.assert_close(residuals["state"], trajectory[:, 0, 1:] - known.state)


def test_a_view_without_returns_has_no_return_to_miss(batch: Batch) -> None:
    made = ready(view={"fields": ("state",)})
    assert set(made.condition_residuals(torch.zeros(6, tiny.HORIZON, 4), batch.condition())) == {"state"}
    actions = ready(view={"fields": ("action",)})
    stage = stage_of(actions, "prior")
    stage.begin(made)
    assert float(stage.loss(batch)["condition"]) == 0
