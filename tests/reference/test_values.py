"""Values as tokens: by hand, and with nothing but loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

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


def build_values(
    kind: Callable[..., Any], *, fields: tuple[str, ...] = FIELDS, goal_state: tuple[int, ...] = (2, 0), **options: Any
) -> Any:
    view = build(
        "view", {"name": "fields", "fields": fields}, state_dim=STATE, action_dim=ACTION, stride=1, goal_state=()
    )
    normalizer = Normalizer(STATE, ACTION, len(goal_state))
    normalizer.fit({"state": torch.randn(50, STATE) * 3 + 1})
    if goal_state:
        normalizer.fit({"goal": torch.randn(50, len(goal_state)) * 2 - 1})
    made = kind(unit, view.features, HORIZON, view, normalizer, goal_state, len(goal_state), **options)
    made.known_normalizer = [normalizer]
    return made


def condition(size: int = 5) -> Cond:
    return Cond(state=torch.randn(size, STATE), returns=torch.randn(size), goal=torch.randn(size, 2))


def test_bins_by_hand() -> None:
    made = build_values(BinTokenizer, fields=("state",), num_bins=4, bin_limit=2.0)
    x = torch.zeros(1, HORIZON, STATE)
    x[0, 0] = torch.tensor([-5.0, -2.0, -1.01])
    x[0, 1] = torch.tensor([-0.99, 0.0, 0.99])
    x[0, 2] = torch.tensor([1.01, 2.0, 7.0])
    ids = made.encode(x).codes
    assert ids.tolist() == [[0, 0, 0, 1, 2, 2, 3, 3, 3, 2, 2, 2]]
    torch.testing.assert_close(made.centers, torch.tensor([-1.5, -0.5, 0.5, 1.5]))
    centers = [-1.5, -1.5, -1.5, -0.5, 0.5, 0.5, 1.5, 1.5, 1.5, 0.5, 0.5, 0.5]
    assert made.points(made.vectors(ids)).flatten().tolist() == pytest.approx(centers)
    assert made.vocabulary == made.code_dim == 4 and made.latent_length == 12


def test_points_of_a_distribution_are_its_mean() -> None:
    made = build_values(BinTokenizer, num_bins=7)
    shares = torch.randn(2, HORIZON * FEATURES, 7).softmax(-1)
    points = made.points(made.layout.latent(made.vectors(shares)))
    for b in range(2):
        for t in range(HORIZON):
            for d in range(FEATURES):
                expected = sum(float(shares[b, t * FEATURES + d, v]) * float(made.centers[v]) for v in range(7))
                assert float(points[b, t, d]) == pytest.approx(expected, abs=1e-5)


def test_bins_keep_their_precision_under_autocast() -> None:
    made = build_values(BinTokenizer, num_bins=1000)
    x = torch.rand(3, HORIZON, FEATURES) * 5 - 2.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = (made.points(made.layout.latent(made.vectors(made.encode(x).codes))) - x).abs().max()
    assert error < 3.0 / 1000 + 1e-5


def test_one_token_per_point_is_the_trajectory() -> None:
    made, x = build_values(IdentityTokenizer), torch.randn(3, HORIZON, FEATURES)
    assert torch.equal(made.encode(x).codes, x) and torch.equal(made.points(x), x)
    assert (made.period, made.latent_length, made.code_dim, made.vocabulary) == (1, HORIZON, FEATURES, None)


def test_one_token_per_field_in_the_order_of_the_view() -> None:
    made, x = build_values(IdentityTokenizer, tokens="field"), torch.randn(3, HORIZON, FEATURES)
    codes = made.encode(x).codes
    assert made.fields_of_tokens == FIELDS and made.code_dim == STATE and codes.shape == (3, HORIZON * 4, STATE)
    for t in range(HORIZON):
        point = codes[:, 4 * t : 4 * t + 4]
        assert torch.equal(point[:, 0, :1], x[:, t, :1]) and not point[:, 0, 1:].any()
        assert torch.equal(point[:, 1], x[:, t, 1:4])
        assert torch.equal(point[:, 2, :2], x[:, t, 4:6]) and not point[:, 2, 2:].any()
        assert torch.equal(point[:, 3, :1], x[:, t, 6:]) and not point[:, 3, 1:].any()
    assert torch.equal(made.points(codes), x)


def test_padding_has_no_say_in_the_points_and_features_reach_their_own_token() -> None:
    made = build_values(IdentityTokenizer, tokens="field")
    codes = torch.randn(1, HORIZON * 4, STATE, requires_grad=True)
    made.points(codes).sum().backward()
    assert codes.grad is not None
    assert torch.equal(codes.grad, made.spread(torch.ones(1, HORIZON, FEATURES)))


@pytest.mark.parametrize("kind", [IdentityTokenizer, BinTokenizer])
def test_what_is_given_of_the_first_point(kind: Any) -> None:
    made, cond = build_values(kind, inpaint=("state", "return")), condition()
    given = made.known_codes(cond)
    x = torch.randn(5, HORIZON, FEATURES)
    mask = torch.zeros(HORIZON, FEATURES, dtype=torch.bool)
    mask[0, :4] = True
    x[:, 0, 0], x[:, 0, 1:4] = cond.returns, cond.state
    codes = made.encode(x).codes
    expected = mask if kind is IdentityTokenizer else mask.flatten()
    assert torch.equal(given.mask, expected.expand_as(codes))
    assert torch.equal(given.codes[given.mask], codes[given.mask])


def test_padding_counts_as_known() -> None:
    made = build_values(IdentityTokenizer, tokens="field", inpaint=("state", "return"))
    given = made.known_codes(condition())
    first = given.mask[0, :4]
    assert first[:2].all()  # a whole token is known, whatever its field's width
    assert first[2].tolist() == [False, False, True] and not given.codes[0, 2].any()


def test_a_goal_is_held_at_the_last_point_in_the_units_of_the_state() -> None:
    made, cond = build_values(IdentityTokenizer, inpaint=(), inpaint_goal=True), condition()
    normalizer = made.known_normalizer[0]
    given = made.known_codes(cond)
    assert cond.goal is not None
    places = [1 + 2, 1 + 0]  # the goal speaks of state features 2 and 0; the return comes before the state
    assert given.mask[0].nonzero().tolist() == [[HORIZON - 1, 1], [HORIZON - 1, 3]]
    for i, (place, feature) in enumerate(zip(places, (2, 0), strict=True)):
        units = cond.goal[:, i] * normalizer.goal.scale[i] + normalizer.goal.mean[i]
        expected = (units - normalizer.state.mean[feature]) / normalizer.state.scale[feature]
        torch.testing.assert_close(given.codes[:, -1, place], expected)


def test_goals_in_the_state_s_own_numbers_are_its_values() -> None:
    view = build(
        "view", {"name": "fields", "fields": ("state",)}, state_dim=STATE, action_dim=ACTION, stride=1, goal_state=()
    )
    normalizer = Normalizer(STATE, ACTION)
    normalizer.fit({"state": torch.randn(50, STATE) * 3 + 1})
    made = IdentityTokenizer(unit, STATE, HORIZON, view, normalizer.for_subgoals(), (0, 1, 2), STATE, inpaint_goal=True)
    cond = Cond(state=torch.randn(5, STATE), returns=torch.zeros(5), goal=torch.randn(5, STATE))
    given = made.known_codes(cond)
    assert given is not None and cond.goal is not None
    torch.testing.assert_close(given.codes[:, -1], cond.goal, atol=1e-5, rtol=1e-5)
    assert torch.equal(given.codes[:, 0], cond.state)


@pytest.mark.parametrize("kind", [IdentityTokenizer, BinTokenizer])
def test_nothing_is_given_where_nothing_is_asked_for(kind: Any) -> None:
    assert build_values(kind, inpaint=()).known_codes(condition()) is None


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"fields": ("state",), "inpaint": ("return",)}, "tokenizer.inpaint=[state]"),
        ({"inpaint": ("action",)}, "tokenizer.inpaint=[state]"),
        ({"inpaint": ("stat",)}, "tokenizer.inpaint=[state]"),
        ({"fields": ("action",)}, "tokenizer.inpaint=[]"),
        ({"goal_state": (), "inpaint_goal": True}, "tokenizer.inpaint_goal=false"),
        ({"fields": ("return",), "inpaint": (), "inpaint_goal": True}, "tokenizer.inpaint_goal=false"),
    ],
)
def test_what_nobody_can_know_is_refused(changes: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_values(IdentityTokenizer, **changes)
    assert caught.value.expected and caught.value.got and fix in str(caught.value.fix)
    cure: dict[str, Any] = (
        {"inpaint_goal": False} if "goal" in fix else {"inpaint": ("state",) if "state" in fix else ()}
    )
    build_values(IdentityTokenizer, **{**changes, **cure})


def test_the_identity_decoder_reads_the_trajectory() -> None:
    made, x = build_values(BinTokenizer, num_bins=50), torch.rand(2, HORIZON, FEATURES)
    decoder, latent = IdentityDecoder(made), made.spread(x)
    assert torch.equal(decoder(latent), made.points(latent)) and torch.equal(decoder.base(latent), decoder(latent))
    assert torch.equal(decoder(latent, condition(2)), decoder(latent))
    assert decoder.base_parameters() == decoder.adapter_parameters() == []
    assert list(decoder.modules()) == [decoder]  # the tokenizer is the planner's


def test_the_identity_decoder_refuses_a_learnt_latent() -> None:
    with pytest.raises(ConfigError) as caught:
        IdentityDecoder(MultiscaleTokenizer(unit, FEATURES, 32, width=16))
    assert caught.value.expected and caught.value.got
    assert "decoder=plain" in str(caught.value.fix) and "tokenizer=identity" in str(caught.value.fix)


def test_reconstruction_of_bins_is_what_rounding_costs() -> None:
    made = build_values(BinTokenizer, num_bins=6)
    x = torch.rand(2, HORIZON, FEATURES) * 4 - 2
    mask = torch.ones(2, HORIZON, dtype=torch.bool)
    mask[1, 2:] = False
    losses = made.loss(replace(tiny.batch(2), mask=mask), x, made.points)
    errors = [((x[b, t, d] + 3).remainder(1.0) - 0.5).item() ** 2
              for b in range(2) for t in range(HORIZON) for d in range(FEATURES) if mask[b, t]]  # fmt: skip
    assert float(losses["total"]) == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert made.usage() == {}
