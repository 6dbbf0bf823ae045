"""Networks compiled for NPUs run as those compiled for this machine do, value by value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from resq_tvm import compiler
from resq_tvm.artifact import Artifact
from resq_tvm.bench import amortized_bops
from resq_tvm.buffers import Buffers
from resq_tvm.cli import main
from resq_tvm.errors import CompileError, TargetError
from resq_tvm.keyframes import KeyframePolicy
from resq_tvm.latency import layer_cost
from resq_tvm.npu.report import depends_on_frames, simulate
from resq_tvm.programs import Programs
from resq_tvm.quantize.qnet import QuantizedNetwork
from resq_tvm.session import Session
from resq_tvm.targets.npu.description import Npu, preset_npus
from resq_tvm.verify import verify
from tests.dynamic import SIDE, dynamic, qnet, small_network
from tests.graphs import annotated, random_network
from tests.resq_tvm.edge.harness import clip, static

SHAPE = (1, SIDE, SIDE, 3)


def outputs(artifact: Artifact, frames: list[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    session = Session(artifact, period=3, keyframes=KeyframePolicy(guard=False))
    found = [session(frame) for frame in frames]
    return [y if isinstance(y, tuple) else (y,) for y in found]


def assert_same(
    network: QuantizedNetwork, artifact: Artifact, tmp_path: Path, *, tolerance: float = 0.0
) -> None:
    """Compare with this machine; its kernels approximate sigmoids and the like otherwise."""
    here = compiler.compile(network, output=tmp_path / "here.resq", frame_program=False)
    frames = clip(here.manifest.inputs[0].shape, 5)
    for a, b in zip(outputs(here, frames), outputs(artifact, frames), strict=True):
        for x, y in zip(a, b, strict=True):
            assert (np.abs(x - y) > tolerance * np.abs(x).max()).mean() <= bool(tolerance) * 0.01


@pytest.mark.parametrize("npu", preset_npus())
@pytest.mark.parametrize("scheme", ["W8A8", "W8A8->W4A4", "W8A8->W2A3"])
def test_same_values_as_on_this_machine(npu: str, scheme: str, tmp_path: Path) -> None:
    network = static(scheme)
    artifact = compiler.compile(network, npu, output=tmp_path / "n.resq")
    assert artifact.manifest.target.name == npu and not artifact.manifest.target.features
    assert_same(network, artifact, tmp_path, tolerance=1e-6)


@pytest.mark.parametrize("seed", [3, 9])
def test_random_networks(seed: int, tmp_path: Path) -> None:
    network = qnet(annotated(random_network(seed), "W8A8->W4A4"), "W8A8->W4A4")
    artifact = compiler.compile(network, "npu-mobile", output=tmp_path / "n.resq")
    assert_same(network, artifact, tmp_path, tolerance=1e-6)


@pytest.mark.parametrize("state_dtype", ["float16", "float32"])
def test_state(state_dtype: str, tmp_path: Path) -> None:
    network = static("W8A8->W4A4")
    artifact = compiler.compile(
        network, "npu-micro", output=tmp_path / "n.resq", state_dtype=state_dtype
    )
    manifest = artifact.manifest
    assert artifact.program is not None
    places = artifact.program.stream.programs["keyframe"].state
    assert [e.dtype for e in manifest.state] == [state_dtype] * len(places)
    assert manifest.state_bytes == sum(place.nbytes for place in places) > 0
    assert manifest.state[0].input == 0  # the frame itself


@pytest.mark.parametrize("memory", ["dram", "sram"])
def test_where_state_lies(memory: str, tmp_path: Path) -> None:
    network = static("W8A8->W4A4")
    artifact = compiler.compile(
        network, "npu-mobile", output=tmp_path / "n.resq", state_memory=memory
    )
    report = simulate(artifact.path)
    assert report.residual is not None and artifact.program is not None
    places = {p.memory for p in artifact.program.stream.programs["keyframe"].state}
    assert memory in places
    traffic = report.residual.summary()["state_read"]
    assert traffic > 0 if memory == "dram" else "dram" in places or traffic == 0
    assert_same(network, artifact, tmp_path)


@pytest.mark.parametrize("cascades", ["on", "auto"])
def test_cascades_change_no_value(cascades: str, tmp_path: Path) -> None:
    network = static("W8A8->W4A4")
    artifact = compiler.compile(network, "npu-micro", output=tmp_path / "n.resq", cascades=cascades)
    assert artifact.manifest.options["cascades"] == cascades
    origins = {k.origin for k in artifact.manifest.kernels}
    assert origins <= {"cascade", "heuristic"} and (cascades == "auto" or "cascade" in origins)
    assert simulate(artifact.path).keyframe.summary()["cycles"] > 0
    assert_same(network, artifact, tmp_path)


def test_reports_of_a_network(tmp_path: Path) -> None:
    artifact = compiler.compile(static("W8A8->W4A4"), "npu-micro", output=tmp_path / "n.resq")
    assert artifact.program is not None and not depends_on_frames(artifact.program)
    report = simulate(artifact.path)
    result = report.to_dict()
    assert result["bops_amortized"] == amortized_bops(artifact.manifest, report.period)
    assert [layer["name"] for layer in result["layers"]] == ["first", "second"]
    for layer in result["layers"]:
        # More products per cycle than the array has are none of this machine's.
        for program, rate in (("keyframe", 1), ("residual", 2)):
            assert layer["macs"] <= layer[f"{program}_cycles"] * report.npu.macs_per_cycle * rate
    assert report.residual is not None
    for count in (report.keyframe, report.residual):
        assert count.macs == sum(layer["macs"] for layer in result["layers"])
    listed = {(k.program, k.name) for k in artifact.manifest.kernels}
    assert {(k["program"], k["name"]) for k in result["kernels"]} == listed


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("chosen") / "n.resq"
    return compiler.compile(dynamic(small_network()), "npu-mobile", output=folder)


class TestChosenBits:
    """Networks that choose bits pixel by pixel: cycles depend on what frames show."""

    def test_same_values_as_on_this_machine(self, artifact: Artifact, tmp_path: Path) -> None:
        assert not artifact.manifest.workspace and artifact.manifest.frame_params is None
        assert_same(dynamic(small_network()), artifact, tmp_path)

    def test_still_frames_need_no_bits(self, artifact: Artifact) -> None:
        assert artifact.program is not None and depends_on_frames(artifact.program)
        still = clip(SHAPE, 1)[0]
        moving = [np.roll(still, 5 * n, axis=1) * np.float32(1 + n) for n in range(3)]
        counts = {}
        for name, frames in (("still", [still]), ("moving", moving)):
            report = simulate(artifact.path, frames=frames)
            assert report.residual is not None and report.keyframe.summary()["blocks"] is None
            counts[name] = report.residual
        rest, moved = counts["still"].summary(), counts["moving"].summary()
        assert set(rest["blocks"]) == {0} and max(moved["blocks"]) == 8
        assert rest["frames"] == moved["frames"] == 2
        assert sum(rest["blocks"].values()) == pytest.approx(sum(moved["blocks"].values()))
        assert rest["engines"]["matrix"]["busy"] < moved["engines"]["matrix"]["busy"]
        assert rest["cycles"] < moved["cycles"]
        rows = counts["moving"].kernel_rows()
        assert {row["name"] for row in rows if row["blocks"]} == set(counts["moving"].blocks)

    def test_thresholds_can_be_scaled(self, artifact: Artifact) -> None:
        frames = clip(SHAPE, 2)
        blocks = []
        for scale in (0.0, 1e9):
            programs = Programs(artifact, scale)
            buffers = Buffers(artifact.manifest, copy=False)
            for kind, frame in zip(("keyframe", "residual"), frames, strict=True):
                programs.run(kind, buffers.load(frame, 0))  # type: ignore[arg-type]
            found = programs.machine.executed.blocks
            blocks.append({bits for classes in found.values() for bits in classes})
        assert max(blocks[0]) == 8 and blocks[1] == {0}


def bare() -> Npu:
    """Return a machine that neither pools nor resizes."""
    npu = preset_npus()["npu-mobile"]
    vector = npu.vector.model_copy(update={"operators": ("mean", "window", "choose")})
    return npu.model_copy(update={"name": "npu-bare", "vector": vector})


def test_a_machine_of_ones_own_with_work_for_the_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bare.json"
    path.write_text(bare().model_dump_json())
    network = qnet(annotated(random_network(9), "W8A8->W4A4"), "W8A8->W4A4")
    network.save(tmp_path / "n.qnet")
    folder = tmp_path / "n.resq"
    with pytest.raises(SystemExit) as caught:
        main(["compile", str(tmp_path / "n.qnet"), "-o", str(folder), "--target", str(path)])
    captured = capsys.readouterr()
    assert caught.value.code == 0
    artifact = Artifact.load(folder)
    named = [op for ops in artifact.manifest.opaque.values() for op in ops]
    assert named and all(op in captured.err for op in named)
    assert "npu-bare does not have run on its host" in captured.err
    assert "library.so" in artifact.manifest.files and artifact.manifest.target.features
    assert_same(network, artifact, tmp_path, tolerance=1e-6)
    with pytest.raises(SystemExit):
        main(["inspect", str(folder), "--json"])
    facts = json.loads(capsys.readouterr().out)["npu"]
    assert sum(len(calls) for calls in facts["host_calls"].values()) == len(named)


def test_what_cannot_be_compiled(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="calibrate with residual='pairwise'"):
        compiler.compile(static("W8A8->W8A8", "recurrent"), "npu-micro")
    with pytest.raises(CompileError, match="state memory 'sram': target x86-generic has but one"):
        compiler.compile(static("W8A8"), "x86-generic", state_memory="sram")
    with pytest.raises(CompileError, match="cascades are for NPUs, and x86-generic is none"):
        compiler.compile(static("W8A8"), "x86-generic", cascades="on")
    with pytest.raises(CompileError, match="has no kernel scheme 'smull'"):
        compiler.compile(static("W8A8"), "npu-micro", arm_kernels="smull")
    with pytest.raises(TargetError, match="'npu-micro' is simulated: its kernels cannot be timed"):
        layer_cost(static("W8A8"), "npu-micro")


def test_strict_needs_records() -> None:
    with pytest.raises(CompileError, match=r"kernel.* fell back: .* runs a heuristic schedule"):
        compiler.compile(static("W8A8"), "npu-micro", strict=True)


def test_budgets_in_time_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compile", "zoo:tiny_seg", "-o", str(tmp_path / "n.resq"), "--target", "npu-micro",
              "--budget", "2 ms"])  # fmt: skip
    assert caught.value.code == 1
    assert "npu-micro's kernels cannot be timed here" in capsys.readouterr().err


def test_kernels_of_npus_are_not_verified_here() -> None:
    compiled = compiler.build(static("W8A8"), "npu-micro")
    with pytest.raises(TargetError, match="kernels of an NPU do not run on this CPU"):
        verify(compiled, [])
