"""Images on a simulated CUDA device: they come in uint8, without a wait, and features are made there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import image_sets
import pytest
import torch
from simulated import SimulatedCuda, device_of

from trajgen.assemble import build_encoder
from trajgen.core.normalizer import Affine, Normalizer
from trajgen.data import minari
from trajgen.data.encoding import Unencoded, with_room
from trajgen.data.options import DataOptions
from trajgen.data.windows import Windows

pytestmark = pytest.mark.simulated
ID = "tests/images-v0"
NODE: dict[str, Any] = {"name": "conv", "dim": 4, "width": 8}


def windows_on(device: str) -> Windows:
    options = DataOptions(id=ID, state_key="velocity", image_key="front", horizon=3, stride=2, chunk=2)
    raw = minari.load(ID, options)
    torch.manual_seed(0)
    encoder = build_encoder(NODE, raw.space).to(device)
    episodes, normalizer = with_room(raw, encoder.features, NODE), Normalizer(6, 2).to(device)
    unencoded = Unencoded(episodes, options, encoder, torch.device(device), normalizer)
    return Windows(episodes, options, normalizer, device, 3, unencoded)


@pytest.mark.parametrize("memory", [2**10, 2**40], ids=["on the host", "on the device"])
def test_images_reach_the_device_in_uint8(memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    image_sets.write(ID)
    expected = windows_on("cpu").with_images().batch(0, 8).image_pairs
    with SimulatedCuda(memory=memory) as simulation:
        windows = windows_on("cuda")
        assert windows.on_device == (memory == 2**40)
        source = windows.with_images()
        source.batch(0, 8)
        simulation.waits.clear()
        batch = source.batch(1, 8) if windows.on_device else source.batch(0, 8)
        assert not simulation.waits
        images = (source.batch(0, 8) if windows.on_device else batch).image_pairs
        assert images.dtype == torch.uint8 and device_of(images).type == "cuda"
        if not windows.on_device:
            torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=0)
        states = windows.encoded().batch(0, 8).states
        assert device_of(states).type == "cuda" and bool(states[..., 2:].any())


def test_a_normalizer_on_the_device_is_fitted_from_the_host() -> None:
    """That of the features of images, once their encoder is trained; with quantiles for bins."""

    def fitted(device: str) -> dict[str, torch.Tensor]:
        affine = Affine(3)
        affine.fit_quantiles(5)
        affine.to(device).fit(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
        return affine.state_dict()

    with SimulatedCuda():
        on_device = {name: value.cpu() for name, value in fitted("cuda").items()}
    expected = fitted("cpu")
    assert on_device.keys() == expected.keys() and "quantiles" in expected
    assert all(torch.equal(on_device[name], value) for name, value in expected.items())
