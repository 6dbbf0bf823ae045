"""The demo's verdict follows what was measured, whatever it is."""

from __future__ import annotations

import numpy as np
import pytest

from resq_tvm.demo.judge import Entry, error_unit, frame_error, verdict
from resq_tvm.evaluate.judge import hold, recovery
from resq_tvm.processing.postprocess import ClassMap, Landmarks


def points(*rows: tuple[float, float], visible: list[bool] | None = None) -> Landmarks:
    shown = np.ones(len(rows), bool) if visible is None else np.array(visible)
    return Landmarks(np.array(rows, np.float32), shown)


def test_landmark_error_counts_what_the_float_network_sees() -> None:
    wanted = points((0, 0), (10, 10), visible=[True, False])
    assert frame_error(points((3, 4), (99, 99)), wanted) == pytest.approx(5)
    assert error_unit(wanted) == "px"


def test_class_error_is_a_share_of_pixels() -> None:
    a = ClassMap(np.array([[0, 1], [2, 3]], np.uint8))
    b = ClassMap(np.array([[0, 1], [2, 0]], np.uint8))
    assert frame_error(a, b) == 25.0
    assert error_unit(a) == "% pixels"
    with pytest.raises(TypeError):
        frame_error(a, points((0, 0)))


def test_hold_repeats_keyframes() -> None:
    maps = [ClassMap(np.full((1, 1), i, np.uint8)) for i in range(7)]
    labels = [int(p.labels[0, 0]) for p in hold(maps, 3) if isinstance(p, ClassMap)]
    assert labels == [0, 0, 0, 3, 3, 3, 6]


def entries(held: float = 4.0, **rows: tuple[float, float]) -> list[Entry]:
    """Build a table from scheme name → (error, ms)."""
    framed = rows["F8"][0]

    def row(name: str, kind: str, error: float, ms: float) -> Entry:
        share = recovery(framed, held, error)
        return Entry(name, kind, error, share, 1e9, ms, np.zeros(3))

    table = [row("float", "float", 0.0, 30.0)]
    table += [
        row(name, "frame" if name.startswith("F") else "resq", *values)
        for name, values in rows.items()
    ]
    return [*table, row("hold", "hold", held, 2.0)]


def test_the_fastest_faithful_scheme_wins() -> None:
    best, reason = verdict(entries(F8=(1.0, 10.0), R88=(0.9, 8.0), R84=(1.4, 6.0), R44=(3.0, 5.0)))
    assert best.name == "R84"
    assert "recovery 0.87" in reason


def test_frame_quantization_may_win() -> None:
    best, reason = verdict(entries(F8=(1.0, 5.0), R88=(0.9, 8.0), R84=(5.0, 7.0)))
    assert best.name == "F8"
    assert "R84: no better than holding" in reason


def test_equal_times_are_decided_by_accuracy() -> None:
    best, _ = verdict(entries(F8=(1.0, 9.0), R88=(0.9, 6.05), R84=(1.5, 6.0)))
    assert best.name == "R88"


def test_a_still_clip_is_called_still() -> None:
    best, reason = verdict(entries(held=1.1, F8=(1.0, 9.0), R88=(0.9, 8.0)))
    assert best.name == "R88"
    assert "moves too little" in reason
