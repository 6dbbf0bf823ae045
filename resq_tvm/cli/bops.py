"""``resq-tvm bops``: what a scheme costs, counted from the network, per pixel where it chooses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resq_tvm.cli.console import Console, table
from resq_tvm.cli.options import (
    Crop,
    FirstLast,
    Frames,
    InputShape,
    Json,
    Model,
    Override,
    Processing,
    SchemeText,
    check_period,
    choose_clip,
    parse_overrides,
    parse_shape,
)
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.bitmaps import BitStatistics
    from resq_tvm.bops import BopsReport
    from resq_tvm.quantize.qnet import QuantizedNetwork

DEFAULT_PERIOD = 4


def bops(
    model: Model,
    input_shape: InputShape = None,
    scheme: SchemeText = "W8A8->W8A4",
    period: Annotated[
        int | None,
        typer.Option(
            "--period", help="A keyframe every so many frames; the .qnet's by default, or 4."
        ),
    ] = None,
    override: Override = None,
    first_last: FirstLast = None,
    input: Annotated[
        str | None,
        typer.Option("--input", help="Clip to measure a .qnet on whose pixels choose their bits."),
    ] = None,
    frames: Frames = None,
    crop: Crop = None,
    processing: Processing = None,
    maps: Annotated[
        Path | None,
        typer.Option("--maps", help="Folder for pictures of the bits, and bits.json."),
    ] = None,
    map_layers: Annotated[
        str | None,
        typer.Option("--map-layers", help="PATTERN of layers to draw; a few by default."),
    ] = None,
    json: Json = False,
) -> None:
    """Count multiply-accumulates and bit operations of MODEL under a scheme, layer by layer.

    Where pixels choose their bits from a pool, this is an upper bound; with --input CLIP, the mean
    of the clip's residual frames.
    """
    console = Console(
        json,
        "bops",
        model=model,
        input_shape=input_shape,
        scheme=scheme,
        period=period,
        override=override,
        first_last=first_last,
        input=input,
        frames=frames,
        crop=crop,
        processing=processing,
        maps=maps,
        map_layers=map_layers,
    )
    check_period(period)
    calibrated = Path(model).suffix == ".qnet"
    if input is not None and not calibrated:
        raise ConfigError(
            f"model {model!r} is not calibrated, so nothing is measured on --input {input!r}; "
            "give the .qnet of a scheme such as W8A8->W8A{0,4,8}"
        )
    for name, value, needed, given in (
        ("maps", maps, "--input CLIP", input),
        ("map-layers", map_layers, "--maps DIR", maps),
    ):
        if value is not None and given is None:
            raise ConfigError(f"{name} {str(value)!r} needs {needed}")

    from resq_tvm.bops import count

    extra: dict[str, Any] = {}
    if calibrated:
        from resq_tvm.quantize.qnet import QuantizedNetwork

        qnet = QuantizedNetwork.load(model)
        period = period or qnet.period
        console.resolve(scheme=qnet.scheme, period=period)
        if input is None:
            report = count(qnet.module, period)
        else:
            report, statistics, pictures = _measure(
                console, qnet, period, input, frames, crop, processing, maps, map_layers
            )
            extra = {"bits": statistics.to_dict(), "pictures": pictures}
    else:
        from resq_tvm.network import load
        from resq_tvm.passes.annotate import Annotate
        from resq_tvm.scheme import PrecisionPlan, Scheme

        plan = PrecisionPlan(Scheme.parse(scheme), parse_overrides(override), first_last)
        shape = parse_shape(input_shape)
        period = period or DEFAULT_PERIOD
        with console.progress("load") as progress:
            progress(model)
            annotate: Any = Annotate(plan)  # TVM's decorator makes the class callable
            module = annotate(load(model, input_shape=shape).module)
        report = count(module, period)
    console.finish({**report.to_dict(), **extra}, lambda out: _render(out, report, extra))


def _measure(
    console: Console,
    qnet: QuantizedNetwork,
    period: int,
    input: str,
    frames: str | None,
    crop: str | None,
    processing: str | None,
    maps: Path | None,
    map_layers: str | None,
) -> tuple[BopsReport, BitStatistics, list[str]]:
    """Run the clip, write the pictures, and count with the bits that were measured."""
    from contextlib import ExitStack

    from resq_tvm.bit_pictures import STATISTICS, BitPictures, choose_layers
    from resq_tvm.bitmaps import BitSession, FrameBits, measure_bits
    from resq_tvm.bops import count
    from resq_tvm.files import atomic_folder
    from resq_tvm.predict import make_preprocessor
    from resq_tvm.processing.config import load_processing

    settings = load_processing(processing) if processing is not None else None
    prepare = make_preprocessor(settings, qnet.network.inputs)
    session = BitSession(qnet, period=period)
    drawn = choose_layers(session.layers, map_layers)
    clip = choose_clip(input, frames=frames, crop=crop, size=(prepare.height, prepare.width))
    latest: list[Any] = [None]

    def prepared() -> Any:
        for latest[0] in clip:
            yield prepare(latest[0])

    with ExitStack() as stack:
        pictures = None
        if maps is not None:
            pictures = BitPictures(stack.enter_context(atomic_folder(maps, STATISTICS)), drawn)
        progress = stack.enter_context(console.progress("measure"))

        def watch(position: int, bits: FrameBits | None) -> None:
            progress("frame", position)
            if pictures is not None:
                number = clip.frames.start + position
                pictures.see(number, prepare.fit(latest[0]), bits)

        statistics = measure_bits(session, prepared(), watch)
        report = count(qnet.module, period, statistics.mean_bits)
        if maps is None or pictures is None:
            return report, statistics, []
        pictures.finish(statistics, {"scheme": qnet.scheme, "clip": clip.name, **report.totals()})
        return report, statistics, [str(maps / name) for name in pictures.names]


def _render(out: Any, report: BopsReport, extra: dict[str, Any]) -> None:
    dynamic = bool(report.policy)
    columns = [
        "layer", "op", "output", "MMACs", "key", "residual", "key GBOPs", "res. GBOPs"
    ]  # fmt: skip
    rows: list[list[object]] = [
        [
            la.name,
            la.op,
            "x".join(map(str, la.shape)),
            la.macs / 1e6,
            la.key_bits,
            la.residual_bits,
            la.bops_keyframe / 1e9,
            la.bops_residual / 1e9,
        ]
        for la in report.layers
    ]
    if report.measured:
        columns.insert(6, "mean bits")
        for row, la in zip(rows, report.layers, strict=True):
            row.insert(6, la.mean_bits)
    out.print(table(columns, rows))
    period = report.period
    totals: list[tuple[str, object]] = [
        ("GMACs", report.macs / 1e9),
        ("GBOPs of a keyframe", report.bops_keyframe / 1e9),
        ("GBOPs of a residual frame", report.bops_residual / 1e9),
    ]
    if dynamic:
        totals.append(("  of these, to choose bits", report.bops_policy / 1e9))
    totals += [
        (f"GBOPs per frame, T = {period}", report.bops_amortized / 1e9),
        ("GBOPs, peak", report.peak / 1e9),
    ]
    if report.measured:
        most = report.bops_residual_most / 1e9
        totals.append(("GBOPs of a residual frame, all pixels at the most bits", most))
        for name, share in extra["bits"]["changed"].items():
            totals.append((f"pixels of {name} changed, %", 100 * share))
    out.print(table(("", ""), totals))
    if dynamic and not report.measured:
        out.print("residual frames: all pixels at the most bits, an upper bound; measure a .qnet "
                  "with --input CLIP")  # fmt: skip
    if report.float_layers:
        out.print(f"float (counted as 32 x 32 bits): {', '.join(report.float_layers)}")
    for path in extra.get("pictures", ()):
        out.print(path)
