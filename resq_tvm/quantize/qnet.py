"""A calibrated network, and what can be changed of it without calibrating anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import tvm

from resq_tvm.errors import ConfigError
from resq_tvm.network import Network
from resq_tvm.passes.policy import is_dynamic
from resq_tvm.quantize.qnet_files import read_folder, write_folder


@dataclass(frozen=True)
class QuantizedNetwork:
    """A network with precisions and scales: what `resq_tvm.calibrate` returns.

    Parameters
    ----------
    network : Network
        Its ``main`` carries the attributes ``resq.layers``, ``resq.scales``, ``resq.options``.
    scheme : str
        The scheme that was asked for, e.g. ``"W8A8->W4A4"``.
    """

    network: Network
    scheme: str

    @property
    def module(self) -> tvm.IRModule:
        """The Relax module with the annotated float ``main``."""
        return self.network.module

    @property
    def layers(self) -> dict[str, str]:
        """Layer → scheme string or ``"float"``."""
        return self._attribute("resq.layers")

    @property
    def scales(self) -> dict[str, dict[str, float]]:
        """Program → quantizer name → scale."""
        return self._attribute("resq.scales")

    @property
    def options(self) -> dict[str, Any]:
        """``granularity``, ``residual`` (``"pairwise"`` or ``"recurrent"``), ``period``."""
        return self._attribute("resq.options")

    @property
    def dynamic(self) -> dict[str, Any] | None:
        """``choices`` and ``gates`` of a scheme with pools of bits (`resq_tvm.passes.policy`)."""
        return self._attribute("resq.dynamic") if is_dynamic(self.module["main"]) else None

    @property
    def period(self) -> int:
        """A keyframe every this many frames."""
        return int(self.options["period"])

    def with_tile_budget(self, budget: float | None) -> QuantizedNetwork:
        """Return the network with a bound on the tiles that residual frames compute.

        Parameters
        ----------
        budget : float or None
            Share of the 8 × 8 blocks of any value's residual that is kept at most, the strongest
            of every frame; None: no bound.

        Raises
        ------
        ConfigError
            If the budget is not within ``(0, 1]`` or the scheme has no pools of bits.
        """
        check_tile_budget(budget, self.scheme, self.dynamic is not None)
        return self._with_dynamic(budget=budget)

    def with_held_outputs(self, names: Sequence[str]) -> QuantizedNetwork:
        """Return the network with outputs that are computed on keyframes alone.

        Residual frames answer with the keyframe's, and do none of the work that only these outputs
        need.

        Parameters
        ----------
        names : sequence of str
            Of `network.outputs`; none: every frame computes all outputs.

        Raises
        ------
        ConfigError
            If there is no such output, no other one is left, or the scheme has no pools of bits.
        """
        known = [output.name for output in self.network.outputs]
        check_held_outputs(names, known, self.scheme, self.dynamic is not None)
        return self._with_dynamic(held=[n for n, name in enumerate(known) if name in names])

    def _with_dynamic(self, **changes: Any) -> QuantizedNetwork:
        text = json.dumps({**(self.dynamic or {}), **changes})
        main = self.module["main"].with_attr("resq.dynamic", text)
        return replace(self, network=replace(self.network, module=tvm.IRModule({"main": main})))

    def _attribute(self, key: str) -> Any:
        return json.loads(str(self.module["main"].attrs[key]))

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the folder ``path`` atomically and return its path.

        Raises
        ------
        OutputError
            If it cannot be written, or ``path`` is something else than a ``.qnet`` folder.
        """
        return write_folder(self.network, self.scheme, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> QuantizedNetwork:
        """Read a folder that `save` wrote.

        Raises
        ------
        ArtifactError
            If something is missing, of another version, or not what was written.
        """
        return cls(*read_folder(path))


def check_tile_budget(budget: float | None, scheme: str, dynamic: bool) -> None:
    """Raise `ConfigError` if the budget is not within ``(0, 1]`` or the scheme has no pool."""
    if not dynamic:
        raise ConfigError(
            f"a tile budget needs a scheme with a pool of bits, this one is {scheme!r}; "
            "calibrate with for example W8A8->W8A{0,8}"
        )
    if budget is not None and not 0 < budget <= 1:
        raise ConfigError(f"tile budget {budget} is out of range; use a share up to 1")


def check_held_outputs(
    names: Sequence[str], known: Sequence[str], scheme: str, dynamic: bool
) -> None:
    """Raise `ConfigError` if outputs of these names cannot be held."""
    if not dynamic:
        raise ConfigError(
            f"holding outputs needs a scheme with a pool of bits, this one is {scheme!r}; "
            "calibrate with for example W8A8->W8A{0,8}"
        )
    for name in names:
        if name not in known:
            raise ConfigError(f"output {name!r} is none of the network's; use {', '.join(known)}")
    if set(names) >= set(known):
        raise ConfigError(
            f"all outputs ({', '.join(known)}) would be held; leave one that frames compute"
        )
