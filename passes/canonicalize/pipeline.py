"""Canonicalization as a list of passes."""

from __future__ import annotations

import tvm

from resq_tvm.passes.canonicalize.check import check_canonical
from resq_tvm.passes.canonicalize.decompose import Decompose
from resq_tvm.passes.canonicalize.densify import DensifyTransposed
from resq_tvm.passes.canonicalize.flush_tiny import FlushTiny
from resq_tvm.passes.canonicalize.fold_affine import FoldAffine
from resq_tvm.passes.canonicalize.fold_constants import FoldConstants
from resq_tvm.passes.canonicalize.fold_pad import FoldPad
from resq_tvm.passes.canonicalize.layout import ToChannelsLast
from resq_tvm.passes.canonicalize.name_layers import NameLayers
from resq_tvm.passes.canonicalize.name_values import NameValues
from resq_tvm.passes.canonicalize.simplify import Simplify
from resq_tvm.passes.canonicalize.sink_concat import SinkConcat
from resq_tvm.passes.canonicalize.unify_constants import UnifyConstants


def canonicalize(mod: tvm.IRModule, model: str = "network") -> tvm.IRModule:
    """Bring a float ``main`` to the canonical form of docs/architecture.md.

    Parameters
    ----------
    mod : IRModule
        ``main`` with one dataflow block, constants bound, static shapes, batch 1. Attributes read:
        ``resq.inputs``, ``resq.outputs`` (a frontend's description) and ``resq.names``.
    model : str
        The model's name in error messages.

    Raises
    ------
    UnsupportedOperatorError
        If operators without a canonical form are left; every one is listed with its variable.
    """
    canonical = tvm.transform.Sequential(
        [
            FoldConstants(),
            NameLayers(),
            Decompose(),
            FoldConstants(),
            Simplify(),
            ToChannelsLast(),
            DensifyTransposed(),
            UnifyConstants(),
            Simplify(),
            FoldPad(),
            FoldAffine(),
            SinkConcat(),
            FoldAffine(),
            Simplify(),
            FlushTiny(),
            NameValues(),
        ]
    )(mod)
    check_canonical(canonical, model)
    return canonical
