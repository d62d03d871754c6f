"""Products of LoRA factors, handled as factors: a sum of them as one stack, the nearest product of lower rank.

Shapes: M outputs of the adapted module, N inputs, R rank of the stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Term = tuple[float, Tensor, Tensor]
"""A weight, B of shape (M, r) and A of shape (r, N); terms of one sum may have different r."""


def factor_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """The names of B and of A of each LoRA module among these trainable tensors."""
    return [(name.replace(".lora_A.", ".lora_B."), name) for name in names if ".lora_A." in name]


def stacked(terms: Sequence[Term]) -> tuple[Tensor, Tensor]:
    """B and A whose product is the sum of w_k B_k A_k: the B side by side, the w A one below the other."""
    b_MR = torch.cat([b for _, b, _ in terms], dim=1)
    a_RN = torch.cat([weight * a for weight, _, a in terms])
    return b_MR, a_RN


def truncated(b_MR: Tensor, a_RN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The product nearest to B A among those of this rank, in fp64: B = U S, A = V^T of its singular values.

    Thin: two QR decompositions and the SVD of an R x R matrix; the M x N product is never made. The entry of
    largest magnitude in each row of A is positive, so that equal products give equal factors. The first r columns
    of B and rows of A are the nearest product of rank r, for every r. Fewer than `rank` come back where the
    product cannot have that rank.
    """
    q_MK, r_KR = torch.linalg.qr(b_MR.double())
    p_NL, s_LR = torch.linalg.qr(a_RN.double().T)
    u_KJ, values_J, v_JL = torch.linalg.svd(r_KR @ s_LR.T, full_matrices=False)
    b_MJ, a_JN = q_MK @ (u_KJ * values_J), v_JL @ p_NL.T
    signs_J = a_JN.gather(1, a_JN.abs().argmax(dim=1, keepdim=True)).sign().squeeze(1)
    return (b_MJ * signs_J)[:, :rank], (a_JN * signs_J[:, None])[:rank]
