"""Decision Transformer's numbers, against the architecture as others published it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond
from trajgen.priors.gpt import GPTPrior

POINTS, STATE, ACTION, WIDTH, DEPTH, HEADS, STEPS = 7, 5, 2, 24, 2, 3, 30
WIDEST = max(1, STATE, ACTION)
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu"}


def published(activation: str) -> Any:
    """Hugging Face's Decision Transformer with moved weights."""
    transformers = pytest.importorskip("transformers", reason="the reference is in Hugging Face's transformers")
    config = transformers.DecisionTransformerConfig(
        state_dim=STATE,
        act_dim=ACTION,
        hidden_size=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        max_ep_len=STEPS,
        activation_function=ACTIVATIONS[activation],
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(3)
    return tiny.shake(transformers.DecisionTransformerModel(config)).eval()


def ours(theirs: Any, activation: str) -> GPTPrior:
    """The same network, with the published one's weights."""
    schedule = ScaleSchedule((1,) * (3 * POINTS))
    made = GPTPrior(
        schedule,
        WIDEST,
        None,
        nn.Identity(),
        3,
        1,
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        activation=activation,
        prefix=False,
        timesteps=STEPS,
        positions=False,
    ).eval()
    with torch.no_grad():
        fields = (theirs.embed_return, theirs.embed_state, theirs.embed_action)
        for kind, linear in enumerate(fields):
            made.read.weight[kind, :, : linear.in_features] = linear.weight
            made.read.bias[kind] = linear.bias
        for kind, linear in ((0, theirs.predict_return), (2, theirs.predict_action[0])):
            made.head.weight[kind, : linear.out_features] = linear.weight
            made.head.bias[kind, : linear.out_features] = linear.bias
        made.moment.weight.copy_(theirs.embed_timestep.weight)
        made.embedded.weight.copy_(theirs.embed_ln.weight)
        # Theirs adds GPT-2's embedding of place 0 to every token, after the normalization: a part of its bias.
        made.embedded.bias.copy_(theirs.embed_ln.bias + theirs.encoder.wpe.weight[0])
        for own, block in zip(made.blocks, theirs.encoder.h, strict=True):
            for norm, known in ((own.before_attention, block.ln_1), (own.before_mlp, block.ln_2)):
                norm.load_state_dict(known.state_dict())
            linears = {own.qkv: block.attn.c_attn, own.out: block.attn.c_proj}
            linears |= {own.wide: block.mlp.c_fc, own.narrow: block.mlp.c_proj}
            for linear, known in linears.items():
                linear.weight.copy_(known.weight.T)
                linear.bias.copy_(known.bias)
        made.final.load_state_dict(theirs.encoder.ln_f.state_dict())
    return made


def trajectory(size: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (B, T, 1), states, actions and the first step (B,) of random windows."""
    returns, states, actions = (torch.randn(size, POINTS, width) for width in (1, STATE, ACTION))
    return returns, states, actions, torch.randint(STEPS - POINTS, (size,))


def row(*fields: Tensor) -> Tensor:
    """The tokens (B, 3 T, C) of fields (B, T, ·): one each, point by point, filled up with zeros."""
    filled = [nn.functional.pad(field, (0, WIDEST - field.shape[-1])) for field in fields]
    return torch.stack(filled, dim=2).flatten(1, 2)


def start(time: Tensor) -> Cond:
    """A condition of which nothing is read but the time."""
    return Cond(torch.full((len(time), STATE), torch.nan), torch.full((len(time),), torch.nan), time=time)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_full_histories_as_published(activation: str) -> None:
    theirs = published(activation)
    made = ours(theirs, activation)
    returns, states, actions, time = trajectory()
    steps = time.unsqueeze(1) + torch.arange(POINTS)
    shown = theirs(states=states, actions=actions, returns_to_go=returns, timesteps=steps)
    inputs = row(returns, states, actions)[:, :-1]
    torch.testing.assert_close(made.hidden(inputs, start(time)), shown.last_hidden_state[:, :-1], atol=1e-5, rtol=1e-5)
    predicted = made.logits(inputs, start(time)).unflatten(1, (POINTS, 3))
    assert predicted[:, :, 2, :ACTION].std() > 0.1
    torch.testing.assert_close(predicted[:, :, 2, :ACTION].tanh(), shown.action_preds, atol=1e-5, rtol=1e-5)
    # The return is told from the action before it, so it is the next point's.
    torch.testing.assert_close(predicted[:, 1:, 0, :1], shown.return_preds[:, :-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("points", [1, 4])
@torch.no_grad()
def test_short_histories_as_published(points: int) -> None:
    """Theirs are filled up in front and masked; ours behind, where no token looks."""
    theirs = published("gelu")
    made = ours(theirs, "gelu")
    returns, states, actions, time = trajectory()
    known = torch.arange(POINTS) >= POINTS - points
    steps = (time.unsqueeze(1) + torch.arange(POINTS) - (POINTS - points)).clamp(min=0)
    shown = theirs(
        states=states,
        actions=actions,
        returns_to_go=returns,
        timesteps=steps,
        attention_mask=known.long().expand(len(time), -1),
    )
    moved = [field.roll(points - POINTS, dims=1) for field in (returns, states, actions)]
    inputs = row(*moved)[:, :-1]
    predicted = made.logits(inputs, start(time)).unflatten(1, (POINTS, 3))[:, :points, 2, :ACTION]
    torch.testing.assert_close(predicted.tanh(), shown.action_preds[:, known], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_stepwise_predictions_as_published() -> None:
    theirs = published("gelu")
    made = ours(theirs, "gelu")
    returns, states, actions, time = trajectory()
    steps = time.unsqueeze(1) + torch.arange(POINTS)
    shown = theirs(states=states, actions=actions, returns_to_go=returns, timesteps=steps).action_preds
    codes = row(returns, states, actions)
    state = made.start(start(time))
    drawn = [made.step(codes[:, k - 1 : k] if k else None, k, state) for k in range(3 * POINTS)]
    assert not drawn[0].any()
    predicted = torch.cat(drawn, dim=1).unflatten(1, (POINTS, 3))[:, :, 2, :ACTION]
    torch.testing.assert_close(predicted.tanh(), shown, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_weight_counts() -> None:
    """A weight that nothing reads would let the comparison pass without the network being the same."""
    made = ours(published("gelu"), "gelu")
    returns, states, actions, time = trajectory()
    inputs = row(returns, states, actions)[:, :-1]
    before = made.logits(inputs, start(time))
    for name, parameter in made.named_parameters():
        kept = parameter.clone()
        parameter.add_(torch.randn_like(parameter))
        assert not torch.allclose(made.logits(inputs, start(time)), before, atol=1e-3), name
        parameter.copy_(kept)
