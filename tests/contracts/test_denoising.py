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
STATES = SimpleNamespace(slices={"state": slice(0, 3)})
"""A view without the return."""


class Row:
    """A tokenizer whose first token may follow from the condition."""

    schedule, code_dim, vocabulary = ScaleSchedule((TOKENS,)), CODE_DIM, None
    layout = SimpleNamespace(latent=lambda vectors: vectors)

    def __init__(self, knows: bool) -> None:
        self.knows = knows

    def vectors(self, codes: Tensor) -> Tensor:
        return codes

    def known_codes(self, cond: Cond) -> KnownCodes | None:
        if not self.knows:
            return None
        codes = torch.zeros(len(cond), TOKENS, CODE_DIM)
        codes[:, 0] = cond.state[:, :CODE_DIM]
        mask = torch.zeros_like(codes, dtype=torch.bool)
        mask[:, 0] = True
        return KnownCodes(codes, mask)


def wiring(**changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"schedule": Row.schedule, "code_dim": CODE_DIM, "vocabulary": None}
    known |= {"tokenizer": Row(knows=False), "view": STATES, "state_dim": 4, "goal_dim": 2} | changes
    node = {"name": "fields", "width": 16, "fourier_frequencies": 2, **known.pop("conditioner", {})}
    return {"conditioner": build("conditioner", node, **known), **known}


def make(*, knows: bool = False, conditioner: dict[str, Any] | None = None, shaken: bool = True, **options: Any) -> Any:
    """A small prior in evaluation mode, with moved weights unless told otherwise."""
    known = wiring(tokenizer=Row(knows), conditioner=conditioner or {})
    prior = build("prior", {"name": "diffusion", "width": 16, "depth": 2, "heads": 2, **options}, **known)
    return tiny.shake(prior).eval() if shaken else prior


def sampler(prior: Any, **options: Any) -> Any:
    return build("sampler", {"name": "diffusion", "steps": 10, **options}, prior=prior, vocabulary=None)


def draw(prior: Any, known: Cond, *, seed: int = 0, known_codes: KnownCodes | None = None, **options: Any) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    codes: Tensor = sampler(prior, **options)(prior, Row(knows=False), known, rng, known_codes).codes
    return codes


def conditions(size: int = 6) -> Cond:
    return Cond(state=torch.randn(size, 4), returns=torch.randn(size), goal=torch.randn(size, 2))


def noisy(size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(size, TOKENS, CODE_DIM), torch.arange(size) * 9


# --- the prior ---


def test_a_training_step_gives_a_loss_and_codes() -> None:
    prior, codes = make(value=True), torch.randn(6, TOKENS, CODE_DIM)
    loss, prediction = prior.train()(codes, codes[:, :0], conditions())
    assert loss.shape == () and prediction.shape == codes.shape
    loss.backward()
    learning = [part for name, part in prior.named_parameters() if name != "conditioner.missing.state"]  # never missing
    assert all(part.grad is not None and part.grad.isfinite().all() for part in learning)


def recorded(prior: Any) -> list[tuple[Tensor, Tensor]]:
    """What the prior's network is shown from now on; it answers with it, plus 1."""
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen.append((x, t))
        return x + 1

    prior.denoise = denoise
    return seen


def test_noise_has_the_mean_and_variance_of_its_level() -> None:
    """x_t ~ N(√ᾱ_t x_0, 1 - ᾱ_t) at levels that are all equally likely; tolerances of five standard errors."""
    prior = make(timesteps=4)
    seen = recorded(prior)
    size = 40_000
    prior(torch.full((size, TOKENS, CODE_DIM), 2.0), torch.empty(size, 0, CODE_DIM), conditions(size))
    (x, t), kept = seen[0], noise_levels(4, "squaredcos_cap_v2").alphas_cumprod
    assert torch.bincount(t).tolist() == pytest.approx([size / 4] * 4, rel=0.05)
    for level in range(4):
        found = x[t == level]
        assert found.mean().item() == pytest.approx(2 * kept[level].sqrt().item(), abs=0.013)
        assert found.var().item() == pytest.approx(1 - kept[level].item(), rel=0.02)


def test_noise_is_added_in_full_precision_under_autocast() -> None:
    prior = make()
    codes = torch.randn(6, TOKENS, CODE_DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, prediction = prior(codes, codes[:, :0], conditions())
    assert loss.dtype == prediction.dtype == torch.float32
    seen = recorded(prior)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prior(codes.bfloat16(), codes[:, :0], conditions())
    assert seen[0][0].dtype == torch.float32


def test_training_noise_follows_the_global_seed() -> None:
    prior, codes, known = make(), torch.randn(6, TOKENS, CODE_DIM), conditions()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(prior(codes, codes[:, :0], known)[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_codes_that_are_given_are_shown_without_noise_and_not_counted() -> None:
    prior = make(knows=True)
    seen = recorded(prior)
    codes = torch.randn(6, TOKENS, CODE_DIM)
    loss, prediction = prior(codes, codes[:, :0], conditions())
    x = seen[0][0]
    assert torch.equal(x[:, 0], codes[:, 0]) and (x[:, 1:] != codes[:, 1:]).all()
    assert torch.equal(prediction[:, 0], codes[:, 0]) and torch.equal(prediction[:, 1:], x[:, 1:] + 1)
    torch.testing.assert_close(loss, (x + 1 - codes)[:, 1:].square().mean())


@pytest.mark.parametrize("network", ["convolution", "transformer"])
@torch.no_grad()
def test_one_plan_does_not_depend_on_the_others(network: str) -> None:
    prior, known = make(value=True, network=network), conditions()
    x, t = noisy()
    alone = known.map(lambda values: values[2:3])
    for network in (prior.denoise, prior.value):
        torch.testing.assert_close(network(x, t, known)[2:3], network(x[2:3], t[2:3], alone), atol=1e-5, rtol=1e-5)
    mask = torch.zeros(6, TOKENS, CODE_DIM, dtype=torch.bool)
    mask[:, 1] = True
    options: dict[str, Any] = {"temperature": 0.0, "guidance": 1.0, "value_scale": 1.0}
    every = draw(prior, known, known_codes=KnownCodes(x, mask), **options)
    one = draw(prior, alone, known_codes=KnownCodes(x[2:3], mask[2:3]), **options)
    assert every.std() > 0.01
    torch.testing.assert_close(every[2:3], one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_token_sees_all_others_the_level_and_the_condition() -> None:
    prior, known = make(), conditions(1)
    x, t = noisy(1)
    before = prior.denoise(x, t, known)
    for token in range(TOKENS):
        changed = x.clone()
        changed[:, token] += 1.0
        assert ((prior.denoise(changed, t, known) - before).abs().amax(-1) > 1e-5).all()
    changes = [tiny.moved(known, **{field: 1.0}) for field in ("state", "returns", "goal")]
    for other, level in [(known, t + 50), *((change, t) for change in changes)]:
        assert ((prior.denoise(x, level, other) - before).abs().amax(-1) > 1e-5).all()


@torch.no_grad()
def test_a_withheld_condition_is_not_looked_at() -> None:
    known = conditions()
    other = tiny.moved(known, returns=3.0, goal=-2.0)
    x, t = noisy()
    prior = make()
    assert not torch.equal(prior.denoise(x, t, known), prior.denoise(x, t, other))
    assert torch.equal(prior.denoise(x, t, known.unconditional()), prior.denoise(x, t, other.unconditional()))
    dropping = make(conditioner={"dropout": 1.0}).train()
    assert torch.equal(dropping.denoise(x, t, known), dropping.denoise(x, t, other))


@torch.no_grad()
def test_the_value_network_never_sees_the_return_that_is_asked_for() -> None:
    prior, known = make(value=True), conditions()
    x, t = noisy()
    values = prior.value(x, t, known)
    assert values.shape == (6,)
    assert torch.equal(values, prior.value(x, t, tiny.moved(known, returns=5.0)))
    for field in ("state", "goal"):
        assert (values != prior.value(x, t, tiny.moved(known, **{field: 1.0}))).all()
    assert (values != prior.value(x + 1, t, known)).all() and (values != prior.value(x, t + 50, known)).all()
    assert prior.value(x, t, replace(known, goal=None)).shape == (6,)


def test_the_value_network_learns_returns() -> None:
    prior = make(value=True)
    codes, known = torch.randn(6, TOKENS, CODE_DIM), conditions()
    prior.value.forward = lambda x, t, cond: cond.returns + 3.0
    torch.manual_seed(3)
    with_values = prior(codes, codes[:, :0], known)[0]
    prior.value = None
    torch.manual_seed(3)
    torch.testing.assert_close(with_values - prior(codes, codes[:, :0], known)[0], torch.tensor(9.0))


def test_the_tokenizer_is_no_part_of_the_prior_and_copies_work_alone() -> None:
    prior = make(value=True)
    twin = deepcopy(prior)
    assert not any("tokenizer" in name or "waves" in name for name in prior.state_dict())
    x, t = noisy()
    known = conditions()
    assert torch.equal(prior.denoise(x, t, known), twin.denoise(x, t, known))


@pytest.fixture(scope="module")
def trained() -> tuple[Any, list[float]]:
    """A prior of windows in which every code is the return; the first token is known, and returns are learnt too."""
    torch.manual_seed(0)
    prior = make(knows=True, shaken=False, value=True, conditioner={"dropout": 0.1, "fields": ("return",)}).train()
    optimizer, losses = torch.optim.Adam(prior.parameters(), lr=5e-3), []
    for _ in range(300):
        known = conditions(64)
        codes = known.returns[:, None, None].expand(-1, TOKENS, CODE_DIM)
        loss, _ = prior(codes, codes[:, :0], known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return prior.eval(), losses


def test_a_few_hundred_steps_teach_it_a_toy(trained: tuple[Any, list[float]]) -> None:
    prior, losses = trained
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    known = replace(conditions(64), returns=torch.linspace(-1, 1, 64))
    first = torch.zeros(64, TOKENS, CODE_DIM, dtype=torch.bool)
    first[:, 0] = True
    wanted = known.returns[:, None, None].expand(-1, TOKENS, CODE_DIM)
    codes = draw(prior, known, known_codes=KnownCodes(wanted, first))
    assert (codes - wanted).abs().mean() < 0.2
    assert torch.equal(codes[:, 0], wanted[:, 0])


# --- the sampler ---


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"guidance": 1.5}, {"eta": 0.5, "value_scale": 2.0}])
def test_codes_are_seeded_and_leave_no_trace(options: dict[str, Any]) -> None:
    prior, known = make(value=True), conditions()
    first, again, other = (draw(prior, known, seed=seed, **options) for seed in (0, 0, 1))
    assert first.shape == (6, TOKENS, CODE_DIM) and first.dtype == torch.float32 and not first.requires_grad
    assert torch.equal(first, again) and not torch.equal(first, other)
    made = sampler(prior, **options)
    runs = [made(prior, Row(knows=False), known, torch.Generator().manual_seed(0)).codes for _ in range(2)]
    assert torch.equal(runs[0], first) and torch.equal(runs[1], first)  # a sampler keeps nothing from call to call


@pytest.mark.parametrize("options", [{}, {"eta": 1.0, "guidance": 0.5}, {"value_scale": 2.0}])
def test_given_codes_stay_exactly_and_are_shown_at_every_step(options: dict[str, Any]) -> None:
    prior, known = make(value=True), conditions()
    mask = torch.rand(6, TOKENS, CODE_DIM) < 0.4
    given = KnownCodes(torch.randn(6, TOKENS, CODE_DIM, dtype=torch.float64).masked_fill(~mask, torch.nan), mask)
    shown, inner = [], prior.denoise

    def denoise(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        shown.append(x[:6])
        found: Tensor = inner(x, t, cond)
        return found

    prior.denoise = denoise
    codes = draw(prior, known, known_codes=given, **options)
    assert len(shown) == 10 and codes.isfinite().all() and codes.dtype == torch.float32
    for x in (*shown, codes):
        assert torch.equal(x[mask], given.codes[mask].float())


class Constant:
    """A prior that predicts 1 where the condition is given and 3 where it is withheld."""

    timesteps, beta_schedule = 10, "squaredcos_cap_v2"

    def __init__(self) -> None:
        self.calls: list[Cond] = []

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        assert len(x) == len(t) == len(cond)
        self.calls.append(cond)
        given = torch.ones(len(cond), dtype=torch.bool) if cond.cond_mask is None else cond.cond_mask
        return torch.where(given, 1.0, 3.0)[:, None, None].expand_as(x)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 1.0), (1.5, -2.0), (-1.0, 3.0)])
def test_guidance_goes_from_withheld_to_given_and_beyond(weight: float, expected: float) -> None:
    """1 + w (1 - 3); the last step ends at the last prediction."""
    prior, known = Constant(), conditions(2)
    codes = draw(prior, known, guidance=weight)
    torch.testing.assert_close(codes, torch.full_like(codes, expected), atol=1e-5, rtol=0)
    assert {len(cond) for cond in prior.calls} == {4 if weight else 2}
    if weight:
        asked = prior.calls[0]
        assert asked.cond_mask is not None and asked.cond_mask.tolist() == [True, True, False, False]
        assert asked.goal is not None and known.goal is not None
        assert torch.equal(asked.goal[2:], known.goal) and torch.equal(asked.returns[:2], known.returns)


def test_a_condition_withheld_from_some_plans_stays_so_under_guidance() -> None:
    prior = Constant()
    codes = draw(prior, replace(conditions(2), cond_mask=torch.tensor([True, False])), guidance=1.5)
    torch.testing.assert_close(codes[:, 0, 0], torch.tensor([-2.0, 3.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_guidance_by_value_raises_it_wherever_it_is_called_from(trained: tuple[Any, list[float]], mode: Any) -> None:
    prior, _ = trained
    last = torch.zeros(32, dtype=torch.int64)
    with mode():  # what the plan is made from is made there too
        known = replace(conditions(32), returns=torch.zeros(32))
        plain, guided, more = (draw(prior, known, value_scale=scale, eta=1.0) for scale in (0.0, 1.0, 2.0))
        values = [prior.value(codes, last, known) for codes in (plain, guided, more)]
    assert values[0].mean() + 0.05 < values[1].mean() < values[2].mean() - 0.05


def test_the_gradient_of_a_value_by_hand() -> None:
    x = torch.randn(4, TOKENS, CODE_DIM)
    with torch.inference_mode():
        level, known = torch.tensor([1, 2, 3, 4]), conditions(4)
        found = gradient(lambda x, t, cond: (x.square() * t[:, None, None]).sum((1, 2)) * cond.returns, x, level, known)
    torch.testing.assert_close(found, 2 * x * (level * known.returns)[:, None, None])


def test_guidance_leaves_no_gradients_in_the_networks() -> None:
    prior = make(value=True)
    draw(prior, conditions(), value_scale=1.0, guidance=1.0)
    assert all(p.grad is None for p in prior.parameters())


# --- refusals ---


def refusal(kind: str, name: str, known: dict[str, Any], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(kind, {"name": name, **options}, **known)
    tiny.check_cure(caught.value)
    return str(caught.value)


def test_codes_of_a_vocabulary_are_refused() -> None:
    assert "tokenizer=identity" in refusal("prior", "diffusion", wiring(vocabulary=12))
    assert "tokenizer=identity" in refusal("sampler", "diffusion", {"prior": make(), "vocabulary": 12})


def test_several_scales_are_refused() -> None:
    said = refusal("prior", "diffusion", wiring(schedule=ScaleSchedule((1, 2, 4))))
    assert "schedule=single" in said and "(1, 2, 4)" in said


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"width": 16, "heads": 3}, "prior.heads=3"),
        ({"timesteps": 0}, "prior.timesteps=100"),
        ({"beta_schedule": "cosine"}, "squaredcos_cap_v2"),
    ],
)
def test_sizes_that_cannot_work_are_refused(options: dict[str, Any], cure: str) -> None:
    assert cure in refusal("prior", "diffusion", wiring(), **options)


def test_a_value_network_that_could_read_the_return_off_the_window_is_refused() -> None:
    both = SimpleNamespace(slices={"return": slice(0, 1), "state": slice(1, 3)})
    assert "view.fields=[state,action]" in refusal("prior", "diffusion", wiring(view=both), value=True)


@pytest.mark.parametrize(("vocabulary", "cure"), [(12, "sampler=temperature"), (None, "sampler=greedy")])
def test_a_prior_that_does_not_denoise_is_refused(vocabulary: int | None, cure: str) -> None:
    known = wiring(schedule=ScaleSchedule((1, 2)), vocabulary=vocabulary)
    prior = build("prior", {"name": "transformer", "width": 16, "heads": 2}, **known)
    said = refusal("sampler", "diffusion", {"prior": prior, "vocabulary": vocabulary})
    assert cure in said and "TransformerPrior" in said and "denoise" in said


def test_the_prior_has_no_steps_that_another_sampler_could_take() -> None:
    assert not any(hasattr(make(), name) for name in ("step", "start", "logits"))


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
def test_options_that_cannot_work_are_refused(options: dict[str, Any], cure: str) -> None:
    assert cure in refusal("sampler", "diffusion", {"prior": make(), "vocabulary": None}, **options)


def test_without_diffusers_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install diffusers" in refusal("prior", "diffusion", wiring())
