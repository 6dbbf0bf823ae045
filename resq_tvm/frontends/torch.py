"""Import PyTorch modules and exported programs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import tvm
from numpy.typing import NDArray
from tvm.relax.frontend.torch import from_exported_program
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from resq_tvm.errors import ModelError, UnsupportedOperatorError
from resq_tvm.frontends.common import Shape, described, fixed_shape, importing, match_shapes


def import_module(
    module: torch.nn.Module, name: str, shapes: Sequence[Shape] | None
) -> tvm.IRModule:
    """Export a module (in evaluation mode, on a copy) and import it.

    Parameters
    ----------
    module : nn.Module
        Takes float32 tensors, returns a tensor or a tuple of tensors.
    name : str
        The model's name in error messages.
    shapes : sequence of tuple
        One shape per input.

    Raises
    ------
    ModelError
        If no shapes are given, or the module cannot be exported.
    UnsupportedOperatorError
        Listing every operator without a converter.
    """
    if shapes is None:
        raise ModelError(
            f"{name}: a module does not say its input's shape; "
            "give an example input or input_shape=(1, 3, 256, 512)"
        )
    for i, shape in enumerate(shapes):
        fixed_shape(name, f"input_{i}", [None] * len(shape), shape)
    frozen = copy.deepcopy(module).cpu().eval().requires_grad_(False)
    example = tuple(torch.zeros(s) for s in shapes)
    with importing(name):
        program = torch.export.export(frozen, example)
    return import_program(program, name)


def import_program(program: Any, name: str, shapes: Sequence[Shape] | None = None) -> tvm.IRModule:
    """Import an exported program; open sizes are fixed by exporting it again.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Float32 inputs.
    name : str
        The model's name in error messages.
    shapes : sequence of tuple, optional
        One shape per input, where the program leaves sizes open.

    Raises
    ------
    ModelError
        If the inputs cannot be fixed or the program cannot be imported.
    UnsupportedOperatorError
        Listing every operator without a converter.
    """
    inputs = list(program.graph_signature.user_inputs)
    declared = _declared(program, name)
    given = match_shapes(name, inputs, shapes)
    fixed = [fixed_shape(name, i, d, g) for i, d, g in zip(inputs, declared, given, strict=True)]
    with importing(name):
        if any(None in d for d in declared):
            module = program.module(check_guards=False)
            program = torch.export.export(module, tuple(torch.zeros(s) for s in fixed))
        program = program.run_decompositions()
        _refuse_unsupported(program, name)
        mod = from_exported_program(program, run_ep_decomposition=False)
        count = len(program.graph_signature.user_outputs)
        return described(
            mod,
            inputs=inputs,
            outputs=["output"] if count == 1 else [f"output_{i}" for i in range(count)],
            layout="NCHW",
            weights=_weights(program),
        )


def _declared(program: Any, name: str) -> list[list[int | None]]:
    """Return the inputs' shapes, None for open sizes."""
    wanted = set(program.graph_signature.user_inputs)
    declared = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in wanted:
            continue
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype is not torch.float32:
            kind = getattr(value, "dtype", type(value).__name__)
            raise ModelError(
                f"{name}: input {node.name!r} is {kind}; export the model with float32 tensors"
            )
        declared.append([d if isinstance(d, int) else None for d in value.shape])
    return declared


def _refuse_unsupported(program: Any, name: str) -> None:
    known = ExportedProgramImporter().create_convert_map()
    missing = [
        (node.target.__name__, _place(node))
        for node in program.graph.nodes
        if node.op == "call_function" and node.target.__name__ not in known
    ]
    if missing:
        raise UnsupportedOperatorError(name, missing)


def _place(node: Any) -> str:
    """Return the module's path that the node comes from, or the node's name."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((entry[0] for entry in reversed(list(stack.values())) if entry[0]), "")
    return f"{path}.{node.name}" if path else str(node.name)


def _weights(program: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, tensor in {**program.state_dict, **program.constants}.items():
        if isinstance(tensor, torch.Tensor) and tensor.dim() >= 2 and tensor.is_floating_point():
            yield name, tensor.detach().cpu().float().numpy()
