"""Arrangements of whole networks that tuning found, beside a device's records of single kernels.

``<records>/networks/KEY.json`` holds the best arrangement of a network (`Source.key`) and its
simulated cycles, ``KEY.trials`` every arrangement that was tried, one line each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

from resq_tvm.errors import ConfigError
from resq_tvm.files import atomic_file
from resq_tvm.passes.npu.arrangement import Arrangement
from resq_tvm.passes.npu.cascade import LENGTHS
from resq_tvm.passes.npu.lower import arrangements, read_source
from resq_tvm.passes.npu.search import Search, Step, Trial
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.schedules.choice import by_rules
from resq_tvm.schedules.decision import Decision
from resq_tvm.schedules.tuning.database import Database, records_folder
from resq_tvm.schedules.tuning.npu import npu_fingerprint
from resq_tvm.schedules.tuning.records import NONE, SHIPPED
from resq_tvm.schedules.tuning.tasks import Task
from resq_tvm.targets.preset import Target

FOLDER: Final = "networks"
_PER_TASK = 4  # of a kernel's fastest tiles, those that are tried in the network


@dataclass(frozen=True)
class NetworkResult:
    """What tuning a whole network found; all cycles are simulated.

    Attributes
    ----------
    key : str
        Of the network.
    trials : int
        Programs that were simulated in this run; ``on_record`` counts earlier runs', too.
    on_record : int
    default, untuned, best : dict of str to int
        Program → cycles with the rules' tiles and without cascades; with what compiling without
        records does; with what was found.
    """

    key: str
    trials: int
    on_record: int
    default: Mapping[str, int]
    untuned: Mapping[str, int]
    best: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "key": self.key,
            "trials": self.trials,
            "on_record": self.on_record,
            "programs": {
                name: {
                    "default_cycles": self.default[name],
                    "untuned_cycles": self.untuned[name],
                    "best_cycles": self.best[name],
                    "of_default": self.best[name] / self.default[name],
                    "of_untuned": self.best[name] / self.untuned[name],
                }
                for name in self.best
            },
        }


def finder(
    target: Target, database: str | PathLike[str]
) -> Callable[[str], Arrangement | None] | None:
    """Return what finds a network's arrangement in records; None if there are none to look in.

    Parameters
    ----------
    target : Target
    database : str or path
        As of `resq_tvm.compiler.compile`.
    """
    if target.npu is None or database in (SHIPPED, NONE):
        return None
    folder = records_folder(Path(database), npu_fingerprint(target)) / FOLDER

    def find(key: str) -> Arrangement | None:
        found = _read(folder / f"{key}.json")
        return None if found is None else Arrangement.from_json(found["arrangement"])

    return find


def tune_network(
    qnet: QuantizedNetwork,
    target: Target,
    database: Database,
    tasks: list[Task],
    *,
    state_dtype: str,
    trials: int,
    seed: int,
    observe: Callable[[Step], None] | None,
) -> NetworkResult:
    """Search tiles, cascades and the place of the state of a whole network, and record what wins.

    Parameters
    ----------
    qnet : QuantizedNetwork
    target : Target
        An NPU.
    database : Database
        Tells which tiles of single kernels are fast.
    tasks : list of Task
        The network's.
    state_dtype : str
    trials : int
        Programs that are on record as simulated in the end, at most.
    seed : int
    observe : callable, optional
        Called after every trial.
    """
    source = read_source(
        qnet.module, target, state_dtype=state_dtype, decide=by_rules(target), state_memory="auto"
    )
    folder = database.folder / FOLDER
    folder.mkdir(exist_ok=True)
    place, log = folder / f"{source.key}.json", folder / f"{source.key}.trials"
    known = _read_trials(log)
    earlier = len(known)
    plans = arrangements(source, LENGTHS)
    stored = _read(place)
    # What was found before comes first, so that it stays on record whenever this run ends.
    former = [] if stored is None else [Arrangement.from_json(stored["arrangement"])]
    starts = [Arrangement(), *former, *plans]

    def improved(found: Arrangement, cycles: Mapping[str, int]) -> None:
        with atomic_file(place) as path:
            document = {"cycles": dict(cycles), "arrangement": found.to_json()}
            path.write_text(json.dumps(document, indent=1) + "\n")

    with log.open("a") as lines:

        def note(trial: Trial, cycles: int) -> None:
            lines.write(json.dumps([*trial, cycles]) + "\n")
            lines.flush()

        search = Search(
            source,
            {n: float(qnet.period - 1 if n == "residual" else 1) for n in source.names},
            _options(database, tasks),
            known,
            note,
            improved,
            observe or (lambda _step: None),
            seed,
        )
        best = search.run(starts, max(0, trials - earlier))
    improved(best, search.cycles)
    default, whole = search.cycles_of(Arrangement()), search.cycles_of(plans[0])
    return NetworkResult(
        source.key,
        search.trials,
        len(known),
        default,
        {n: min(default[n], whole[n] or default[n]) for n in default},  # 0: it does not fit
        search.cycles,
    )


def _options(database: Database, tasks: list[Task]) -> dict[str, list[Decision]]:
    """Return every kernel's fastest tiles when it runs by itself."""
    found: dict[str, list[Decision]] = {}
    for task in tasks:
        measured = sorted(database.measured(task.kernel, task.heuristic), key=lambda m: m.seconds())
        decisions = [m.decision for m in measured[:_PER_TASK]]
        found |= dict.fromkeys(task.names, decisions)
    return found


def _read(path: Path) -> Any:
    """Return a file of JSON; None if there is none.

    Raises
    ------
    ConfigError
        If it is broken.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"arrangement {str(path)!r} cannot be read ({error}); delete it and tune again"
        ) from None


def _read_trials(path: Path) -> dict[Trial, int]:
    """Return what was tried; a torn last line is left out."""
    known: dict[Trial, int] = {}
    if not path.exists():
        return known
    for line in path.read_text().splitlines():
        try:
            program, key, cycles = json.loads(line)
        except ValueError:
            continue
        known[str(program), str(key)] = int(cycles)
    return known
