"""``bench --rpc-tracker``: an artifact is sent to a board, and its times come back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import rpc
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from resq_tvm.artifact import write_artifact
from resq_tvm.bench import BenchReport
from resq_tvm.board_bench import benchmark_on_board
from resq_tvm.cli import main
from resq_tvm.device import available_cpus
from resq_tvm.edge.build import write_runtime
from resq_tvm.errors import ConfigError, TargetError, TuningError
from resq_tvm.schedules.tuning.rpc import RpcAddress
from resq_tvm.targets.boardkit import SYSROOT
from resq_tvm.targets.emulated.userland import Userland
from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.edge.harness import write
from tests.resq_tvm.edge.test_board_server import Board, children_of, serving
from tests.rpc import answers, count, free_port, running, wait_for
from tests.tools import board_tools, need
from tests.userlands import userland_or_skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def board(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    program = runtime / "bin" / "resq-board-server"
    with serving([program], tmp_path_factory.mktemp("work"), "board") as found:
        yield found


def test_a_board_measures_keyframes_and_residual_frames(board: Board, tmp_path: Path) -> None:
    artifact = write("pairwise", tmp_path / "net.resq").path
    report = benchmark_on_board(artifact, board.address, threads=1, repeats=3, warmup=1)
    assert report.residual is not None
    assert (report.keyframe.samples, report.residual.samples) == (3, 9)
    assert report.keyframe.median > 0 and report.amortized_ms > 0
    assert (report.device["threads"], report.device["board"]) == (1, "board")


def test_frame_quantization_has_no_residual(board: Board, tmp_path: Path) -> None:
    artifact = write("frame", tmp_path / "net.resq").path
    report = benchmark_on_board(artifact, board.address, threads=1, repeats=2, warmup=0)
    assert report.residual is None and report.keyframe.samples == 2


def test_the_command_line(board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = write("dynamic", tmp_path / "net.resq").path
    tracker = f"{board.address.host}:{board.address.port}"
    words = ["bench", str(artifact), "--repeats", "2", "--rpc-tracker", tracker]
    more = ["--rpc-key", "board", "--rpc-priority", "2", "--cores", "free", "--cool-down", "0"]
    with pytest.raises(SystemExit) as caught:
        main([*words, *more, "--json"])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    result = json.loads(out)
    assert result["simulated"] is False and result["device"]["board"] == "board"
    assert result["keyframe_ms"]["samples"] == 2 and result["device"]["pinned"] == []
    with pytest.raises(SystemExit) as caught:
        main([*words, *more, "--threads", "1", "--cores", "0"])
    shown = capsys.readouterr().out
    assert f"measured on board board of {tracker}, not simulated; threads pinned to 0" in shown
    for more, told in (([], "needs the boards' key"), (["--rpc-key", "x"], "no board 'x'")):
        with pytest.raises(SystemExit) as caught:
            main([*words, *more])
        assert caught.value.code == 1 and told in capsys.readouterr().err


def masks_of(process: int) -> set[str]:
    """Return the CPUs on which each thread may run."""
    found = set()
    for thread in Path(f"/proc/{process}/task").glob("*/status"):
        with contextlib.suppress(OSError):
            text = thread.read_text()
            found.add(text.split("Cpus_allowed_list:")[1].split()[0])
    return found


def while_measuring(board: Board, artifact: Path, see: Callable[[int], bool]) -> BenchReport:
    """Measure, and wait for what is to be seen of the session's process meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(
            benchmark_on_board, artifact, board.address,
            threads=2, repeats=11, warmup=1, cool_down_s=2, cores="fast",
        )  # fmt: skip
        wait_for(lambda: report.done() or any(map(see, children_of(board.process.pid))))
        return report.result()


@pytest.mark.skipif(available_cpus() < 2, reason="threads cannot be told apart by one CPU")
def test_each_thread_is_pinned_to_a_cpu_of_its_own(board: Board, tmp_path: Path) -> None:
    artifact = write("pairwise", tmp_path / "net.resq").path
    seen: list[set[str]] = []

    def pinned(process: int) -> bool:
        seen.append(masks_of(process))
        return len(seen[-1]) == 2 and all(mask.isdigit() for mask in seen[-1])

    report = while_measuring(board, artifact, pinned)
    assert report.device["threads"] == 2 and report.keyframe.samples == 11
    assert seen[-1] == {str(cpu) for cpu in report.device["pinned"]}


@pytest.mark.skipif(available_cpus() < 2, reason="there are not two threads")
def test_a_board_that_is_lost_meanwhile(board: Board, tmp_path: Path) -> None:
    artifact = write("pairwise", tmp_path / "net.resq").path

    def kill(process: int) -> bool:
        if not any(mask.isdigit() for mask in masks_of(process)):  # not pinned yet
            return False
        os.kill(process, signal.SIGKILL)
        return True

    with pytest.raises(TargetError, match=r"board 'board' at .* did not measure") as caught:
        while_measuring(board, artifact, kill)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"threads": 4096}, TargetError, "threads 4096 is out of range; CPUs to pin them to: "),
        ({"cores": "0", "threads": 2}, TargetError, "CPUs to pin them to: 1"),
        ({"cores": "4096"}, TargetError, "this board has no CPU 4096"),
        ({"cores": "quick"}, ConfigError, "cores 'quick' are unknown; use fast, slow"),
        ({"cool_down_s": -1.0}, ConfigError, "cool-down -1.0 is out of range"),
        ({"repeats": 0}, ConfigError, "repeats 0, warm-up 3: use at least"),
    ],
)
def test_options_that_cannot_be(
    board: Board, tmp_path: Path, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    artifact = write("planes", tmp_path / "net.resq").path
    with pytest.raises(error, match=told):
        benchmark_on_board(artifact, board.address, **options)


@I.ir_module
class _Counter:
    """A keyframe that adds a number that it counts up, against the rules, in its parameter."""

    @T.prim_func(s_tir=True)
    def count(x: T.Buffer((1, 6, 5, 3)), p: T.Buffer((3,)), y: T.Buffer((1, 6, 5, 3))):
        for i, j, k in T.grid(6, 5, 3):
            with T.sblock("add"):
                vi, vj, vk = T.axis.remap("SSS", [i, j, k])
                y[0, vi, vj, vk] = x[0, vi, vj, vk] + p[vk]
                p[vk] = p[vk] + T.float32(1)

    @R.function
    def keyframe(x: R.Tensor((1, 6, 5, 3), "float32"), params: R.Tuple(R.Tensor((3,), "float32"))):
        cls = _Counter
        y = R.call_tir(cls.count, (x, params[0]), R.Tensor((1, 6, 5, 3), "float32"))
        return ((y,), ())


def test_outputs_must_be_finite_and_repeatable(board: Board, tmp_path: Path) -> None:
    base = tiny_artifact.compiled()
    not_a_number = {"bias": np.array([1, np.nan, 3], np.float32)}
    bad = write_artifact(replace(base, params=not_a_number), tmp_path / "nan.resq")
    with pytest.raises(TargetError, match="the outputs hold NaN or infinity"):
        benchmark_on_board(bad.path, board.address, threads=1)
    executable = tvm.compile(_Counter, target=tvm.target.Target({"kind": "llvm"}))
    info = {**base.info, "scheme": "W8A8", "state": []}
    bad = write_artifact(replace(base, executable=executable, info=info), tmp_path / "other.resq")
    with pytest.raises(TargetError, match="the same frames gave other outputs the second time"):
        benchmark_on_board(bad.path, board.address, threads=1)


def test_the_highest_priority_gets_a_board_first(board: Board) -> None:
    tracker = rpc.connect_tracker(board.address.host, board.address.port)
    order: list[int] = []

    def take(priority: int) -> None:
        session = replace(board.address, priority=priority).request()
        order.append(priority)
        del session

    def waiting() -> int:
        return int(tracker.summary()["queue_info"]["board"]["pending"])

    held = board.address.request()
    with ThreadPoolExecutor(2) as pool:
        for number, priority in enumerate((1, 5), 1):
            pool.submit(take, priority)
            wait_for(lambda number=number: waiting() == number)
        held.upload(bytearray(b"x"), "file")
        del held
    assert order == [5, 1]


@contextlib.contextmanager
def python_server(key: str, system: Userland | None = None) -> Iterator[RpcAddress]:
    """Run a tracker here and TVM's own server here or in an emulated system."""
    port, own, host = free_port(), free_port(), ("--host", "127.0.0.1")
    address = RpcAddress("127.0.0.1", port, key)
    with running("tvm.exec.rpc_tracker", *host, "--port", port, "--port-end", port + 1):
        wait_for(lambda: answers(port))
        where = (*host, "--port", own, "--port-end", own + 1)
        tracker = ("--tracker", f"127.0.0.1:{port}", "--key", key)
        with running("tvm.exec.rpc_server", *where, *tracker, system=system):
            wait_for(lambda: count(address) == 1)
            yield address


def test_python_server_measures_too(tmp_path: Path) -> None:
    artifact = write("pairwise", tmp_path / "net.resq").path
    with python_server("python") as address:
        report = benchmark_on_board(artifact, address, threads=1, repeats=2, warmup=0)
    assert report.keyframe.samples == 2


def test_no_tracker(tmp_path: Path) -> None:
    artifact = write("pairwise", tmp_path / "net.resq").path
    with pytest.raises(TuningError, match="does not answer"):
        benchmark_on_board(artifact, RpcAddress("127.0.0.1", free_port(), "k"))


@pytest.mark.aarch64
def test_python_server_of_an_emulated_system(tmp_path: Path) -> None:
    need("aarch64-linux-gnu-g++", "g++")
    system = userland_or_skip("server", "cortex-a72")
    fitting = write("pairwise", tmp_path / "fits.resq", "cortex-a72").path
    other = write("pairwise", tmp_path / "other.resq", "x86-generic").path
    with python_server("emulated", system) as address:
        report = benchmark_on_board(fitting, address, threads=1, repeats=2, warmup=0)
        assert report.device["machine"] == "aarch64" and report.keyframe.samples == 2
        assert report.residual is not None and report.residual.samples == 6
        told = "cannot load a library of target x86-generic .*; use the key of a board of its arch"
        with pytest.raises(TargetError, match=told) as caught:
            benchmark_on_board(other, address, threads=1)
        assert "\n" not in str(caught.value)


@pytest.mark.aarch64
def test_an_emulated_board_measures_and_refuses(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    board_tools()
    folder = tmp_path_factory.mktemp("board") / "runtime"
    write_runtime(folder, "aarch64", programs=("resq-board-server",))
    server = folder / "bin" / "resq-board-server"
    command = ["qemu-aarch64", "-cpu", "cortex-a72", "-L", SYSROOT, server]
    with serving(command, tmp_path, "emulated") as board:
        fitting = write("pairwise", tmp_path / "fits.resq", "cortex-a53").path
        report = benchmark_on_board(fitting, board.address, threads=1, repeats=2, warmup=0)
        assert report.device["machine"] == "aarch64" and report.keyframe.samples == 2
        other = write("pairwise", tmp_path / "other.resq", "cortex-a76").path
        with pytest.raises(TargetError, match=r"this CPU lacks .*asimddp") as caught:
            benchmark_on_board(other, board.address, threads=1)
        assert "\n" not in str(caught.value)
