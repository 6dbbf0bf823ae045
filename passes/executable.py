"""From virtual-machine code to an executable: programs as machine code, and once more as bytecode.

The virtual machine takes about a microsecond to dispatch a kernel from bytecode, most of it for the
items of tuples; machine code that makes the same calls takes half of that. It cannot be
instrumented, so that every program is there a second time, as bytecode, under another name: a
session runs that one while it is observed.

On ARM both are bytecode: LLVM would inline the entries of kernels into machine code, and an
emulated board tells by them which kernel takes how many cycles.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax import vm_build

OBSERVED = "_observed"  # what bytecode adds to the name of a program


def link(mod: tvm.IRModule, machine: tvm.target.Target, *, bytecode: bool = False) -> Any:
    """Return the executable of a module that the Relax passes have lowered.

    Parameters
    ----------
    mod : IRModule
        Programs and kernels; programs must not call each other.
    machine : tvm.target.Target
        What code is generated for.
    bytecode : bool
        Leave programs in bytecode.
    """
    # `tvm.relax.build` generates either machine code or bytecode.
    builder = relax.ExecBuilder()
    vm_build._vmcodegen(builder, _renamed(mod), "bytecode")
    rest = vm_build._vmcodegen(builder, mod, "bytecode" if bytecode else "compiled")
    kernels = {v: f for v, f in rest.functions.items() if isinstance(f, tvm.tirx.PrimFunc)}
    return vm_build._vmlink(
        builder, machine, tir_mod=tvm.IRModule(kernels, attrs=rest.attrs), tir_pipeline="default"
    )


def _renamed(mod: tvm.IRModule) -> tvm.IRModule:
    """Return a module whose programs have the names of observed ones."""
    functions = {}
    for var, function in mod.functions.items():
        if isinstance(function, relax.Function):
            name = f"{var.name_hint}{OBSERVED}"
            var = tvm.ir.GlobalVar(name)
            function = function.with_attr("global_symbol", name)
        functions[var] = function
    return tvm.IRModule(functions, attrs=mod.attrs)
