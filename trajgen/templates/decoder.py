"""A decoder of one's own: latent to trajectory."""

from torch import Tensor, nn

from trajgen import register
from trajgen.core.types import Cond


@register("decoder", "mine")
class MineDecoder(nn.Module):
    """Decodes the flattened latent by a network of one hidden layer.

    Args:
        features: D.
        horizon: T.
        latent_length: points N of the latent, the number of tokens of the finest scale.
        code_dim: C.
        width: of the hidden layer.
    """

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, features: int, horizon: int, latent_length: int, code_dim: int, *, width: int = 256) -> None:
        super().__init__()
        self.shape = (horizon, features)
        self.network = nn.Sequential(
            nn.Linear(latent_length * code_dim, width), nn.SiLU(), nn.Linear(width, horizon * features)
        )

    def forward(self, latent: Tensor, cond: Cond | None = None) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""
        return self.network(latent.flatten(1)).unflatten(1, self.shape)

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """The same without adapters: there are none."""
        return self(latent)

    def base_parameters(self) -> list[nn.Parameter]:
        """Trained with the tokenizer."""
        return list(self.parameters())

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Trained with the prior, since they read the condition; their effect starts at zero."""
        return []
