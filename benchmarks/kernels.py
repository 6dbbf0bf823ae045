"""Speed of single kernels: GMAC/s and share of the instruction's peak, one thread.

Every convolution runs with the residual epilogue (dequantize, add state, relu, subtract relu of the
state, quantize). Times are the least of a few short repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np
import tvm

from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.emit import emit
from resq_tvm.schedules.rules import decide
from resq_tvm.schedules.spec import (
    Conv,
    FusedKernel,
    Node,
    Phase,
    Pool,
    Resize,
    Store,
    TensorSpec,
    Walk,
)
from resq_tvm.targets.preset import Target, get_target

# kind, channels in, channels out, output height, output width, kernel, stride, dilation
CONVOLUTIONS = {
    "ddrnet stem 1": ("conv", 3, 32, 128, 256, 3, 2, 1),
    "ddrnet stem 2": ("conv", 32, 32, 64, 128, 3, 2, 1),
    "ddrnet 32": ("conv", 32, 32, 64, 128, 3, 1, 1),
    "ddrnet 64 /8": ("conv", 64, 64, 32, 64, 3, 1, 1),
    "conv 64 at 64x128": ("conv", 64, 64, 64, 128, 3, 1, 1),
    "ddrnet 64-128 s2": ("conv", 64, 128, 16, 32, 3, 2, 1),
    "ddrnet 128 /16": ("conv", 128, 128, 16, 32, 3, 1, 1),
    "ddrnet 256 /32": ("conv", 256, 256, 8, 16, 3, 1, 1),
    "ddrnet 128-512 s2": ("conv", 256, 512, 4, 8, 3, 2, 1),
    "ddrnet 512 1x1": ("conv", 512, 128, 4, 8, 1, 1, 1),
    "ddrnet 64-128 1x1": ("conv", 64, 128, 32, 64, 1, 1, 1),
    "ddrnet head": ("conv", 128, 64, 32, 64, 3, 1, 1),
    "ddrnet logits": ("conv", 64, 19, 32, 64, 1, 1, 1),
    "espnet 12 d16": ("conv", 12, 12, 90, 120, 3, 1, 16),
    "espnet 25 d4": ("conv", 25, 25, 45, 60, 3, 1, 4),
    "espnet 131-12 1x1": ("conv", 131, 12, 90, 120, 1, 1, 1),
    "blazepose 48-192 1x1": ("conv", 48, 192, 64, 64, 1, 1, 1),
    "blazepose 192-48 1x1": ("conv", 192, 48, 64, 64, 1, 1, 1),
    "blazepose dw 96 k3 s1": ("depthwise", 96, 96, 64, 64, 3, 1, 1),
    "blazepose dw 144 k3 s2": ("depthwise", 144, 144, 32, 32, 3, 2, 1),
    "blazepose dw 192 k5 s1": ("depthwise", 192, 192, 32, 32, 5, 1, 1),
    "blazepose dw 288 k5 s2": ("depthwise", 288, 288, 16, 16, 5, 2, 1),
    "face mesh dw 16 k3 s1": ("depthwise", 16, 16, 96, 96, 3, 1, 1),
}


def _tensor(target: Target, name: str, h: int, w: int, c: int, halo: tuple[int, ...]) -> TensorSpec:
    c_phys = 4 if c <= 4 else -(-c // 8) * 8
    return TensorSpec(name, h, w, c, target.code.dtype, c_phys, tuple(halo))


def _floats(name: str, h: int, w: int, c: int, external: bool = False) -> TensorSpec:
    return TensorSpec(name, h, w, c, "float32", c if external else -(-c // 8) * 8)


def convolution(target: Target, spec: tuple) -> tuple[FusedKernel, int]:
    """Return a convolution with the residual epilogue, and its MACs."""
    kind, c, o, h, w, k, stride, dilation = spec
    pad = dilation * (k - 1) // 2
    rng = np.random.default_rng(0)
    groups = c if kind == "depthwise" else 1
    weight = rng.integers(-127, 128, (o, k, k, c // groups)).astype(np.int8)
    taps = tuple((y, x, y * dilation - pad, x * dilation - pad) for y in range(k) for x in range(k))
    anchor = Conv(("x",), weight, (Phase(0, 0, taps),), (stride, stride), (1, 1), groups)
    far = max(0, dilation * (k - 1) - pad - (stride - 1))
    x = _tensor(target, "x", h * stride, w * stride, c, (pad, pad, far, far))
    nodes = (
        Node("anchor"),
        Node("vector", name="s"),
        Node("dequantize", (0, 1)),
        Node("load", name="u"),
        Node("add", (2, 3)),
        Node("scalar", value=0.0),
        Node("max", (4, 5)),
        Node("max", (3, 5)),
        Node("sub", (6, 7)),
        Node("quantize", (8,), value=3.0, limit=7),
    )
    kernel = FusedKernel(
        "k", anchor, h, w, o, (x, _floats("u", h, w, o)),
        (_tensor(target, "q", h, w, o, (1,) * 4),), nodes, (Store(9, "q"),), target.code,
        {"s": np.full(o, 1e-4, np.float32)},
    )  # fmt: skip
    return kernel, h * w * o * k * k * (c // groups)


def others(target: Target) -> dict[str, FusedKernel]:
    """Return kernels without MACs, by name."""
    codes = target.code

    def kernel(anchor: object, h: int, w: int, c: int, inputs: tuple, nodes: tuple) -> FusedKernel:
        nodes = (*nodes, Node("quantize", (len(nodes) - 1,), value=3.0, limit=127))
        q = _tensor(target, "q", h, w, c, (1, 1, 1, 1))
        stores = (Store(len(nodes) - 1, "q"),)
        return FusedKernel("k", anchor, h, w, c, inputs, (q,), nodes, stores, codes)

    got = (Node("anchor"),)
    difference = (Node("load", name="x"), Node("load", name="k"), Node("sub", (0, 1)))
    frame = tuple(_floats(n, 256, 512, 3, True) for n in "xk")
    state = tuple(_floats(n, 64, 128, 64) for n in "xk")
    return {
        "frame difference 256x512x3": kernel(Walk(), 256, 512, 3, frame, difference),
        "difference 64x128x64": kernel(Walk(), 64, 128, 64, state, difference),
        "sigmoid 64x128x64": kernel(
            Walk(), 64, 128, 64, state[:1], (Node("load", name="x"), Node("sigmoid", (0,)))
        ),
        "avg pool 17x17 s8 at 4x8x512": kernel(
            Pool("x", "avg", (17, 17), (8, 8), (8, 8, 8, 8)), 1, 1, 512,
            (_floats("x", 4, 8, 512),), got,
        ),
        "avg pool 5x5 s2 at 32x64x128": kernel(
            Pool("x", "avg", (5, 5), (2, 2), (2, 2, 2, 2)), 16, 32, 128,
            (_floats("x", 32, 64, 128),), got,
        ),
        "max pool 2x2 s2 at 64x64x64": kernel(
            Pool("x", "max", (2, 2), (2, 2), (0, 0, 0, 0)), 32, 32, 64,
            (_floats("x", 64, 64, 64),), got,
        ),
        "resize 2x to 64x128x64": kernel(
            Resize("x", "linear", "half_pixel"), 64, 128, 64, (_floats("x", 32, 64, 64),), got,
        ),
        "resize 8x to 256x512x19": kernel(
            Resize("x", "linear", "half_pixel"), 256, 512, 19, (_floats("x", 32, 64, 19),), got,
        ),
    }  # fmt: skip


def measure(
    kernel: FusedKernel, target: Target, seconds: float, decision: Decision | None = None
) -> dict[str, float | str]:
    """Compile and time one kernel; times in ms."""
    t0 = time.perf_counter()
    decision = decision or decide(kernel, target)
    func, constants = emit(kernel, decision, target)
    t1 = time.perf_counter()
    machine = tvm.target.Target(target.llvm)
    call = tvm.compile(tvm.IRModule({"main": func}), target=machine)["main"]
    t2 = time.perf_counter()
    rng = np.random.default_rng(1)
    arrays = [
        rng.integers(0, 120, s.shape).astype(s.dtype)
        if "int" in s.dtype
        else rng.standard_normal(s.shape).astype(s.dtype)
        for s in kernel.inputs
    ]
    arrays += [a for _, a in constants] + [np.zeros(s.shape, s.dtype) for s in kernel.outputs]
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call(*tensors)
        best = min(best, time.perf_counter() - start)
    return {
        "decision": str(decision),
        "ms": best * 1e3,
        "emit_ms": (t1 - t0) * 1e3,
        "compile_ms": (t2 - t1) * 1e3,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="auto")
    parser.add_argument("--only", default="", help="part of a kernel's name")
    parser.add_argument("--peak", type=float, default=230.0, help="GMAC/s of the dot product")
    parser.add_argument("--seconds", type=float, default=0.3, help="per kernel")
    parser.add_argument(
        "--decision", help="instead of the rules', as resq-tvm tune --json tells it"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    given = Decision.from_json(args.decision) if args.decision else None
    target = get_target(args.target)
    jobs = {name: convolution(target, spec) for name, spec in CONVOLUTIONS.items()}
    jobs |= {name: (kernel, 0) for name, kernel in others(target).items()}
    for name, (kernel, macs) in jobs.items():
        if args.only not in name:
            continue
        row = {"kernel": name, **measure(kernel, target, args.seconds, given)}
        if macs:
            row["gmacs"] = macs / float(row["ms"]) / 1e6
            row["share"] = row["gmacs"] / args.peak
        if args.json:
            print(json.dumps(row))
            continue
        speed = f"{row['gmacs']:7.1f} GMAC/s {row['share']:6.1%}" if macs else " " * 22
        print(
            f"{name:30s} {row['ms']:8.4f} ms {speed}  {row['decision']:26s} "
            f"emit {row['emit_ms']:4.0f} compile {row['compile_ms']:4.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
