"""The two layers that hold matrices, so that a four-bit one can take the place of either."""

import torch
from torch import Tensor, nn

from pocketlm.model.kernels.linear import linear


class Linear(nn.Linear):
    """y = x W^T, computed in a dtype that each call names."""

    def operands(self, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """(x [..., I], weight [O, I]) whose product the layer is."""
        return x, self.weight

    def forward(self, input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        out = linear(*self.operands(input, dtype), dtype)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class Embedding(nn.Embedding):
    """The token table, which is the output head too when the two are tied."""

    def operands(self, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """(x [..., D], table [V, D]) whose product the head is."""
        return x, self.weight

    def forward(self, input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Rows [..., D] of the table; a lookup has no product, so `dtype` is for subclasses."""
        return super().forward(input)

    def head(self, hidden: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return linear(*self.operands(hidden, dtype), dtype)
