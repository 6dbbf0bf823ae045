"""Run an aarch64 Linux program under qemu and count the simulated cycles of its regions."""

from __future__ import annotations

import functools
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resq_tvm.errors import TargetError
from resq_tvm.targets.boardkit import SYSROOT, require_tool
from resq_tvm.targets.emulated.cores import Core, get_core
from resq_tvm.targets.emulated.elf import Functions, read_functions
from resq_tvm.targets.emulated.native import host_library
from resq_tvm.targets.emulated.simulator import BlockCount, Call, Simulator

EMULATOR = "qemu-aarch64"
_CHUNK = 1 << 20
_Place = tuple[str, str]  # library, function
_MAP_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ +(/.*)$", re.MULTILINE)


@dataclass(frozen=True)
class FunctionCount:
    """What was spent in a function.

    Attributes
    ----------
    library : str
        File name of the program or library; empty where the code came from nowhere.
    name : str
        The symbol. Code without one counts for its nearest caller in the same library that has
        one: the bodies of a kernel's parallel loops count for the kernel.
    instructions, cycles : int
        Executed; simulated; without the functions that it calls.
    bound : float
        Cycles that the core's ports and width need, if no instruction ever waits.
    total_cycles : int
        Simulated, with the functions that it calls.
    """

    library: str
    name: str
    instructions: int
    cycles: int
    bound: float
    total_cycles: int


@dataclass(frozen=True)
class Region:
    """What was counted between the markers of one region (``region.h``).

    Attributes
    ----------
    entries : int
        How often it was entered; the other figures are of all entries together.
    instructions : int
    cycles : int
        Simulated.
    bound : float
        Cycles that the core's ports and width need, if no instruction ever waits.
    functions : list of FunctionCount
        The most cycles first.
    loads, stores, l1_misses, l2_misses, prefetches : int
        Of the cache model; 0 without it.
    """

    entries: int
    instructions: int
    cycles: int
    bound: float
    functions: list[FunctionCount] = field(default_factory=list, repr=False)
    loads: int = 0
    stores: int = 0
    l1_misses: int = 0
    l2_misses: int = 0
    prefetches: int = 0

    def cycles_in(self, library: str) -> dict[str, int]:
        """Return the simulated cycles of each function of a library, with what it calls."""
        return {f.name: f.total_cycles for f in self.functions if f.library == library}


@dataclass(frozen=True)
class Execution:
    """A program's run on an emulated board; all cycles and times are simulated.

    Attributes
    ----------
    core : Core
    regions : dict of int to Region
    timeline : list of (int, int)
        Region and cycles of every entry of a region, in the order of time.
    stdout, stderr : bytes
    """

    core: Core
    regions: dict[int, Region]
    timeline: list[tuple[int, int]] = field(repr=False)
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)

    def seconds(self, region: int = 0) -> float:
        """Return the simulated seconds of all entries of a region."""
        return self.regions[region].cycles / self.core.clock_hz


class EmulatedBoard:
    """A board with one core, emulated by qemu and a pipeline model.

    The same program with the same input gives the same counts, to the last digit.

    Parameters
    ----------
    core : str or Core
        A name in `resq_tvm.targets.emulated.cores.CORES`.
    cache_model : bool
        Model the core's data caches, too; slower, and without it every load hits.
    root : Path
        Where the board's files are found before this machine's: at least the C library.

    Raises
    ------
    TargetError
        If the core is unknown, or qemu or a C compiler is not installed.
    """

    def __init__(
        self, core: str | Core, *, cache_model: bool = False, root: Path = SYSROOT
    ) -> None:
        self.core = get_core(core) if isinstance(core, str) else core
        self.cache_model = cache_model
        self._root = root
        self._emulator = require_tool(EMULATOR, "qemu-user")
        self._tracer = host_library("tracer", ("tracer.c", "trace.h"))

    def command(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        libraries: Sequence[Path] = (),
        trace: int | None = None,
    ) -> list[str]:
        """Return the host's command line for a program of the board."""
        command = [self._emulator, "-cpu", self.core.qemu, "-L", str(self._root)]
        if libraries:
            path = ":".join(str(folder.resolve()) for folder in libraries)
            command += ["-E", f"LD_LIBRARY_PATH={path}"]
        if trace is not None:
            options = [str(self._tracer), f"fd={trace}"]
            if self.cache_model:
                (l1, l1_ways), (l2, l2_ways) = self.core.l1, self.core.l2
                options += ["cache=1", f"l1={l1}", f"l1ways={l1_ways}"]
                options += [f"l2={l2}", f"l2ways={l2_ways}"]
            command += ["-plugin", ",".join(options)]
        return [*command, *(os.fspath(a) for a in argv)]

    def execute(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        libraries: Sequence[Path] = (),
        cwd: Path | None = None,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Execution:
        """Run a program to its end.

        Parameters
        ----------
        argv : sequence of str or path
            The aarch64 program and its arguments.
        libraries : sequence of Path
            Folders where its shared libraries are.
        cwd : Path, optional
        stdin : bytes
        environment : mapping, optional
            All that the program sees of the environment, besides ``TVM_NUM_THREADS=1``.
        timeout_s : float, optional
            Seconds of this machine after which the program is ended.

        Returns
        -------
        Execution

        Raises
        ------
        TargetError
            If the program fails, takes too long, or runs several threads in a region.
        """
        surroundings = {"TVM_NUM_THREADS": "1", **(environment or {})}
        with (
            Simulator(self.core) as simulator,
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(stdin)
            given.seek(0)
            reader, writer = os.pipe()
            try:
                process = subprocess.Popen(
                    self.command(argv, libraries=libraries, trace=writer),
                    stdin=given,
                    stdout=out,
                    stderr=err,
                    cwd=cwd,
                    env=surroundings,
                    pass_fds=(writer,),
                )
                os.close(writer)
                self._follow(process, reader, simulator, Path(argv[0]).name, timeout_s)
            finally:
                os.close(reader)
            out.seek(0)
            err.seek(0)
            stdout, stderr = out.read(), err.read()
            if process.returncode != 0:
                raise TargetError(_complaint(argv[0], process.returncode, stderr))
            simulator.finish()
            regions = _regions(simulator)
            return Execution(self.core, regions, simulator.timeline(), stdout, stderr)

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        reader: int,
        simulator: Simulator,
        program: str,
        timeout_s: float | None,
    ) -> None:
        """Feed the trace to the simulator until the program ends."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        rest = b""
        try:
            while True:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and (left <= 0 or not select.select([reader], [], [], left)[0]):
                    raise TargetError(
                        f"{program} did not end within {timeout_s:g} s "
                        "under emulation; give it more time or less work"
                    )
                chunk = os.read(reader, _CHUNK)
                if not chunk:
                    break
                rest += chunk
                whole = len(rest) // 4 * 4
                simulator.feed(np.frombuffer(rest[:whole], np.uint32))
                rest = rest[whole:]
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _complaint(program: str | os.PathLike[str], code: int, stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else "no message"
    how = f"exit code {code}"
    # qemu ends by the signal that the program got.
    if code < 0:
        how = signal.Signals(-code).name
        if how == "SIGILL":
            reason = "an instruction that this core lacks"
    return f"{Path(program).name} failed under emulation ({how}: {reason}); see its arguments"


def _regions(simulator: Simulator) -> dict[int, Region]:
    place_of = _places(*simulator.maps())
    regions = {}
    calls = simulator.calls()
    for number in simulator.regions():
        entries, counters = simulator.entries(number)
        functions = _functions(simulator.blocks(number), calls, place_of)
        regions[number] = Region(
            entries,
            sum(f.instructions for f in functions),
            sum(f.cycles for f in functions),
            sum(f.bound for f in functions),
            functions,
            *counters,
        )
    return regions


def _places(text: str, base: int) -> Callable[[int], _Place]:
    """Return what tells the library and the function at an address of the program."""
    mapped = [
        (int(m[1], 16) - base, int(m[2], 16) - base, int(m[3], 16), m[4])
        for m in _MAP_LINE.finditer(text)
    ]
    files: dict[str, Functions] = {}

    @functools.cache
    def place_of(address: int) -> _Place:
        for begin, end, offset, path in mapped:
            if begin <= address < end:
                if path not in files:
                    files[path] = read_functions(Path(path))
                return Path(path).name, files[path].at(address - begin + offset)
        return "", ""

    return place_of


def _functions(
    blocks: list[BlockCount], calls: list[Call], place_of: Callable[[int], _Place]
) -> list[FunctionCount]:
    above = _callers(calls, place_of)
    own: dict[_Place, tuple[int, int, float]] = {}
    total: Counter[_Place] = Counter()
    for block in blocks:
        place = place_of(block.address)
        if not place[1]:
            alike = (p for p in above[block.call] if p[1] and p[0] == place[0])
            place = next(alike, place)
        instructions, cycles, bound = own.get(place, (0, 0, 0.0))
        own[place] = (
            instructions + block.length * block.executions,
            cycles + block.cycles,
            bound + block.bound,
        )
        total.update({p: block.cycles for p in {place, *above[block.call]}})
    functions = []
    for place, cycles in total.items():
        instructions, alone, bound = own.get(place, (0, 0, 0.0))
        functions.append(FunctionCount(*place, instructions, alone, bound, cycles))
    return sorted(functions, key=lambda f: (-f.cycles, -f.total_cycles, f.library, f.name))


def _callers(calls: list[Call], place_of: Callable[[int], _Place]) -> list[tuple[_Place, ...]]:
    """Return for each call the functions that it was made by, the nearest first."""
    above: list[tuple[_Place, ...]] = []
    for call in calls:
        if call.caller is None:
            above.append(())
        else:
            above.append((place_of(call.site), *above[call.caller]))
    return above
