"""The calibrated network on disk: round trip, tampering, other versions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from resq_tvm.errors import ArtifactError, OutputError
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.quantize.qnet import QuantizedNetwork
from tests.resq_tvm.quantize.networks import moving_clip, small_network


@pytest.fixture(scope="module")
def qnet() -> QuantizedNetwork:
    return calibrate(small_network(), [moving_clip(4)], "W8A8->W4A4", candidates=3, period=2)


@pytest.fixture
def saved(qnet: QuantizedNetwork, tmp_path: Path) -> Path:
    return qnet.save(tmp_path / "small.qnet")


def test_round_trip(qnet: QuantizedNetwork, saved: Path) -> None:
    loaded = QuantizedNetwork.load(saved)
    tvm.ir.assert_structural_equal(loaded.module["main"], qnet.module["main"], map_free_vars=True)
    assert loaded.scheme == qnet.scheme and loaded.scales == qnet.scales
    assert loaded.layers == qnet.layers and loaded.options == qnet.options
    assert loaded.network.inputs == qnet.network.inputs
    assert loaded.network.outputs == qnet.network.outputs
    names = [b.var.name for b in loaded.module["main"].body.blocks[0].bindings]
    assert names == [b.var.name for b in qnet.module["main"].body.blocks[0].bindings]
    frame = moving_clip(1)[0]
    assert np.shares_memory(loaded.network.to_canonical(frame, 0), frame)


def test_graph_holds_no_constants(saved: Path) -> None:
    assert {p.name for p in saved.iterdir()} == {
        "network.json",
        "graph.json",
        "constants.safetensors",
    }
    text = (saved / "graph.json").read_text()
    assert "resq_constant_0" in text and "GenericConst" not in text


def test_save_replaces_only_its_own_kind(qnet: QuantizedNetwork, tmp_path: Path) -> None:
    qnet.save(tmp_path / "a.qnet")
    qnet.save(tmp_path / "a.qnet")
    assert [p.name for p in tmp_path.iterdir()] == ["a.qnet"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError):
        qnet.save(tmp_path / "mine")


def edit(saved: Path, change: dict[str, Any]) -> None:
    path = saved / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_truncated_or_tampered_files_are_refused(saved: Path) -> None:
    path = saved / "constants.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(ArtifactError, match=r"constants\.safetensors that is truncated"):
        QuantizedNetwork.load(saved)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="tampered"):
        QuantizedNetwork.load(saved)
    path.unlink()
    with pytest.raises(ArtifactError, match="lacks"):
        QuantizedNetwork.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"tvm": "0.1"}, "written with tvm 0.1"),
        ({"scales": {"keyframe": {"x:8": -1.0}, "residual": {}}}, "invalid at 'scales"),
        ({"options": {"granularity": "row", "residual": "pairwise", "period": 2}}, "granularity"),
        ({"extra": 1}, "extra"),
    ],
)
def test_wrong_records_are_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    edit(saved, change)
    with pytest.raises(ArtifactError, match=message):
        QuantizedNetwork.load(saved)


def test_what_is_no_network_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no readable network\.json"):
        QuantizedNetwork.load(tmp_path / "absent.qnet")
    (saved / "network.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        QuantizedNetwork.load(saved)


def test_consistent_nonsense_is_refused(saved: Path) -> None:
    """A file whose hash fits but whose content is no graph must still end in a typed error."""
    hashes = json.loads((saved / "network.json").read_text())["sha256"]
    for text in ("{}", "[]", '{"root_index": 0, "nodes": []}'):
        (saved / "graph.json").write_text(text)
        found = hashlib.sha256(text.encode()).hexdigest()
        edit(saved, {"sha256": hashes | {"graph": found}})
        with pytest.raises(ArtifactError, match="does not hold a network"):
            QuantizedNetwork.load(saved)
