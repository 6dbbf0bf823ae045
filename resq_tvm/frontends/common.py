"""What the importers share: shapes, descriptions, one-line errors."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from resq_tvm.errors import ModelError, ResqError
from resq_tvm.passes.canonicalize.name_layers import fingerprint
from resq_tvm.passes.graph import Graph

Shape = tuple[int, ...]


def described(
    mod: tvm.IRModule,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    layout: str,
    weights: Iterable[tuple[str, NDArray[Any]]],
) -> tvm.IRModule:
    """Attach the source's names to a converted module.

    Parameters
    ----------
    mod : IRModule
        What TVM's frontend returned.
    inputs, outputs : sequence of str
        The source's names, in order.
    layout : str
        The order of 4-D inputs: ``"NCHW"`` or ``"NHWC"``.
    weights : iterable of (str, array)
        The source's named constants; those of rank two and more name their layers.
    """
    main = mod["main"]
    attributes = {
        "resq.inputs": _entries(inputs, main.params, layout),
        "resq.outputs": _entries(outputs, Graph.of(main).outputs(), layout),
        "resq.names": {fingerprint(w): name for name, w in weights if w.ndim >= 2},
    }
    plain = relax.Function(main.params, main.body, main.ret_ty, is_pure=True)
    plain = plain.with_attrs({k: json.dumps(v) for k, v in attributes.items()})
    return tvm.IRModule({"main": plain.with_attr("global_symbol", "main")})


def _entries(names: Sequence[str], values: Sequence[Any], layout: str) -> list[dict[str, Any]]:
    entries = []
    for name, value in zip(names, values, strict=True):
        shape = [int(d) for d in value.ty.shape]
        entries.append({"name": name, "shape": shape, "layout": layout if len(shape) == 4 else ""})
    return entries


def fixed_shape(
    model: str, name: str, declared: Sequence[int | None], given: Shape | None
) -> Shape:
    """Return an input's static shape: as declared, with free dimensions filled in.

    Parameters
    ----------
    declared : sequence of int or None
        The model's shape; None where a dimension is free.
    given : tuple of int, optional
        The shape that the user asks for.

    Raises
    ------
    ModelError
        If a dimension other than the batch stays open, the given shape contradicts the model, or
        the batch is not 1.
    """
    text = "x".join("?" if d is None else str(d) for d in declared)
    if given is None:
        filled = [1 if i == 0 and d is None else d for i, d in enumerate(declared)]
        if None in filled:
            raise ModelError(
                f"{model}: input {name!r} has the open shape {text}; give its shape "
                "(input_shape=(1, 3, 256, 512), on the command line --input-shape 1x3x256x512)"
            )
        shape = tuple(int(d) for d in filled if d is not None)
    else:
        shape = given
        if len(given) != len(declared) or any(
            d is not None and d != g for d, g in zip(declared, given, strict=True)
        ):
            asked = "x".join(map(str, given))
            raise ModelError(
                f"{model}: input {name!r} has shape {text}, not {asked}; "
                "give a shape that agrees with the model, or export the model for that shape"
            )
    if len(shape) > 1 and shape[0] != 1:
        raise ModelError(
            f"{model}: input {name!r} has batch {shape[0]}; export the model with batch 1"
        )
    return shape


def match_shapes(
    model: str, names: Sequence[str], given: Sequence[Shape] | None
) -> list[Shape | None]:
    """Return the user's shape of each input, or None for each.

    Raises
    ------
    ModelError
        If the number of shapes is not the number of inputs.
    """
    if given is None:
        return [None] * len(names)
    if len(given) != len(names):
        raise ModelError(
            f"{model}: {len(given)} input shape(s) given for {len(names)} input(s) "
            f"({', '.join(names)}); give one shape per input"
        )
    return list(given)


@contextmanager
def importing(model: str) -> Iterator[None]:
    """Turn whatever a converter raises into one `ModelError`."""
    try:
        with warnings.catch_warnings():
            # Converters and torch.export warn about their own internals.
            warnings.simplefilter("ignore")
            yield
    except ResqError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = re.sub(r"\s+", " ", lines[0])[:200] if lines else type(error).__name__
        raise ModelError(
            f"{model}: cannot be imported ({detail}); "
            "check that the file is whole and of the kind that its suffix says"
        ) from error


def as_float(array: Any) -> NDArray[Any]:
    """Return a NumPy array of a weight as float32."""
    return np.asarray(array, dtype=np.float32)
