"""Tiles for NPUs are tuned like those of any target; seconds are simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resq_tvm import compiler
from resq_tvm.cli import main
from resq_tvm.errors import ConfigError
from resq_tvm.npu.report import simulate
from resq_tvm.schedules.choice import HEURISTIC
from resq_tvm.targets.npu.description import preset_npus
from resq_tvm.tuning import tune
from tests.resq_tvm.edge.harness import static
from tests.resq_tvm.npu.test_compiled import assert_same

NETWORK = static("W8A8->W4A4")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the file of a machine of one's own."""
    npu = preset_npus()["npu-micro"].model_copy(update={"name": "npu-mine"})
    path = tmp_path_factory.mktemp("tuning") / "mine.json"
    path.write_text(npu.model_dump_json())
    return str(path)


@pytest.mark.slow
def test_tuned_tiles(machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    plain = compiler.compile(NETWORK, machine, output=tmp_path / "p.resq", database="none")
    # Of the artifact, so that its description is the machine's and its kernels are read back.
    report = tune(plain.path, work_dir=work, trials=60, workers=1)
    assert report.fingerprint.simulated and report.failures == {}
    assert all(r.settled and r.gain >= 1 for r in report.results)
    assert report.network is None  # an artifact tells its kernels alone
    again = tune(NETWORK, machine, work_dir=work, trials=60, workers=1)
    assert again.measured == 0  # the same tasks, and the same seconds
    assert again.period_ms() == report.period_ms()

    tuned = compiler.compile(NETWORK, machine, output=tmp_path / "t.resq", database=work)
    origins = {k.origin.split()[0] for k in tuned.manifest.kernels}
    assert origins <= {"network", "cascade"} and HEURISTIC not in origins
    assert_same(NETWORK, tuned, tmp_path)
    network = again.network
    assert network is not None and network.trials <= 60
    counts = simulate(tuned.path)
    found = {"keyframe": counts.keyframe.cycles, "residual": counts.residual.cycles}
    assert found == dict(network.best)
    assert all(network.best[n] <= network.untuned[n] <= network.default[n] for n in found)
    alone = compiler.compile(
        NETWORK, machine, output=tmp_path / "a.resq", database=work, cascades="off"
    )
    assert {k.origin.split()[0] for k in alone.manifest.kernels} <= {"record", "only"}

    with pytest.raises(SystemExit) as caught:
        main(["tune", str(plain.path), "--work-dir", str(work), "--trials", "60", "--json"])
    assert caught.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["simulated"] is True and document["measured"] == 0


def test_options_that_do_not_fit(machine: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads 2, device None: target 'npu-mine' is simulated"):
        tune(NETWORK, machine, work_dir=tmp_path, threads=2)
    with pytest.raises(ConfigError, match="device 'x': target 'npu-mine' is simulated"):
        tune(NETWORK, machine, work_dir=tmp_path, device="x")
    with pytest.raises(ConfigError, match="hold nothing for npu-mine@cycles"):
        compiler.compile(NETWORK, machine, database=tmp_path)
