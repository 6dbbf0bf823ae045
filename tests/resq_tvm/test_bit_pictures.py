"""Pictures of bits, and the verb that writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tvm

from resq_tvm.bit_pictures import LAYERS, PICTURES, BitPictures, choose_layers
from resq_tvm.bitmaps import FrameBits, LayerSites
from resq_tvm.cli import main
from resq_tvm.errors import ConfigError
from resq_tvm.quantize.qnet import QuantizedNetwork

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process; return exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    return run


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Calibrate a tiny network with a pool; and the same one as if its bits were fixed."""
    folder = tmp_path_factory.mktemp("qnets")
    paths = {name: str(folder / f"{name}.qnet") for name in ("DYNAMIC", "STATIC")}
    with pytest.raises(SystemExit) as caught:
        main(
            ["calibrate", "zoo:tiny_seg", "--input-shape", "1x3x32x48", "--calibration", "random",
             "--calibration-frames", "4", "--candidates", "3", "--period", "3",
             "--scheme", "W8A8->W8A{0,4,8}", "-o", paths["DYNAMIC"], "--json"]
        )  # fmt: skip
    assert not caught.value.code
    network = QuantizedNetwork.load(paths["DYNAMIC"]).network
    fixed = network.module["main"].without_attr("resq.dynamic")
    network = replace(network, module=tvm.IRModule({"main": fixed}))
    QuantizedNetwork(network, "W8A8->W8A8").save(paths["STATIC"])
    return paths


def layers(count: int) -> list[LayerSites]:
    return [LayerSites(f"conv_{n}", (0, 8), (f"v{n}",), (f"s{n}",), (4,)) for n in range(count)]


def test_layers_to_draw() -> None:
    few = layers(LAYERS)
    assert choose_layers(few) == few
    many = layers(21)
    assert [la.layer for la in choose_layers(many)] == [f"conv_{n}" for n in (0, 4, 8, 12, 16, 20)]
    assert choose_layers(many, "conv_1?") == many[10:20]
    twin = LayerSites("twin", (0, 8), ("v0",), ("s0",), (4,))
    assert choose_layers([few[0], twin, few[1]]) == few[:2]
    assert choose_layers([few[0], twin], "twin") == [twin]
    with pytest.raises(ConfigError, match=r"'stem' matches no layer.*conv_0, conv_1"):
        choose_layers(few, "stem")


def test_the_last_residual_frame_of_a_run_is_drawn(tmp_path: Path) -> None:
    plane = np.array([[0, 8, 8], [8, 0, 8]], np.uint8)
    bits = FrameBits({"s0": plane}, {"x": np.eye(6, 9, dtype=bool)})
    pictures = BitPictures(tmp_path, layers(1))
    for number in range(7):
        picture = np.full((6, 9, 3), 30 * number, np.uint8)
        pictures.see(number, picture, None if number % 3 == 0 else bits)
    assert pictures.names == ["frame_000002.png", "frame_000005.png"]
    pictures.flush()
    assert len(pictures.names) == 2  # nothing came after the last keyframe
    image = cv2.imread(str(tmp_path / pictures.names[0]))
    # Map, legend and picture hold their colours: the palette's first and last, the grey of 60.
    found = {tuple(int(v) for v in colour) for colour in image.reshape(-1, 3)}
    assert (60, 60, 60) in found
    black, yellow = (image.max(-1) < 12).mean(), (image[..., 0] + 60 < image[..., 1]).mean()
    assert yellow > black > 0.02


def test_no_more_pictures_than_told(tmp_path: Path) -> None:
    pictures = BitPictures(tmp_path, [])
    bits = FrameBits({}, {})
    for number in range(2 * PICTURES + 4):
        picture = np.zeros((2, 2, 3), np.uint8)
        pictures.see(number, picture, None if number % 2 == 0 else bits)
    assert len(list(tmp_path.iterdir())) == PICTURES


def test_the_verb_measures_and_draws(call: Call, networks: dict[str, str], tmp_path: Path) -> None:
    maps = tmp_path / "sub" / "maps"
    arguments = ["bops", networks["DYNAMIC"], "--input", "random", "--frames", "2:7"]
    code, out, err = call(*arguments, "--maps", maps, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["period"], result["measured"]) == (3, True)
    assert result["arguments"]["scheme"] == "W8A8->W8A{0,4,8}"
    assert 0 < result["bops_policy"] < result["bops_residual"] <= result["bops_residual_most"]
    assert [Path(p).name for p in result["pictures"]] == ["frame_000004.png", "frame_000006.png"]
    assert {p.name for p in maps.iterdir()} == {
        "bits.json", "frame_000004.png", "frame_000006.png"
    }  # fmt: skip
    for path in result["pictures"]:
        assert min(cv2.imread(path).shape[:2]) > 200
    written = json.loads((maps / "bits.json").read_text())
    assert written["residual_frames"] == 3
    assert written["layers"] == result["bits"]["layers"]
    assert written["bops_residual"] == result["bops_residual"]
    by_name = {la["layer"]: la for la in written["layers"]}
    assert any(len(la["values"]) == 2 for la in written["layers"])  # the concatenation
    for la in result["layers"]:
        assert la["mean_bits"] == by_name[la["name"]]["mean_bits"]
        assert sum(by_name[la["name"]]["shares"].values()) == pytest.approx(1)
    assert list(tmp_path.iterdir()) == [maps.parent] and list(maps.parent.iterdir()) == [maps]
    # A second run replaces the folder; the table speaks of the same.
    code, out, _ = call(*arguments, "--maps", maps, "--map-layers", "*fuse*", "--period", "5")
    assert code == 0 and "mean bits" in out and "to choose bits" in out
    assert [p.name for p in sorted(maps.iterdir())] == ["bits.json", "frame_000006.png"]


def test_without_a_clip_it_is_an_upper_bound(call: Call, networks: dict[str, str]) -> None:
    code, out, _ = call("bops", networks["DYNAMIC"])
    assert code == 0 and "upper bound" in out and "W8A{0,4,8}" in out
    code, out, _ = call("bops", networks["DYNAMIC"], "--json")
    result = json.loads(out)
    assert (result["measured"], result["period"]) == (False, 3)
    assert result["bops_residual"] == result["bops_keyframe"] + result["bops_policy"]
    code, out, _ = call("bops", "zoo:tiny_seg", "--scheme", "W8A8->W8A{0,4,8}", "--json")
    assert code == 0 and json.loads(out)["period"] == 4


FAILURES = {
    "a model": (["zoo:tiny_seg", "--input", "random"], "ConfigError", "is not calibrated"),
    "fixed bits": (["STATIC", "--input", "random"], "ConfigError", "W8A8->W8A{0,4,8}"),
    "maps without a clip": (["DYNAMIC", "--maps", "OUT"], "ConfigError", "needs --input"),
    "layers without maps": (
        ["DYNAMIC", "--input", "random", "--map-layers", "*"], "ConfigError", "needs --maps",
    ),
    "no such layer": (
        ["DYNAMIC", "--input", "random", "--maps", "OUT", "--map-layers", "absent"],
        "ConfigError", "matches no layer",
    ),
    "no residual frame": (
        ["DYNAMIC", "--input", "random", "--frames", "1", "--maps", "OUT"],
        "ClipError", "residual frame",
    ),
    "somebody's folder": (
        ["DYNAMIC", "--input", "random", "--frames", "4", "--maps", "FULL"],
        "OutputError", "without bits.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_failures(call: Call, networks: dict[str, str], tmp_path: Path, name: str) -> None:
    words, kind, message = FAILURES[name]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    places: dict[str, Any] = {**networks, "OUT": tmp_path / "out", "FULL": tmp_path / "full"}
    code, out, err = call("bops", *[places.get(word, word) for word in words], "--json")
    assert (code, out) == (1, "")
    error = json.loads(err)["error"]
    assert error["type"] == kind and message in error["message"]
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
