"""Clips from files, folders, byte streams and generators; breaks are found and named."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.video.clip import Clip, FrameRange, parse_crop
from resq_tvm.video.raw import open_raw, parse_raw_shape
from resq_tvm.video.source import open_clip
from resq_tvm.video.synthetic import open_random
from resq_tvm.video.writer import VideoWriter
from tests.data import data_path


def write_clip(
    path: Path, frames: int = 40, size: tuple[int, int] = (120, 160)
) -> list[np.ndarray]:
    pictures = [p for p in open_random(*size, frames) if p is not None]
    with VideoWriter(path, 25.0, min_height=1) as writer:
        for picture in pictures:
            writer.add(picture)
    return pictures


def write_png(path: Path, picture: np.ndarray) -> None:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_file_round_trip(tmp_path: Path) -> None:
    wanted = write_clip(tmp_path / "a.mp4")
    clip = open_clip(str(tmp_path / "a.mp4"))
    for _ in range(2):  # a file can be read again
        found = list(clip)
        assert len(found) == len(wanted)
        assert all(p is not None and p.shape == (120, 160, 3) for p in found)
    assert clip.fps == 25.0
    errors = [np.abs(f.astype(int) - w).mean() for f, w in zip(found, wanted, strict=True)]
    assert max(errors) < 8


@pytest.mark.parametrize(
    ("name", "frames", "shape"),
    [
        ("clips/carphone_pristine.mp4", 120, (144, 176, 3)),
        ("clips/bikes.mp4", 250, (272, 640, 3)),
    ],
)
def test_real_clips(name: str, frames: int, shape: tuple[int, ...]) -> None:
    pictures = list(open_clip(str(data_path(name))))
    assert len(pictures) == frames
    assert pictures[-1] is not None and pictures[-1].shape == shape


def test_folder_is_sorted_naturally(tmp_path: Path) -> None:
    for i in (10, 9, 2, 1):
        write_png(tmp_path / f"f{i}.png", np.full((8, 10, 3), i, np.uint8))
    (tmp_path / "notes.txt").write_text("not a frame")
    values = [int(p[0, 0, 0]) for p in open_clip(str(tmp_path)) if p is not None]
    assert values == [1, 2, 9, 10]


def test_png_is_read_exactly(tmp_path: Path, rng: np.random.Generator) -> None:
    picture = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "x.png", picture)
    (found,) = open_clip(str(tmp_path))
    np.testing.assert_array_equal(found, picture)


def test_broken_image_in_a_folder(tmp_path: Path) -> None:
    for i in range(3):
        write_png(tmp_path / f"{i}.png", np.full((8, 10, 3), i, np.uint8))
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    kinds = [p is None for p in open_clip(str(tmp_path), on_broken="skip")]
    assert kinds == [False, True, False]
    stream = iter(open_clip(str(tmp_path)))
    assert next(stream) is not None
    with pytest.raises(ClipError, match=r"1\.png"):
        next(stream)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_truncated_file_gives_its_good_frames_first(tmp_path: Path, suffix: str) -> None:
    name = "clips/car-detection.mp4" if suffix == ".mp4" else "clips/vtest.avi"
    contents = data_path(name).read_bytes()
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(contents[: len(contents) // 3])
    good = 0
    with pytest.raises(ClipError, match=r"breaks after \d+ good frames"):
        for picture in open_clip(str(broken)):
            assert picture is not None
            good += 1
    assert good > 50
    found = list(open_clip(str(broken), on_broken="skip"))
    assert sum(p is not None for p in found) >= good


def test_damage_in_the_middle(tmp_path: Path, rng: np.random.Generator) -> None:
    contents = bytearray(data_path("clips/car-detection.mp4").read_bytes())
    middle = len(contents) // 2
    contents[middle : middle + 40000] = rng.bytes(40000)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(contents)
    with pytest.raises(ClipError, match="breaks after"):
        list(open_clip(str(broken)))
    found = list(open_clip(str(broken), on_broken="skip"))
    assert any(p is None for p in found)
    last_bad = max(i for i, p in enumerate(found) if p is None)
    assert any(p is not None for p in found[last_bad:])  # it goes on behind the damage


def test_what_is_not_a_clip(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, message in [
        ("absent.mp4", "does not exist"),
        ("text.mp4", "not a readable video"),
        ("empty.mp4", "not a readable video"),
        ("folder", "is empty"),
    ]:
        with pytest.raises(ClipError, match=message) as caught:
            list(open_clip(str(tmp_path / name)))
        assert "\n" not in str(caught.value)


def test_absent_camera() -> None:
    with pytest.raises(ClipError, match="camera 77 is absent"):
        open_clip("77")


def test_raw_frames() -> None:
    data = bytes(range(4 * 5 * 3)) * 2
    first, second = open_raw(io.BytesIO(data), (4, 5))
    assert first is not None and first[0, 1].tolist() == [3, 4, 5]
    np.testing.assert_array_equal(first, second)


def test_raw_frames_that_are_cut_short() -> None:
    with pytest.raises(ClipError, match="breaks after 1 good frames"):
        list(open_raw(io.BytesIO(bytes(100)), (4, 5)))
    assert [p is None for p in open_raw(io.BytesIO(bytes(100)), (4, 5), "skip")] == [False, True]
    with pytest.raises(ClipError, match="is empty"):
        list(open_raw(io.BytesIO(b""), (4, 5)))


@pytest.mark.parametrize("text", ["4x5", "4x5x4", "0x5x3", "axbx3"])
def test_raw_shape(text: str) -> None:
    assert parse_raw_shape("480x640x3") == (480, 640)
    with pytest.raises(ConfigError, match="raw shape"):
        parse_raw_shape(text)


def test_raw_needs_a_shape() -> None:
    with pytest.raises(ConfigError, match="--raw-shape"):
        open_clip("-")


def test_random_clip_is_repeatable_and_moves() -> None:
    a, b = list(open_random(48, 64, 5)), list(open_random(48, 64, 5))
    assert len(a) == 5
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert all(not np.array_equal(x, y) for x, y in pairwise(a))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("400:432", FrameRange(400, 432)),
        ("5:", FrameRange(5, None)),
        (":7", FrameRange(0, 7)),
        ("9", FrameRange(0, 9)),
    ],
)
def test_frame_range(text: str, wanted: FrameRange) -> None:
    assert FrameRange.parse(text) == wanted


@pytest.mark.parametrize("text", ["a:b", "", "5:5", "7:3", "-3:4", "0", "1:2:3"])
def test_bad_frame_range(text: str) -> None:
    with pytest.raises(ConfigError, match="frame range"):
        FrameRange.parse(text)


def test_selection_of_frames_and_window() -> None:
    clip = open_random(48, 64, 20)
    part = clip.select(FrameRange(3, 6), (8, 10, 20, 30))
    found, whole = list(part), list(clip)
    assert len(found) == 3
    for picture, full in zip(found, whole[3:6], strict=True):
        assert full is not None
        np.testing.assert_array_equal(picture, full[8:28, 10:40])
    with pytest.raises(ClipError, match="leaves frames of 48x64"):
        list(clip.select(crop=(40, 0, 20, 20)))
    with pytest.raises(ClipError, match="range begins at frame 30"):
        list(clip_of(20).select(FrameRange(30, 31)))


def clip_of(frames: int) -> Clip:
    return Clip("pictures", lambda: iter([np.zeros((4, 4, 3), np.uint8)] * frames))


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "-1,0,5,5", "0,0,0,5"])
def test_bad_crop(text: str) -> None:
    assert parse_crop("20,45,90,90") == (20, 45, 90, 90)
    with pytest.raises(ConfigError, match="crop"):
        parse_crop(text)
