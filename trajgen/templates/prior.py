"""A prior of one's own: the distribution of codes given the condition."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen import ScaleSchedule, register
from trajgen.core.types import Cond


@dataclass
class DecodeState:
    """What is carried from one step to the next: the condition, and the recurrent state."""

    cond: Tensor  # (B, 1, W)
    hidden: Tensor  # (1, B, W)


@register("prior", "mine")
class MinePrior(nn.Module):
    """A recurrent network over the tokens, scale after scale, for any schedule.

    Args:
        schedule: the scales; L tokens.
        code_dim: C, the width of the inputs.
        vocabulary: V, or None for continuous codes.
        conditioner: module from `Cond` to embeddings (B, K or 1, E).
        width: features W of each token within the network.
    """

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(
        self,
        schedule: ScaleSchedule,
        code_dim: int,
        vocabulary: int | None,
        conditioner: nn.Module,
        *,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.schedule, self.vocabulary, self.conditioner = schedule, vocabulary, conditioner
        self.cond_proj = nn.Linear(int(getattr(conditioner, "width", width)), width)
        self.input_proj = nn.Linear(code_dim, width)
        self.position = nn.Parameter(torch.randn(schedule.tokens, width) * 0.02)
        self.network = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary or code_dim)

    def forward(self, codes: Tensor, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """One step of training: the loss, and the predictions."""
        logits = self.logits(inputs, cond)
        return self.loss(logits, codes), logits

    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        """The mean loss of predictions (B, L, V or C)."""
        return F.mse_loss(logits, codes) if self.vocabulary is None else F.cross_entropy(logits.transpose(1, 2), codes)

    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        """Predictions of all tokens at once, from the inputs of scales 2 to K (B, L - l_1, C)."""
        first = F.pad(self.input_proj(inputs), (0, 0, self.schedule.lengths[0], 0))  # the first scale sees no codes
        return self._predict(first, slice(None), self.start(cond))

    def start(self, cond: Cond) -> DecodeState:
        """What is computed once per plan."""
        embedded = self.cond_proj(self.conditioner(cond)[:, :1])
        return DecodeState(embedded, torch.zeros_like(embedded).transpose(0, 1).contiguous())

    def step(self, x: Tensor | None, k: int, state: DecodeState) -> Tensor:
        """Predictions (B, l_k, V or C) of scale k, from its input (B, l_k, C); None at the first scale."""
        inputs = state.cond.new_zeros(()) if x is None else self.input_proj(x)
        return self._predict(inputs, self.schedule.spans[k], state)

    def _predict(self, inputs: Tensor, span: slice, state: DecodeState) -> Tensor:
        out, state.hidden = self.network(inputs + self.position[span] + state.cond, state.hidden)
        return self.head(out)
