"""``resq-tvm bops``: what a scheme costs, counted from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import (
    FirstLast,
    InputShape,
    Json,
    Model,
    Override,
    Period,
    SchemeText,
    check_period,
    parse_overrides,
    parse_shape,
)


def bops(
    model: Model,
    input_shape: InputShape = None,
    scheme: SchemeText = "W8A8->W8A4",
    period: Period = 4,
    override: Override = None,
    first_last: FirstLast = None,
    json: Json = False,
) -> None:
    """Count multiply-accumulates and bit operations of MODEL under a scheme, layer by layer."""
    console = Console(
        json,
        "bops",
        model=model,
        input_shape=input_shape,
        scheme=scheme,
        period=period,
        override=override,
        first_last=first_last,
    )
    from resq_tvm.scheme import PrecisionPlan, Scheme

    check_period(period)
    shape = parse_shape(input_shape)
    plan = PrecisionPlan(Scheme.parse(scheme), parse_overrides(override), first_last)

    from resq_tvm.bops import count

    if Path(model).suffix == ".qnet":
        from resq_tvm.quantize.qnet import QuantizedNetwork

        module = QuantizedNetwork.load(model).module
    else:
        from resq_tvm.network import load
        from resq_tvm.passes.annotate import Annotate

        with console.progress("load") as progress:
            progress(model)
            annotate: Any = Annotate(plan)  # TVM's decorator makes the class callable
            module = annotate(load(model, input_shape=shape).module)
    report = count(module, period)

    def render(out: Any) -> None:
        rows = [
            (
                la.name,
                la.op,
                "x".join(map(str, la.shape)),
                la.macs / 1e6,
                la.key_bits,
                la.residual_bits,
                la.bops_keyframe / 1e9,
                la.bops_residual / 1e9,
            )
            for la in report.layers
        ]
        columns = (
            "layer", "op", "output", "MMACs", "key", "residual", "key GBOPs", "res. GBOPs"
        )  # fmt: skip
        out.print(table(columns, rows))
        totals = [
            ("GMACs", report.macs / 1e9),
            ("GBOPs of a keyframe", report.bops_keyframe / 1e9),
            ("GBOPs of a residual frame", report.bops_residual / 1e9),
            (f"GBOPs per frame, T = {period}", report.bops_amortized / 1e9),
            ("GBOPs, peak", report.peak / 1e9),
        ]
        out.print(table(("", ""), totals))
        if report.float_layers:
            out.print(f"float (counted as 32 x 32 bits): {', '.join(report.float_layers)}")

    console.finish(report.to_dict(), render)
