"""Pre- and post-processing against plain formulas."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from resq_tvm.errors import ConfigError, FrameError
from resq_tvm.processing.config import (
    InputConfig,
    LandmarksTask,
    ProcessingConfig,
    SegmentationTask,
    load_processing,
)
from resq_tvm.processing.overlay import draw, palette
from resq_tvm.processing.postprocess import ClassMap, Landmarks, class_map, interpret, landmarks
from resq_tvm.processing.preprocess import Preprocessor
from resq_tvm.processing.presets import PRESETS


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["espnet_camvid", "imagenet_seg", "face_mesh"])
def test_normalisation_follows_the_formula(
    rng: np.random.Generator, name: str, layout: str
) -> None:
    config = PRESETS[name].input
    frame = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    shape = (1, 3, 7, 9) if layout == "NCHW" else (1, 7, 9, 3)
    found = Preprocessor(config, shape, layout)(frame)
    pixels = frame[:, :, ::-1] if config.colour == "BGR" else frame
    wanted = (pixels - np.array(config.mean)) / np.array(config.std) * config.scale
    wanted = wanted.transpose(2, 0, 1) if layout == "NCHW" else wanted
    assert found.dtype == np.float32 and found.shape == shape
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-6)


def test_crop_and_resize() -> None:
    frame = np.zeros((60, 80, 3), np.uint8)
    frame[10:40, 20:60] = np.arange(40, dtype=np.uint8)[None, :, None] * 6
    prepare = Preprocessor(InputConfig(crop=(10, 20, 30, 40)), (1, 60, 80, 3), "NHWC")
    found = prepare(frame)[0, :, :, 0]
    # Bilinear with half-pixel centres doubles a ramp into steps of a quarter and three quarters.
    wanted = np.interp((np.arange(80) + 0.5) / 2 - 0.5, np.arange(40), np.arange(40) * 6.0)
    assert np.abs(found - wanted).max() <= 0.51
    with pytest.raises(FrameError, match="leaves the frame of 30x40"):
        prepare(np.zeros((30, 40, 3), np.uint8))


def test_frames_that_do_not_fit() -> None:
    prepare = Preprocessor(InputConfig(resize="none"), (1, 3, 8, 9), "NCHW")
    assert prepare(np.zeros((8, 9, 3), np.uint8)).shape == (1, 3, 8, 9)
    for frame in (
        np.zeros((9, 8, 3), np.uint8),
        np.zeros((8, 9), np.uint8),
        np.zeros((8, 9, 3), np.float32),
    ):
        with pytest.raises(FrameError):
            prepare(frame)


def test_inputs_that_are_no_images() -> None:
    for shape, layout in (((1, 10), ""), ((1, 4, 8, 8), "NCHW"), ((2, 8, 8, 3), "NHWC")):
        with pytest.raises(ConfigError, match="processing needs one image input"):
            Preprocessor(InputConfig(), shape, layout)


def test_preprocessing_is_fast(rng: np.random.Generator) -> None:
    frame = rng.integers(0, 256, (480, 360, 3), dtype=np.uint8)
    prepare = Preprocessor(PRESETS["espnet_camvid"].input, (1, 3, 480, 360), "NCHW")
    times = []
    for _ in range(20):
        start = time.perf_counter()
        prepare(frame)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_class_map(layout: str) -> None:
    labels = np.array([[0, 2, 1], [1, 1, 2]])
    scores = np.eye(3, dtype=np.float32)[labels][None]
    if layout == "NCHW":
        scores = scores.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(class_map(SegmentationTask(), [scores], [layout]).labels, labels)
    with pytest.raises(ConfigError, match="reads output 1, the network has 1"):
        class_map(SegmentationTask(output=1), [scores], [layout])
    with pytest.raises(ConfigError, match="four dimensions"):
        class_map(SegmentationTask(), [scores[0]], [layout])


def test_landmarks() -> None:
    task = LandmarksTask(count=3, dims=4, shown=2, visibility=3, coordinate_scale=2.0)
    table = np.array([[1, 2, 9, 0.1], [3, 4, 9, -0.1], [5, 6, 9, 1]], np.float32)
    found = landmarks(task, [table.reshape(1, 1, 12)])
    np.testing.assert_array_equal(found.points, [[2, 4], [6, 8]])
    np.testing.assert_array_equal(found.visible, [True, False])
    with pytest.raises(ConfigError, match="3 points of 4 numbers, output 0 has 11 numbers"):
        landmarks(task, [np.zeros((1, 11), np.float32)])


def test_raw_has_no_prediction() -> None:
    assert interpret(ProcessingConfig().task, [np.zeros((1, 3), np.float32)], [""]) is None


def test_overlay_paints_classes_and_points() -> None:
    frame = np.zeros((20, 30, 3), np.uint8)
    task = SegmentationTask(palette=((0, 0, 0), (200, 100, 0)), opacity=0.5)
    labels = np.zeros((10, 15), np.uint8)
    labels[5:] = 1
    painted = draw(frame, ClassMap(labels), task, (10, 15))
    assert painted[5, 5].tolist() == [0, 0, 0] and painted[15, 5].tolist() == [100, 50, 0]
    points = Landmarks(np.array([[5, 5], [np.nan, 1e9]], np.float32), np.array([True, True]))
    plotted = draw(frame, points, LandmarksTask(count=2, dims=2, edges=((0, 1),)), (10, 15))
    assert plotted[10, 10].any() and not frame.any()


def test_palette_spreads_beyond_the_named_colours() -> None:
    colours = palette(SegmentationTask(palette=((1, 2, 3),)), 20)
    assert colours[0].tolist() == [1, 2, 3]
    assert len({tuple(c) for c in colours.tolist()}) == 20


def test_presets_survive_json() -> None:
    for preset in PRESETS.values():
        assert ProcessingConfig.model_validate_json(preset.model_dump_json()) == preset


def test_processing_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"input": {"colour": "BGR"}, "task": {"task": "segmentation"}}))
    assert load_processing(str(path)).input.colour == "BGR"
    path.write_text(json.dumps({"input": {"colour": "RBG"}}))
    with pytest.raises(ConfigError, match=r"input\.colour"):
        load_processing(str(path))
    path.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        load_processing(str(path))
    with pytest.raises(ConfigError, match="neither a preset"):
        load_processing("nothing")
