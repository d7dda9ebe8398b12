"""Decision Transformer's numbers against Hugging Face's implementation with the same weights."""

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
CODE_DIM = max(1, STATE, ACTION)
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu"}


def reference(activation: str = "gelu") -> Any:
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


@torch.no_grad()
def copied(model: Any, activation: Any = "gelu") -> GPTPrior:
    """Our network with the weights of the reference."""
    sizes: dict[str, Any] = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "timesteps": STEPS}
    prior = GPTPrior(
        ScaleSchedule((1,) * (3 * POINTS)), CODE_DIM, None, nn.Identity(), 3, 1,
        activation=activation, prefix=False, positions=False, **sizes,
    ).eval()  # fmt: skip
    for kind, linear in enumerate((model.embed_return, model.embed_state, model.embed_action)):
        prior.input_proj.weight[kind, :, : linear.in_features] = linear.weight
        prior.input_proj.bias[kind] = linear.bias
    for kind, linear in ((0, model.predict_return), (2, model.predict_action[0])):
        prior.head.weight[kind, : linear.out_features] = linear.weight
        prior.head.bias[kind, : linear.out_features] = linear.bias
    assert prior.time_embed is not None
    prior.time_embed.weight.copy_(model.embed_timestep.weight)
    prior.input_norm.weight.copy_(model.embed_ln.weight)
    # The reference adds GPT-2's embedding of position 0 to every token after the normalization: a part of its bias.
    prior.input_norm.bias.copy_(model.embed_ln.bias + model.encoder.wpe.weight[0])
    blocks: Any = prior.blocks
    for block, other in zip(blocks, model.encoder.h, strict=True):
        block.norm1.load_state_dict(other.ln_1.state_dict())
        block.norm2.load_state_dict(other.ln_2.state_dict())
        pairs = ((block.qkv, other.attn.c_attn), (block.out, other.attn.c_proj))
        for linear, conv in (*pairs, (block.fc1, other.mlp.c_fc), (block.fc2, other.mlp.c_proj)):
            linear.weight.copy_(conv.weight.T)
            linear.bias.copy_(conv.bias)
    prior.norm.load_state_dict(model.encoder.ln_f.state_dict())
    return prior


def trajectory(size: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns (B, T, 1), states, actions and the first step (B,) of random windows."""
    returns, states, actions = (torch.randn(size, POINTS, width) for width in (1, STATE, ACTION))
    return returns, states, actions, torch.randint(STEPS - POINTS, (size,))


def tokens(*fields: Tensor) -> Tensor:
    """The tokens (B, 3 T, C) of fields (B, T, ·): one each, point by point, padded with zeros."""
    padded = [nn.functional.pad(field, (0, CODE_DIM - field.shape[-1])) for field in fields]
    return torch.stack(padded, dim=2).flatten(1, 2)


def time_only(time: Tensor) -> Cond:
    """A condition of which only the time may be used."""
    return Cond(torch.full((len(time), STATE), torch.nan), torch.full((len(time),), torch.nan), time=time)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_full_histories(activation: str) -> None:
    model = reference(activation)
    prior = copied(model, activation)
    returns, states, actions, time = trajectory()
    steps = time.unsqueeze(1) + torch.arange(POINTS)
    expected = model(states=states, actions=actions, returns_to_go=returns, timesteps=steps)
    codes, cond = tokens(returns, states, actions), time_only(time)
    hidden = prior.hidden(codes[:, :-1], cond)
    torch.testing.assert_close(hidden, expected.last_hidden_state[:, :-1], atol=1e-5, rtol=1e-5)
    logits = prior.logits(codes[:, :-1], cond).unflatten(1, (POINTS, 3))
    assert logits[:, :, 2, :ACTION].std() > 0.1
    torch.testing.assert_close(logits[:, :, 2, :ACTION].tanh(), expected.action_preds, atol=1e-5, rtol=1e-5)
    # The return is predicted from the action before it, so it is the next point's.
    torch.testing.assert_close(logits[:, 1:, 0, :1], expected.return_preds[:, :-1], atol=1e-5, rtol=1e-5)
    state = prior.start(cond)
    stepwise = [prior.step(codes[:, k - 1 : k] if k else None, k, state) for k in range(3 * POINTS)]
    assert not stepwise[0].any()
    torch.testing.assert_close(torch.cat(stepwise, 1).unflatten(1, (POINTS, 3)), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("points", [1, 4])
@torch.no_grad()
def test_short_histories(points: int) -> None:
    """The reference pads in front and masks; ours pads behind, which no token attends to."""
    model = reference()
    returns, states, actions, time = trajectory()
    is_real = torch.arange(POINTS) >= POINTS - points
    steps = (time.unsqueeze(1) + torch.arange(POINTS) - (POINTS - points)).clamp(min=0)
    expected = model(
        states=states,
        actions=actions,
        returns_to_go=returns,
        timesteps=steps,
        attention_mask=is_real.long().expand(len(time), -1),
    )
    inputs = tokens(*(field.roll(points - POINTS, dims=1) for field in (returns, states, actions)))[:, :-1]
    logits = copied(model).logits(inputs, time_only(time)).unflatten(1, (POINTS, 3))[:, :points, 2, :ACTION]
    torch.testing.assert_close(logits.tanh(), expected.action_preds[:, is_real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_weight_matters() -> None:
    """A weight that is not used would let the comparison pass for another network."""
    prior = copied(reference())
    returns, states, actions, time = trajectory()
    inputs = tokens(returns, states, actions)[:, :-1]
    before = prior.logits(inputs, time_only(time))
    for name, parameter in prior.named_parameters():
        original = parameter.clone()
        parameter.add_(torch.randn_like(parameter))
        assert not torch.allclose(prior.logits(inputs, time_only(time)), before, atol=1e-3), name
        parameter.copy_(original)
