"""Dynamic-ResQ on clips of static cameras, on emulated boards: simulated cycles, one thread.

    python -m benchmarks.arm_static_camera --case blazepose_vtest --qnet blazepose_vtest=FOLDER

The network that `benchmarks/static_camera.py` fits (``--qnet CASE=FOLDER`` takes it from a folder)
runs the whole clip at its period, beside a plain W8A8 network frame by frame. What is left out, and
so the recovery, is the same on every core: integers decide.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--case", nargs="+", default=["blazepose_vtest"])
parser.add_argument("--qnet", nargs="*", default=[], help="CASE=FOLDER")
parser.add_argument("--core", nargs="+", default=["cortex-a53", "cortex-a72", "cortex-a76"])
parser.add_argument("--json", type=Path)
parser.add_argument("--record", action="store_true", help="write into docs/figures.md")


def measure(name: str, given: dict[str, str], cores: list[str], folder: Path) -> list[Any]:
    """Return a row per core: cycles of frames, keyframes, residuals, and ratios."""
    import numpy as np

    import resq_tvm as resq
    from benchmarks.cases import CASES
    from resq_tvm.predict import make_preprocessor
    from resq_tvm.processing.config import load_processing
    from resq_tvm.quantize.qnet import QuantizedNetwork
    from resq_tvm.simulate import simulate

    case = CASES[name]
    if name not in given:
        raise SystemExit(f"case {name!r}: name its fitted network with --qnet {name}=FOLDER")
    net = resq.load(str(case.model))
    prepare = make_preprocessor(load_processing(case.processing), net.inputs)
    frames = [np.array(prepare(p)) for p in case.open() if p is not None]
    plain = resq.calibrate(net, [frames[: case.fitted]], "W8A8", period=1)
    dynamic = QuantizedNetwork.load(given[name])
    rows = []
    for core in cores:
        made = {}
        for kind, qnet in (("frame", plain), ("dynamic", dynamic)):
            made[kind] = folder / f"{name}_{kind}_{core}.resq"
            resq.compile(qnet, core, output=made[kind])
        alone = simulate(made["frame"], frames=frames[:2], keyframes=2)
        periods = len(frames) // case.period
        ran = simulate(
            made["dynamic"], frames=frames[: periods * case.period], period=case.period,
            keyframes=periods, residuals=case.period - 1,
        )  # fmt: skip
        frame = alone.keyframe.cycles
        rows.append(
            {
                "case": name, "scheme": dynamic.scheme, "core": core,
                "frames": periods * case.period, "frame": frame, "keyframe": ran.keyframe.cycles,
                "residual": ran.residual.cycles, "amortized": ran.amortized_cycles,
                "ratio": ran.amortized_cycles / frame, "ms": ran.amortized_ms,
            }
        )  # fmt: skip
        print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    millions = (f"{row[k] / 1e6:.1f}" for k in ("frame", "keyframe", "residual", "amortized"))
    return (
        f"| {row['case']}, {row['scheme']} | {row['core']} | {row['frames']} | "
        f"{' | '.join(millions)} | {row['ms']:.1f} | {row['ratio']:.2f} |"
    )


def main() -> None:
    args = parser.parse_args()
    given = dict(text.split("=", 1) for text in args.qnet)
    with tempfile.TemporaryDirectory() as folder:
        rows = [r for name in args.case for r in measure(name, given, args.core, Path(folder))]
    lines = [
        "All figures are simulated (million cycles of a frame; caches are modelled).",
        "",
        "| clip and scheme | core | frames | frame W8A8 | keyframe | residual | amortised | ms, "
        "amortised | / frame W8A8 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(line, rows),
    ]
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    if args.record:
        from benchmarks.record import record
        from resq_tvm.targets.emulated.cores import MODEL_VERSION

        device = {"emulated": "boards, simulated", "pipeline model": MODEL_VERSION}
        record("Static camera on emulated boards", lines, device)


if __name__ == "__main__":
    main()
