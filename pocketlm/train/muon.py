"""Muon: the momentum of a matrix's gradient, orthogonalised, is its update. torch's own, in a dtype
that can be chosen.

torch.optim.Muon orthogonalises in bfloat16 on every machine. A processor without bfloat16
instructions emulates it, three times slower than float32, and the last bit of a gradient then turns
a rounding of 8 bits.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# torch.optim.Muon's own defaults; the coefficients are Keller Jordan's
# (kellerjordan.github.io/posts/muon)
MOMENTUM, EPS, STEPS = 0.95, 1e-7, 5
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Muon):
    """torch.optim.Muon with Nesterov's momentum and updates of AdamW's usual size
    ("match_rms_adamw").

    dtype: of the products that orthogonalise; in bfloat16 every step is torch's, to the bit.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=MOMENTUM,
            adjust_lr_fn="match_rms_adamw",
        )
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalised(
                    parameter.grad.lerp(momentum, group["momentum"]), self.dtype
                )
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [M, N] with all singular values near 1, from 0.7 to 1.2: five Newton-Schulz steps
    in `dtype`.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=EPS)  # so that no singular value exceeds 1
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if tall else x


def orthogonaliser(matrix: Tensor) -> Tensor:
    """The symmetric matrix whose product with `matrix` [M, N] is what `orthogonalised` gives in
    float32: [M, M] and from the left, but [N, N] and from the right where M > N.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    scale = x.norm().clamp(min=EPS)
    x = x / scale
    product = torch.eye(len(x), device=x.device) / scale
    for _ in range(STEPS):
        gram = x @ x.T
        factor = torch.addmm(gram, gram, gram, beta=B, alpha=C)
        factor.diagonal().add_(A)
        x, product = factor @ x, factor @ product
    return product
