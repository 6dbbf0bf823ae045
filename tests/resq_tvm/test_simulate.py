"""Artifacts for ARM boards are counted on the emulated one, kernel by kernel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from resq_tvm.cli import main
from resq_tvm.errors import ConfigError, FrameError, TargetError
from resq_tvm.simulate import SimulatedReport, kernel_cycles, marked_runtime, simulate
from resq_tvm.targets.emulated.board import FunctionCount, Region
from tests.dynamic import SIDE
from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.edge.harness import bytes_of, clip, in_python, write
from tests.tools import board_tools

PERIOD = 5


def function(name: str, cycles: int, total: int, library: str = "library.so") -> FunctionCount:
    return FunctionCount(library, name, cycles, cycles, float(cycles), total)


def test_kernels_whose_entry_calls_or_jumps() -> None:
    functions = [
        function("__tvm_ffi_called", 5, 105),
        function("called_compute_", 90, 100),
        function("__tvm_ffi_jumped", 5, 5),
        function("jumped_compute_", 40, 50),
        function("__tvm_ffi_alone", 7, 9),
        function("memcpy", 12, 12, "libc.so.6"),
    ]
    region = Region(1, 0, 0, 0.0, functions)
    assert kernel_cycles(region) == {"alone": 9, "called": 105, "jumped": 55}


def test_a_target_without_an_emulated_core(tmp_path: Path) -> None:
    artifact = tiny_artifact.write(tmp_path / "n.resq")
    with pytest.raises(TargetError, match="target x86-generic, which has no emulated core"):
        simulate(artifact.path)
    with pytest.raises(ConfigError, match="keyframes 0"):
        simulate(artifact.path, keyframes=0)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    board_tools()
    return write("pairwise", tmp_path_factory.mktemp("simulate") / "n.resq", "cortex-a53").path


@pytest.fixture(scope="module")
def report(artifact: Path) -> SimulatedReport:
    shape = (1, SIDE, SIDE, 3)
    return simulate(artifact, frames=clip(shape, 3), period=PERIOD, keyframes=2)


@pytest.mark.slow
@pytest.mark.aarch64
class TestEmulated:
    def test_frames_of_both_programs_are_counted(self, report: SimulatedReport) -> None:
        assert report.residual is not None
        assert (report.keyframe.frames, report.residual.frames) == (2, 4)
        expected = (report.keyframe.cycles + (PERIOD - 1) * report.residual.cycles) / PERIOD
        assert report.amortized_cycles == pytest.approx(expected)
        assert report.amortized_ms == pytest.approx(expected / report.core.clock_hz * 1e3)
        for count in (report.keyframe, report.residual):
            assert count.bound <= count.cycles
            assert 0.3 * count.cycles < sum(count.kernels.values()) <= count.cycles

    def test_every_kernel_of_the_manifest_is_found(self, report: SimulatedReport) -> None:
        listed = {(k.name, k.program) for k in report.manifest.kernels}
        assert listed <= {(k["name"], k["program"]) for k in report.kernels}
        for layer in report.to_dict()["layers"]:
            assert layer["keyframe_cycles"] > 0 and layer["residual_cycles"] > 0

    def test_outputs_are_those_of_this_machine(
        self, report: SimulatedReport, tmp_path: Path
    ) -> None:
        here = write("pairwise", tmp_path / "here.resq")
        frames = clip(here.manifest.inputs[0].shape, 3)
        want = np.frombuffer(in_python(here, [*frames, *frames], 3).outputs, np.float32)
        found = np.frombuffer(b"".join(bytes_of(o) for o in report.outputs), np.float32)
        off = np.abs(want - found) > 1e-4 * np.abs(want).max()
        assert want.shape == found.shape and off.mean() < 0.001

    def test_bench_counts_the_same(
        self, artifact: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        documents = []
        for _ in range(2):
            with pytest.raises(SystemExit) as caught:
                main(["bench", str(artifact), "--json"])
            assert caught.value.code == 0
            documents.append(json.loads(capsys.readouterr().out))
        assert documents[0] == documents[1]
        result = documents[0]
        assert (result["simulated"], result["core"]) == (True, "cortex-a53")
        assert (result["keyframe"]["frames"], result["residual"]["frames"]) == (1, 2)
        assert result["bops_keyframe"] > result["bops_amortized"] > result["bops_residual"]

    def test_tables_say_simulated(self, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["bench", str(artifact), "--period", "1"])
        out = capsys.readouterr().out
        assert "simulated ms" in out and "simulated: one cortex-a53 at 1.4 GHz" in out

    def test_frame_quantization_has_no_residual(self, tmp_path: Path) -> None:
        board_tools()
        folder = write("frame", tmp_path / "n.resq", "cortex-a76").path
        report = simulate(folder, frames=clip((1, SIDE, SIDE, 3), 1), cache_model=False)
        assert report.residual is None and report.to_dict()["residual"] is None
        assert report.amortized_cycles == report.keyframe.cycles
        assert report.keyframe.l2_misses == 0

    def test_frames_of_another_shape(self, artifact: Path) -> None:
        with pytest.raises(FrameError, match="a frame has shapes"):
            simulate(artifact, frames=clip((1, SIDE, SIDE // 2, 3), 1))

    def test_the_runtime_is_built_once(self) -> None:
        board_tools()
        built = marked_runtime()
        assert marked_runtime(lambda step: pytest.fail(step)) == built
