"""The diffusion prior and its sampler: what is noised, what is learnt, what guides, and what is refused."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond, KnownCodes
from trajgen.nn.diffusion import noise_levels
from trajgen.samplers.diffusion import gradient

TOKENS, CODE_DIM = 5, 3
SCHEDULE = ScaleSchedule((TOKENS,))
STATES = SimpleNamespace(slices={"state": slice(0, 3)})
"""A view without the return."""


def first_token(cond: Cond) -> KnownCodes:
    codes, mask = (torch.zeros(len(cond), TOKENS, CODE_DIM, dtype=dtype) for dtype in (torch.float32, torch.bool))
    codes[:, 0], mask[:, 0] = cond.state[:, :CODE_DIM], True
    return KnownCodes(codes, mask)


def tokenizer(inpaint: bool = False) -> Any:
    """A tokenizer of continuous codes, whose first token may be known from the condition."""
    return SimpleNamespace(
        schedule=SCHEDULE, code_dim=CODE_DIM, vocabulary=None, vectors=lambda codes: codes,
        layout=SimpleNamespace(latent=lambda vectors: vectors),
        known_codes=first_token if inpaint else lambda cond: None,
    )  # fmt: skip


def wiring(conditioner: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {"schedule": SCHEDULE, "code_dim": CODE_DIM, "vocabulary": None, "tokenizer": tokenizer()}
    parts |= {"view": STATES, "state_dim": 4, **tiny.GOALS, "strides": (3,), "agent_axis": None} | changes
    node = {"name": "fields", "width": 16, "fourier_frequencies": 2, **(conditioner or {})}
    return {"conditioner": build("conditioner", node, **parts), **parts}


def make(*, inpaint: bool = False, conditioner: dict[str, Any] | None = None, **options: Any) -> Any:
    """A small prior in evaluation mode."""
    parts = wiring(conditioner, tokenizer=tokenizer(inpaint))
    return build("prior", {"name": "diffusion", "width": 16, "depth": 2, "heads": 2, **options}, **parts).eval()


def perturbed(**options: Any) -> Any:
    return tiny.shake(make(**options))


def make_sampler(prior: Any, **options: Any) -> Any:
    return build("sampler", {"name": "diffusion", "steps": 10, **options}, prior=prior, vocabulary=None)


def sample(prior: Any, cond: Cond, *, seed: int = 0, known_codes: KnownCodes | None = None, **options: Any) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    codes: Tensor = make_sampler(prior, **options)(prior, tokenizer(), cond, rng, known_codes).codes
    return codes


def conditions(size: int = 6) -> Cond:
    return Cond(state=torch.randn(size, 4), returns=torch.randn(size), goal=torch.randn(size, 2))


def noisy(size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(size, TOKENS, CODE_DIM), torch.arange(size) * 9


# --- the prior ---


def record_inputs(prior: Any) -> list[tuple[Tensor, Tensor]]:
    """Replaces the prior's network by one that adds 1 to its input; returns the list of inputs to come."""
    inputs: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        inputs.append((x, t))
        return x + 1

    prior.denoise = denoise
    return inputs


def test_noise_has_the_mean_and_variance_of_its_level() -> None:
    """x_t ~ N(√ᾱ_t x_0, 1 - ᾱ_t) at levels that are all equally likely; tolerances of five standard errors."""
    prior, size = make(timesteps=4), 40_000
    inputs = record_inputs(prior)
    prior(torch.full((size, TOKENS, CODE_DIM), 2.0), torch.empty(size, 0, CODE_DIM), conditions(size))
    (x, t), alphas = inputs[0], noise_levels(4, "squaredcos_cap_v2").alphas_cumprod
    assert torch.bincount(t).tolist() == pytest.approx([size / 4] * 4, rel=0.05)
    for level in range(4):
        assert x[t == level].mean().item() == pytest.approx(2 * alphas[level].sqrt().item(), abs=0.013)
        assert x[t == level].var().item() == pytest.approx(1 - alphas[level].item(), rel=0.02)


def test_noise_is_added_in_full_precision_under_autocast() -> None:
    prior, codes = perturbed(), torch.randn(6, TOKENS, CODE_DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, prediction = prior(codes, codes[:, :0], conditions())
        inputs = record_inputs(prior)
        prior(codes.bfloat16(), codes[:, :0], conditions())
    assert loss.dtype == prediction.dtype == inputs[0][0].dtype == torch.float32


def test_training_noise_follows_the_global_seed() -> None:
    prior, codes, cond = perturbed(), torch.randn(6, TOKENS, CODE_DIM), conditions()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(prior(codes, codes[:, :0], cond)[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_known_codes_are_shown_without_noise_and_not_counted() -> None:
    prior, codes = make(inpaint=True), torch.randn(6, TOKENS, CODE_DIM)
    inputs = record_inputs(prior)
    loss, prediction = prior(codes, codes[:, :0], conditions())
    x = inputs[0][0]
    assert torch.equal(x[:, 0], codes[:, 0]) and (x[:, 1:] != codes[:, 1:]).all()
    assert torch.equal(prediction[:, 0], codes[:, 0]) and torch.equal(prediction[:, 1:], x[:, 1:] + 1)
    torch.testing.assert_close(loss, (x + 1 - codes)[:, 1:].square().mean())


@pytest.mark.parametrize("network", ["convolution", "unet", "transformer"])
@torch.no_grad()
def test_one_plan_does_not_depend_on_the_others(network: str) -> None:
    prior, cond = perturbed(value=True, network=network), conditions()
    x, t = noisy()
    alone = cond.map(lambda values: values[2:3])
    for function in (prior.denoise, prior.value):
        torch.testing.assert_close(function(x, t, cond)[2:3], function(x[2:3], t[2:3], alone), atol=1e-5, rtol=1e-5)
    mask = torch.zeros(6, TOKENS, CODE_DIM, dtype=torch.bool)
    mask[:, 1] = True
    options: dict[str, Any] = {"temperature": 0.0, "guidance": 1.0, "value_scale": 1.0}
    batched = sample(prior, cond, known_codes=KnownCodes(x, mask), **options)
    assert batched.std() > 0.01
    one = sample(prior, alone, known_codes=KnownCodes(x[2:3], mask[2:3]), **options)
    torch.testing.assert_close(batched[2:3], one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", ["convolution", "unet", "transformer"])
@torch.no_grad()
def test_every_token_sees_all_others_the_level_and_the_condition(network: str) -> None:
    prior, cond = perturbed(network=network), conditions(1)
    x, t = noisy(1)
    cases = [(x, t + 50, cond), *((x, t, tiny.moved(cond, **{name: 1.0})) for name in ("state", "returns", "goal"))]
    cases += [(x + torch.eye(TOKENS)[token, :, None], t, cond) for token in range(TOKENS)]
    before = prior.denoise(x, t, cond)
    for case in cases:
        assert ((prior.denoise(*case) - before).abs().amax(-1) > 1e-5).all()


@torch.no_grad()
def test_a_condition_that_is_withheld_in_training_is_not_looked_at() -> None:
    prior, cond = perturbed(conditioner={"dropout": 1.0}).train(), conditions()
    x, t = noisy()
    assert torch.equal(prior.denoise(x, t, cond), prior.denoise(x, t, tiny.moved(cond, returns=3.0, goal=-2.0)))


@torch.no_grad()
def test_the_value_network_never_sees_the_return_in_the_condition() -> None:
    prior, cond = perturbed(value=True), conditions()
    x, t = noisy()
    values = prior.value(x, t, cond)
    assert values.shape == (6,)
    assert torch.equal(values, prior.value(x, t, tiny.moved(cond, returns=5.0)))
    for field in ("state", "goal"):
        assert (values != prior.value(x, t, tiny.moved(cond, **{field: 1.0}))).all()
    assert (values != prior.value(x + 1, t, cond)).all() and (values != prior.value(x, t + 50, cond)).all()
    assert prior.value(x, t, replace(cond, goal=None)).shape == (6,)


def test_the_value_network_learns_returns() -> None:
    prior, codes, cond = perturbed(value=True), torch.randn(6, TOKENS, CODE_DIM), conditions()
    prior.value.forward = lambda x, t, cond: cond.returns + 3.0
    torch.manual_seed(3)
    with_values = prior(codes, codes[:, :0], cond)[0]
    prior.value = None
    torch.manual_seed(3)
    torch.testing.assert_close(with_values - prior(codes, codes[:, :0], cond)[0], torch.tensor(9.0))


def test_the_tokenizer_is_no_part_of_the_prior_and_copies_work_alone() -> None:
    prior, cond = perturbed(value=True), conditions()
    assert not any("tokenizer" in name or "waves" in name for name in prior.state_dict())
    x, t = noisy()
    assert torch.equal(prior.denoise(x, t, cond), deepcopy(prior).denoise(x, t, cond))


@pytest.fixture(scope="module")
def trained() -> tuple[Any, list[float]]:
    """A prior of windows in which every code is the return; the first token is known, and returns are learnt too."""
    torch.manual_seed(0)
    prior = make(inpaint=True, value=True, conditioner={"dropout": 0.1, "fields": ("return",)}).train()
    optimizer, losses = torch.optim.Adam(prior.parameters(), lr=5e-3), []
    for _ in range(300):
        cond = conditions(64)
        codes = cond.returns[:, None, None].expand(-1, TOKENS, CODE_DIM)
        loss, _ = prior(codes, codes[:, :0], cond)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return prior.eval(), losses


def test_a_few_hundred_steps_teach_it_a_toy(trained: tuple[Any, list[float]]) -> None:
    prior, losses = trained
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    cond = replace(conditions(64), returns=torch.linspace(-1, 1, 64))
    target = cond.returns[:, None, None].expand(-1, TOKENS, CODE_DIM)
    codes = sample(prior, cond, known_codes=replace(first_token(cond), codes=target))
    assert (codes - target).abs().mean() < 0.2
    assert torch.equal(codes[:, 0], target[:, 0])


# --- the sampler ---


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"guidance": 1.5}, {"eta": 0.5, "value_scale": 2.0}])
def test_samples_are_seeded_and_leave_no_trace(options: dict[str, Any]) -> None:
    prior, cond = perturbed(value=True), conditions()
    sampler = make_sampler(prior, **options)
    codes = [sampler(prior, tokenizer(), cond, torch.Generator().manual_seed(seed)).codes for seed in (0, 0, 1)]
    assert codes[0].shape == (6, TOKENS, CODE_DIM) and codes[0].dtype == torch.float32 and not codes[0].requires_grad
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])
    assert all(parameter.grad is None for parameter in prior.parameters())


@pytest.mark.parametrize("options", [{}, {"eta": 1.0, "guidance": 0.5}, {"value_scale": 2.0}])
def test_known_codes_stay_exactly_and_are_shown_at_every_step(options: dict[str, Any]) -> None:
    prior, cond = perturbed(value=True), conditions()
    mask = torch.rand(6, TOKENS, CODE_DIM) < 0.4
    known_codes = KnownCodes(torch.randn(6, TOKENS, CODE_DIM, dtype=torch.float64).masked_fill(~mask, torch.nan), mask)
    inputs, network = list[Tensor](), prior.denoise

    def denoise(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        inputs.append(x[:6])
        denoised: Tensor = network(x, t, cond)
        return denoised

    prior.denoise = denoise
    codes = sample(prior, cond, known_codes=known_codes, **options)
    assert len(inputs) == 10 and codes.isfinite().all() and codes.dtype == torch.float32
    assert all(torch.equal(x[mask], known_codes.codes[mask].float()) for x in (*inputs, codes))


class Constant:
    """A prior that predicts 1 where the condition is given and 3 where it is withheld."""

    timesteps, beta_schedule = 10, "squaredcos_cap_v2"

    def __init__(self) -> None:
        self.conditions: list[Cond] = []

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert len(x) == len(t) == len(cond)
        self.conditions.append(cond)
        is_given = torch.ones(len(cond), dtype=torch.bool) if cond.cond_mask is None else cond.cond_mask
        return torch.where(is_given, 1.0, 3.0)[:, None, None].expand_as(x)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 1.0), (1.5, -2.0), (-1.0, 3.0)])
def test_guidance_goes_from_withheld_to_given_and_beyond(weight: float, expected: float) -> None:
    """1 + w (1 - 3); the last step ends at the last prediction."""
    prior, cond = Constant(), conditions(2)
    codes = sample(prior, cond, guidance=weight)
    torch.testing.assert_close(codes, torch.full_like(codes, expected), atol=1e-5, rtol=0)
    assert {len(each) for each in prior.conditions} == {4 if weight else 2}
    if weight:
        first = prior.conditions[0]
        assert first.cond_mask is not None and first.cond_mask.tolist() == [True, True, False, False]
        assert first.goal is not None and cond.goal is not None
        assert torch.equal(first.goal[2:], cond.goal) and torch.equal(first.returns[:2], cond.returns)


def test_a_condition_withheld_from_some_plans_stays_so_under_guidance() -> None:
    codes = sample(Constant(), replace(conditions(2), cond_mask=torch.tensor([True, False])), guidance=1.5)
    torch.testing.assert_close(codes[:, 0, 0], torch.tensor([-2.0, 3.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_guidance_by_value_raises_it_in_every_gradient_mode(trained: tuple[Any, list[float]], mode: Any) -> None:
    prior, _ = trained
    with mode():
        cond = replace(conditions(32), returns=torch.zeros(32))
        plain, guided, more = (
            prior.value(
                sample(prior, cond, value_scale=scale, eta=1.0), torch.zeros(32, dtype=torch.int64), cond
            ).mean()
            for scale in (0.0, 1.0, 2.0)
        )
    assert plain + 0.05 < guided < more - 0.05


def test_the_gradient_of_a_value_by_hand() -> None:
    x = torch.randn(4, TOKENS, CODE_DIM)
    with torch.inference_mode():
        cond = conditions(4)
        by_x = gradient(lambda x, cond: x.square().sum((1, 2)) * cond.returns, x, cond)
    torch.testing.assert_close(by_x, 2 * x * cond.returns[:, None, None])


# --- refusals: of compositions, see the tables of what accepts what ---


def refusal(kind: str, parts: dict[str, Any], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(kind, {"name": "diffusion", **options}, **parts)
    tiny.check_cure(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"width": 16, "heads": 3}, "prior.heads=3"),
        ({"timesteps": 0}, "prior.timesteps=100"),
    ],
)
def test_options_of_the_prior_out_of_range_are_refused(options: dict[str, Any], cure: str) -> None:
    assert cure in refusal("prior", wiring(), **options)


def test_a_value_network_that_could_read_the_return_off_the_window_is_refused() -> None:
    view = SimpleNamespace(slices={"return": slice(0, 1), "state": slice(1, 3)})
    assert "view.fields=[state,action]" in refusal("prior", wiring(view=view), value=True)


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"steps": 30}, "sampler.steps=25"),
        ({"steps": 0}, "sampler.steps=1"),
        ({"steps": 1000}, "sampler.steps=100"),
        ({"eta": 1.5}, "sampler.eta=1"),
        ({"eta": -0.1}, "sampler.eta=0"),
        ({"temperature": -1.0}, "sampler.temperature=0"),
        ({"value_scale": 0.1}, "prior.value=true"),
    ],
)
def test_options_of_the_sampler_out_of_range_are_refused(options: dict[str, Any], cure: str) -> None:
    assert cure in refusal("sampler", {"prior": make(), "vocabulary": None}, **options)


def test_without_diffusers_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install diffusers" in refusal("prior", wiring())
