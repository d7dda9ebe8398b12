"""Every registered tokenizer under every registered schedule: its views of one pyramid agree."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from trajgen.core.registry import build, names

TOKENIZERS = names("tokenizer")
PAIRS = [(name, schedule) for name in TOKENIZERS for schedule in tiny.schedules()]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "-".join(pair))
def made(request: pytest.FixtureRequest) -> Any:
    return tiny.tokenizer(*request.param)  # None where the tokenizer refuses the schedule


@pytest.fixture
def codes(made: Any) -> Any:
    return None if made is None else made.encode(tiny.windows(tiny.batch()))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_tokenizer_accepts_a_schedule(name: str) -> None:
    assert any(tiny.tokenizer(name, schedule) is not None for schedule in tiny.schedules())


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
    assert vectors.shape == (6, schedule.tokens, width)
    assert made.inputs(vectors).shape == (6, schedule.tokens - schedule.lengths[0], width)
    assert made.latent(vectors).shape == (6, made.latent_length, width)


@torch.no_grad()
def test_inputs_and_latent_are_those_met_step_by_step(made: Any, codes: Any) -> None:
    if made is None:
        return
    vectors, canvas, views = made.vectors(codes), made.start(6), []
    for k, span in enumerate(made.schedule.spans):
        if k:
            views.append(made.view(canvas, k))
            assert views[-1].shape == (6, made.schedule.lengths[k], made.code_dim)
        canvas = made.extend(canvas, vectors[:, span], k)
    stepwise = torch.cat(views, dim=1) if views else vectors[:, :0]
    torch.testing.assert_close(made.inputs(vectors), stepwise)
    torch.testing.assert_close(made.latent(vectors), canvas)


@torch.no_grad()
def test_one_hot_codes_have_the_vectors_of_their_ids(made: Any, codes: Any) -> None:
    if made is None or made.vocabulary is None:
        return
    hard = F.one_hot(codes, made.vocabulary).float()
    torch.testing.assert_close(made.vectors(hard), made.vectors(codes))


@torch.no_grad()
def test_encoding_is_a_function_of_the_window_alone(made: Any, codes: Any) -> None:
    if made is None:
        return
    x = tiny.windows(tiny.batch())
    assert torch.equal(codes, made.encode(x))
    assert torch.equal(codes[2:3], made.encode(x[2:3]))


def test_the_loss_trains_and_use_is_counted(made: Any) -> None:
    if made is None:
        return
    made.train()
    made.zero_grad()
    made.usage()
    known = tiny.batch(32)
    decoder = build("decoder", tiny.node("decoder", "plain"), **tiny.shapes(made))
    losses = made.loss(known, tiny.windows(known), decoder)
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
    losses["total"].backward()
    reached = [p for p in made.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(reached) == len(list(made.parameters()))
    assert all(p.grad is not None for p in decoder.base_parameters())
    first, second = made.usage(), made.usage()
    if made.vocabulary is not None:
        assert set(first) == {
            f"{what}/{scale}"
            for what in ("usage", "perplexity")
            for scale in [*(f"scale_{k + 1}" for k in range(made.schedule.scales)), "all"]
        }
        assert 0 < first["usage/all"] <= 1 and 1 <= first["perplexity/all"] <= made.vocabulary
        assert second["usage/all"] == 0
    made.eval()


@torch.no_grad()
def test_padding_does_not_count_in_the_reconstruction(made: Any) -> None:
    if made is None:
        return
    known = tiny.batch(8)
    x = tiny.windows(known)

    def decoder(_: Any, __: Any = None) -> torch.Tensor:
        return torch.where(known.mask.unsqueeze(-1), x + 2.0, x + 100.0)

    losses = made.loss(known, x, decoder)
    assert float(losses["reconstruction"]) == pytest.approx(4.0, rel=1e-4)
