"""Dynamic-ResQ's own operators: which bits a pixel gets, and which pixels of a frame changed.

Both decide on integers, so that every backend decides alike whatever its order of summation. The
policy (eq. 9 to 11 of arXiv 2308.09511) looks at a residual by the codes c of its finest quantizer:
with ``q_i(c)`` the codes that i's bits leave of c, ``e_i = ||c - q_i(c)||`` over the channels of a
pixel, in float32 the root of an exact integer. A pixel gets the first i with
``e_i - e_(i+1) < T``, where ``T = tau / (s · ||w||)``, else the most bits of the pool.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from resq_tvm.passes.graph import const_value, imm_value
from resq_tvm.passes.policy import gate_of, keep_of
from resq_tvm.reference.operands import Builder, Kernel
from resq_tvm.schedules.spec import BUDGET_BLOCK
from resq_tvm.scheme import code_limit

_EXACT_FLOAT32 = 1040  # channels whose squared codes sum up to less than 2^24


def narrowed(codes: torch.Tensor, bits: int, shift: int) -> torch.Tensor:
    """Return float32 codes rounded to ``bits`` bits of step ``2**shift``; 0 bits give zero."""
    if bits == 0:
        return torch.zeros_like(codes)
    limit = code_limit(bits)
    step = float(1 << shift)
    return (codes * (1 / step)).round_().clamp_(-limit, limit).mul_(step)


def choose_bits(
    codes: torch.Tensor, pool: list[int], shifts: list[int], threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the policy to the codes of the finest quantizer.

    Parameters
    ----------
    codes : torch.Tensor
        int8 or float32, any shape; pixels are vectors along the last axis.
    pool, shifts : list of int
        Bits in ascending order; step ``2**shift`` of each, the last one 0.
    threshold : float
        T, in units of codes.

    Returns
    -------
    codes : torch.Tensor, float32
    bits : torch.Tensor, uint8
        Per pixel; 0 where every code is zero.
    """
    fine = codes.float()
    wide = torch.float32 if fine.shape[-1] <= _EXACT_FLOAT32 else torch.float64
    candidates = [narrowed(fine, b, s) for b, s in zip(pool[:-1], shifts[:-1], strict=True)]
    roots = [(fine - c).square_().sum(-1, dtype=wide).float().sqrt_() for c in candidates]
    roots.append(torch.zeros_like(roots[0]))
    result = fine
    bits = torch.full(roots[0].shape, pool[-1], dtype=torch.uint8)
    limit = torch.tensor(threshold, dtype=torch.float32)
    for i in range(len(candidates) - 1, -1, -1):
        enough = roots[i] - roots[i + 1] < limit
        result = torch.where(enough.unsqueeze(-1), candidates[i], result)
        bits = torch.where(enough, torch.tensor(pool[i], dtype=torch.uint8), bits)
    bits = torch.where((result == 0).all(-1), torch.tensor(0, dtype=torch.uint8), bits)
    return result, bits


def strongest_blocks(codes: torch.Tensor, keep: int) -> torch.Tensor:
    """Return which pixels lie in the blocks that a budget keeps.

    Blocks of 8 × 8 pixels are ordered by the highest bit of the sum of their squared codes, equals
    from top to bottom and left to right.

    Parameters
    ----------
    codes : torch.Tensor, float32 (1, H, W, C)
    keep : int
        Blocks to keep at most.

    Returns
    -------
    torch.Tensor, float32 (1, H, W, 1)
        1 or 0.
    """
    _, height, width, _ = codes.shape
    energy = codes.double().square().sum(-1)
    pad = (0, -width % BUDGET_BLOCK, 0, -height % BUDGET_BLOCK)
    blocks = F.avg_pool2d(F.pad(energy, pad), BUDGET_BLOCK, divisor_override=1)
    octaves = torch.frexp(blocks)[1].reshape(-1)
    chosen = torch.argsort(octaves, descending=True, stable=True)[:keep]
    flags = torch.zeros_like(octaves, dtype=torch.float32)
    flags[chosen] = 1
    return _spread(flags.reshape(blocks.shape), BUDGET_BLOCK, height, width)


def _spread(blocks: torch.Tensor, size: int, height: int, width: int) -> torch.Tensor:
    """Give every pixel its block's value: (1, H / size, W / size) → (1, H, W, 1)."""
    whole = blocks.repeat_interleave(size, -2).repeat_interleave(size, -1)
    return whole[:, :height, :width].unsqueeze(-1)


def choose(call: Any, differentiable: bool) -> Kernel:
    """``resq.choose``: the codes of the bits that every pixel gets."""
    threshold = imm_value(call.args[2])
    pool = [int(b) for b in const_value(call.args[3])]
    shifts = [int(s) for s in const_value(call.args[4])]
    keep = keep_of(call)

    def run(codes: torch.Tensor) -> torch.Tensor:
        chosen, _ = choose_bits(codes.detach(), pool, shifts, threshold)
        if keep:
            chosen = chosen * strongest_blocks(chosen, keep)
        if differentiable:
            return codes + (chosen - codes).detach()
        return chosen.to(torch.int8)

    return run


def changed_pixels(x: torch.Tensor, key: torch.Tensor, gate: Any) -> torch.Tensor:
    """Return which pixels of a frame count as changed.

    Parameters
    ----------
    x, key : torch.Tensor, float32 (1, H, W, C)
        The frame and its keyframe.
    gate : resq_tvm.passes.policy.Gate

    Returns
    -------
    torch.Tensor, bool (1, H, W, 1)
    """
    codes = ((x - key) * gate.reciprocal).round_().clamp_(-127, 127)
    energy = codes.square_().sum(-1, dtype=torch.float64)
    _, height, width = energy.shape
    size = gate.block
    pad = (0, -width % size, 0, -height % size)
    blocks = F.avg_pool2d(F.pad(energy, pad), size, divisor_override=1)
    changed = (blocks > gate.threshold).double()
    reach = 2 * gate.reach + 1
    changed = F.max_pool2d(changed, reach, 1, gate.reach)
    return _spread(changed, size, height, width) > 0


def gate(call: Any, differentiable: bool) -> Kernel:
    """``resq.gate``: the frame where it changed, else its keyframe."""
    settings = gate_of(call)
    return lambda x, key: torch.where(changed_pixels(x.detach(), key.detach(), settings), x, key)


TABLE: dict[str, Builder] = {"resq.choose": choose, "resq.gate": gate}
