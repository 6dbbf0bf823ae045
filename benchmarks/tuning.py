"""What tuning brought: a table from the documents that `resq-tvm tune --json` printed.

resq-tvm tune ddrnet.qnet --work-dir tuned --json > ddrnet.json
python -m benchmarks.tuning ddrnet.json --record
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.record import record


def _row(name: str, report: dict[str, Any]) -> str:
    done = [t for t in report["tasks"] if t["best_ms"] is not None]
    gains = sorted(t["gain"] for t in done)
    failed = sum(report["failures"].values())
    cells = [
        name,
        f"{len(done)} of {len(report['tasks'])}",
        str(report["measured"]),
        f"{report['seconds']:.0f}",
        f"{report['per_second']:.1f}" if report["measured"] else "–",
        str(failed),
        f"{report['geometric_mean_gain']:.3f}",
        f"{gains[0]:.3f} / {statistics.median(gains):.3f} / {gains[-1]:.2f}" if gains else "–",
        f"{report['period_ms_heuristic']:.2f} → {report['period_ms_best']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, and the tasks that gained most."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", nargs="+", type=Path, help="of resq-tvm tune --json")
    parser.add_argument(
        "--record", action="store_true", help="write the table into docs/figures.md"
    )
    args = parser.parse_args()
    reports = {p.stem: json.loads(p.read_text()) for p in args.documents}
    lines = [
        "Candidates were built, checked and timed by themselves; gains are those of the contests, "
        "the heuristic's time over the best one's (least / median / most of the tasks). The last "
        "column adds up kernels over a period of keyframes, weights and state cold.",
        "",
        "| network | tasks | candidates | s | per s | failed | mean gain | gains | period ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(name, report) for name, report in reports.items()),
    ]
    print("\n".join(lines))
    for name, report in reports.items():
        print(f"\n{name}: {report['fingerprint']}")
        done = [t for t in report["tasks"] if t["best_ms"] is not None]
        saved = sorted(done, key=lambda t: -(t["heuristic_ms"] - t["best_ms"]) * t["runs"])
        for task in saved[:10]:
            print(
                f"  {task['kernel']:32} {task['heuristic_ms']:.3f} → {task['best_ms']:.3f} ms  "
                f"{task['gain']:.2f} x  {task['heuristic']} → {task['best']}"
            )
    if args.record:
        device = {**next(iter(reports.values()))["device"]}
        record("Tuning", lines, device)


if __name__ == "__main__":
    main()
