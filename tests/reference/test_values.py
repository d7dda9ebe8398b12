"""Tokenizers of values by hand and with plain loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond
from trajgen.decoders.identity import IdentityDecoder
from trajgen.tokenizers.multiscale import MultiscaleTokenizer
from trajgen.tokenizers.values import BinTokenizer, IdentityTokenizer

STATE, ACTION, HORIZON = 3, 2, 4
FIELDS = ("return", "state", "action", "reward")
FEATURES = 1 + STATE + ACTION + 1


def unit(length: int) -> ScaleSchedule:
    return ScaleSchedule((1,) * length)


def fitted(goal_dim: int) -> Normalizer:
    normalizer = Normalizer(STATE, ACTION, goal_dim)
    normalizer.fit({"state": torch.randn(50, STATE) * 3 + 1})
    if goal_dim:
        normalizer.fit({"goal": torch.randn(50, goal_dim) * 2 - 1})
    return normalizer


def make(
    kind: Callable[..., Any],
    *,
    fields: tuple[str, ...] = FIELDS,
    goal_state: tuple[int, ...] = (2, 0),
    normalizer: Normalizer | None = None,
    goal_dim: int | None = None,
    **options: Any,
) -> Any:
    wiring = {"state_dim": STATE, "action_dim": ACTION, "strides": (1,), "goal_state": ()}
    view = build("view", {"name": "fields", "fields": fields}, **wiring)
    normalizer = normalizer or fitted(len(goal_state))
    goal_dim = len(goal_state) if goal_dim is None else goal_dim
    return kind(unit, view.features, HORIZON, view, normalizer, goal_state, goal_dim, **options)


def random_cond(size: int = 5) -> Cond:
    return Cond(state=torch.randn(size, STATE), returns=torch.randn(size), goal=torch.randn(size, 2))


def test_bins_by_hand() -> None:
    tokenizer = make(BinTokenizer, fields=("state",), num_bins=4, bin_limit=2.0)
    x = torch.zeros(1, HORIZON, STATE)
    x[0, :3] = torch.tensor([[-5.0, -2.0, -1.01], [-0.99, 0.0, 0.99], [1.01, 2.0, 7.0]])
    ids = tokenizer.encode(x).codes
    assert ids.tolist() == [[0, 0, 0, 1, 2, 2, 3, 3, 3, 2, 2, 2]]
    torch.testing.assert_close(tokenizer.centers, torch.tensor([-1.5, -0.5, 0.5, 1.5]).expand(STATE, -1))
    centers = [-1.5, -1.5, -1.5, -0.5, 0.5, 0.5, 1.5, 1.5, 1.5, 0.5, 0.5, 0.5]
    assert tokenizer.points(tokenizer.vectors(ids)).flatten().tolist() == pytest.approx(centers)
    assert tokenizer.vocabulary == tokenizer.code_dim == 4 and tokenizer.latent_length == 12


def test_quantile_bins_hold_equal_shares_and_a_bound_has_its_own() -> None:
    normalizer = Normalizer(STATE, ACTION, 0)
    tokenizer = make(
        BinTokenizer, fields=("state", "action"), goal_state=(), normalizer=normalizer, num_bins=10, binning="quantile"
    )
    torch.testing.assert_close(tokenizer.edges, torch.linspace(-3, 3, 11).expand(STATE + ACTION, -1))  # not yet fitted
    states, actions = torch.randn(5000, STATE).exp(), torch.randn(5000, ACTION).clamp(-1, 1)
    normalizer.fit({"state": states, "action": actions})
    x = torch.cat([normalizer.state(states), normalizer.action(actions)], -1).view(-1, HORIZON, STATE + ACTION)
    encoding = tokenizer.encode(x)
    ids, points = encoding.codes.view(5000, -1), tokenizer.points(encoding.latent).view(5000, -1)
    shares = torch.stack([torch.bincount(column, minlength=10) for column in ids[:, :STATE].T]) / 5000
    assert (shares - 0.1).abs().max() < 0.002
    at_bound = actions.abs() == 1
    torch.testing.assert_close(points[:, STATE:][at_bound], normalizer.action(actions)[at_bound])
    inside = (points - x.view(5000, -1))[:, STATE:][~at_bound].abs()
    assert inside.max() < (tokenizer.edges[STATE:].diff(dim=-1)).max()


def test_points_of_a_distribution_are_its_mean() -> None:
    tokenizer = make(BinTokenizer, num_bins=7)
    probs = torch.randn(2, HORIZON * FEATURES, 7).softmax(-1)
    points = tokenizer.points(tokenizer.layout.latent(tokenizer.vectors(probs)))
    expected = torch.einsum("bnv,v->bn", probs, tokenizer.centers[0]).view(2, HORIZON, FEATURES)
    torch.testing.assert_close(points, expected)


def test_bins_keep_their_precision_under_autocast() -> None:
    tokenizer = make(BinTokenizer, num_bins=1000)
    x = torch.rand(3, HORIZON, FEATURES) * 5 - 2.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = (tokenizer.points(tokenizer.encode(x).latent) - x).abs().max()
    assert error < 3.0 / 1000 + 1e-5


def test_one_token_per_point_is_the_trajectory() -> None:
    tokenizer, x = make(IdentityTokenizer), torch.randn(3, HORIZON, FEATURES)
    assert torch.equal(tokenizer.encode(x).codes, x) and torch.equal(tokenizer.points(x), x)
    assert (tokenizer.period, tokenizer.latent_length, tokenizer.code_dim) == (1, HORIZON, FEATURES)
    assert tokenizer.vocabulary is None


def test_one_token_per_field_in_the_order_of_the_view() -> None:
    tokenizer, x = make(IdentityTokenizer, tokens="field"), torch.randn(3, HORIZON, FEATURES)
    codes = tokenizer.encode(x).codes
    assert tokenizer.fields_of_tokens == FIELDS and codes.shape == (3, HORIZON * 4, STATE)
    by_field = codes.unflatten(1, (HORIZON, 4))
    for field, features in enumerate((slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 7))):
        width = features.stop - features.start
        assert torch.equal(by_field[:, :, field, :width], x[..., features]) and not by_field[:, :, field, width:].any()
    assert torch.equal(tokenizer.points(codes), x)
    codes = torch.randn(1, HORIZON * 4, STATE, requires_grad=True)
    tokenizer.points(codes).sum().backward()
    assert codes.grad is not None  # padding does not change the points
    assert torch.equal(codes.grad, tokenizer.spread(torch.ones(1, HORIZON, FEATURES)))


@pytest.mark.parametrize("kind", [IdentityTokenizer, BinTokenizer])
def test_known_codes_of_the_first_point(kind: Any) -> None:
    tokenizer, cond = make(kind, inpaint=("state", "return")), random_cond()
    known_codes, x = tokenizer.known_codes(cond), torch.randn(5, HORIZON, FEATURES)
    mask = torch.zeros(HORIZON, FEATURES, dtype=torch.bool)
    mask[0, :4] = True
    x[:, 0, 0], x[:, 0, 1:4] = cond.returns, cond.state
    codes = tokenizer.encode(x).codes
    expected = mask if kind is IdentityTokenizer else mask.flatten()
    assert torch.equal(known_codes.mask, expected.expand_as(codes))
    assert torch.equal(known_codes.codes[known_codes.mask], codes[known_codes.mask])
    assert make(kind, inpaint=()).known_codes(cond) is None


def test_padding_is_known() -> None:
    known_codes = make(IdentityTokenizer, tokens="field", inpaint=("state", "return")).known_codes(random_cond())
    first = known_codes.mask[0, :4]
    assert first[:2].all()  # a whole token is known, whatever its field's width
    assert first[2].tolist() == [False, False, True] and not known_codes.codes[0, 2].any()


def test_a_goal_is_inpainted_at_the_last_point_in_the_units_of_the_state() -> None:
    cond, normalizer = random_cond(), fitted(2)
    known_codes = make(IdentityTokenizer, normalizer=normalizer, inpaint=(), inpaint_goal=True).known_codes(cond)
    assert cond.goal is not None
    # The goal specifies state features 2 and 0; the return comes before the state.
    assert known_codes.mask[0].nonzero().tolist() == [[HORIZON - 1, 1], [HORIZON - 1, 3]]
    for i, feature in enumerate((2, 0)):
        goal = cond.goal[:, i] * normalizer.goal.scale[i] + normalizer.goal.mean[i]
        expected = (goal - normalizer.state.mean[feature]) / normalizer.state.scale[feature]
        torch.testing.assert_close(known_codes.codes[:, -1, 1 + feature], expected)


def test_at_rest_at_the_goal_the_other_features_are_zero_in_the_units_of_the_data() -> None:
    cond, normalizer = random_cond(), fitted(2)
    plain, at_rest = (
        make(IdentityTokenizer, normalizer=normalizer, inpaint=(), inpaint_goal=goal).known_codes(cond)
        for goal in (True, "at_rest")
    )
    assert at_rest.mask[0].nonzero().tolist() == [[HORIZON - 1, 1 + feature] for feature in range(STATE)]
    assert torch.equal(plain.into(at_rest.codes), at_rest.codes)  # the goal is where it was
    velocity = at_rest.codes[:, -1, 2] * normalizer.state.scale[1] + normalizer.state.mean[1]  # feature 1 is no goal
    torch.testing.assert_close(velocity, torch.zeros_like(velocity), atol=1e-5, rtol=0)


def test_goals_in_the_units_of_the_state_are_its_values() -> None:
    options: dict[str, Any] = {"fields": ("state",), "goal_state": (0, 1, 2), "inpaint_goal": True}
    tokenizer = make(IdentityTokenizer, normalizer=fitted(0).for_subgoals(), **options)
    cond = Cond(state=torch.randn(5, STATE), returns=torch.zeros(5), goal=torch.randn(5, STATE))
    known_codes = tokenizer.known_codes(cond)
    assert known_codes is not None and cond.goal is not None
    torch.testing.assert_close(known_codes.codes[:, -1], cond.goal, atol=1e-5, rtol=1e-5)
    assert torch.equal(known_codes.codes[:, 0], cond.state)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"fields": ("state",), "inpaint": ("return",)}, "tokenizer.inpaint=[state]"),
        ({"inpaint": ("action",)}, "tokenizer.inpaint=[state]"),
        ({"fields": ("action",)}, "tokenizer.inpaint=[]"),
        ({"goal_state": (), "goal_dim": 2, "inpaint_goal": True}, "tokenizer.inpaint_goal=false"),
        ({"fields": ("return",), "inpaint": (), "inpaint_goal": True}, "tokenizer.inpaint_goal=false"),
        ({"goal_state": (0,), "goal_dim": 1, "inpaint_goal": "at_rest"}, "tokenizer.inpaint_goal=true"),
    ],
)
def test_what_a_condition_does_not_contain_is_refused(changes: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(IdentityTokenizer, **changes)
    tiny.check_cure(caught.value)
    assert fix in str(caught.value.fix)
    cure: dict[str, Any] = (
        {"inpaint_goal": False} if "goal" in fix else {"inpaint": ("state",) if "state" in fix else ()}
    )
    make(IdentityTokenizer, **{**changes, **cure})


def test_where_there_are_no_goals_none_is_inpainted() -> None:
    tokenizer = make(IdentityTokenizer, goal_state=(), inpaint_goal="at_rest")
    assert not tokenizer.inpaints_goal and not tokenizer.known_codes(random_cond()).mask[:, 1:].any()


@pytest.mark.parametrize("binning", ["uniform", "quantile"])
def test_the_end_of_the_task_is_in_another_bin_than_what_is_before_it(binning: str) -> None:
    tokenizer = make(BinTokenizer, fields=("terminal",), inpaint=(), binning=binning)
    x = (torch.arange(HORIZON) > 1).float().view(1, -1, 1)
    ids = tokenizer.encode(x).codes
    assert len(ids.unique()) == 2 and torch.equal(tokenizer.points(tokenizer.vectors(ids)) > 0.5, x > 0.5)


def test_a_plan_of_one_point_cannot_begin_here_and_end_at_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.HORIZON", 1)
    make(BinTokenizer)
    with pytest.raises(ConfigError, match=r"must not be the first[\s\S]*data\.horizon=2"):
        make(BinTokenizer, inpaint_goal=True)


def test_the_identity_decoder_returns_the_trajectory() -> None:
    tokenizer, x = make(BinTokenizer, num_bins=50), torch.rand(2, HORIZON, FEATURES)
    decoder, latent = IdentityDecoder(tokenizer), tokenizer.spread(x)
    for decoded in (decoder(latent), decoder.base(latent), decoder(latent, random_cond(2))):
        assert torch.equal(decoded, tokenizer.points(latent))
    assert decoder.base_parameters() == decoder.adapter_parameters() == []
    assert list(decoder.modules()) == [decoder]  # the tokenizer is the planner's
    IdentityDecoder(SimpleNamespace(points=lambda latent: latent))  # all that it needs
    with pytest.raises(ConfigError) as caught:
        IdentityDecoder(MultiscaleTokenizer(unit, FEATURES, 32, width=16))
    assert "decoder=plain" in str(caught.value.fix) and "tokenizer=identity" in str(caught.value.fix)


def test_the_reconstruction_of_bins_is_the_rounding_error_over_real_points() -> None:
    tokenizer = make(BinTokenizer, num_bins=6)
    x = torch.rand(2, HORIZON, FEATURES) * 4 - 2
    mask = torch.ones(2, HORIZON, dtype=torch.bool)
    mask[1, 2:] = False
    losses = tokenizer.loss(replace(tiny.batch(2), mask=mask), x, tokenizer.points)
    error: Tensor = ((x + 3).remainder(1.0) - 0.5)[mask].square().mean()
    assert float(losses["total"]) == pytest.approx(float(error), rel=1e-4)
    assert tokenizer.usage() == {}
