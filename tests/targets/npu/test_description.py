from __future__ import annotations

import json
import re

import pytest

from resq_tvm.errors import TargetError
from resq_tvm.targets.npu.description import PRESET_FOLDER, Npu, preset_npus, read_npu
from tests.targets.npu.programs import plain_npu


def written(tmp_path, change):
    """Write npu-micro with a change and return the file."""
    data = json.loads((PRESET_FOLDER / "micro.json").read_text())
    change(data)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(data))
    return file


def test_presets_are_named_as_their_files():
    npus = preset_npus()
    assert {"npu-mobile", "npu-micro", "npu-uniform"} <= set(npus)
    for name, npu in npus.items():
        assert npu.name == name
        assert (PRESET_FOLDER / f"{name.removeprefix('npu-')}.json").is_file()
        assert npu.about


def test_presets_differ_in_what_low_precision_gives():
    npus = preset_npus()
    mobile, uniform = npus["npu-mobile"], npus["npu-uniform"]
    assert mobile.precision(4, 4)[1] > mobile.precision(4, 8)[1] > mobile.precision(8, 8)[1]
    assert uniform.precision(4, 4) == uniform.precision(2, 2) == ("W8A8", 1.0)


def test_a_file_of_the_user_round_trips(tmp_path):
    npu = plain_npu()
    file = tmp_path / "mine.json"
    file.write_text(npu.model_dump_json())
    assert read_npu(file) == npu
    assert hash(read_npu(file)) == hash(npu)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ((8, 8), ("W8A8", 1.0)),
        ((4, 8), ("W4A8", 1.0)),
        ((5, 3), ("W8A4", 1.0)),
        ((4, 4), ("W4A4", 2.0)),
        ((3, 4), ("W4A4", 2.0)),
        ((2, 2), ("W2A2", 4.0)),
        ((2, 3), ("W4A4", 2.0)),
    ],
)
def test_the_fastest_pair_that_is_wide_enough(bits, expected):
    assert preset_npus()["npu-micro"].precision(*bits) == expected


def test_storage_is_whole_codes_per_byte():
    npu = plain_npu()
    assert [npu.storage_bits(b) for b in range(1, 9)] == [2, 2, 4, 4, 8, 8, 8, 8]


def set_in(path, value):
    def change(data):
        *parents, last = path
        for parent in parents:
            data = data[parent]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in(["matrix", "pixels"], 0), r"matrix\.pixels is wrong"),
        (set_in(["matrix", "rates"], {"W8A8": 1, "W9A8": 1}), r"matrix\.rates is wrong.*'W9A8'"),
        (set_in(["matrix", "rates"], {"W4A4": 1}), r"matrix\.rates is wrong.*'W8A8' is missing"),
        (set_in(["matrix", "rates"], {"W8A8": 0}), r"matrix\.rates is wrong.*not above 0"),
        (set_in(["vector", "functions"], {"cbrt": 1}), r"vector\.functions is wrong.*'cbrt'"),
        (set_in(["vector", "operators"], ["fly"]), r"vector\.operators is wrong.*'fly'"),
        (set_in(["dram", "bytes_per_second"], -1), r"dram\.bytes_per_second is wrong"),
        (set_in(["dram", "colour"], "red"), r"dram\.colour is wrong"),
        (set_in(["clock_hz"], "fast"), "clock_hz is wrong"),
        (set_in(["name"], "mine"), "name is wrong"),
        (set_in(["format_version"], 9), "format_version is wrong.*9 is not 1"),
        (lambda data: data.pop("sram"), r"sram is wrong: Field required"),
    ],
)
def test_wrong_files_name_the_parameter(tmp_path, change, message):
    file = written(tmp_path, change)
    with pytest.raises(TargetError, match=f"mine.json': {message}") as error:
        read_npu(file)
    assert "docs/npu.md" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(TargetError, match="cannot be read"):
        read_npu(tmp_path / "nowhere.json")
    file = tmp_path / "text.json"
    file.write_text("{")
    with pytest.raises(TargetError, match="is not JSON"):
        read_npu(file)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(TargetError, match="is not JSON"):
        read_npu(file)
    file.write_text("[1]")
    with pytest.raises(TargetError, match="the file is wrong"):
        read_npu(file)


def test_every_parameter_is_documented():
    from pathlib import Path

    docs = Path(__file__).parents[3] / "docs" / "npu.md"
    text = docs.read_text(encoding="utf-8")
    section = text[text.index("## Machine parameters") :]
    for part in ("matrix", "vector", "sram", "dram", "commands", "host"):
        for name in Npu.model_fields[part].annotation.model_fields:
            assert re.search(rf"`{part}\.{name}`", section), f"{part}.{name}"
