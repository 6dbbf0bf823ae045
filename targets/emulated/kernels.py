"""Run one compiled TVM kernel on an emulated board."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resq_tvm.errors import TargetError
from resq_tvm.files import cache_folder
from resq_tvm.targets.boardkit import BoardKit, board_kit, cross_compile
from resq_tvm.targets.emulated.board import EmulatedBoard, Execution

Array = NDArray[Any]

MEASURED, WARM_UP = 0, 255  # regions of the kernel runner
_SOURCES = ("kernel_runner.cc", "region.h")
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # numpy's kind → DLPack's type code


def kernel_runner(kit: BoardKit) -> Path:
    """Return the kernel runner for aarch64 Linux; compile it if its sources are new.

    Raises
    ------
    TargetError
        If the cross compiler is absent.
    """
    folder = Path(__file__).parent
    digest = hashlib.sha256(str(kit.libraries.name).encode())
    for source in _SOURCES:
        digest.update((folder / source).read_bytes())
    program = cache_folder() / "emulated" / f"kernel_runner-{digest.hexdigest()[:16]}"
    if not program.is_file():
        cross_compile([folder / "kernel_runner.cc"], program, kit, flags=[f"-I{folder}"])
    return program


def run_kernel(
    board: EmulatedBoard,
    library: Path,
    function: str,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    *,
    fresh: Sequence[int] = (),
    evict: int = 0,
    timeout_s: float | None = None,
) -> tuple[list[Array], Execution]:
    """Run a kernel twice, the second time measured as region 0.

    Parameters
    ----------
    board : EmulatedBoard
    library : Path
        What ``export_library`` wrote for the board.
    function : str
        The kernel, which takes tensors only: the inputs, then the outputs.
    inputs : sequence of ndarray
    outputs : sequence of ndarray
        What is in the outputs before either run.
    fresh : sequence of int
        Inputs that are written right before the measured run, so that caches hold them.
    evict : int
        Bytes of other memory that are touched before that; it matters to the cache model only.
    timeout_s : float, optional
        Seconds of this machine.

    Returns
    -------
    outputs : list of ndarray
        Of the measured run.
    execution : Execution
        Its cycles are simulated.

    Raises
    ------
    TargetError
        If the kernel fails or does not end in time, or a tool is absent.
    """
    kit = board_kit()
    program = kernel_runner(kit)
    with tempfile.TemporaryDirectory(prefix="resq-") as name:
        folder = Path(name)
        lines = []
        for n, array in enumerate([*inputs, *outputs]):
            direction = "out" if n >= len(inputs) else "fresh" if n in fresh else "in"
            file = folder / f"{n}.raw"
            file.write_bytes(np.ascontiguousarray(array).tobytes())
            lines.append(f"{direction} {_description(array)} {file.name}\n")
        (folder / "tensors").write_text("".join(lines))
        execution = board.execute(
            [program, library.resolve(), function, "tensors", str(evict)],
            libraries=[kit.libraries],
            cwd=folder,
            timeout_s=timeout_s,
        )
        results = [
            np.frombuffer((folder / f"{len(inputs) + n}.raw").read_bytes(), array.dtype).reshape(
                array.shape
            )
            for n, array in enumerate(outputs)
        ]
    return results, execution


def _description(array: Array) -> str:
    code = _TYPE_CODES.get(array.dtype.kind)
    if code is None:
        raise TargetError(f"a kernel's tensor of {array.dtype} cannot be sent; use numbers")
    extents = ",".join(str(extent) for extent in array.shape) or "-"
    return f"{code} {array.dtype.itemsize * 8} {extents}"
