r"""Dynamic-ResQ on clips of static cameras, on emulated boards: simulated cycles, one thread.

    python -m benchmarks.arm_static_camera --case espnet_street --qnet espnet_street=FOLDER \
        --scale 4 --repeat 0.4 --frames 264:288

The network that `benchmarks/static_camera.py` fits (``--qnet CASE=FOLDER`` takes it from a folder),
beside a plain W8A8 network frame by frame. What is left out, and so the recovery, is the same on
every core: integers decide.

First residual frames whatever they cost, on a stretch of the clip (``--frames``, the whole clip by
default): this tells what the programs take on the board. By these costs sessions then decide with
their guard, and with outputs that are repeated (``--repeat SHARE``): the last of these sessions is
counted on the same stretch, too. ``--every N`` takes one of N periods of the stretch: residual
frames need nothing of the periods before. Rows "by costs" are of the whole clip: a session on this
machine decides by the board's costs, and each frame counts as what its program took on the stretch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--case", nargs="+", default=["blazepose_vtest"])
parser.add_argument("--qnet", nargs="*", default=[], help="CASE=FOLDER")
parser.add_argument("--core", nargs="+", default=["cortex-a53", "cortex-a72", "cortex-a76"])
parser.add_argument("--scale", type=float, default=1.0, help="factor on thresholds")
parser.add_argument("--repeat", type=float, help="share up to which outputs are repeated")
parser.add_argument("--frames", default="0:", help="A:B of the case's frames are emulated")
parser.add_argument("--every", type=int, default=1, help="emulate one of so many periods")
parser.add_argument("--keep", type=Path, help="folder to keep artifacts in, and to find them")
parser.add_argument("--json", type=Path)
parser.add_argument("--record", action="store_true", help="write into docs/figures.md")

LETTERS = {"keyframe": "keyframes", "residual": "residual", "frame": "alone", "repeat": "repeated"}


class Made:
    """The artifacts of a case, compiled when they are asked for, and its frames."""

    def __init__(self, name: str, qnet: str, folder: Path) -> None:
        import numpy as np

        import resq_tvm as resq
        from benchmarks.cases import CASES
        from resq_tvm.predict import make_preprocessor
        from resq_tvm.processing.config import load_processing
        from resq_tvm.quantize.qnet import QuantizedNetwork

        self.name, self.case, self.folder = name, CASES[name], folder
        self._net = resq.load(str(self.case.model))
        prepare = make_preprocessor(load_processing(self.case.processing), self._net.inputs)
        self.frames = [np.array(prepare(p)) for p in self.case.open() if p is not None]
        self.dynamic = QuantizedNetwork.load(qnet)
        self._plain: Any = None

    def artifact(self, kind: str, core: str) -> Path:
        """Return the folder of the network ``"plain"`` or ``"dynamic"`` for a target."""
        import resq_tvm as resq

        path = self.folder / f"{self.name}_{kind}_{core}.resq"
        if path.is_dir():
            return path
        if kind == "plain" and self._plain is None:
            first = self.frames[self.case.fitted]
            self._plain = resq.calibrate(self._net, [first], "W8A8", period=1)
        network = self.dynamic if kind == "dynamic" else self._plain
        resq.compile(network, core, output=path)
        return path


def by_costs(
    made: Made, policy: Any, decide_by: Any, costs: Any, scale: float
) -> tuple[float, Counter[str]]:
    """Return milliseconds per frame of the whole clip by the board's costs, and kinds of frames."""
    import resq_tvm as resq

    session = resq.Session(
        made.artifact("dynamic", "auto"), period=made.case.period, threads=1, copy=False,
        threshold_scale=scale, keyframes=policy, costs=decide_by,
    )  # fmt: skip
    ms, kinds = 0.0, Counter[str]()
    for frame in made.frames:
        session(frame)
        last = session.last
        assert last is not None
        kinds[last.kind] += 1
        if last.kind == "residual":
            assert last.changed is not None
            ms += costs.residual(last.changed)
        else:
            ms += {"keyframe": costs.keyframe, "frame": costs.frame, "repeat": 0.0}[last.kind]
        # The keyframe may be looked at after the frame computed last.
        looks = (last.changed is not None) + (
            policy.repeat is not None and last.predicted_ms is not None
        )
        ms += looks * costs.probe
    return ms / len(made.frames), kinds


def measure(made: Made, core: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per session on one core."""
    from resq_tvm.keyframes import KeyframePolicy
    from resq_tvm.simulate import simulate
    from resq_tvm.simulated_stream import (
        RESIDUALS_PAY,
        learn_costs,
        play_residuals,
        simulate_stream,
    )

    begin, end = (int(text) if text else None for text in args.frames.split(":"))
    period = made.case.period
    stretch = [
        frame for n, frame in enumerate(made.frames[begin:end]) if n // period % args.every == 0
    ]
    plain = simulate(made.artifact("plain", core), frames=stretch[:2], keyframes=2).keyframe
    path = made.artifact("dynamic", core)
    options = {"period": period, "threshold_scale": args.scale}
    always = play_residuals(path, stretch, **options)
    costs = learn_costs(always, path, stretch[:3])
    policies = {"guard": KeyframePolicy()}
    if args.repeat is not None:
        policies[f"guard, repeat {args.repeat:g}"] = KeyframePolicy(repeat=args.repeat)
    last = list(policies)[-1]
    guarded = simulate_stream(path, stretch, costs, policy=policies[last], **options)
    shared = {
        "case": made.name, "scheme": made.dynamic.scheme, "core": core, "scale": args.scale,
        "plain_cycles": plain.cycles, "plain_ms": plain.ms, "costs_ms": asdict(costs),
    }  # fmt: skip
    rows = [
        {
            **shared, "session": session, "how": "counted", "frames": len(stream.frames),
            "kinds": dict(stream.kinds), "cycles": stream.cycles, "ms": stream.ms(stream.cycles),
            "each": [asdict(frame) for frame in stream.frames],
        }
        for session, stream in (("no guard", always), (last, guarded))
    ]  # fmt: skip
    for session, policy in {"no guard": KeyframePolicy(), **policies}.items():
        decide_by = RESIDUALS_PAY if session == "no guard" else costs
        ms, kinds = by_costs(made, policy, decide_by, costs, args.scale)
        rows.append(
            {
                **shared, "session": session, "how": "by costs", "frames": len(made.frames),
                "kinds": dict(kinds), "cycles": ms * plain.cycles / plain.ms, "ms": ms,
            }
        )  # fmt: skip
    for row in rows:
        row["ratio"] = row["ms"] / plain.ms
        print(line(row), flush=True)
    return rows


def costs_line(row: dict[str, Any]) -> str:
    """Return what the programs take on a core."""
    costs = row["costs_ms"]
    points = ", ".join(f"{ms:.1f} at {share:.0%}" for share, ms in costs["points"])
    return (
        f"{row['case']} on {row['core']}: frame W8A8 {row['plain_ms']:.1f} ms; keyframe "
        f"{costs['keyframe']:.1f}, frame alone {costs['frame']:.1f}, a look {costs['probe']:.1f}, "
        f"residual frame {points} of the input changed."
    )


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    kinds = ", ".join(f"{row['kinds'][k]} {LETTERS[k]}" for k in LETTERS if k in row["kinds"])
    return (
        f"| {row['case']} | {row['core']} | {row['session']} | {row['how']} | {row['frames']} | "
        f"{kinds} | {row['cycles'] / 1e6:.1f} | {row['ms']:.1f} | {row['ratio']:.2f} |"
    )


def main() -> None:
    args = parser.parse_args()
    given = dict(text.split("=", 1) for text in args.qnet)
    for name in args.case:
        if name not in given:
            raise SystemExit(f"case {name!r}: name its fitted network with --qnet {name}=FOLDER")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for name in args.case:
            made = Made(name, given[name], folder)
            rows += [row for core in args.core for row in measure(made, core, args)]
    lines = [
        "All figures are simulated (means of frames, looks included; caches are modelled). By "
        "costs: the whole clip, decided by the board's costs on this machine, each frame counted "
        "as what its program took on the emulated frames.",
        "",
        *dict.fromkeys(costs_line(row) for row in rows),
        "",
        "| clip | core | session | how | frames | of these | million cycles | ms | / frame W8A8 |",
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
        what = ", ".join([*args.case, *args.core])
        record(f"Static camera on emulated boards: {what}", lines, device)


if __name__ == "__main__":
    main()
