"""Holding a pass to the module that it should give."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax


def plain(mod: tvm.IRModule) -> tvm.IRModule:
    """Return the module with no attributes but main's symbol."""
    main = mod["main"]
    bare = relax.Function(main.params, main.body, main.ret_ty, is_pure=True)
    return tvm.IRModule({"main": bare.with_attr("global_symbol", "main")})


def expect(passes: Any, before: tvm.IRModule, after: tvm.IRModule) -> tvm.IRModule:
    """Apply a pass and compare with the expected module; return what the pass gave."""
    made = passes(before)
    relax.analysis.well_formed(made)
    tvm.ir.assert_structural_equal(plain(made), plain(after))
    return made
