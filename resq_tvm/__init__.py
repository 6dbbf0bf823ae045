"""resq-tvm: a compiler for Residual Quantization of video networks.

The public names are loaded on first use, so that ``import resq_tvm`` (and ``resq-tvm --help``)
stays light: tvm and torch are imported only by the work that needs them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout the rooms `passes/`, `schedules/` and `targets/` lie beside this package; an
# installed wheel has them inside it. Appending the checkout's root makes both import alike.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and str(_ROOT) not in __path__:
    __path__.append(str(_ROOT))

_PUBLIC = {
    "load": "resq_tvm.network",
    "Network": "resq_tvm.network",
    "calibrate": "resq_tvm.quantize.calibrate",
    "fit_thresholds": "resq_tvm.quantize.thresholds",
    "QuantizedNetwork": "resq_tvm.quantize.qnet",
    "compile": "resq_tvm.compiler",
    "Artifact": "resq_tvm.artifact",
    "Session": "resq_tvm.session",
    "KeyframePolicy": "resq_tvm.keyframes",
    "benchmark": "resq_tvm.bench",
    "tune": "resq_tvm.tuning",
}

if TYPE_CHECKING:
    from resq_tvm.artifact import Artifact
    from resq_tvm.bench import benchmark
    from resq_tvm.compiler import compile
    from resq_tvm.keyframes import KeyframePolicy
    from resq_tvm.network import Network, load
    from resq_tvm.quantize.calibrate import calibrate
    from resq_tvm.quantize.qnet import QuantizedNetwork
    from resq_tvm.quantize.thresholds import fit_thresholds
    from resq_tvm.session import Session
    from resq_tvm.tuning import tune

__all__ = [
    "Artifact",
    "KeyframePolicy",
    "Network",
    "QuantizedNetwork",
    "Session",
    "__version__",
    "benchmark",
    "calibrate",
    "compile",
    "fit_thresholds",
    "load",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it, on first use."""
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'resq_tvm' has no attribute {name!r}")
