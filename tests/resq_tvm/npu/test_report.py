"""Reports of an NPU's cycles, and the verbs that print them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resq_tvm.cli import main
from resq_tvm.errors import ConfigError, TargetError
from resq_tvm.npu.report import NpuReport, simulate
from resq_tvm.targets.npu.timing import simulate as simulate_program
from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.npu import tiny_npu


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_npu.write(tmp_path_factory.mktemp("report") / "n.resq", host=True).path


@pytest.fixture(scope="module")
def report(folder: Path) -> NpuReport:
    return simulate(folder, period=4)


def test_cycles_are_the_simulators(report: NpuReport) -> None:
    stream, npu = report.program.stream, report.npu
    key = simulate_program(npu, stream, "keyframe").cycles
    residual = simulate_program(npu, stream, "residual").cycles
    assert report.residual is not None
    assert (report.keyframe.cycles, report.residual.cycles) == (key, residual)
    assert report.amortized_cycles == pytest.approx((key + 3 * residual) / 4)
    assert report.amortized_ms == pytest.approx(report.amortized_cycles / npu.clock_hz * 1e3)


def test_documents(report: NpuReport) -> None:
    result = report.to_dict()
    assert result["simulated"] is True
    assert (result["npu"], result["clock_hz"]) == ("npu-micro", 5e8)
    assert result["bops_amortized"] == (4000 + 3 * 1000) / 4
    key, residual = result["keyframe"], result["residual"]
    tensor = 6 * 5 * 3 * 4  # 360 bytes; on the bus as whole bursts of 16
    assert (key["state_read"], key["state_written"]) == (0, 2 * 368)
    assert (residual["state_read"], residual["state_written"]) == (2 * 368, 0)
    assert residual["dram_read"] >= 3 * tensor
    assert key["ms_without_state"] < key["ms"]
    assert [c["operator"] for c in key["host_calls"]] == ["negative"]
    assert key["host_cycles"] == key["host_calls"][0]["cycles"] > 0
    assert sum(k["cycles"] for k in result["kernels"] if k["program"] == "keyframe") == (
        key["cycles"] - key["host_cycles"]
    )
    for kernel in result["kernels"]:
        assert kernel["bound_by"] in kernel["bounds"]
        assert all(0 <= share <= 1 for share in kernel["utilisation"].values())
    json.dumps(result)


def test_state_on_the_chip_costs_no_traffic(tmp_path: Path) -> None:
    counts = {
        memory: simulate(tiny_npu.write(tmp_path / f"{memory}.resq", memory=memory).path)
        for memory in ("dram", "sram")
    }
    inside = counts["sram"].residual
    outside = counts["dram"].residual
    assert inside is not None and outside is not None
    assert inside.summary()["state_read"] == 0 < outside.summary()["state_read"]
    assert inside.ms == inside.ms_without_state < outside.ms


def test_what_is_no_npu(tmp_path: Path, folder: Path) -> None:
    other = tiny_artifact.write(tmp_path / "x86.resq").path
    with pytest.raises(TargetError, match="target x86-generic, which is no NPU"):
        simulate(other)
    with pytest.raises(ConfigError, match="period 0"):
        simulate(folder, period=0)


def test_bench(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "bench", folder, "--json", "--period", "4")
    document = json.loads(out)
    assert code == 0
    expected = simulate(folder, period=4).to_dict()
    assert {k: document[k] for k in expected} == json.loads(json.dumps(expected))
    assert document["arguments"]["simulated"] is True
    code, out, _ = call(capsys, "bench", folder)
    assert code == 0
    for text in ("simulated ms", "simulated: npu-micro at 0.5 GHz", "negative", "bound by"):
        assert text in out
    assert "k_scale" not in call(capsys, "bench", folder, "--no-profile")[1]


def test_timelines(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, picture = tmp_path / "t.json", tmp_path / "t.png"
    code, _, _ = call(capsys, "bench", folder, "--trace", trace, "--picture", picture)
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    events = json.loads(trace.read_text())["traceEvents"]
    assert {"keyframe", "residual", "k_scale", "r_delta", "negate"} <= {e["name"] for e in events}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "2"], "threads 2: the NPU runs one program"),
        (["--warmup", "1"], "warmup 1: simulated frames need none"),
        (["--trace", "/proc/none/t.json"], "cannot be written"),
        (["--rpc-tracker", "localhost:1", "--rpc-key", "k"], "no board has one"),
    ],
)
def test_options_that_do_not_fit(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code, _, err = call(capsys, "bench", folder, *options)
    assert code == 1 and message in err


def test_timelines_are_for_npus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny_artifact.write(tmp_path / "x86.resq").path
    code, _, err = call(capsys, "bench", other, "--trace", tmp_path / "t.json")
    assert code == 1 and "--trace and --picture are for NPUs" in err
    code, _, err = call(capsys, "inspect", other, "--npu")
    assert code == 1 and "x86-generic, which is no NPU" in err


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "inspect", folder, "--json")
    facts: dict[str, Any] = json.loads(out)["npu"]
    assert code == 0
    assert (facts["name"], facts["dram_bytes"]) == ("npu-micro", 6 * 1024)
    assert facts["commands"] == {"keyframe": 6, "residual": 5}
    assert [s["memory"] for s in facts["state"]] == ["dram", "dram"]
    assert facts["sram_used"] == 4 * 1024 + 6 * 5 * 3 * 4
    assert facts["host_calls"]["residual"] == [
        {"operator": "negative", "function": "negate", "reads": ["y"], "writes": ["n"]}
    ]
    code, out, _ = call(capsys, "inspect", folder)
    for text in ("on a simulated NPU", "DRAM at 3072", "operator on the host", "negative y"):
        assert text in out


def test_commands_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "inspect", folder, "--npu")
    assert code == 0 and "k_scale" in out and "r_delta" in out
    code, out, _ = call(capsys, "inspect", folder, "--npu", "--kernel", "r_*", "--json")
    lines = json.loads(out)["commands"]
    assert any("r_delta" in line for line in lines)
    assert not any("k_scale" in line for line in lines)
    code, _, err = call(capsys, "inspect", folder, "--npu", "--kernel", "none")
    assert code == 1 and "kernel 'none' matches none" in err
    code, _, err = call(capsys, "inspect", folder, "--kernel", "r_*")
    assert code == 1 and "add --npu" in err
