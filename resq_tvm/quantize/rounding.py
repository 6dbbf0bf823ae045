"""Round weights so that what one rounds away another makes up for (GPTQ, arXiv 2210.17323).

To the nearest code, the errors of a layer's weights add up wherever inputs go together, and inputs
of convolutions have large means. Here the weights of an output are rounded one after another, and
those that are left take over the error: ``||X·w − X·ŵ||`` over samples of the inputs is small, not
``||w − ŵ||``. Scales stay those of the min-max range (`resq_tvm.passes.weights`).

Codes that the keyframe program uses are rounded for the values of a layer's input, others for its
residuals. That costs nothing when frames are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resq_tvm.passes.graph import Graph, const_value, op_name
from resq_tvm.passes.weights import codes_name, quantize_weight, weight_scales
from resq_tvm.quantize.samples import FrameGroups, by_size, spread
from resq_tvm.reference.executor import Executor
from resq_tvm.reference.operands import ints
from resq_tvm.scheme import Scheme, code_limit

MOST_WEIGHTS = 8192  # of one output: beyond that weights are rounded to the nearest code

_GROUPS = 16  # runs of frames that are looked at, most
_ROWS = (4096, 16384)  # samples of a layer's inputs, least and most
_DAMPING = 1e-3  # of the mean energy of an input, added to every one
_BYTES = 1 << 30  # second moments that one pass over the frames collects
_BLOCK = 64  # weights whose errors are passed on together

Codes = dict[str, NDArray[np.int8]]


def round_weights(
    main: Any,
    layers: Mapping[str, str],
    frames: FrameGroups,
    granularity: str,
    progress: Callable[[str], None],
) -> Codes:
    """Round the weights of all quantized layers.

    Parameters
    ----------
    main : relax.Function
        Canonical ``main``.
    layers : mapping of str to str
        Layer → scheme or ``"float"``.
    frames : FrameGroups
        A run per keyframe; a residual is that of a run's last frame.
    granularity : str
        ``"channel"`` or ``"tensor"``.
    progress : callable
        Called with a line as each layer is done.

    Returns
    -------
    dict
        `resq_tvm.passes.weights.codes_name` → int8, in the weight's shape. Layers that are missing
        keep the nearest codes: grouped transposed ones, and those with over `MOST_WEIGHTS` weights
        per output.
    """
    found: Codes = {}
    tasks = list(_tasks(main, layers))
    for group in by_size(tasks, lambda task: task.bytes, _BYTES):
        _observe(main, group, frames)
        for task in group:
            for bits, moment in task.moments.items():
                codes = _rounded(task, moment, bits, granularity)
                if codes is not None:
                    found[codes_name(task.layer, bits)] = codes
            task.moments = {}
            progress(f"round weights {task.number + 1}/{len(tasks)} {task.layer}")
    return found


@dataclass
class _Task:
    """A layer: where its input is sampled, and the second moments of the samples.

    ``moments`` is bits → (groups, weights per output, the same), float64. ``residual`` says which
    bits are only the residual program's.
    """

    number: int
    layer: str
    call: Any
    value: str
    size: tuple[int, int]  # groups, weights of one output
    residual: dict[int, bool]
    moments: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return len(self.residual) * self.size[0] * self.size[1] ** 2 * 8


def _tasks(main: Any, layers: Mapping[str, str]) -> Iterator[_Task]:
    number = 0
    for var, call in Graph.of(main).layers():
        size = _size(call)
        if layers[var.name] == "float" or size is None or size[1] > MOST_WEIGHTS:
            continue
        scheme = Scheme.parse(layers[var.name])
        bits = {scheme.key.weight: False}
        if scheme.residual is not None:
            bits.setdefault(scheme.residual.weight, True)
        yield _Task(number, var.name, call, call.args[0].name, size, bits)
        number += 1


def _size(call: Any) -> tuple[int, int] | None:
    """Return a layer's groups and how many weights of an output are rounded together."""
    shape = const_value(call.args[1]).shape
    if op_name(call) == "relax.matmul":
        return 1, shape[0]
    if op_name(call) == "relax.nn.conv2d":
        return int(call.attrs.groups), int(np.prod(shape[1:]))
    return (1, shape[3]) if int(call.attrs.groups) == 1 else None


def _observe(main: Any, tasks: list[_Task], frames: FrameGroups) -> None:
    """Fill the moments of some layers."""
    seen: dict[str, torch.Tensor] = {}
    run = Executor(main, watch={task.value for task in tasks}, observe=seen.__setitem__)
    groups = spread(frames.groups, _GROUPS)
    draw = torch.Generator().manual_seed(0)
    for group in groups:
        run(*group[0])
        keys = dict(seen)
        if len(group) > 1:
            run(*group[-1])
        for task in tasks:
            least, most = _ROWS
            rows = -(-min(max(2 * task.size[1], least), most) // len(groups))
            for bits, residual in task.residual.items():
                value = seen[task.value]
                if residual:
                    value = value - keys[task.value]
                samples = _samples(task.call, value, rows, draw)
                moment = samples.transpose(1, 2).matmul(samples).double()
                before = task.moments.get(bits)
                task.moments[bits] = moment if before is None else before + moment


def _samples(call: Any, x: torch.Tensor, count: int, draw: torch.Generator) -> torch.Tensor:
    """Return inputs of some outputs, (groups, outputs, weights of one), drawn at random.

    Of a transposed convolution an input pixel is drawn: its taps never meet in an output, or at
    its neighbours' alone.
    """
    if op_name(call) != "relax.nn.conv2d":
        flat = x.reshape(-1, x.shape[-1])
        return flat[torch.randint(len(flat), (count,), generator=draw)][None]
    at = call.attrs
    groups, (_, kh, kw, channels) = int(at.groups), const_value(call.args[1]).shape
    top, left, bottom, right = ints(at.padding)
    (sy, sx), (dy, dx) = ints(at.strides), ints(at.dilation)
    padded = torch.nn.functional.pad(x[0], (0, 0, left, right, top, bottom))
    height = (padded.shape[0] - dy * (kh - 1) - 1) // sy + 1
    width = (padded.shape[1] - dx * (kw - 1) - 1) // sx + 1
    y = torch.randint(height, (count,), generator=draw) * sy
    x0 = torch.randint(width, (count,), generator=draw) * sx
    taps = [padded[y + i * dy, x0 + j * dx] for i in range(kh) for j in range(kw)]
    samples = torch.stack(taps, 1).reshape(count, kh * kw, groups, channels)
    return samples.permute(2, 0, 1, 3).reshape(groups, count, kh * kw * channels)


def _rounded(
    task: _Task, moment: torch.Tensor, bits: int, granularity: str
) -> NDArray[np.int8] | None:
    """Return a layer's codes, None if they are no better than the nearest ones."""
    if not bool(torch.isfinite(moment).all()):
        return None  # fitting the input's quantizer will say so
    weight, name = const_value(task.call.args[1]), op_name(task.call)
    nearest, _ = quantize_weight(weight, name, bits, granularity)
    scales = np.broadcast_to(weight_scales(weight, name, bits, granularity), weight.shape)
    groups, count = task.size
    forward, backward = _arrangement(name, weight.shape, groups, count)
    w, s, plain = (
        torch.from_numpy(np.ascontiguousarray(forward(a).astype(np.float64)))
        for a in (weight, scales, nearest)
    )
    codes = _compensated(w, s, plain, moment, code_limit(bits))
    errors = [_error((c * s - w), moment) for c in (codes, plain)]
    if not errors[0] < errors[1]:
        return None
    return np.ascontiguousarray(backward(codes.numpy()).astype(np.int8))


def _arrangement(
    name: str, shape: tuple[int, ...], groups: int, count: int
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return how a weight becomes (groups, outputs, weights of one), and back."""
    if name == "relax.matmul":
        return (lambda a: a.T[None]), (lambda a: a[0].T)
    return (lambda a: a.reshape(groups, -1, count)), (lambda a: a.reshape(shape))


def _error(difference: torch.Tensor, moment: torch.Tensor) -> float:
    return float((difference.matmul(moment) * difference).sum())


def _factor(moment: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of moments with a damped diagonal.

    Moments are sums in float32: where inputs go together, rounding leaves them indefinite, and
    damping grows until they are not.
    """
    while True:
        diagonal = damping[:, None].expand(-1, moment.shape[-1])
        factor, failed = torch.linalg.cholesky_ex(moment + torch.diag_embed(diagonal))
        if not failed.any():
            return factor
        damping = torch.where(failed > 0, 10 * damping, damping)


def _compensated(
    weight: torch.Tensor,
    scales: torch.Tensor,
    nearest: torch.Tensor,
    moment: torch.Tensor,
    limit: int,
) -> torch.Tensor:
    """Round weights one after another, those with the strongest inputs first.

    Weights at the end of the range keep their code, so that the range stays what it is.

    Parameters
    ----------
    weight, scales, nearest : torch.Tensor
        (groups, outputs, weights of one), float64; ``nearest`` holds codes.
    moment : torch.Tensor
        (groups, weights of one, the same), float64.
    """
    energy = moment.diagonal(dim1=1, dim2=2)
    order = energy.sum(0).argsort(descending=True, stable=True)
    damping = _DAMPING * energy.mean(1).clamp_min(1e-30)
    inverse = torch.cholesky_inverse(_factor(moment[:, order][:, :, order], damping))
    passed = torch.linalg.cholesky(inverse, upper=True)
    w, s, fixed = weight[..., order].clone(), scales[..., order], nearest[..., order]
    codes = torch.empty_like(w)
    for first in range(0, len(order), _BLOCK):
        last = min(first + _BLOCK, len(order))
        errors = torch.zeros_like(w[..., first:last])
        for j in range(first, last):
            code = (w[..., j] / s[..., j]).round().clamp(-limit, limit)
            at_end = fixed[..., j].abs() == limit
            codes[..., j] = torch.where(at_end, fixed[..., j], code)
            error = (w[..., j] - codes[..., j] * s[..., j]) / passed[:, None, j, j]
            errors[..., j - first] = error
            w[..., j:last] -= error[..., None] * passed[:, None, j, j:last]
        w[..., last:] -= errors.matmul(passed[:, first:last, last:])
    return codes[..., order.argsort()]
