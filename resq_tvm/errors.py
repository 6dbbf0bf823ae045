"""The typed errors of resq-tvm. Leaf module: every room may import it, it imports none.

Every message is one line and names the thing, its value and the way out.
"""

from __future__ import annotations


class ResqError(Exception):
    """Base of all errors that a user can cause and mend."""


class ModelError(ResqError):
    """The model file is missing, is not a model, or is of an unknown kind."""


class UnsupportedOperatorError(ModelError):
    """The model holds operators that cannot be imported; the message lists every one."""

    def __init__(self, model: str, operators: list[tuple[str, str]]) -> None:
        self.operators = operators
        listed = ", ".join(f"{op} at {place}" for op, place in operators)
        super().__init__(
            f"{model}: {len(operators)} unsupported operator(s): {listed}; "
            "replace them in the model or export it without them"
        )


class SchemeError(ResqError):
    """A quantization scheme string or override is malformed."""


class ClipError(ResqError):
    """A clip is missing, empty, unreadable, or breaks in the middle."""


class CalibrationError(ResqError):
    """Calibration data does not fit the network or is too short."""


class FrameError(ResqError):
    """A frame has the wrong shape or dtype, or holds NaN or infinity."""


class ArtifactError(ResqError):
    """An artifact is truncated, tampered with, or of another version."""


class TargetError(ResqError):
    """A target is unknown, or this machine lacks a feature that it needs."""


class CompileError(ResqError):
    """A network cannot be compiled as asked."""


class TuningError(ResqError):
    """Candidates cannot be built or measured."""


class OutputError(ResqError):
    """An output path cannot be written."""


class ConfigError(ResqError):
    """An option or a configuration file holds a wrong value."""


class AssetError(ResqError):
    """A file that is fetched on demand (the demo's, a board's libraries) cannot be had."""
