"""Reports of simulated cycles: what those of emulated boards and of NPUs have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from resq_tvm.bench import amortize, amortized_bops
from resq_tvm.errors import ConfigError
from resq_tvm.manifest import Manifest


class ProgramCycles(Protocol):
    """What a frame of one program takes, simulated."""

    @property
    def cycles(self) -> float:
        """Simulated cycles."""

    @property
    def ms(self) -> float:
        """Simulated milliseconds."""

    def kernel_rows(self) -> list[dict[str, Any]]:
        """Return ``name``, ``cycles``, ``ms`` and what else is known of every kernel."""

    def summary(self) -> dict[str, Any]:
        """Return everything but the kernels as JSON values."""


def checked_period(manifest: Manifest, period: int | None, keyframes: int, residuals: int) -> int:
    """Return the period of the amortised figures: the artifact's, if none is given.

    Parameters
    ----------
    manifest : Manifest
    period : int or None
    keyframes, residuals : int
        Frames to simulate.

    Raises
    ------
    ConfigError
        If one of the three is less than 1.
    """
    chosen = manifest.period if period is None else period
    if min(chosen, keyframes, residuals) < 1:
        raise ConfigError(
            f"period {chosen}, keyframes {keyframes}, residuals {residuals}: use at least 1 of each"
        )
    return chosen


P = TypeVar("P", bound=ProgramCycles)


@dataclass(frozen=True)
class CycleReport(Generic[P]):
    """Simulated cycles of an artifact's programs.

    Attributes
    ----------
    manifest : Manifest
    period : int
        Of the amortised figures.
    keyframe : ProgramCycles
    residual : ProgramCycles or None
    """

    manifest: Manifest
    period: int
    keyframe: P
    residual: P | None

    @property
    def machine(self) -> dict[str, Any]:
        """What was simulated: ``core``, ``clock_hz``, ``model``."""
        raise NotImplementedError

    @property
    def amortized_ms(self) -> float:
        """Simulated milliseconds per frame over a period."""
        return self.amortized(lambda program: program.ms)

    @property
    def amortized_cycles(self) -> float:
        """Simulated cycles per frame over a period."""
        return self.amortized(lambda program: program.cycles)

    def amortized(self, figure: Callable[[P], float]) -> float:
        """Return the mean of a figure over the frames of a period."""
        residual = None if self.residual is None else figure(self.residual)
        return amortize(figure(self.keyframe), residual, self.period)

    @property
    def kernels(self) -> list[dict[str, Any]]:
        """``name``, ``program``, ``layer`` (or None), ``cycles``, ``ms``, … of every kernel."""
        layers = {k.name: k.layer for k in self.manifest.kernels}
        programs = {"keyframe": self.keyframe, "residual": self.residual}
        return [
            {"name": row["name"], "program": name, "layer": layers.get(row["name"]), **row}
            for name, program in programs.items()
            if program is not None
            for row in program.kernel_rows()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; all cycles and milliseconds are simulated."""
        bops = self.manifest.bops
        return {
            "simulated": True,
            **self.machine,
            "scheme": self.manifest.scheme,
            "period": self.period,
            "target": self.manifest.target.name,
            "keyframe": self.keyframe.summary(),
            "residual": None if self.residual is None else self.residual.summary(),
            "amortized_ms": self.amortized_ms,
            "amortized_cycles": self.amortized_cycles,
            "macs": bops.get("macs"),
            "bops_keyframe": bops.get("bops_keyframe"),
            "bops_residual": bops.get("bops_residual"),
            "bops_amortized": amortized_bops(self.manifest, self.period),
            "state_bytes": self.manifest.state_bytes,
            "layers": self._layers(),
            "kernels": self.kernels,
        }

    def _layers(self) -> list[dict[str, Any]]:
        cycles: dict[tuple[str, str], float] = {}
        for kernel in self.kernels:
            if kernel["layer"] is not None:
                place = kernel["layer"], kernel["program"]
                cycles[place] = cycles.get(place, 0.0) + kernel["cycles"]
        return [
            {
                **layer.model_dump(),
                "keyframe_cycles": cycles.get((layer.name, "keyframe")),
                "residual_cycles": cycles.get((layer.name, "residual")),
            }
            for layer in self.manifest.layers
        ]
