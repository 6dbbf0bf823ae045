"""Ready-made processing configurations of well-known networks."""

from __future__ import annotations

from resq_tvm.processing.config import (
    InputConfig,
    LandmarksTask,
    ProcessingConfig,
    RawTask,
    SegmentationTask,
)

_CAMVID = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("Sign", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
    ("Void", (0, 0, 0)),
)

_CITYSCAPES = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

# Limbs and torso; the face's points are drawn without lines.
_POSE_EDGES = (
    (11, 12), (11, 13), (13, 15), (12, 14), (14, 16), (11, 23), (12, 24), (23, 24),
    (23, 25), (25, 27), (27, 31), (24, 26), (26, 28), (28, 32), (27, 29), (28, 30),
)  # fmt: skip

PRESETS: dict[str, ProcessingConfig] = {
    # ESPNet (Mehta et al. 2018) as trained: normalise in 0..255, then divide by 255.
    "espnet_camvid": ProcessingConfig(
        input=InputConfig(
            colour="BGR",
            mean=(110.33, 108.41, 105.03),
            std=(72.13, 72.69, 69.90),
            scale=1 / 255,
        ),
        task=SegmentationTask(
            classes=tuple(name for name, _ in _CAMVID),
            palette=tuple(colour for _, colour in _CAMVID),
            void=11,
        ),
    ),
    # 39 points: 33 of the body, 6 auxiliary; columns x, y, z, visibility, presence.
    "blazepose": ProcessingConfig(
        input=InputConfig(scale=1 / 255),
        task=LandmarksTask(count=39, dims=5, shown=33, visibility=3, edges=_POSE_EDGES),
    ),
    "face_mesh": ProcessingConfig(
        input=InputConfig(scale=1 / 255), task=LandmarksTask(count=468, dims=3)
    ),
    # DDRNet on Cityscapes with ImageNet's mean and deviation.
    "imagenet_seg": ProcessingConfig(
        input=InputConfig(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        task=SegmentationTask(
            classes=tuple(name for name, _ in _CITYSCAPES),
            palette=tuple(colour for _, colour in _CITYSCAPES),
        ),
    ),
    "raw": ProcessingConfig(input=InputConfig(scale=1 / 255), task=RawTask()),
}
