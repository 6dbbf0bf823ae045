"""``resq-tvm evaluate``: the accuracy of an artifact on a clip, and whether residuals pay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import (
    ArtifactPath,
    Crop,
    Frames,
    InputShape,
    Json,
    Keyframes,
    MaxDistance,
    MinDistance,
    OptionalPeriod,
    Repeat,
    Threads,
    choose_clip,
    choose_policy,
    parse_shape,
)
from resq_tvm.errors import ConfigError


def evaluate(
    artifact: ArtifactPath,
    frame: Annotated[
        Path, typer.Option("--frame", help="The same network frame-quantized (scheme W8A8).")
    ],
    input: Annotated[str, typer.Option("--input", help="Video file or folder of images.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Folder of label images, one per frame.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Float MODEL to compare with, without labels.")
    ] = None,
    counted: Annotated[
        str | None, typer.Option("--counted", help="Frames START:STOP that count; all by default.")
    ] = None,
    frames: Frames = None,
    crop: Crop = None,
    input_shape: InputShape = None,
    period: OptionalPeriod = None,
    keyframes: Keyframes = "period",
    min_distance: MinDistance = 1,
    max_distance: MaxDistance = None,
    guard: Annotated[
        bool,
        typer.Option("--guard", help="With the guard of sessions; adaptive keyframes always are."),
    ] = False,
    repeat: Repeat = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Compare OUT.resq with frame quantization and with holding, on the same frames.

    Errors are against labels, or against the float network where there are none. With keyframes
    every PERIOD frames nothing depends on time; adaptive ones, and what --guard computes on its
    own, are chosen by what frames cost, so that frames may differ from run to run.
    """
    console = Console(
        json,
        "evaluate",
        artifact=artifact,
        frame=frame,
        input=input,
        labels=labels,
        model=model,
        counted=counted,
        frames=frames,
        crop=crop,
        input_shape=input_shape,
        period=period,
        keyframes=keyframes,
        min_distance=min_distance,
        max_distance=max_distance,
        guard=guard,
        repeat=repeat,
        threads=threads,
    )
    if (labels is None) == (model is None):
        raise ConfigError("evaluate needs either --labels DIR or --model MODEL")
    guarded = guard or keyframes == "adaptive"
    policy = choose_policy(keyframes, min_distance, max_distance, guarded, repeat)
    shape = parse_shape(input_shape)
    clip = choose_clip(input, frames=frames, crop=crop)

    from resq_tvm import accuracy
    from resq_tvm.artifact import Artifact
    from resq_tvm.video.clip import FrameRange

    selected = FrameRange.parse(counted) if counted is not None else None

    loaded = Artifact.load(artifact)
    framed = Artifact.load(frame)
    with console.progress("evaluate") as progress:
        progress("reference")
        if labels is not None:
            reference = accuracy.against_labels(labels, loaded.manifest)
        else:
            from resq_tvm.network import load

            net = load(str(model), input_shape=shape)
            reference = accuracy.against_float(net, loaded.manifest, clip)
        progress("run the clip")
        judgement = accuracy.evaluate(
            loaded,
            framed,
            clip,
            reference,
            period=period,
            keyframes=policy,
            counted=selected,
            threads=threads,
        )
    result: dict[str, Any] = {
        "scheme": loaded.manifest.scheme,
        "unit": reference.unit,
        **judgement.to_dict(),
    }

    def render(out: Any) -> None:
        rows = [
            (name, e.frames, e.frame, e.scheme, e.hold, e.recovery)
            for name, e in (("residual", judgement.residual), ("all", judgement.all))
        ]
        columns = ("frames", "count", framed.manifest.scheme, loaded.manifest.scheme, "hold",
                   "recovery")  # fmt: skip
        taken = f"{judgement.keyframes} keyframes"
        if judgement.period is not None:
            taken = f"T = {judgement.period}"
        out.print(table(columns, rows, f"error ({reference.unit}), {taken}"))

    console.finish(result, render)
