"""The C++ runtime refuses what Python refuses, and runs nothing of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resq_tvm.artifact import Artifact
from resq_tvm.errors import ResqError
from tests.resq_tvm import tiny_artifact
from tests.resq_tvm.edge.harness import call

_LOUD = 'struct S { S() { __builtin_printf("LOADED\\n"); __builtin_exit(9); } } s;\n'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an artifact whose library tells when it is loaded, and ends the program."""
    base = tmp_path_factory.mktemp("loud")
    folder = tiny_artifact.write(base / "net.resq").path
    (base / "loud.cc").write_text(_LOUD)
    library = folder / "library.so"
    library.unlink()
    command = ["g++", "-shared", "-fPIC", str(base / "loud.cc"), "-o", str(library)]
    subprocess.run(command, check=True)
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Make the manifest tell the truth about the files again."""
    files = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in ("library.so", "params.safetensors", "kernels.json")
    }
    edit(folder, files=files)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "net.resq"))


def refused(runtime: Path, folder: Path) -> str:
    """Return why the artifact is refused; nothing of it may have run."""
    done = call([runtime / "bin" / "resq-run", folder], code=1)
    told = done.stderr.decode()
    assert done.stdout == b"" and told.count("\n") == 1, told
    return told.removeprefix("resq-run: error: ").rstrip()


def test_a_whole_artifact_is_loaded(runtime: Path, folder: Path) -> None:
    assert call([runtime / "bin" / "resq-run", folder], code=9).stdout == b"LOADED\n"


def flip(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("name", ["library.so", "params.safetensors"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_damaged_files_with_the_words_of_python(
    runtime: Path, folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / name)
    with pytest.raises(ResqError) as caught:
        Artifact.load(folder)
    assert refused(runtime, folder) == str(caught.value)


def test_missing_artifacts_with_the_words_of_python(
    runtime: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "manifest.json").unlink()
    for path in (folder, tmp_path / "absent.resq"):
        with pytest.raises(ResqError) as caught:
            Artifact.load(path)
        assert refused(runtime, path) == str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff", "3", '{"format_version": 99}'])
def test_unreadable_manifests(runtime: Path, folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    told = refused(runtime, folder)
    assert "is not readable JSON" in told or "has format version" in told


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"unknown": 1}, "unknown"),
    ({"format": "another"}, "format"),
    ({"period": 0}, "period"),
    ({"period": "4"}, "period"),
    ({"scheme": None}, "scheme"),
    ({"inputs": []}, "inputs"),
    ({"outputs": [{"name": "y", "shape": [1, -3]}]}, "outputs.0.shape.1"),
    ({"outputs": [{"name": "y", "shape": [1, 3], "layout": "NCWH"}]}, "outputs.0.layout"),
    ({"versions": {"tvm": "1", "tvm_ffi": "1"}}, "versions.resq_tvm"),
    ({"target": {"name": "t", "features": "avx2"}}, "target.features"),
    ({"target": {"name": "t", "cores": 4}}, "target.cores"),
    ({"state": [{"name": "s", "shape": [1], "dtype": "float32"}]}, "state.0.bytes"),
    ({"workspace": [{"name": "w", "shape": [1], "dtype": "int64"}]}, "workspace.0.dtype"),
    (
        {"workspace": [{"name": "w", "shape": [1], "dtype": "int8", "output": -1}]},
        "workspace.0.output",
    ),
    ({"probe": 2}, "probe"),
    ({"note": 2}, "note"),
    ({"frame_params": [1]}, "frame_params.0"),
    (
        {"state": [{"name": "s", "shape": [1], "dtype": "int8", "bytes": 1, "input": "x"}]},
        "state.0.input",
    ),
    ({"thresholds": [1]}, "thresholds.0"),
    ({"params": [{"name": "p", "shape": [3], "dtype": "float32", "x": 1}]}, "params.0.x"),
    ({"layers": [{"name": "l", "op": "conv2d"}]}, "layers.0.macs"),
    ({"kernels": [{"name": "k"}]}, "kernels.0.program"),
    ({"opaque": {"keyframe": [1]}}, "opaque.keyframe.0"),
    ({"processing": {"input": {"std": [1, 0, 1]}}}, "processing.input.std"),
    ({"processing": {"input": {"colour": "YUV"}}}, "processing.input.colour"),
    ({"files": {"library.so": {"bytes": 1, "sha256": "x"}}}, "files.library.so.sha256"),
]


@pytest.mark.parametrize(("changes", "place"), WRONG, ids=[place for _, place in WRONG])
def test_manifest_against_the_schema(
    runtime: Path, folder: Path, changes: dict[str, object], place: str
) -> None:
    edit(folder, **changes)
    if changes != {"period": "4"}:  # Python reads numbers in strings
        with pytest.raises(ResqError, match="is invalid at"):
            Artifact.load(folder)
    assert f"manifest.json is invalid at '{place}'" in refused(runtime, folder)


def test_parameters_of_the_frame_program_are_known(runtime: Path, folder: Path) -> None:
    edit(folder, frame_params=["bias", "nothing"])
    told = refused(runtime, folder)
    assert "manifest.json is invalid at 'frame_params.1': there is no parameter 'nothing'" in told


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"shape": [4]}, "bias is float32[3], the manifest says float32[4]"),
        ({"shape": [1, 3]}, "bias is float32[3], the manifest says float32[1, 3]"),
        ({"dtype": "int32"}, "bias is float32[3], the manifest says int32[3]"),
        ({"name": "other"}, "other is absent, the manifest says float32[3]"),
    ],
)
def test_parameters_against_the_manifest(
    runtime: Path, folder: Path, entry: dict[str, object], message: str
) -> None:
    edit(folder, params=[{"name": "bias", "shape": [3], "dtype": "float32", **entry}])
    assert f"parameter {message}; compile it anew" in refused(runtime, folder)


def header(text: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x01\x02",
        header("{}", 1 << 40),
        header("no JSON"),
        header('{"bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}') + b"1234",
        header('{"bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}') + b"1" * 12,
        header('{"bias": {"dtype": "F32", "shape": [3], "data_offsets": [12, 0]}}') + b"1" * 12,
        header('{"bias": {"dtype": "E99", "shape": [3], "data_offsets": [0, 12]}}') + b"1" * 12,
        header(
            '{"bias": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}'
        ),
    ],
)
def test_parameters_that_are_no_safetensors(runtime: Path, folder: Path, contents: bytes) -> None:
    (folder / "params.safetensors").write_bytes(contents)
    seal(folder)
    assert "params.safetensors is not readable (" in refused(runtime, folder)


@pytest.mark.parametrize("package", ["tvm", "tvm_ffi"])
def test_another_tvm(runtime: Path, folder: Path, package: str) -> None:
    versions = json.loads((folder / "manifest.json").read_text())["versions"]
    edit(folder, versions={**versions, package: "0.1"})
    assert f"was built with {package} 0.1, this program with" in refused(runtime, folder)


def test_a_missing_feature_with_the_words_of_python(runtime: Path, folder: Path) -> None:
    edit(folder, target={"name": "x86-quantum", "features": ["qubits", "anyons"]})
    told = refused(runtime, folder)
    assert "is for target x86-quantum; this CPU lacks anyons, qubits; compile it" in told


def test_code_of_another_machine(runtime: Path, folder: Path) -> None:
    library = bytearray((folder / "library.so").read_bytes())
    library[18:20] = struct.pack("<H", 243)  # RISC-V
    (folder / "library.so").write_bytes(library)
    seal(folder)
    assert "whose code is another machine's; this is " in refused(runtime, folder)


def test_a_library_that_is_none(runtime: Path, folder: Path) -> None:
    (folder / "library.so").write_bytes(b"nothing")
    seal(folder)
    assert "library.so cannot be loaded (" in refused(runtime, folder)


def test_a_library_without_programs(runtime: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "library.so").unlink()
    (tmp_path / "empty.cc").write_text("int nothing;\n")
    command = ["g++", "-shared", "-fPIC", str(tmp_path / "empty.cc")]
    subprocess.run([*command, "-o", str(folder / "library.so")], check=True)
    seal(folder)
    told = refused(runtime, folder)
    assert "library.so cannot be used (there is no function vm_load_executable)" in told


def test_another_library_beside_the_program(
    runtime: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = 'extern "C" void TVMFFIGetVersion(unsigned* v) { v[0] = 9; v[1] = 8; v[2] = 7; }\n'
    (tmp_path / "ffi.cc").write_text(code)
    other = tmp_path / "ffi.so"
    command = ["g++", "-shared", "-fPIC", str(tmp_path / "ffi.cc"), "-o", str(other)]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(other))
    told = refused(runtime, folder)
    assert told.startswith("libtvm_ffi.so is 9.8.7, this program was built for ")
