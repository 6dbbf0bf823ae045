"""Tuning a network: the command line, an interrupted run, boards behind a tracker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resq_tvm as resq
from resq_tvm.errors import ArtifactError, CompileError, ConfigError, TargetError, TuningError
from resq_tvm.schedules import space
from resq_tvm.schedules.choice import HEURISTIC
from resq_tvm.schedules.spec import Conv, FusedKernel
from resq_tvm.schedules.tuning import tasks
from resq_tvm.schedules.tuning.database import RECORDS_NAME, fingerprints_in, open_records
from resq_tvm.schedules.tuning.rpc import RpcAddress
from resq_tvm.session import Session
from resq_tvm.tuning import tune
from tests.resq_tvm.test_cli_end_to_end import ROOT
from tests.resq_tvm.test_cli_end_to_end import resq as command
from tests.rpc import answers, count, free_port, running, wait_for
from tests.tools import board_tools

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def qnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuning") / "net.qnet"
    rng = np.random.default_rng(0)
    network = resq.load("zoo:tiny_seg")
    clip = [rng.standard_normal(network.inputs[0].shape).astype(np.float32) for _ in range(4)]
    resq.calibrate(network, [clip], "W8A8->W8A4", period=3).save(path)
    return path


def test_tuned_programs_are_the_same_function(qnet: Path, tmp_path: Path) -> None:
    net = resq.QuantizedNetwork.load(qnet)
    report = tune(net, work_dir=tmp_path / "work", trials=250, workers=2)
    assert report.measured > 50 and report.failures == {}
    assert all(r.settled and r.gain >= 1 for r in report.results)
    assert report.gain >= 1 and report.roof is not None
    document = json.loads(json.dumps(report.to_dict()))
    assert {t["kernel"] for t in document["tasks"]} and document["per_second"] > 0
    assert all(t["share_of_roof"] > 0 for t in document["tasks"])

    tuned = resq.compile(net, database=tmp_path / "work", output=tmp_path / "t.resq", strict=True)
    plain = resq.compile(net, database="none", output=tmp_path / "p.resq")
    origins = [k.origin for k in tuned.manifest.kernels]
    assert HEURISTIC not in origins and any(o.startswith("record ") for o in origins)
    assert not any(tuned.manifest.opaque.values())  # nothing between kernels, no layout is changed
    best = {r.task.names[0]: str(r.best) for r in report.results}
    found = {k.name: k.decision for k in tuned.manifest.kernels}
    assert {n: found[n] for n in best} == best
    rng = np.random.default_rng(1)
    one, other = (Session(a, threads=1) for a in (tuned, plain))
    for _ in range(5):
        frame = rng.standard_normal(net.network.inputs[0].shape).astype(np.float32)
        np.testing.assert_array_equal(one(frame), other(frame))

    shown = command("inspect", tmp_path / "t.resq", "--strict")
    assert shown["fallbacks"] == []
    with pytest.raises(CompileError, match=r"fell back: .* runs a heuristic schedule"):
        resq.compile(net, database="none", strict=True)
    failed = subprocess.run(
        [sys.executable, "-m", "resq_tvm.cli", "inspect", str(tmp_path / "p.resq"), "--strict"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert failed.returncode == 1 and "heuristic schedule" in failed.stderr


def test_an_artifact_is_tuned_alike(qnet: Path, tmp_path: Path) -> None:
    net = resq.QuantizedNetwork.load(qnet)
    resq.compile(net, output=tmp_path / "net.resq")
    result = command("tune", tmp_path / "net.resq", "--work-dir", tmp_path / "work", "--trials", 40)
    assert result["measured"] == 40 and result["failures"] == {}
    again = tune(net, work_dir=tmp_path / "work", trials=40)  # the same tasks: all is on record
    assert again.measured == 0
    told = subprocess.run(
        [sys.executable, "-m", "resq_tvm.cli", "tune", tmp_path / "net.resq", "--work-dir",
         tmp_path / "work", "--trials", "44"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "geometric mean gain" in told.stdout and "conv 3x3" in told.stdout
    assert "tasks with" in told.stderr and "GMAC/s" in told.stderr and "ETA" in told.stderr
    with pytest.raises(ConfigError, match="is for target"):
        tune(tmp_path / "net.resq", "x86-generic", work_dir=tmp_path / "work")
    (tmp_path / "net.resq" / "kernels.json").write_text("{}")
    with pytest.raises(ArtifactError, match="truncated or altered"):
        tune(tmp_path / "net.resq", work_dir=tmp_path / "work")


def test_a_model_needs_no_clip(tmp_path: Path) -> None:
    result = command("tune", "zoo:tiny_seg", "--work-dir", tmp_path, "--trials", 8)
    assert result["measured"] == 8 and result["failures"] == {}


def test_records_of_another_device_are_refused(qnet: Path, tmp_path: Path) -> None:
    net = resq.QuantizedNetwork.load(qnet)
    tune(net, work_dir=tmp_path, trials=2, workers=1, device="my board")
    with pytest.raises(ConfigError, match=r"hold nothing for .* but x86-.*@my-board-t1"):
        resq.compile(net, database=tmp_path)
    artifact = resq.compile(net, database=tmp_path, device="my board")
    assert any(k.origin.startswith("record ") for k in artifact.manifest.kernels)
    with pytest.raises(ConfigError, match="hold nothing for"):
        resq.compile(net, database=tmp_path, device="my board", tuned_threads=2)


def test_bad_options(qnet: Path, tmp_path: Path) -> None:
    net = resq.QuantizedNetwork.load(qnet)
    for options, error in (
        ({"trials": -1}, ConfigError),
        ({"workers": 0}, ConfigError),
        ({"timeout_s": 0.0}, ConfigError),
        ({"threads": 10_000}, ConfigError),
        ({"target": "z80"}, TargetError),
        ({"rpc": RpcAddress("127.0.0.1", 1, "k")}, ConfigError),
        ({"rpc": RpcAddress("127.0.0.1", 1, "k"), "device": "d"}, TuningError),
    ):
        with pytest.raises(error):
            tune(net, work_dir=tmp_path, **options)
    for text, key in (("nowhere", "k"), ("host:port", "k"), (":1", "k"), ("host:99999", "k")):
        with pytest.raises(TuningError, match="HOST:PORT"):
            RpcAddress.parse(text, key)
    with pytest.raises(TuningError, match="--rpc-key"):
        RpcAddress.parse("host:1", None)


def decided(kernel: FusedKernel) -> bool:
    """Return whether a kernel is computed in tiles."""
    return isinstance(kernel.anchor, Conv) and not kernel.anchor.depthwise


@pytest.mark.aarch64
def test_an_arm_core_is_tuned_on_the_emulated_board(
    qnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board_tools()
    tiles = {"tile_y": (1,), "tile_x": (1, 2, 4), "inner_o": (0, 1)}
    for module in (space, tasks):
        monkeypatch.setattr(module, "knobs", lambda k, *_: tiles if decided(k) else {})
    net = resq.QuantizedNetwork.load(qnet)
    runs = []
    for name in ("once", "again"):
        report = tune(net, "cortex-a53", work_dir=tmp_path / name, trials=10, timeout_s=60)
        assert report.fingerprint.simulated and report.to_dict()["simulated"] is True
        assert report.folder.name.endswith("-simulated") and report.roof is None
        assert report.measured == 10 and not report.failures
        runs.append({r.task.key: (r.heuristic_s, r.best_s) for r in report.results})
    assert runs[0] == runs[1]
    artifact = resq.compile(net, target="cortex-a53", database=tmp_path / "once")
    assert any(k.origin.startswith("record ") for k in artifact.manifest.kernels)
    with pytest.raises(ConfigError, match="emulated board here, with one thread"):
        tune(net, "cortex-a53", work_dir=tmp_path, threads=2)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "resq_tvm.cli", "tune", *map(str, arguments), "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def lines(work: Path) -> list[str]:
    return [line for p in work.glob(f"*/{RECORDS_NAME}") for line in p.read_text().splitlines()]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_loses_nothing(qnet: Path, tmp_path: Path, how: signal.Signals) -> None:
    process = start(qnet, "--work-dir", tmp_path, "--workers", 1)
    end = time.monotonic() + 120
    while len(lines(tmp_path)) < 20:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), errors
    kept = lines(tmp_path)
    (fingerprint,) = fingerprints_in(tmp_path)
    assert len(open_records(tmp_path, fingerprint)) >= len(kept) - 1 >= 19
    result = command("tune", qnet, "--work-dir", tmp_path, "--workers", 1, "--trials", 60)
    assert lines(tmp_path)[: len(kept) - 1] == kept[:-1]  # the last may have been torn
    assert result["measured"] <= 60 - len(kept) + 1
    assert all(t["settled"] for t in result["tasks"] if t["best_ms"] is not None)


def test_a_server_that_dies_is_survived(qnet: Path, tmp_path: Path) -> None:
    port = free_port()
    address = RpcAddress("127.0.0.1", port, "board", session_timeout_s=60)
    host = ("--host", "127.0.0.1")
    server = ("tvm.exec.rpc_server", *host, "--tracker", f"127.0.0.1:{port}", "--key", "board")
    with (
        running("tvm.exec.rpc_tracker", *host, "--port", port, "--port-end", port + 1),
        contextlib.ExitStack() as boards,
    ):
        wait_for(lambda: answers(port))
        with pytest.raises(TuningError, match="no board 'board'"):
            address.boards()
        ports = [free_port() for _ in range(2)]
        first, _ = (
            boards.enter_context(running(*server, "--port", p, "--port-end", p + 1)) for p in ports
        )
        wait_for(lambda: count(address) == 2)
        killed = False

        def kill(progress: Any) -> None:
            nonlocal killed
            if progress.done == 6 and not killed:
                killed = True
                os.killpg(first.pid, signal.SIGKILL)

        net = resq.QuantizedNetwork.load(qnet)
        report = tune(
            net, work_dir=tmp_path, trials=24, rpc=address, device="board", observe=kill,
            timeout_s=8,
        )  # fmt: skip
    assert killed and report.measured == 24
    assert report.failures == {}  # what the dead board held went to the other one
    assert report.fingerprint.device == "board" and report.roof is None
    assert len(lines(tmp_path)) >= 24
