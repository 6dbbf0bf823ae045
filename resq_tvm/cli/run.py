"""``resq-tvm run``: an artifact over a clip, predictions and an overlay out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import (
    ArtifactPath,
    Crop,
    Frames,
    Guard,
    Input,
    Json,
    Keyframes,
    MaxDistance,
    MinDistance,
    OnBroken,
    OptionalPeriod,
    RawShape,
    Repeat,
    Threads,
    choose_clip,
    choose_policy,
)


def run(
    artifact: ArtifactPath,
    input: Input,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="OUT: writes OUT.npz, and OUT.mp4 for overlays.")
    ],
    frames: Frames = None,
    crop: Crop = None,
    raw_shape: RawShape = None,
    on_broken: OnBroken = "raise",
    period: OptionalPeriod = None,
    keyframes: Keyframes = "period",
    min_distance: MinDistance = 1,
    max_distance: MaxDistance = None,
    guard: Guard = True,
    repeat: Repeat = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run OUT.resq on every frame of a clip.

    Writes predictions (output_0 … of shape (frames, …)) and, for segmentation and landmarks, an
    overlay video.
    """
    from resq_tvm.files import check_writable

    console = Console(
        json,
        "run",
        artifact=artifact,
        input=input,
        output=output,
        frames=frames,
        crop=crop,
        raw_shape=raw_shape,
        on_broken=on_broken,
        period=period,
        keyframes=keyframes,
        min_distance=min_distance,
        max_distance=max_distance,
        guard=guard,
        repeat=repeat,
        threads=threads,
    )
    policy = choose_policy(keyframes, min_distance, max_distance, guard, repeat)
    check_writable(output)

    from resq_tvm.artifact import Artifact
    from resq_tvm.predict import predict, preprocessor_for
    from resq_tvm.session import Session

    loaded = Artifact.load(artifact)
    prepare = preprocessor_for(loaded.manifest)
    clip = choose_clip(
        input,
        frames=frames,
        crop=crop,
        raw_shape=raw_shape,
        on_broken=on_broken,
        size=(prepare.height, prepare.width),
    )
    session = Session(
        loaded, period=period, copy=False, threads=threads, keyframes=policy, large_pages=True
    )
    console.resolve(period=session.period, threads=session.threads, scheme=loaded.manifest.scheme)
    with console.progress("run") as progress:
        summary = predict(
            session,
            clip,
            output,
            on_broken="skip" if on_broken == "skip" else "raise",
            progress=progress,
        )
    summary = {"scheme": loaded.manifest.scheme, "period": session.period, **summary}
    console.finish(summary, lambda out: out.print(table(("", ""), _rows(summary))))


def _rows(summary: dict[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in summary.items():
        if name == "reasons":
            rows.extend((f"  {reason}", count) for reason, count in value.items())
        else:
            rows.append((name, value))
    return rows
