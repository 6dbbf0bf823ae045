"""What a dynamic residual decides by: thresholds, tied steps, the norms of weights, the gate.

The function attribute ``resq.dynamic`` (JSON text) holds, for a scheme with pools of bits::

    {"choices": {"<value>:<pool>": {"shifts": [8, 4, 0], "tau": 3e-4}},
     "gates":   {"<input>": {"scale": 0.004, "threshold": 12.0, "block": 8, "reach": 1}},
     "budget":  0.25,
     "held":    [2]}

A *choice* belongs to one quantized value (the pieces of a concatenation decide by themselves);
``shifts[i]`` says that the i-th bits of the pool have the step ``2**shift`` of the finest. The
budget, if there is one, is the share of 8 × 8 blocks of any value that may differ from zero.
Outputs whose numbers are ``held`` are computed on keyframes alone (`resq_tvm.passes.held`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from resq_tvm.passes.graph import (
    Graph,
    concat_pieces,
    const_value,
    imm_value,
    op_name,
    shape_of,
)
from resq_tvm.passes.weights import layer_codes
from resq_tvm.schedules.spec import BUDGET_BLOCK
from resq_tvm.scheme import Scheme

CHOOSE, GATE = "resq.choose", "resq.gate"
BLOCK = 8  # pixels: the noise of a block averages out, small things still fill a part of it
REACH = 1  # blocks around a changed one that count as changed, too


@dataclass(frozen=True)
class Choice:
    """How a value's residual chooses its bits.

    Attributes
    ----------
    pool : tuple of int
        Bits, ascending.
    shifts : tuple of int
        Step of each, as a power of two of the finest's; the last is 0.
    threshold : float
        T of the policy, in units of the finest codes: ``tau / (scale · ||w||)``, a float32.
    budget : float
        Share of the blocks of the plane that are kept at most, the strongest; 0: all.
    """

    pool: tuple[int, ...]
    shifts: tuple[int, ...]
    threshold: float
    budget: float = 0.0


@dataclass(frozen=True)
class Gate:
    """Which blocks of a frame count as changed.

    A block of ``block`` × ``block`` pixels has changed if the squares of the differences to the
    keyframe, rounded to multiples of ``1 / reciprocal`` and clamped to ±127 of them, sum up to
    more than ``threshold``; its neighbours up to ``reach`` blocks away count as changed as well.
    """

    reciprocal: float
    threshold: float
    block: int = BLOCK
    reach: int = REACH


def choice_name(value: str, pool: tuple[int, ...]) -> str:
    """Return the key of a value's choice in ``resq.dynamic``."""
    return f"{value}:{','.join(map(str, pool))}"


def choose(codes: Any, choice: Choice) -> Any:
    """Return the call that reduces codes pixel by pixel to the bits chosen."""
    return _packed(
        CHOOSE,
        codes.ty,
        codes,
        relax.const(np.float32(choice.threshold)),
        relax.const(np.asarray(choice.pool, np.int32)),
        relax.const(np.asarray(choice.shifts, np.int32)),
        relax.const(np.int32(blocks_kept(codes, choice.budget))),
    )


def blocks_kept(codes: Any, budget: float) -> int:
    """Return how many blocks of a value a budget keeps; 0 where it keeps all."""
    shape = shape_of(codes)
    if not budget or len(shape) != 4:
        return 0
    return max(1, int(budget * -(-shape[1] // BUDGET_BLOCK) * -(-shape[2] // BUDGET_BLOCK)))


def choice_of(call: Any) -> Choice:
    """Read a call that `choose` made, but for its budget (see `keep_of`)."""
    pool, shifts = (tuple(int(v) for v in const_value(a)) for a in call.args[3:5])
    return Choice(pool, shifts, imm_value(call.args[2]))


def keep_of(call: Any) -> int:
    """Return how many blocks a call that `choose` made keeps at most; 0: all."""
    return int(imm_value(call.args[5]))


def gate(x: Any, key: Any, settings: Gate) -> Any:
    """Return the call that replaces what did not change in a frame by its keyframe."""
    return _packed(
        GATE,
        x.ty,
        x,
        key,
        relax.const(np.asarray([settings.reciprocal, settings.threshold], np.float32)),
        relax.const(np.asarray([settings.block, settings.reach], np.int32)),
    )


def gate_of(call: Any) -> Gate:
    """Read a call that `gate` made."""
    (reciprocal, threshold), (block, reach) = (const_value(a) for a in call.args[3:5])
    return Gate(float(reciprocal), float(threshold), int(block), int(reach))


def _packed(name: str, ty: Any, *args: Any) -> Any:
    return relax.op.call_pure_packed(name, *args, ty_args=ty)


def weight_norms(main: Any, layers: dict[str, str], granularity: str) -> dict[str, float]:
    """Return choice name → ``||w||``: Frobenius norm of the quantized weights that read the value.

    Several layers add up in squares; of a layer behind a concatenation, a piece counts the weights
    of its own channels.
    """
    graph = Graph.of(main)
    squares: dict[str, float] = {}
    for var, call in graph.layers():
        text = layers[var.name]
        residual = None if text == "float" else Scheme.parse(text).residual
        if residual is None or not residual.pool:
            continue
        name = op_name(call)
        codes, scales = layer_codes(main, var.name, call, residual.weight, granularity)
        if name == "relax.matmul":
            rounded = (codes.astype(np.float64) * scales).T[:, None, None, :]
        else:
            rounded = codes.astype(np.float64) * scales.reshape(-1, 1, 1, 1)
        first = 0
        for piece in concat_pieces(call.args[0], graph.producers):
            channels = shape_of(piece)[-1]
            part = rounded
            if rounded.shape[3] == shape_of(call.args[0])[-1]:
                part = rounded[..., first : first + channels]
            first += channels
            key = choice_name(piece.name, residual.pool)
            squares[key] = squares.get(key, 0.0) + float((part**2).sum())
    return {key: float(np.sqrt(total)) for key, total in squares.items()}


def is_dynamic(main: Any) -> bool:
    """Whether a calibrated ``main`` chooses bits pixel by pixel."""
    return main.attrs is not None and "resq.dynamic" in main.attrs
