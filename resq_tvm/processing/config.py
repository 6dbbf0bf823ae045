"""How frames become inputs and outputs become predictions: one small JSON document.

The document goes into an artifact's manifest, so that whoever runs the artifact needs nothing
else. Frames are uint8 RGB ``(height, width, 3)``; a value reaches the network as
``(pixel − mean) / std · scale``, channel by channel in the network's colour order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resq_tvm.errors import ConfigError

Triple = tuple[float, float, float]
Colour = tuple[
    Annotated[int, Field(ge=0, le=255)],
    Annotated[int, Field(ge=0, le=255)],
    Annotated[int, Field(ge=0, le=255)],
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputConfig(_Strict):
    """Crop, resize, colour order and normalisation of the one image input.

    ``crop`` is ``(y, x, height, width)`` in frame pixels. ``resize`` brings the crop to the
    network's size bilinearly (half-pixel centres); ``"none"`` demands the exact size.
    """

    crop: tuple[int, int, int, int] | None = None
    resize: Literal["bilinear", "none"] = "bilinear"
    colour: Literal["RGB", "BGR"] = "RGB"
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    scale: float = 1.0

    @model_validator(mode="after")
    def _check(self) -> InputConfig:
        if self.crop is not None and (min(self.crop) < 0 or min(self.crop[2:]) < 1):
            raise ValueError("crop needs y, x >= 0 and height, width >= 1")
        if any(value == 0 for value in self.std):
            raise ValueError("std must not hold zero")
        return self


class RawTask(_Strict):
    """No interpretation: outputs are stored as they are."""

    task: Literal["raw"] = "raw"


class SegmentationTask(_Strict):
    """Arg max over the channels of output ``output``; class i is painted ``palette[i]``.

    ``void`` is the number of the class that does not count in an evaluation.
    """

    task: Literal["segmentation"] = "segmentation"
    output: Annotated[int, Field(ge=0)] = 0
    classes: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()
    void: Annotated[int, Field(ge=0)] | None = None
    opacity: Annotated[float, Field(ge=0, le=1)] = 0.5


class LandmarksTask(_Strict):
    """``count`` points of ``dims`` numbers in output ``output``; the first two are x and y.

    ``coordinate_scale`` brings a coordinate to pixels of the network's input. ``shown`` limits
    how many points count (the rest are auxiliary). ``visibility`` is the column of a visibility
    logit; points of probability at most 0.5 are hidden.
    """

    task: Literal["landmarks"] = "landmarks"
    output: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)]
    dims: Annotated[int, Field(ge=2)]
    coordinate_scale: float = 1.0
    shown: Annotated[int, Field(ge=1)] | None = None
    visibility: Annotated[int, Field(ge=0)] | None = None
    edges: tuple[tuple[int, int], ...] = ()


Task = Annotated[RawTask | SegmentationTask | LandmarksTask, Field(discriminator="task")]


class ProcessingConfig(_Strict):
    """Input preparation and the task, e.g. ``{"input": {"colour": "BGR"}, "task": {…}}``."""

    input: InputConfig = InputConfig()
    task: Task = RawTask()


def load_processing(name: str) -> ProcessingConfig:
    """Return a preset by name, or read a JSON file of the same schema.

    Raises
    ------
    ConfigError
        If ``name`` is neither a preset nor a valid file.
    """
    from resq_tvm.processing.presets import PRESETS

    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"processing {name!r} is neither a preset ({', '.join(PRESETS)}) nor a JSON file"
        )
    try:
        return ProcessingConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"processing file {name!r} is not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"processing file {name!r} is invalid at {place!r}: {first['msg']}"
        ) from None
