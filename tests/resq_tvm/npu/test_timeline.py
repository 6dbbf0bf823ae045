from __future__ import annotations

import json
from itertools import pairwise

import cv2
import numpy as np
import pytest

from resq_tvm.errors import OutputError
from resq_tvm.npu.timeline import LANES, draw_timeline, write_trace
from resq_tvm.targets.npu.commands import HostCall, TensorPlace
from resq_tvm.targets.npu.description import preset_npus
from resq_tvm.targets.npu.timing import simulate
from tests.targets.npu.programs import double_buffered, load, matrix, plain_npu, store, stream_of

PLACE = TensorPlace("x", "dram", 0, 10, 10, 1, "f32")
CALL = HostCall("sort1", "sort", (PLACE,), (PLACE,), ((10, 10, 1),) * 2)


@pytest.fixture
def layers():
    return simulate(preset_npus()["npu-mobile"], double_buffered(3, 20), "main")


@pytest.fixture
def with_host():
    first = (load(100), store(40, kernel=1), matrix(64, 64, kernel=1))
    return simulate(plain_npu(), stream_of(first, CALL, (matrix(kernel=2),)), "main")


def events(file):
    document = json.loads(file.read_text())
    assert document["otherData"]["simulated"] is True
    return [e for e in document["traceEvents"] if e["ph"] == "X"]


def on(lane, found):
    return [e for e in found if e["tid"] == LANES.index(lane)]


def test_trace_tells_every_command(tmp_path, layers):
    write_trace(tmp_path / "trace.json", [layers])
    found = events(tmp_path / "trace.json")
    scale = 1e6 / layers.clock_hz
    for engine, lane in enumerate(("load", "store", "matrix", "vector")):
        own = layers.commands.engine == engine
        spans = on(lane, found)
        assert len(spans) == own.sum() == 60
        starts = [e["ts"] for e in spans]
        assert starts == pytest.approx((layers.commands.start[own] * scale).tolist(), abs=1e-3)
        ends = np.array([e["ts"] + e["dur"] for e in spans])
        assert (ends[:-1] <= np.array(starts)[1:] + 1e-3).all()  # rows do not overlap
        assert spans[-1]["name"] == "layer2"
    busy = sum(e["args"]["cycles"] - e["args"].get("bus_contention", 0) for e in on("load", found))
    assert busy == layers.engines["load"].busy
    assert sum(e["args"]["products"] for e in on("matrix", found)) == layers.macs
    stalled = [e["args"] for e in on("matrix", found) if "stall" in e["args"]]
    assert {a["waited_for"] for a in stalled} <= {"load", "vector", "issue"}
    assert stalled


def test_frames_follow_each_other(tmp_path, layers, with_host):
    write_trace(tmp_path / "trace.json", [layers, with_host])
    found = events(tmp_path / "trace.json")
    first, second = on("frame", found)
    assert first["dur"] == pytest.approx(layers.seconds * 1e6)
    assert second["ts"] == pytest.approx(first["dur"])
    (call,) = on("host", found)
    assert call["name"] == "sort1"
    assert call["ts"] == pytest.approx(second["ts"] + with_host.host[0].start)
    assert call["dur"] == 900
    assert {e["name"] for e in on("kernel", found)} == {"layer0", "layer1", "layer2", "one", "two",
                                                        "three"}  # fmt: skip


def test_kernel_spans_do_not_overlap(tmp_path, with_host):
    write_trace(tmp_path / "trace.json", [with_host])
    spans = on("kernel", events(tmp_path / "trace.json"))
    assert sum(e["dur"] for e in spans) == with_host.cycles - with_host.host_cycles
    for one, two in pairwise(spans):
        assert one["ts"] + one["dur"] <= two["ts"]


def test_rows_are_named(tmp_path, layers):
    write_trace(tmp_path / "trace.json", [layers])
    names = {
        e["tid"]: e["args"]["name"]
        for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        if e["name"] == "thread_name"
    }
    assert names == dict(enumerate(LANES))


def test_the_picture_shows_what_works(tmp_path, layers, with_host):
    # The matrix unit works nearly all the time, the vector unit hardly: one lane is full of
    # colour, the other pale.
    draw_timeline(tmp_path / "a.png", [layers])
    picture = cv2.imread(str(tmp_path / "a.png")).astype(int)
    assert picture.shape[1] > 1000
    strong = ((picture.max(axis=2) - picture.min(axis=2)) > 90).sum(axis=1) > picture.shape[1] / 2
    assert 40 < strong.sum() < picture.shape[0] / 2  # the strip of kernels and the matrix lane
    draw_timeline(tmp_path / "b.png", [layers, with_host])
    assert (tmp_path / "b.png").read_bytes() != (tmp_path / "a.png").read_bytes()


def test_a_program_without_commands_can_be_drawn(tmp_path):
    empty = simulate(plain_npu(), stream_of(), "main")
    draw_timeline(tmp_path / "empty.png", [empty])
    write_trace(tmp_path / "empty.json", [empty])
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_outputs_are_whole_or_absent(tmp_path, layers):
    with pytest.raises(OutputError, match=r"a.xyz' is of no format of pictures; name it .png"):
        draw_timeline(tmp_path / "a.xyz", [layers])
    with pytest.raises(OutputError):
        write_trace(tmp_path, [layers])
    assert list(tmp_path.iterdir()) == []
