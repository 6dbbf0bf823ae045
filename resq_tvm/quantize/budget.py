"""How much a fit of thresholds may spend: a rise of the error, or a ceiling on the cost.

Texts: ``0.5 mIoU``, ``0.2 px`` (points of the error's own unit), ``1 %`` (of the error), ``90 %
recovery`` (of what the residual that keeps everything wins over holding), ``40 % work`` (of a
keyframe's), and ``5 ms``, which only a cost measured in milliseconds can hold.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from resq_tvm.errors import ConfigError
from resq_tvm.evaluate.judge import recovery

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?\d+)?)\s*(.*?)\s*")
_POINTS = {"px": "px", "miou": "100 - mIoU", "% pixels": "% pixels", "% output": "% output"}
_EXAMPLES = "'0.5 mIoU', '0.2 px', '0.3 % pixels', '1 %', '90 % recovery' or '40 % work'"


@dataclass(frozen=True)
class Budget:
    """What a fit may spend.

    Attributes
    ----------
    kind : str
        ``"points"``: the error may rise by ``amount``; ``"relative"``: by that share of itself;
        ``"recovery"``: it may rise by so much that this share of the residual's advantage over
        holding the keyframe's output is left; ``"work"``: the cost may be that share of the cost
        of a frame in which every tile is active; ``"cost"``: the cost may be ``amount``.
    amount : float
        A share for relative kinds (0.01 for 1 %), else in ``unit``.
    unit : str
        The error's or the cost's unit, ``""`` where it does not matter.
    """

    kind: Literal["points", "relative", "recovery", "work", "cost"]
    amount: float
    unit: str = ""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse a budget as users write it.

        Raises
        ------
        ConfigError
            If the text is no number with a known unit.
        """
        match = _NUMBER.fullmatch(text)
        amount = float(match[1]) if match is not None else math.nan
        unit = " ".join(match[2].lower().split()) if match is not None else ""
        unit = re.sub(r"^%\s*", "% ", unit).strip()
        if math.isfinite(amount):
            if unit == "%":
                return cls("relative", amount / 100)
            if unit == "% recovery" and 0 < amount <= 100:
                return cls("recovery", amount / 100)
            if unit == "% work" and amount > 0:
                return cls("work", amount / 100)
            if unit == "ms" and amount > 0:
                return cls("cost", amount, "ms")
            if unit in _POINTS:
                return cls("points", amount, _POINTS[unit])
        raise ConfigError(f"budget {text!r} is not one; write for example {_EXAMPLES}")

    @property
    def limits_cost(self) -> bool:
        """Whether the budget bounds the cost (else the error)."""
        return self.kind in ("work", "cost")

    def error_limit(self, error: float, frame: float, hold: float) -> float:
        """Return the largest error allowed.

        Parameters
        ----------
        error, frame, hold : float
            Of the residual that keeps everything, of frame quantization, and of holding the
            keyframe's output, on the same frames.

        Raises
        ------
        ConfigError
            If a share of the recovery is asked for where holding is as good.
        """
        if self.kind == "recovery":
            if recovery(frame, hold, error) is None or error >= hold:
                raise ConfigError(
                    f"a budget of {self.amount:.0%} recovery needs clips in which something moves: "
                    f"on these, holding the keyframe's output has an error of {hold:.4g}, every "
                    f"frame on its own {frame:.4g}, residuals {error:.4g}; give other frames or "
                    "another budget, such as '1 %'"
                )
            return hold - self.amount * (hold - error)
        return error * (1 + self.amount) if self.kind == "relative" else error + self.amount

    def cost_limit(self, whole: float) -> float:
        """Return the largest cost allowed, given that of a frame with every tile active."""
        return whole * self.amount if self.kind == "work" else self.amount

    def check_floor(self, least: float, whole: float) -> None:
        """Raise `ConfigError` if the ceiling is below the cost of a frame with nothing active.

        Parameters
        ----------
        least, whole : float
            Cost of a frame in which nothing that thresholds can drop is active, and all.
        """
        if self.limits_cost and self.cost_limit(whole) < least:
            unit = f" {self.unit}" if self.unit else ""
            raise ConfigError(
                f"a cost of {self.cost_limit(whole):.3g}{unit} cannot be kept: a residual frame in "
                f"which nothing is active costs {least:.3g}{unit}, one in which all is "
                f"{whole:.3g}{unit}; raise the budget"
            )

    def check_unit(self, unit: str) -> None:
        """Raise `ConfigError` if the budget is in points of another unit than the error's."""
        if self.kind == "points" and self.unit and unit and self.unit != unit:
            raise ConfigError(
                f"budget of {self.amount:g} {self.unit} does not fit an error in {unit}; "
                "use that unit, '1 %' or '40 % work'"
            )
