"""Every registered encoder; what its features hold, and that they hold it after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accepts import cells, check_cell
from safetensors.torch import save_file
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.types import Batch

SHAPE = (16, 16, 3)


@cells("encoder")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("encoder", name, words, advice)


def make(name: str, shape: tuple[int, ...] = SHAPE, **options: Any) -> Any:
    return build("encoder", {"name": name, **options}, image_shape=shape, action_dim=2)


def dots(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs of images (n, 2, 16, 16, 3) of a bright dot, and where its center is, (n, 2, 2) in pixels."""
    places = 3 + 10 * torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed))
    axis = torch.arange(16) + 0.5
    distance = torch.hypot(axis[:, None] - places[..., 0, None, None], axis - places[..., 1, None, None])
    images = (255 * (2.5 - distance).clamp(0, 1)).unsqueeze(-1).expand(-1, -1, -1, -1, 3)
    return images.to(torch.uint8), places


def dot_batch(count: int, seed: int) -> Batch:
    images, places = dots(count, seed)
    batch = tiny.batch(count)
    actions = (places[:, 1] - places[:, 0])[:, None, None].expand_as(batch.actions) / 4
    return Batch(**{**vars(batch), "images": images, "actions": actions, "mask": torch.ones_like(batch.mask)})


def unexplained(encoder: Any) -> float:
    """The share of the variance of the dot's place that no linear map of the features tells, on other images."""

    @torch.no_grad()
    def inputs(seed: int) -> tuple[Tensor, Tensor]:
        images, places = dots(400, seed)
        features = encoder(images[:, 0]).double()
        return torch.cat([features, torch.ones_like(features[:, :1])], 1), places[:, 0].double()

    (x, y), (x_other, y_other) = inputs(5), inputs(6)
    solution = torch.linalg.lstsq(x, y, driver="gelsd").solution
    return float((x_other @ solution - y_other).square().mean() / y_other.var(0).mean())


def test_a_trained_encoder_knows_where_things_are() -> None:
    """Where features collapse, a linear map of them tells nothing: the share would be 1."""
    torch.manual_seed(0)
    encoder = make("conv", dim=8, width=16)
    optimizer = torch.optim.Adam(encoder.trained_parameters(), 3e-3)
    first = float(encoder.loss(dot_batch(64, 1))["reconstruction"].detach())
    for step in range(60):
        optimizer.zero_grad()
        sum(encoder.loss(dot_batch(64, 100 + step)).values()).backward()
        optimizer.step()
    last = {name: float(value.detach()) for name, value in encoder.loss(dot_batch(64, 1)).items()}
    assert last["reconstruction"] < min(0.9, first)
    assert unexplained(encoder.eval()) < 0.1


def test_the_reconstruction_of_features_that_are_alike_is_no_better_than_the_mean_image() -> None:
    encoder, batch = make("conv", dim=8, width=16), dot_batch(64, 1)
    for parameter in encoder.objective.draw.parameters():
        parameter.data.zero_()  # draws the mean image
    assert float(encoder.loss(batch)["reconstruction"].detach()) == pytest.approx(1.0, rel=1e-4)


def test_identity_is_the_image() -> None:
    images = torch.randint(256, (2, 4, 5, 3), dtype=torch.uint8)
    encoder = make("identity", (4, 5, 3))
    assert encoder.features == 60
    torch.testing.assert_close(encoder(images), images.flatten(1) / 255)
    with pytest.raises(ConfigError, match="encoder=conv"):
        make("identity", (48, 48, 3))


@torch.no_grad()
def test_cameras_are_encoded_one_by_one() -> None:
    one, two = (make("timm", (16, 16, 3 * n), backbone="test_resnet", dim=None).eval() for n in (1, 2))
    two.backbone.load_state_dict(one.backbone.state_dict())
    images = torch.randint(256, (3, 16, 16, 6), dtype=torch.uint8)
    torch.testing.assert_close(two(images), torch.cat([one(images[..., :3]), one(images[..., 3:])], 1))
    assert two.features == 2 * one.features


def test_a_frozen_backbone_stays_as_it_is_and_starts_from_a_file(tmp_path: Path) -> None:
    other = make("timm", backbone="test_resnet")
    save_file(other.backbone.state_dict(), tmp_path / "weights.safetensors")
    encoder = make("timm", backbone="test_resnet", weights=str(tmp_path / "weights.safetensors"))
    encoder.load_initial_weights()
    loaded, expected = encoder.backbone.state_dict(), other.backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    encoder.train()
    sum(encoder.loss(dot_batch(8, 1)).values()).backward()
    assert all(torch.equal(encoder.backbone.state_dict()[name], value) for name, value in expected.items())
    trained = {id(p) for p in encoder.trained_parameters()}
    assert trained and not trained & {id(p) for p in encoder.backbone.parameters()}


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"backbone": "resnet1"}, "encoder.backbone=resnet18"),
        ({"backbone": "hf-hub:someone/else"}, "encoder.backbone=resnet18"),
        ({"backbone": "test_resnet", "dim": 0}, "encoder.dim=32"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        make("timm", **options)


@pytest.mark.parametrize("weights", ["weights.pth", "nowhere.safetensors"])
def test_weights_are_safetensors_that_are_there(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"a pickle")
    with pytest.raises(ConfigError, match="nothing is unpickled"):
        make("timm", backbone="test_resnet", weights=weights).load_initial_weights()
