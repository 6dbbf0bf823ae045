"""``resq-tvm compile``: calibrate a network and build an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resq_tvm.cli.calibrate import (
    Calibration,
    CalibrationFrames,
    Candidates,
    Granularity,
    Precise,
    Residual,
    Rounding,
    Samples,
    obtain_qnet,
)
from resq_tvm.cli.console import Console, table
from resq_tvm.cli.fit import (
    BudgetText,
    Guarded,
    Hold,
    Labels,
    Tau,
    TileBudget,
    in_ms,
    outcome,
    summary,
)
from resq_tvm.cli.options import (
    Crop,
    DeviceName,
    FirstLast,
    InputShape,
    Json,
    Model,
    Override,
    Period,
    Processing,
    SchemeText,
    StateDtype,
    TargetName,
)
from resq_tvm.errors import ConfigError

if TYPE_CHECKING:
    from resq_tvm.quantize.activity import Cost
    from resq_tvm.quantize.qnet import QuantizedNetwork


def compile(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Artifact folder OUT.resq.")],
    calibration: Calibration = None,
    calibration_frames: CalibrationFrames = None,
    crop: Crop = None,
    scheme: SchemeText = "W8A8->W8A4",
    period: Period = 4,
    target: TargetName = "auto",
    processing: Processing = None,
    input_shape: InputShape = None,
    state_dtype: StateDtype = "float16",
    state_memory: Annotated[
        str,
        typer.Option("--state-memory", help="NPUs: where state lies: 'sram', 'dram' or 'auto'."),
    ] = "auto",
    cascades: Annotated[
        str,
        typer.Option(
            help="NPUs: kernels take turns by bands of rows: 'on', 'off', 'auto' where the cycle "
            "model finds that faster, or 'search' (compiling takes longer).",
        ),
    ] = "auto",
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
    tile_budget: TileBudget = None,
    hold: Hold = None,
    frame_program: Annotated[
        bool,
        typer.Option(
            help="Give an artifact that chooses bits a program for frames without state, too.",
        ),
    ] = True,
    database: Annotated[
        str,
        typer.Option(
            "--database",
            help="Measured schedules: a --work-dir of 'tune', 'shipped', or 'none'.",
        ),
    ] = "shipped",
    device: DeviceName = None,
    tuned_threads: Annotated[
        int, typer.Option("--tuned-threads", min=1, help="Records of so many threads per kernel.")
    ] = 1,
    arm_kernels: Annotated[
        str | None,
        typer.Option(
            "--arm-kernels",
            help="On ARM: the scheme of multiplying, such as smull or pairs, where its sums fit; "
            "by default what pays on the core.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail where a kernel is not tuned or has no dot product."),
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option("--dump", help="Folder for every phase's TVMScript: load/, compile/."),
    ] = None,
    json: Json = False,
) -> None:
    """Calibrate MODEL on a clip and compile it into OUT.resq.

    MODEL may be a .qnet folder that 'calibrate' wrote; of the calibration options only --budget and
    what it needs (--calibration, --processing, --labels) and --tile-budget then apply.
    """
    from resq_tvm.files import check_replaceable, check_writable
    from resq_tvm.manifest import MANIFEST_NAME
    from resq_tvm.processing.config import load_processing
    from resq_tvm.schedules.choice import by_rules, preferring
    from resq_tvm.schedules.tuning.records import decider
    from resq_tvm.targets.preset import get_target
    from resq_tvm.targets.toolchain import is_foreign, require_cross_compiler

    console = Console(
        json,
        "compile",
        model=model,
        output=output,
        calibration=calibration,
        calibration_frames=calibration_frames,
        crop=crop,
        scheme=scheme,
        period=period,
        target=target,
        processing=processing,
        input_shape=input_shape,
        state_dtype=state_dtype,
        state_memory=state_memory,
        cascades=cascades,
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
        tile_budget=tile_budget,
        hold=hold,
        frame_program=frame_program,
        database=database,
        device=device,
        tuned_threads=tuned_threads,
        arm_kernels=arm_kernels,
        strict=strict,
        dump=dump,
    )
    # Everything that can be refused is refused before minutes of calibration.
    check_replaceable(check_writable(output), MANIFEST_NAME)
    preset = get_target(target)
    config = load_processing(processing) if processing is not None else None
    console.resolve(target=preset.name)
    if arm_kernels is not None:
        preferring(by_rules(preset), preset, arm_kernels)
    if is_foreign(preset):
        require_cross_compiler(preset.architecture)
    if (is_foreign(preset) or preset.npu is not None) and budget is not None and in_ms(budget):
        raise ConfigError(
            f"budget {budget!r} is a time, and target {preset.name}'s kernels cannot be timed "
            "here; use '40 % work'"
        )
    if guarded and (is_foreign(preset) or preset.npu is not None or not frame_program):
        why = "its runtime has none" if frame_program else "that needs the program 'frame'"
        raise ConfigError(
            f"--guarded fits for sessions with a guard, and on target {preset.name} {why}; "
            "leave it out"
        )
    if cascades != "auto" and preset.npu is None:
        raise ConfigError(f"--cascades is for NPUs, and {preset.name} is none; leave it out")
    if preset.npu is None:
        decider(preset, database, device=device, threads=tuned_threads)

    def timed(calibrated: QuantizedNetwork) -> Cost:
        from resq_tvm.latency import layer_cost

        return layer_cost(calibrated, preset, state_dtype=state_dtype)

    qnet, report = obtain_qnet(
        console,
        model,
        calibration=calibration,
        calibration_frames=calibration_frames,
        crop=crop,
        scheme=scheme,
        period=period,
        processing=config,
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
        dump=dump,
        state_dtype=state_dtype,
        timed=timed,
        tile_budget=tile_budget,
        hold=hold,
    )
    from resq_tvm.compiler import compile as compile_network

    with console.progress("compile") as progress:
        artifact = compile_network(
            qnet,
            preset,
            output=output,
            state_dtype=state_dtype,
            state_memory=state_memory,
            cascades=cascades,
            frame_program=frame_program,
            database=database,
            device=device,
            tuned_threads=tuned_threads,
            arm_kernels=arm_kernels,
            strict=strict,
            processing=config,
            dump=None if dump is None else dump / "compile",
            progress=progress,
        )
    manifest = artifact.manifest
    result = {
        "output": str(output),
        "scheme": manifest.scheme,
        "period": manifest.period,
        "target": manifest.target.name,
        "runs_here": artifact.runs_here,
        "state_bytes": manifest.state_bytes,
        "layers": len(manifest.layers),
        **manifest.bops,
        **summary(report),
        **({"on_the_host": manifest.opaque} if manifest.is_npu else {}),
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
    }
    rows = [(k, v) for k, v in result.items() if isinstance(v, str | int | float)]
    console.finish(result, lambda out: out.print(table(("", ""), [*rows, *outcome(report)])))
    if manifest.is_npu and (host := [op for ops in manifest.opaque.values() for op in ops]):
        console.say(
            f"{len(host)} operator(s) that {manifest.target.name} does not have run on its host: "
            f"{', '.join(host)}"
        )
    if not artifact.runs_here:
        console.say(
            f"{output} is for another architecture, so it was not loaded here; 'bench' counts it "
            "on an emulated board, docs/deploy.md brings it to a real one"
        )
