"""The runtime cross-compiled for ARM boards, run under qemu."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from resq_tvm.compiler import compile
from resq_tvm.edge.build import PROGRAMS, compile_program, write_runtime
from resq_tvm.errors import AssetError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.processing.preprocess import Preprocessor
from resq_tvm.processing.presets import PRESETS
from resq_tvm.targets.boardkit import SYSROOT
from resq_tvm.targets.emulated.board import EmulatedBoard
from resq_tvm.targets.preset import get_target
from tests.dynamic import SIDE, FixedCosts, dynamic, small_network
from tests.resq_tvm.edge.harness import (
    SOURCES,
    bytes_of,
    call,
    clip,
    in_python,
    resq_run,
    static,
    write,
)
from tests.resq_tvm.edge.test_board_server import check_kernel, serving
from tests.resq_tvm.test_dynamic_session import calm, moving
from tests.tools import need

pytestmark = [pytest.mark.slow, pytest.mark.aarch64]

PERIOD = 4


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that is copied to a board."""
    need("qemu-aarch64", "aarch64-linux-gnu-g++")
    folder = tmp_path_factory.mktemp("board") / "runtime"
    try:
        return write_runtime(folder, "aarch64", programs=tuple(PROGRAMS), markers=True)
    except AssetError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def on(core: str, folder: Path, program: str = "resq-run") -> list[object]:
    return ["qemu-aarch64", "-cpu", core, "-L", SYSROOT, folder / "bin" / program]


@pytest.mark.parametrize(
    ("kind", "core"),
    [
        ("frame", "cortex-a76"),
        ("pairwise", "cortex-a53"),
        ("precise", "cortex-a72"),
        ("recurrent", "cortex-a72"),
        ("dynamic", "cortex-a72"),
        ("dynamic", "cortex-a53"),  # with tiles of few bits
    ],
)
def test_outputs_are_those_of_the_artifact_for_this_machine(
    kind: str, core: str, board: Path, tmp_path: Path
) -> None:
    here = write(kind, tmp_path / "here.resq")
    there = write(kind, tmp_path / "there.resq", core)
    frames = clip(here.manifest.inputs[0].shape, PERIOD + 3)
    want = in_python(here, frames, PERIOD)
    found = resq_run(on("max", board), there.path, frames, "--period", PERIOD)
    assert found.frames == want.frames
    x, y = (np.frombuffer(played.outputs, np.float32) for played in (want, found))
    # float32 sums of another order may round a code otherwise, once in a while.
    off = np.abs(x - y) > 1e-4 * np.abs(x).max()
    assert x.shape == y.shape and off.mean() < 0.001


def test_pictures_are_prepared_as_in_python(board: Path, tmp_path: Path) -> None:
    parts = [board / "src" / "resq.cc", SOURCES / "prepare.cc"]
    # What the compiler fuses by default, it must not fuse here.
    flags = ("-O3", "-ffp-contract=fast")
    compile_program(board, parts, board / "bin" / "prepare", architecture="aarch64", flags=flags)
    processing = PRESETS["imagenet_seg"]
    target = get_target("cortex-a53")
    artifact = compile(static("W8A8"), target, output=tmp_path / "net.resq", processing=processing)
    info = artifact.manifest.inputs[0]
    prepare = Preprocessor(processing.input, info.shape, info.layout)
    pictures = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in range(256)]
    want = b"".join(prepare(picture).tobytes() for picture in pictures)
    command = [*on("cortex-a53", board, "prepare"), artifact.path]
    assert call(command, bytes_of(pictures)).stdout == want


def test_an_emulated_board_counts_keyframes_and_residual_frames_apart(
    board: Path, tmp_path: Path
) -> None:
    need("gcc")
    artifact = write("pairwise", tmp_path / "net.resq", "cortex-a72")
    frames = clip(artifact.manifest.inputs[0].shape, PERIOD + 3)
    words = [board / "bin" / "resq-run", artifact.path, "--threads", "1", "--period", str(PERIOD)]
    execution = EmulatedBoard("cortex-a72").execute(words, stdin=bytes_of(frames), timeout_s=120)
    assert execution.stdout == call([*on("max", board), *words[1:]], bytes_of(frames)).stdout
    keyframes, residuals = execution.regions[1], execution.regions[2]
    assert (keyframes.entries, residuals.entries) == (2, PERIOD + 1)
    for region, prefix in ((keyframes, "keyframe_"), (residuals, "residual_")):
        names = [name.removeprefix("__tvm_ffi_") for name in region.cycles_in("library.so")]
        assert names and all(name.startswith(prefix) for name in names)


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a76"])
def test_decisions_of_the_guard_are_those_of_this_machine(
    core: str, board: Path, tmp_path: Path
) -> None:
    network = dynamic(small_network(), period=PERIOD)
    here, there = (
        compile(network, target, output=tmp_path / f"{target}.resq") for target in ("auto", core)
    )
    frames = [*(frame for frame in moving(6) for _ in range(2)), *calm(16)]
    policy = KeyframePolicy("adaptive", repeat=0.0)
    want = in_python(here, frames, PERIOD, policy=policy, costs=FixedCosts())
    words = ["--period", PERIOD, "--keyframes", "adaptive", "--repeat", 0]
    costs = "keyframe=7,frame=5,probe=0.1,residual@0=1,residual@1=10"
    found = resq_run(on("max", board), there.path, frames, *words, "--costs", costs)
    assert found.frames == want.frames
    assert {kind for kind, _, _ in found.frames} == {"keyframe", "residual", "frame", "repeat"}
    x, y = (np.frombuffer(played.outputs, np.float32) for played in (want, found))
    off = np.abs(x - y) > 1e-4 * np.abs(x).max()
    assert x.shape == y.shape and off.mean() < 0.001


def test_a_core_without_the_instructions_is_refused(board: Path, tmp_path: Path) -> None:
    artifact = write("frame", tmp_path / "net.resq", "cortex-a76")
    frames = bytes_of(clip(artifact.manifest.inputs[0].shape, 1))
    told = call([*on("cortex-a53", board), artifact.path], frames, code=1).stderr.decode()
    assert "is for target cortex-a76; this CPU lacks asimddp, asimdhp, atomics; compile" in told


def test_the_library_of_this_machine_is_refused(board: Path, tmp_path: Path) -> None:
    artifact = write("frame", tmp_path / "net.resq", "x86-generic")
    told = call([*on("cortex-a53", board), artifact.path], code=1).stderr.decode()
    assert "target x86-generic, whose code is x86_64; this is aarch64: compile it" in told


def test_the_board_server_measures_cross_compiled_kernels(board: Path, tmp_path: Path) -> None:
    command = on("cortex-a72", board, "resq-board-server")
    with serving(command, tmp_path, "emulated") as found:
        check_kernel(found, get_target("cortex-a72"))
