"""The method works on a pretrained network: quantized residuals recover what holding loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resq_tvm.clips import PreparedClip
from resq_tvm.evaluate.judge import judge, predict
from resq_tvm.evaluate.metrics import LandmarkError
from resq_tvm.network import load
from resq_tvm.processing.config import LandmarksTask
from resq_tvm.processing.postprocess import Landmarks, landmarks
from resq_tvm.processing.preprocess import Preprocessor
from resq_tvm.processing.presets import PRESETS
from resq_tvm.quantize.calibrate import calibrate
from resq_tvm.reference.executor import Executor
from resq_tvm.reference.session import ReferenceSession
from resq_tvm.video.clip import FrameRange
from resq_tvm.video.source import open_clip
from tests.data import data_path


@pytest.mark.slow
def test_eight_bit_residuals_recover_the_pose_of_a_walking_person() -> None:
    model, video = data_path("models/blazepose_full.tflite"), data_path("clips/vtest.avi")
    net = load(model)
    clip = open_clip(str(video)).select(FrameRange(400, 416), (160, 240, 160, 160))
    preset = PRESETS["blazepose"]
    task = preset.task
    assert isinstance(task, LandmarksTask)
    frames = list(
        PreparedClip(clip, Preprocessor(preset.input, net.inputs[0].shape, net.inputs[0].layout))
    )

    def points(outputs: tuple[np.ndarray, ...]) -> Landmarks:
        return landmarks(task, outputs)

    exact = Executor(net.module["main"], watch=())
    truth = [points([y.numpy() for y in exact(torch.from_numpy(f))]) for f in frames]
    error = LandmarkError([t.points for t in truth], [t.visible for t in truth])
    qnet = calibrate(net, [frames], "W8A8->W8A8", period=8, samples=8, candidates=10)
    frame, scheme = (
        [p.points for p in predict(ReferenceSession(qnet, period=period), frames, points)]
        for period in (1, 8)
    )
    judged = judge(frame, scheme, 8, error)
    assert judged.residual.counts
    assert judged.residual.recovery is not None and judged.residual.recovery > 0.85
