"""The temporal U-Net against the whole network of diffusers, a port of Diffuser's own."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.nn.diffusion import NoisyUNet
from trajgen.priors.noisy import noisy_network

WIDTH, FEATURES, COND = 16, 5, 12


def make(depth: int = 4, **changes: int) -> NoisyUNet:
    network: NoisyUNet = tiny.shake(NoisyUNet(FEATURES, FEATURES, COND, depth=depth, **{"width": WIDTH, **changes}))
    return network.eval()


class Embedded(nn.Module):
    """Stands in for the library's embedding of a level."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, *_: Tensor) -> Tensor:
        return self.values


@torch.no_grad()
def test_it_is_the_network_of_the_library_under_copied_weights() -> None:
    from diffusers import UNet1DModel  # seconds, which no other worker spends

    ours = make()
    reference = UNet1DModel(
        in_channels=FEATURES, out_channels=FEATURES, block_out_channels=(16, 32, 64, 128), layers_per_block=1,
        down_block_types=("DownResnetBlock1D",) * 4, up_block_types=("UpResnetBlock1D",) * 3,
        mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock", act_fn="mish",
        time_embedding_type="positional", use_timestep_embedding=True,
    ).eval()  # fmt: skip
    for name, block in (("down", "down_blocks"), ("middle", "mid_block"), ("up", "up_blocks"), ("out", "out_block")):
        getattr(reference, block).load_state_dict(getattr(ours, name).state_dict())
    x, condition = torch.randn(3, 32, FEATURES), torch.randn(3, 1, COND)
    reference.time_mlp = Embedded(ours.condition(condition[:, 0]))
    expected = reference(x.transpose(1, 2), 0).sample.transpose(1, 2)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(x, condition), expected)


def test_its_size_is_that_of_diffuser() -> None:
    """3.96 million with 32 channels and the embedding of the level, counted in CleanDiffuser's JannerUNet1d."""
    network = NoisyUNet(6, 6, 32, width=32, depth=4)
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(3.95e6, rel=0.005)


@pytest.mark.parametrize("length", [1, 5, 13, 31])
def test_lengths_that_cannot_be_halved(length: int) -> None:
    x = torch.randn(2, length, FEATURES, requires_grad=True)
    out = make()(x, torch.randn(2, 1, COND))
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out[:, -1].sum(), x)
    assert (gradient.abs().amax(-1) > 0).all()  # each token is seen at the end


@pytest.mark.parametrize(
    ("make_network", "fix"),
    [
        (lambda: NoisyUNet(FEATURES, FEATURES, COND, width=20, depth=2), "prior.width=32"),
        (lambda: NoisyUNet(FEATURES, FEATURES, COND, width=16, depth=0), "prior.depth=4"),
        (lambda: noisy_network("unet", 4, 3, 3, COND, width=16, depth=2, dropout=0.1), "prior.dropout=0"),
    ],
)
def test_what_a_unet_cannot_have_is_refused(make_network: object, fix: str) -> None:
    assert callable(make_network)
    with pytest.raises(ConfigError, match=fix):
        make_network()
