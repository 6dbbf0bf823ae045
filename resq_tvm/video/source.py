"""Open what a user names as ``--input``."""

from __future__ import annotations

import sys
from pathlib import Path

from resq_tvm.errors import ClipError, ConfigError
from resq_tvm.video.clip import Clip, OnBroken


def open_clip(
    name: str,
    *,
    size: tuple[int, int] | None = None,
    raw_shape: str | None = None,
    on_broken: OnBroken = "raise",
) -> Clip:
    """Return the clip that ``name`` stands for.

    Parameters
    ----------
    name : str
        A video file, a folder of images, a camera's number, ``-`` for raw frames on standard
        input, or ``random`` for a generated clip.
    size : tuple of int, optional
        Height and width of generated frames.
    raw_shape : str, optional
        ``HxWx3``; goes with ``-``.
    on_broken : str
        ``"raise"`` ends the clip with a `ClipError` at the first broken frame; ``"skip"`` yields
        ``None`` for it and goes on.

    Raises
    ------
    ClipError
        If the clip is missing, empty or unreadable.
    ConfigError
        If ``raw_shape`` is missing or malformed.
    """
    if name == "-":
        from resq_tvm.video.raw import open_raw, parse_raw_shape

        if raw_shape is None:
            raise ConfigError("input '-' needs the frames' shape; give --raw-shape HxWx3")
        return open_raw(sys.stdin.buffer, parse_raw_shape(raw_shape), on_broken)
    if name == "random":
        from resq_tvm.video.synthetic import open_random

        if size is None:
            raise ConfigError("a random clip needs a size; the network's input is not an image")
        return open_random(*size)

    from resq_tvm.video.decode import open_camera, open_file, open_folder

    if name.isdecimal():
        return open_camera(int(name))
    path = Path(name)
    if not path.exists():
        raise ClipError(f"clip {name!r} does not exist; check the path")
    return open_folder(path, on_broken) if path.is_dir() else open_file(path, on_broken)
