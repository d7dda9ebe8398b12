"""The transformer over noisy tokens against DiT (arXiv 2212.09748, section 3.2), written anew here."""

from __future__ import annotations

import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.nn.diffusion import NoisyTransformer

TOKENS, FEATURES, OUT, COND, WIDTH, DEPTH, HEADS, EXPANSION = 5, 3, 2, 6, 8, 2, 4, 3.0
EPSILON = 1e-5
"""Of the normalization: torch's; DiT takes 1e-6."""


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """DiT's ``modulate``."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DiTBlock(nn.Module):
    """A block with adaLN-Zero: x + gate · attention, x + gate · MLP, each of a modulated normalization.

    DiT's MLP has GELU; ours has SiLU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, EPSILON, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm2 = nn.LayerNorm(WIDTH, EPSILON, elementwise_affine=False)
        hidden = int(EXPANSION * WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.ada_ln = nn.Sequential(nn.SiLU(), nn.Linear(COND, 6 * WIDTH))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.ada_ln(condition).chunk(6, dim=1)
        tokens = modulated(self.norm1(x), shift_msa, scale_msa)
        x = x + gate_msa.unsqueeze(1) * self.attn(tokens, tokens, tokens, need_weights=False)[0]
        hidden = self.fc2(F.silu(self.fc1(modulated(self.norm2(x), shift_mlp, scale_mlp))))
        return x + gate_mlp.unsqueeze(1) * hidden


class DiT(nn.Module):
    """Tokens with positions, the blocks, and the final layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.positions = nn.Parameter(torch.zeros(TOKENS, WIDTH))
        self.blocks = nn.ModuleList(DiTBlock() for _ in range(DEPTH))
        self.norm_final = nn.LayerNorm(WIDTH, EPSILON, elementwise_affine=False)
        self.linear = nn.Linear(WIDTH, OUT)
        self.ada_ln = nn.Sequential(nn.SiLU(), nn.Linear(COND, 2 * WIDTH))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.ada_ln(condition).chunk(2, dim=1)
        return self.linear(modulated(self.norm_final(x), shift, scale))


def make() -> NoisyTransformer:
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS}
    return NoisyTransformer(TOKENS, FEATURES, OUT, COND, expansion=EXPANSION, dropout=0.0, **sizes).double().eval()


@torch.no_grad()
def copied(ours: NoisyTransformer) -> DiT:
    """DiT with our weights.

    One layer makes the modulations of all blocks, and a block adds an offset (adaLN-single): DiT's layers of all blocks
    with the same weight, and biases that differ by the offsets.
    """
    reference = DiT().double().eval()
    reference.embed.load_state_dict(ours.input_proj.state_dict())
    reference.linear.load_state_dict(ours.head.state_dict())
    reference.positions.copy_(ours.pos_embed)
    weight, bias = ours.modulation.weight, ours.modulation.bias
    reference.ada_ln[1].load_state_dict({"weight": weight[6 * WIDTH :], "bias": bias[6 * WIDTH :]})
    for block, other in zip(reference.blocks, ours.blocks, strict=True):
        state = other.state_dict()
        block.load_state_dict(
            {
                "attn.in_proj_weight": state["qkv.weight"],
                "attn.in_proj_bias": state["qkv.bias"],
                "attn.out_proj.weight": state["out.weight"],
                "attn.out_proj.bias": state["out.bias"],
                "fc1.weight": state["mlp.0.weight"],
                "fc1.bias": state["mlp.0.bias"],
                "fc2.weight": state["mlp.2.weight"],
                "fc2.bias": state["mlp.2.bias"],
                "ada_ln.1.weight": weight[: 6 * WIDTH],
                "ada_ln.1.bias": bias[: 6 * WIDTH] + state["offset"].flatten(),
            }
        )
    return reference


def inputs() -> tuple[Tensor, Tensor]:
    """Noisy tokens (B, L, in) and conditions (B, 1, E)."""
    return torch.randn(3, TOKENS, FEATURES).double(), torch.randn(3, 1, COND).double()


@torch.no_grad()
def test_it_is_dit_under_copied_weights() -> None:
    network = make()
    tiny.shake(network, 0.5)
    x, condition = inputs()
    predicted = network(x, condition)
    assert predicted.std() > 0.1
    torch.testing.assert_close(predicted, copied(network)(x, condition.squeeze(1)))


@torch.no_grad()
def test_at_the_start_each_block_is_the_identity_whatever_the_condition() -> None:
    """adaLN-Zero: gates of zero, and a final normalization that is not modulated."""
    network = make()
    x, condition = inputs()
    embedded = network.input_proj(x) + network.pos_embed
    modulation = network.modulation(F.silu(condition)).unflatten(-1, (8, WIDTH))[..., :6, :]
    assert all(torch.equal(block(embedded, modulation), embedded) for block in network.blocks)
    torch.testing.assert_close(network(x, condition), network.head(F.layer_norm(embedded, (WIDTH,))))
