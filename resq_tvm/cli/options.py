"""Options that several verbs share, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.keyframes import KeyframePolicy
    from resq_tvm.video.clip import Clip

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A .onnx, .tflite or .pt2 file, a .qnet folder, or zoo:NAME."
    ),
]
ArtifactPath = Annotated[Path, typer.Argument(metavar="OUT.resq", help="A compiled artifact.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Input = Annotated[
    str,
    typer.Option(
        "--input",
        help="Video file, folder of images, camera number, '-' (raw frames), or 'random'.",
    ),
]
Frames = Annotated[
    str | None, typer.Option("--frames", help="Frame range START:STOP, e.g. 400:432.")
]
Crop = Annotated[str | None, typer.Option("--crop", help="Window y,x,height,width of every frame.")]
RawShape = Annotated[
    str | None, typer.Option("--raw-shape", help="Shape HxWx3 of raw RGB frames on standard input.")
]
OnBroken = Annotated[
    str, typer.Option("--on-broken", help="'raise', or 'skip': go on with a keyframe.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="Threads per frame; all CPUs by default.")
]
InputShape = Annotated[
    str | None, typer.Option("--input-shape", help="Source input shape, e.g. 1x3x256x512.")
]
Override = Annotated[
    list[str] | None,
    typer.Option("--override", help="PATTERN=SCHEME or PATTERN=float for layers; repeatable."),
]
FirstLast = Annotated[
    str | None, typer.Option("--first-last", help="Scheme (or float) of first and last layers.")
]
SchemeText = Annotated[
    str, typer.Option("--scheme", help="KEY->RESIDUAL such as W8A8->W4A4, or one precision.")
]
Period = Annotated[int, typer.Option("--period", help="A keyframe every so many frames.")]
OptionalPeriod = Annotated[
    int | None, typer.Option("--period", help="Keyframe period; the artifact's by default.")
]
Keyframes = Annotated[
    Literal["period", "adaptive"],
    typer.Option("--keyframes", help="Every PERIOD frames, or 'adaptive': when much has changed."),
]
MinDistance = Annotated[
    int, typer.Option("--min-distance", help="Frames between chosen keyframes, at least.")
]
MaxDistance = Annotated[
    int | None,
    typer.Option("--max-distance", help="The same at most, if adaptive; four periods by default."),
]
Guard = Annotated[
    bool,
    typer.Option("--guard/--no-guard", help="Compute frames on their own where residuals cost."),
]
Repeat = Annotated[
    float | None,
    typer.Option(
        "--repeat",
        metavar="SHARE",
        help="Give a frame of which at most SHARE (0 to 1) changed since the frame computed last "
        "that one's output.",
    ),
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target", help="'auto', a preset (see 'resq-tvm doctor'), or an NPU's .json file."
    ),
]
StateDtype = Annotated[
    str, typer.Option("--state-dtype", help="How state is stored: float16 or float32.")
]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", help="Name of the device in tuning records; this CPU by default."),
]
RpcPriority = Annotated[
    int,
    typer.Option("--rpc-priority", help="Where several wait for a board, the highest is served."),
]
Processing = Annotated[
    str | None,
    typer.Option(
        "--processing",
        help="Preset (espnet_camvid, blazepose, face_mesh, imagenet_seg, raw) or file.",
    ),
]


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Parse ``1x3x256x512``.

    Raises
    ------
    ConfigError
        If the text is not positive numbers joined by ``x``.
    """
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise ConfigError(f"input shape {text!r} is malformed; write for example 1x3x256x512")
    return shape


def parse_overrides(texts: list[str] | None) -> dict[str, str]:
    """Parse repeated ``PATTERN=SCHEME`` options, in order.

    Raises
    ------
    ConfigError
        If a text has no ``=`` or an empty side.
    """
    overrides = {}
    for text in texts or ():
        pattern, _, scheme = text.partition("=")
        if not pattern or not scheme:
            raise ConfigError(f"override {text!r} is malformed; write PATTERN=SCHEME")
        overrides[pattern] = scheme
    return overrides


def check_period(period: int | None) -> None:
    """Raise `ConfigError` unless the period is at least one (or not given)."""
    if period is not None and period < 1:
        raise ConfigError(f"period {period} is out of range; use 1 or more")


def choose_policy(
    mode: Literal["period", "adaptive"],
    least: int,
    most: int | None,
    guard: bool,
    repeat: float | None,
) -> KeyframePolicy:
    """Return the policy that the options describe; raise `ConfigError` if they are at odds."""
    from resq_tvm.keyframes import KeyframePolicy

    return KeyframePolicy(mode, least, most, guard, repeat)


def choose_clip(
    name: str,
    *,
    frames: str | None = None,
    crop: str | None = None,
    raw_shape: str | None = None,
    on_broken: str = "raise",
    size: tuple[int, int] | None = None,
) -> Clip:
    """Open ``--input`` with the options that select from it.

    Raises
    ------
    ClipError
        If there is no such clip.
    ConfigError
        If an option is malformed.
    """
    from resq_tvm.video.clip import FrameRange, parse_crop
    from resq_tvm.video.source import open_clip

    if on_broken not in ("raise", "skip"):
        raise ConfigError(f"on-broken {on_broken!r} is unknown; use raise or skip")
    policy: Literal["raise", "skip"] = "skip" if on_broken == "skip" else "raise"
    clip = open_clip(name, size=size, raw_shape=raw_shape, on_broken=policy)
    return clip.select(
        FrameRange.parse(frames) if frames is not None else None,
        parse_crop(crop) if crop is not None else None,
    )
