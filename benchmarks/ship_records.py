"""Put the best schedules of a work directory into the package: schedules/records.

resq-tvm tune NET.qnet --work-dir tuned      # for every network that shall profit
python -m benchmarks.ship_records tuned
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from resq_tvm.schedules.tuning.database import Database, fingerprints_in, pack
from resq_tvm.schedules.tuning.records import SHIPPED_FOLDER
from resq_tvm.targets.preset import get_target


def main() -> None:
    """Replace the shipped records of every fingerprint that the work directory has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work_dir", type=Path)
    args = parser.parse_args()
    for fingerprint in fingerprints_in(args.work_dir):
        database = Database(args.work_dir / fingerprint.folder, fingerprint, read_only=True)
        folder = SHIPPED_FOLDER / fingerprint.folder
        shutil.rmtree(folder, ignore_errors=True)
        count = database.prune(folder, get_target(fingerprint.target))
        pack(folder)
        size = sum(p.stat().st_size for p in folder.iterdir())
        print(f"{fingerprint}: {count} tasks, {size >> 10} KiB of {len(database)} records")


if __name__ == "__main__":
    main()
