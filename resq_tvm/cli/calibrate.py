"""``resq-tvm calibrate``: fit the quantizers of a network and keep the result for compiling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.fit import BudgetText, Guarded, Labels, Tau, check_fit, fit, summary
from resq_tvm.cli.options import (
    Crop,
    FirstLast,
    InputShape,
    Json,
    Model,
    Override,
    Period,
    Processing,
    SchemeText,
    check_period,
    parse_overrides,
    parse_shape,
)
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.cli.fit import Timed
    from resq_tvm.processing.config import ProcessingConfig
    from resq_tvm.quantize.qnet import QuantizedNetwork
    from resq_tvm.quantize.thresholds import FitReport

Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration", help="Video, folder of images (one clip) or of videos, or 'random'."
    ),
]
CalibrationFrames = Annotated[
    str | None,
    typer.Option("--calibration-frames", help="Frames per clip: COUNT or START:STOP."),
]
Granularity = Annotated[
    str, typer.Option("--granularity", help="Weight scales per 'channel' or per 'tensor'.")
]
Residual = Annotated[
    str,
    typer.Option("--residual", help="'pairwise' (to the keyframe) or 'recurrent' (to the last)."),
]
Samples = Annotated[
    int, typer.Option("--samples", min=1, help="Calibration samples per quantizer.")
]
Candidates = Annotated[
    int, typer.Option("--candidates", min=1, help="Candidate ranges per quantizer.")
]
Rounding = Annotated[
    str,
    typer.Option(
        "--rounding", help="Weights: 'gptq' (errors make up for each other) or 'nearest'."
    ),
]
Precise = Annotated[
    float,
    typer.Option(
        "--precise",
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Give 16 activation bits on keyframes to the noisiest layers, with at most this share "
        "of the multiply-accumulates.",
    ),
]

DEFAULT_FRAMES = 32


def calibrate(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder OUT.qnet.")],
    calibration: Calibration = None,
    calibration_frames: CalibrationFrames = None,
    crop: Crop = None,
    scheme: SchemeText = "W8A8->W8A4",
    period: Period = 4,
    processing: Processing = None,
    input_shape: InputShape = None,
    override: Override = None,
    first_last: FirstLast = None,
    granularity: Granularity = "channel",
    residual: Residual = "pairwise",
    samples: Samples = 64,
    candidates: Candidates = 20,
    rounding: Rounding = "gptq",
    precise: Precise = 0.0,
    tau: Tau = None,
    budget: BudgetText = None,
    guarded: Guarded = False,
    labels: Labels = None,
    json: Json = False,
) -> None:
    """Fit the quantizers of MODEL on a clip and write OUT.qnet, which 'compile' takes."""
    from resq_tvm.files import check_writable
    from resq_tvm.processing.config import load_processing

    console = Console(
        json,
        "calibrate",
        model=model,
        output=output,
        calibration=calibration,
        calibration_frames=calibration_frames,
        crop=crop,
        scheme=scheme,
        period=period,
        processing=processing,
        input_shape=input_shape,
        override=override,
        first_last=first_last,
        granularity=granularity,
        residual=residual,
        samples=samples,
        candidates=candidates,
        rounding=rounding,
        precise=precise,
        tau=tau,
        budget=budget,
        guarded=guarded,
        labels=labels,
    )
    check_writable(output)
    qnet, report = obtain_qnet(
        console,
        model,
        calibration=calibration,
        calibration_frames=calibration_frames,
        crop=crop,
        scheme=scheme,
        period=period,
        processing=load_processing(processing) if processing is not None else None,
        input_shape=input_shape,
        override=override,
        first_last=first_last,
        granularity=granularity,
        residual=residual,
        samples=samples,
        candidates=candidates,
        rounding=rounding,
        precise=precise,
        tau=tau,
        budget=budget,
        guarded=guarded,
        labels=labels,
        dump=None,
    )
    qnet.save(output)
    result = {
        "output": str(output),
        "scheme": str(qnet.scheme),
        "period": qnet.period,
        "layers": len(qnet.layers),
        **_precise(qnet),
        "quantizers": {program: len(scales) for program, scales in qnet.scales.items()},
        **summary(report),
    }
    console.finish(result, lambda out: out.print(table(("", ""), result.items())))


def obtain_qnet(
    console: Console,
    model: str,
    *,
    calibration: str | None,
    calibration_frames: str | None,
    crop: str | None,
    scheme: str,
    period: int,
    processing: ProcessingConfig | None,
    input_shape: str | None,
    override: list[str] | None,
    first_last: str | None,
    granularity: str,
    residual: str,
    samples: int,
    candidates: int,
    rounding: str,
    precise: float,
    tau: float | None,
    budget: str | None,
    labels: Path | None,
    dump: Path | None,
    state_dtype: str = "float16",
    guarded: bool = False,
    timed: Timed | None = None,
    tile_budget: float | None = None,
    hold: Sequence[str] | None = None,
) -> tuple[QuantizedNetwork, FitReport | None]:
    """Load a ``.qnet``, or load a model and calibrate it as the options say; fit thresholds.

    Parameters
    ----------
    guarded : bool
        Whether thresholds are fitted for sessions with their guard.
    timed : callable, optional
        Calibrated network → a cost in milliseconds (layer → active share, to ms), for budgets in
        ms.
    tile_budget : float, optional
        Share of the blocks of a residual that is kept at most; thresholds are fitted under it.
    hold : sequence of str, optional
        Outputs that residual frames do not compute.

    Raises
    ------
    ResqError
        One of its kinds: for the model, the clip, the scheme or an option.
    """
    from resq_tvm.scheme import Scheme

    overrides = parse_overrides(override)
    shape = parse_shape(input_shape)
    check_period(period)
    Scheme.parse(scheme)
    done = None
    if Path(model).suffix == ".qnet":
        from resq_tvm.quantize.qnet import QuantizedNetwork

        done = QuantizedNetwork.load(model)
        if tau is not None:
            raise ConfigError(f"--tau {tau:g} is for calibrating; {model!r} is calibrated")
        schemes = list(done.layers.values())
    else:
        schemes = [scheme, *overrides.values(), *([first_last] if first_last else [])]
    check_fit(
        schemes, tau=tau, budget=budget, labels=labels, tile_budget=tile_budget, guarded=guarded,
        timed=timed,
    )  # fmt: skip
    if done is not None:
        done = _limited(done, tile_budget, hold)
        if budget is None:
            return done, None
    if calibration is None:
        raise ConfigError(
            f"budget {budget!r} is fitted on a clip; give --calibration CLIP"
            if done is not None
            else f"model {model!r} is not calibrated; give --calibration CLIP, or a .qnet folder"
        )

    from resq_tvm.clips import PreparedClip, calibration_clips
    from resq_tvm.network import load
    from resq_tvm.predict import make_preprocessor
    from resq_tvm.video.clip import FrameRange, parse_crop

    selected = FrameRange.parse(calibration_frames or str(DEFAULT_FRAMES))
    window = parse_crop(crop) if crop is not None else None
    if done is not None:
        net = done.network
    else:
        with console.progress("load") as progress:
            progress(model)
            net = load(model, input_shape=shape, dump=None if dump is None else dump / "load")
        if hold:
            from resq_tvm.quantize.qnet import check_held_outputs

            known = [output.name for output in net.outputs]
            dynamic = any(Scheme.parse(text).dynamic for text in schemes if text != "float")
            check_held_outputs(hold, known, scheme, dynamic)
    prepare = make_preprocessor(processing, net.inputs)
    clips = [
        PreparedClip(clip.select(selected, window), prepare)
        for clip in calibration_clips(calibration, (prepare.height, prepare.width))
    ]
    if done is None:
        from resq_tvm.quantize.calibrate import TAU
        from resq_tvm.quantize.calibrate import calibrate as calibrate_network

        with console.progress("calibrate") as progress:
            done = calibrate_network(
                net,
                clips,
                scheme,
                period=period,
                overrides=overrides,
                first_last=first_last,
                samples=samples,
                candidates=candidates,
                granularity=granularity,
                residual=residual,
                rounding=rounding,
                precise=precise,
                held=hold or (),
                tau=TAU if tau is None else tau,
                progress=progress,
            )
        done = _limited(done, tile_budget, None)
    if budget is None:
        return done, None
    return fit(
        console, done, clips, processing, budget=budget, labels=labels, guarded=guarded,
        timed=timed, state_dtype=state_dtype,
    )  # fmt: skip


def _precise(qnet: QuantizedNetwork) -> dict[str, str]:
    """Return which layers have more bits than one code on keyframes, if any."""
    from resq_tvm.scheme import MAX_BITS, Scheme

    schemes = {name: Scheme.parse(s) for name, s in qnet.layers.items() if s != "float"}
    names = [name for name, s in schemes.items() if s.key.activation > MAX_BITS]
    return {"precise": ", ".join(names)} if names else {}


def _limited(
    qnet: QuantizedNetwork, tile_budget: float | None, hold: Sequence[str] | None
) -> QuantizedNetwork:
    """Return the network with what bounds its residual frames."""
    if tile_budget is not None:
        qnet = qnet.with_tile_budget(tile_budget)
    return qnet.with_held_outputs(hold) if hold else qnet
