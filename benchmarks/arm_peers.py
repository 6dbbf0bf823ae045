"""Simulated cycles of int8 inference engines on the emulated boards, one thread.

    python -m benchmarks.arm_peers --network ddrnet blazepose --converter litert/bin/python

LiteRT's int8 networks are made by `benchmarks/litert_int8.py` in the Python named by
``--converter`` (an environment with litert-torch and ai-edge-quantizer); later runs find them in
the cache folder. Ours run frame by frame at W8A8, beside them. ``--join`` adds rows that another
benchmark has written with ``--json``, of the same networks on the same cores, and relates them to
the faster peer; ``--rows`` takes over rows of an earlier run, since simulated cycles repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import resq_tvm as resq
from benchmarks import peers
from benchmarks.networks import Workload, workload
from benchmarks.record import record
from resq_tvm.simulate import simulate
from resq_tvm.targets import emulated
from resq_tvm.targets.boardkit import cross_compile
from resq_tvm.targets.emulated.board import EMULATOR, EmulatedBoard
from resq_tvm.targets.emulated.userland import userland

HERE = Path(__file__).resolve().parent
ENGINES = {"litert": "LiteRT (XNNPACK)", "onnxruntime": "ONNX Runtime"}
CORES = ("cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76")

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--network", nargs="+", default=["ddrnet", "blazepose"])
parser.add_argument("--core", nargs="+", default=list(CORES))
parser.add_argument("--calibration", type=int, default=8)
parser.add_argument("--converter", type=Path, help="a Python that has litert-torch")
parser.add_argument("--join", nargs="*", type=Path, default=[], help="rows of other benchmarks")
parser.add_argument("--rows", type=Path, help="rows of peers that an earlier run has written")
parser.add_argument("--json", type=Path, help="write the rows here")
parser.add_argument("--record", action="store_true", help="write the table into docs/figures.md")


@dataclass(frozen=True)
class Row:
    """One frame of one engine on one emulated core.

    Attributes
    ----------
    network, core, engine : str
    instructions, cycles : int
        Of the frame; the cycles are simulated.
    milliseconds : float
        Simulated, at the clock of the core's board.
    error : float
        Root mean square difference of the first output from the float network's, over the root
        mean square of that.
    peer : bool
        Whether it is one that ours are measured beside.
    """

    network: str
    core: str
    engine: str
    instructions: int
    cycles: int
    milliseconds: float
    error: float
    peer: bool = True


def litert_model(load: Workload, calibration: Sequence[Any], converter: Path | None) -> Path:
    """Return the network as an int8 TFLite file."""
    shape = "x".join(map(str, calibration[0].shape))
    release = version("ai-edge-litert")
    path = peers.CACHE / f"litert-{peers.source_key(load.source)}-{shape}-{release}.tflite"
    if path.is_file():
        return path
    if converter is None:
        raise SystemExit(
            f"network {load.name!r}: LiteRT's int8 file is not in the cache; name a Python that "
            "has litert-torch and ai-edge-quantizer with --converter"
        )
    peers.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "frames.npy"
        np.save(frames, np.stack(calibration))
        words = [str(converter.absolute()), "-m", "benchmarks.litert_int8", load.model]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(
            [*words, str(frames), str(path)], env=environment, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"network {load.name!r}: {converter} cannot convert it ({last})")
    return path


def float_output(load: Workload, frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the float network's first output."""
    if isinstance(load.source, Path):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(load.source), num_threads=1)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], frame)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    import torch

    with torch.no_grad():
        return np.array(load.source(torch.from_numpy(frame)).numpy())


def measure(
    load: Workload, core: str, engine: str, model: Path, expected: NDArray[np.float32]
) -> Row:
    """Run two frames of an engine on an emulated core and count the second."""
    system = userland("peers", core, progress=print)
    board = EmulatedBoard(core, cache_model=True, root=system.root)
    with tempfile.TemporaryDirectory(prefix="resq-") as name:
        folder = Path(name)
        np.save(folder / "frames.npy", np.stack(load.frames[:2]))
        flags = [f"-I{Path(emulated.__file__).parent}"]
        markers = cross_compile(
            [HERE / "arm_markers.cc"], folder / "markers.so", None, shared=True, flags=flags
        )
        guest = [system.python, HERE / "arm_guest.py", engine, model, folder / "frames.npy"]
        environment = {
            **system.environment,
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            "ORT_DISABLE_TELEMETRY": "1",  # its thread would run in the measured region, too
        }
        ran = board.execute(
            [*guest, markers, folder / "outputs.npz"], environment=environment, timeout_s=1800
        )
        with np.load(folder / "outputs.npz", allow_pickle=False) as outputs:
            found = outputs["arr_0"].reshape(expected.shape)
    region = ran.regions[0]
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    return Row(
        load.name, core, ENGINES[engine],
        region.instructions, region.cycles, ran.seconds() * 1e3, float(error),
    )  # fmt: skip


def ours(load: Workload, core: str, qnet: Any, expected: NDArray[np.float32]) -> Row:
    """Run one and two frames of our own W8A8 network, and count what the second takes."""
    with tempfile.TemporaryDirectory(prefix="resq-") as folder:
        path = Path(folder) / "frame.resq"
        resq.compile(qnet, core, output=path)
        one = simulate(path, frames=load.frames[:1], keyframes=1)
        two = simulate(path, frames=load.frames[:2], keyframes=2)
    cycles = round(2 * two.keyframe.cycles - one.keyframe.cycles)
    instructions = round(2 * two.keyframe.instructions - one.keyframe.instructions)
    found = two.outputs[1][0].reshape(expected.shape)
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    milliseconds = cycles / two.core.clock_hz * 1e3
    return Row(
        load.name, core, "ours W8A8, frame by frame", instructions, cycles, milliseconds,
        float(error), peer=False,
    )  # fmt: skip


def rows_of(name: str, args: argparse.Namespace, known: list[Row]) -> list[Row]:
    """Measure all peers of one network, but those that are known, and ours."""
    load = workload(name)
    calibration = load.frames[: args.calibration]
    expected = float_output(load, load.frames[1])
    models = {
        "litert": litert_model(load, calibration, args.converter),
        "onnxruntime": peers.quantized_onnx(load.source, calibration),
    }
    net = resq.load(load.model, input_shape=load.input_shape)
    qnet = resq.calibrate(net, [calibration], "W8A8", period=1)
    rows = []
    for core in args.core:
        for engine, model in models.items():
            place = name, core, ENGINES[engine]
            row = next((r for r in known if (r.network, r.core, r.engine) == place), None)
            rows.append(row or measure(load, core, engine, model, expected))
            print(line(rows[-1], None), flush=True)
        rows.append(ours(load, core, qnet, expected))
        print(line(rows[-1], None), flush=True)
    return rows


def fastest(rows: Sequence[Row], row: Row) -> int | None:
    """Return the cycles of the fastest peer on the same network and core."""
    return min(
        (r.cycles for r in rows if r.peer and (r.network, r.core) == (row.network, row.core)),
        default=None,
    )


def line(row: Row, best: int | None) -> str:
    """Return a row of the table."""
    ratio = "–" if best is None else f"{best / row.cycles:.2f}"
    return (
        f"| {row.network} | {row.core} | {row.engine} | {row.instructions / 1e6:.1f} | "
        f"{row.cycles / 1e6:.1f} | {row.milliseconds:.1f} | {ratio} | {row.error:.3f} |"
    )


def main() -> None:
    args = parser.parse_args()
    known = [] if args.rows is None else [Row(**r) for r in json.loads(args.rows.read_text())]
    rows = [row for name in args.network for row in rows_of(name, args, known)]
    for path in args.join:
        rows += [Row(**document) for document in json.loads(path.read_text())]
    rows.sort(key=lambda r: (r.network, r.core))  # stable: engines keep their order
    lines = [
        "Cycles and times are simulated: one frame behind one warm-up frame, one thread.",
        "",
        "| network | core | engine | million instructions | million cycles | ms | speed, to the "
        "faster peer's | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line(row, fastest(rows, row)) for row in rows),
    ]
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    if args.record:
        told = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, check=True)
        device = {
            "emulated": "boards, simulated",
            "qemu": told.stdout.split()[2],
            **{name: version(name) for name in ("onnxruntime", "ai-edge-litert")},
        }
        record("int8 peers on emulated boards", lines, device)


if __name__ == "__main__":
    main()
