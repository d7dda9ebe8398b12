"""Backbones of timm, with their own weights, those of a file, or fresh ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.registry import register
from trajgen.core.types import Batch, Losses
from trajgen.encoders.objective import ImageObjective, resized, to_pixels

RGB, WIDTH = 3, 64
SUFFIX = ".safetensors"


@register("encoder", "timm")
class TimmEncoder(nn.Module):
    """Any backbone of timm, pooled, and a linear layer that is trained like ``conv``.

    Images of several cameras or frames, joined along the channels, are encoded one by one, and gray ones as they are.

    Args:
        image_shape: height, width and channels.
        action_dim: A.
        backbone: name of timm's model.
        weights: ``pretrained`` loads timm's from its server, ``random`` leaves them fresh, and anything else is the
            path of a .safetensors file of such a model. A run folder holds the weights, and needs neither later on.
        freeze: whether the backbone keeps these weights; false trains it with the layer.
        dim: F, numbers of a vector, by a linear layer; null takes the backbone's features as they are, of which
            tokenizers reconstruct each.
        side: pixels of a side to which images are resized; null leaves them as they are, or takes the size that the
            model requires.

    Raises:
        ConfigError: if timm has no such model, or it does not take such images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_shape: tuple[int, ...],
        action_dim: int,
        *,
        backbone: str = "resnet18",
        weights: str = "pretrained",
        freeze: bool = True,
        dim: int | None = 32,
        side: int | None = None,
    ) -> None:
        super().__init__()
        self.freeze, self.weights, self._name = freeze, weights, backbone
        *_, channels = image_shape
        self.cameras = channels // RGB if channels % RGB == 0 else 1
        depth = channels // self.cameras
        config = _pretrained_config(backbone)
        is_fixed = bool(config.get("fixed_input_size"))
        self.side = side or (config["input_size"][-1] if is_fixed else None)
        self._options = {"num_classes": 0, "in_chans": depth, **({"img_size": side} if side and is_fixed else {})}
        self.backbone = _create(backbone, **self._options)
        for name in ("mean", "std"):
            values = config.get(name) or (0.5,) * RGB
            values = values if depth == RGB else (sum(values) / len(values),) * depth
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.head: nn.Module = nn.Identity()
        self.features = self._tried(image_shape)
        if dim is not None:
            check_range("encoder.dim", dim, 1, usual=32)
            self.head, self.features = nn.Linear(self.features, dim), dim
        is_trained = dim is not None or not freeze
        self.objective = ImageObjective(image_shape, self.features, action_dim, WIDTH) if is_trained else None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, height, width, channels) in uint8 to features (B, F)."""
        pixels = to_pixels(images).unflatten(1, (self.cameras, -1)).flatten(0, 1)  # one camera after the other
        pixels = pixels if self.side is None else resized(pixels, self.side)
        features = self.backbone((pixels - self.mean) / self.std).unflatten(0, (-1, self.cameras)).flatten(1)
        result: Tensor = self.head(features)
        return result

    def train(self, mode: bool = True) -> TimmEncoder:
        """Puts all into training mode but a frozen backbone, whose batch normalization is fixed too."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def trained_parameters(self) -> list[nn.Parameter]:
        """The layer's, and the backbone's unless it is frozen."""
        frozen = {id(p) for p in self.backbone.parameters()} if self.freeze else set()
        return [p for p in self.parameters() if id(p) not in frozen]

    def loss(self, batch: Batch) -> Losses:
        """The losses of `ImageObjective`; none where nothing is trained."""
        return {} if self.objective is None else self.objective(self, batch)

    def load_initial_weights(self) -> None:
        """Loads the weights that it starts from.

        Raises:
            ConfigError: if the server cannot be reached, or the file does not hold weights of the backbone.
        """
        if self.weights == "random":
            return
        source = {} if self.weights == "pretrained" else {"pretrained_cfg_overlay": {"file": self.weights}}
        if source and not (self.weights.endswith(SUFFIX) and Path(self.weights).is_file()):
            raise ConfigError(
                f"Weights of an encoder are pretrained, random, or a {SUFFIX} file.",
                got=f"encoder.weights={self.weights}",
                fix="the path of such a file; nothing is unpickled",
            )
        try:
            loaded = _create(self._name, pretrained=True, **self._options, **source)
        except Exception as error:  # the libraries behind it raise errors of their own
            raise ConfigError(
                f"The weights of '{self._name}' cannot be loaded.",
                got=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}",
                fix=f"encoder.weights=FILE{SUFFIX}, copied from a machine with a network; or encoder.weights=random",
            ) from error
        self.backbone.load_state_dict(loaded.state_dict())

    @torch.no_grad()
    def _tried(self, image_shape: tuple[int, ...]) -> int:
        """The number of features of an image; refuses images that the backbone does not take."""
        self.eval()
        try:
            features: Tensor = self(torch.zeros(1, *image_shape, dtype=torch.uint8))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"The backbone '{self._name}' does not take images of shape {tuple(image_shape)}.",
                got=str(error).partition("\n")[0][:200],
                fix="encoder.side=224, to which they are resized",
            ) from error
        self.train()
        return features.shape[1]


def _create(name: str, **options: Any) -> nn.Module:
    """A model of timm; imported here, since it takes seconds."""
    import timm

    model: nn.Module = timm.create_model(name, **options)
    return model


def _pretrained_config(backbone: str) -> dict[str, Any]:
    """What timm says of the images that a model takes; empty where it was never trained.

    Raises:
        ConfigError: if there is no such model.
    """
    import timm

    if not timm.is_model(backbone):
        raise ConfigError(
            f"timm has no model '{backbone}'.",
            expected=nearest(backbone, timm.list_models()),
            fix="encoder.backbone=resnet18",
        )
    config = timm.get_pretrained_cfg(backbone)
    return {} if config is None else config.to_dict()
