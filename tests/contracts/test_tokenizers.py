"""Every registered tokenizer under every registered schedule: its views of one partial_latent agree."""

from __future__ import annotations

import ast
import inspect
import re
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build, component, names, spec

TOKENIZERS = [*names("tokenizer"), *(f"multiscale {quantizer}" for quantizer in ("fsq", "lfq", "simvq"))]
"""Names, and the quantizer where it is not the usual one."""
PAIRS = [(name, schedule) for name in TOKENIZERS for schedule in tiny.schedules()]
OF_VALUES = [("identity", {"tokens": "point"}), ("identity", {"tokens": "field"}), ("bins", {})]
"""Tokenizers whose latent is the trajectory."""
FEATURES = 5
"""A return and a state of four."""


def build_one(name: str, schedule: str, **options: Any) -> Any:
    """A tokenizer that has seen nothing yet."""
    name, _, quantizer = name.partition(" ")
    options |= {"quantizer": quantizer} if quantizer else {}
    torch.manual_seed(0)
    view = build("view", {"name": "fields"}, state_dim=4, action_dim=2, stride=tiny.STRIDE, goal_state=())
    wiring = {"features": FEATURES, "horizon": tiny.HORIZON, "view": view, "normalizer": Normalizer(4, 2, 2)}
    wiring |= {"goal_state": (0, 1), "goal_dim": 2, "schedule": partial(tiny.schedule, schedule)}
    return build("tokenizer", tiny.node("tokenizer", name, **options), **wiring)


def decode_with(made: Any) -> nn.Module:
    """A decoder for whatever latent."""
    flat = nn.Linear(made.latent_length * made.code_dim, tiny.HORIZON * FEATURES)
    return nn.Sequential(nn.Flatten(), flat, nn.Unflatten(1, (tiny.HORIZON, FEATURES)))


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "-".join(pair).replace(" ", "-"))
def made(request: pytest.FixtureRequest) -> Any:
    try:
        made = build_one(*request.param)
    except ConfigError:
        return None  # what a refusal says is looked at below
    tiny.shake(made)
    known = tiny.batch(64)
    made.train().loss(known, tiny.windows(known), decode_with(made))  # starts the codes
    made.usage()
    return made.eval()


@pytest.fixture
def codes(made: Any) -> Any:
    return None if made is None else made.encode(tiny.windows(tiny.batch())).codes


@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_a_schedule_is_taken_or_refused_with_one_that_works(name: str, schedule: str) -> None:
    try:
        made = build_one(name, schedule)
    except ConfigError as refusal:
        tiny.check_cure(refusal)
        cures = re.findall(r"schedule=(\w+)", str(refusal.fix))
        assert cures
        assert all(build_one(name, cure).schedule.lengths for cure in cures)
    else:
        row, ends = made.schedule.tokens == made.latent_length, made.schedule.lengths[-1] == made.latent_length
        assert row or ends


@pytest.mark.parametrize("name", names("tokenizer"))
def test_every_option_is_explained(name: str) -> None:
    doc = inspect.getdoc(component("tokenizer", name)) or ""
    for option in spec("tokenizer", name).options:
        assert re.search(rf"^\s+{option.name}: ", doc, re.MULTILINE), option.name


@pytest.mark.parametrize("name", names("tokenizer"))
def test_numbers_that_make_no_sense_are_refused(name: str) -> None:
    schedule = "single"
    options = [o for o in spec("tokenizer", name).options if o.annotation in ("int", "float")]
    for option in options:
        with pytest.raises(ConfigError) as caught:
            build_one(name, schedule, **{option.name: -1})
        tiny.check_cure(caught.value)
        assert f"{option.name}=-1" in str(caught.value.got)
        cure = re.search(rf"tokenizer\.{option.name}=(\S+)", str(caught.value.fix))
        assert cure
        build_one(name, schedule, **{option.name: ast.literal_eval(cure[1])})


@torch.no_grad()
def test_shapes(made: Any, codes: Any) -> None:
    if made is None:
        return
    schedule, width = made.schedule, made.code_dim
    if made.vocabulary is None:
        assert codes.shape == (6, schedule.tokens, width)
    else:
        assert codes.shape == (6, schedule.tokens) and codes.dtype == torch.int64
        assert codes.min() >= 0 and codes.max() < made.vocabulary and len(codes.unique()) > 1
    vectors = made.vectors(codes)
    assert vectors.shape == (6, schedule.tokens, width) and vectors.dtype == torch.float32
    assert made.layout.inputs(vectors).shape == (6, schedule.tokens - schedule.lengths[0], width)
    assert made.layout.latent(vectors).shape == (6, made.latent_length, width)
    assert made.layout.start(3).shape == (3, made.latent_length, width) and not made.layout.start(3).any()


@torch.no_grad()
def test_inputs_and_latent_are_those_met_step_by_step(made: Any, codes: Any) -> None:
    if made is None:
        return
    vectors, partial_latent, views = made.vectors(codes), made.layout.start(6), []
    for k, span in enumerate(made.schedule.spans):
        if k:
            views.append(made.layout.scale_input(partial_latent, k))
            assert views[-1].shape == (6, made.schedule.lengths[k], made.code_dim)
        before = partial_latent.clone()
        after = made.layout.extend(partial_latent, vectors[:, span], k)
        assert torch.equal(partial_latent, before)  # a search goes on from one partial_latent in several ways
        partial_latent = after
    stepwise = torch.cat(views, dim=1) if views else vectors[:, :0]
    torch.testing.assert_close(made.layout.inputs(vectors), stepwise)
    torch.testing.assert_close(made.layout.latent(vectors), partial_latent)


@torch.no_grad()
def test_what_is_decided_does_not_change_any_more(made: Any, codes: Any) -> None:
    if made is None:
        return
    shares = [made.layout.decoded_fraction(k) for k in range(made.schedule.scales)]
    assert all(0 < earlier <= later for earlier, later in pairwise(shares)) and shares[-1] == 1.0
    if shares[0] == 1.0:
        return
    vectors, partial_latent = made.vectors(codes), made.layout.start(6)
    for k, span in enumerate(made.schedule.spans):
        partial_latent = made.layout.extend(partial_latent, vectors[:, span], k)
        done = round(shares[k] * made.latent_length)
        assert (
            torch.equal(partial_latent[:, :done], made.layout.latent(vectors)[:, :done])
            and not partial_latent[:, done:].any()
        )


@torch.no_grad()
def test_codes_that_are_given_are_those_of_windows_under_that_condition(made: Any, codes: Any) -> None:
    if made is None:
        return
    given = made.known_codes(tiny.cond())
    if given is None:
        assert list(made.parameters()), "codes that are not learnt can be told"
        return
    assert given.codes.shape == given.mask.shape == codes.shape and given.mask.dtype == torch.bool
    assert given.mask.any() and not given.mask.all()
    assert torch.equal(given.codes[given.mask], codes[given.mask])
    assert torch.equal(given.into(codes), codes)


def test_relaxed_codes_have_the_mean_of_their_vectors_and_pass_gradients(made: Any, codes: Any) -> None:
    if made is None or made.vocabulary is None:
        return
    hard = F.one_hot(codes, made.vocabulary).float()
    torch.testing.assert_close(made.vectors(hard), made.vectors(codes))
    other = codes.roll(1, dims=0)
    soft = 0.25 * hard + 0.75 * F.one_hot(other, made.vocabulary)
    expected = 0.25 * made.vectors(codes) + 0.75 * made.vectors(other)
    torch.testing.assert_close(made.vectors(soft), expected)
    soft.requires_grad_()
    latent = made.layout.latent(made.vectors(soft))
    (latent * torch.randn_like(latent)).sum().backward()
    assert soft.grad is not None and soft.grad.abs().sum(-1).gt(0).all()


@torch.no_grad()
def test_encoding_is_a_function_of_the_window_alone(made: Any, codes: Any) -> None:
    if made is None:
        return
    x = tiny.windows(tiny.batch())
    assert torch.equal(codes, made.encode(x).codes)
    assert torch.equal(codes[2:3], made.encode(x[2:3]).codes)
    assert torch.equal(codes, made.train().encode(x).codes) and torch.equal(codes, made.eval().encode(x).codes)


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), OF_VALUES)
def test_a_latent_that_is_the_trajectory_is_read_back(name: str, options: dict[str, Any]) -> None:
    made, x = build_one(name, "unit", **options), tiny.windows(tiny.batch())
    latent = made.layout.latent(made.vectors(made.encode(x).codes))
    torch.testing.assert_close(latent, made.spread(x))
    assert made.latent_length == made.period * tiny.HORIZON and len(made.fields_of_tokens) == made.period
    assert list(made.parameters()) == [] and made.state_dict() == {}  # the normalizer is the planner's
    found = made.points(latent)
    assert found.shape == x.shape
    inside = x.abs() < 3.0
    assert (found - x)[inside].abs().max() < (1e-6 if made.vocabulary is None else 3.0 / made.vocabulary + 1e-6)


def test_the_loss_trains_and_use_is_counted(made: Any) -> None:
    if made is None:
        return
    made.train()
    made.zero_grad()
    made.usage()
    known = tiny.batch(32)
    decoder = decode_with(made)
    losses = made.loss(known, tiny.windows(known), decoder)
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    reached = [p for p in made.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(reached) == len(list(made.parameters()))
    assert all(p.grad is not None for p in decoder.parameters())
    first, second = made.usage(), made.usage()
    if reached:
        assert set(first) == {
            f"{what}/{scale}"
            for what in ("usage", "perplexity")
            for scale in [*(f"scale_{k + 1}" for k in range(made.schedule.scales)), "all"]
        }
        assert 0 < first["usage/all"] <= 1 and 1 <= first["perplexity/all"] <= made.vocabulary
        assert second["usage/all"] == 0
    made.eval()


@torch.no_grad()
def test_nothing_moves_in_evaluation(made: Any) -> None:
    if made is None:
        return
    known = tiny.batch(16, seed=3)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.loss(known, tiny.windows(known), decode_with(made))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@torch.no_grad()
def test_padding_does_not_count_in_the_reconstruction(made: Any) -> None:
    if made is None:
        return
    known = tiny.batch(8)
    x = tiny.windows(known)

    def decode(_: Tensor) -> Tensor:
        return torch.where(known.mask.unsqueeze(-1), x + 2.0, x + 100.0)

    losses = made.loss(known, x, decode)
    assert float(losses["reconstruction"]) == pytest.approx(4.0, rel=1e-4)
