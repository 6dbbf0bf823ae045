"""Fold `nn.pad` into the padding of what reads it.

Convolutions absorb zeros; max pooling absorbs minus infinity, and zeros where its input is known to
be non-negative; average pooling absorbs zeros where it counts its padding. Requires NHWC.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax

from resq_tvm.passes.canonicalize.rewrite import Rewriter, integers, rewritten
from resq_tvm.passes.graph import imm_value, is_const, op_name

op = relax.op


@tvm.transform.module_pass(opt_level=0, name="FoldPad")
class FoldPad:
    """Merge constant spatial padding into convolutions and pooling."""

    def transform_module(self, mod: tvm.IRModule, _ctx: Any) -> tvm.IRModule:
        """Return the module with padding folded."""
        return rewritten(mod, _Folder)


class _Folder(Rewriter):
    def rewrite(self, var: Any, value: Any) -> Any:
        pad = self.made_by(value.args[0], "relax.nn.pad") if value.args else None
        if pad is None or str(pad.attrs.pad_mode) != "constant":
            return value
        width = integers(pad.attrs.pad_width)
        if len(width) != 8 or any(width[:2]) or any(width[6:]):
            return value
        sides = [width[2], width[4], width[3], width[5]]
        fill = imm_value(pad.attrs.pad_value)
        if op_name(value) == "relax.nn.conv2d":
            return _conv(value, pad.args[0], sides) if fill == 0 and min(sides) >= 0 else value
        if op_name(value) in ("relax.nn.max_pool2d", "relax.nn.avg_pool2d"):
            return self._pool(value, pad.args[0], sides, fill)
        return value

    def _pool(self, call: Any, x: Any, sides: list[int], fill: float) -> Any:
        at = call.attrs
        window, own = integers(at.pool_size), integers(at.padding)
        # Every window must see at least one element of the image.
        inside = all(0 <= s < window[i % 2] for i, s in enumerate(sides))
        if not inside or any(own) or bool(at.ceil_mode):
            return call
        maximum = op_name(call) == "relax.nn.max_pool2d"
        if maximum and not (fill == -math.inf or (fill == 0 and self._non_negative(x))):
            return call
        if not maximum and fill != 0:
            return call
        make = op.nn.max_pool2d if maximum else op.nn.avg_pool2d
        return make(
            x, window, integers(at.strides), sides, integers(at.dilation), False,
            # The padding was part of the image, so it counts.
            bool(at.count_include_pad) if maximum else True,
            "NHWC",
        )  # fmt: skip

    def _non_negative(self, x: Any) -> bool:
        made: Any = self.made.get(x)
        if op_name(made) == "relax.clip":
            return imm_value(made.args[1]) >= 0
        return op_name(made) in ("relax.nn.relu", "relax.sigmoid", "relax.abs", "relax.nn.softmax")


def _conv(call: Any, x: Any, sides: list[int]) -> Any:
    at = call.attrs
    if not is_const(call.args[1]):
        return call
    padding = [a + b for a, b in zip(integers(at.padding), sides, strict=True)]
    return op.nn.conv2d(
        x,
        call.args[1],
        integers(at.strides),
        padding,
        integers(at.dilation),
        int(at.groups),
        "NHWC",
        "OHWI",
    )
