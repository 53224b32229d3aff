"""The model that comes with the program: whole, small enough, better than what it is given."""

import io

import cv2
import numpy as np
import pytest
import skimage.data
import skimage.metrics
import torch

from jobs.models import built_in_model, model_size, model_values, tell_terms
from pipeline import images
from pipeline.degradation import degrade
from pipeline.faces.align import align
from pipeline.faces.detect import DetectConfig, FaceDetector
from pipeline.replica import Bundle
from pipeline.shards import read_shard
from pipeline.tar import TarWriter
from vsp_model import checkpoints

MAX_BYTES = 12_000_000


def test_it_is_whole_small_and_says_its_terms(capsys):
    path = built_in_model()
    assert path.stat().st_size <= MAX_BYTES
    assert checkpoints.verify(path) == model_values(None)["sha256"]
    spec = Bundle.model_validate(model_values(None))
    assert model_size(spec) == 128
    tell_terms(spec)
    line = capsys.readouterr().err.strip()
    assert "research" in line
    assert "non-commercial" in line
    assert "\n" not in line
    assert (path.parent / "README.md").is_file()


def test_every_part_is_trained():
    """No part is what a seed gives: biases begin at 0 or 1, and only training moves them.

    The prior's mapping takes no part in its training, and keeps its zeros.
    """
    model = checkpoints.load(built_in_model())
    for name, part in model.named_children():
        weights = [p for n, p in part.named_parameters() if n.endswith("bias") and p.numel() > 8]
        moved = torch.cat([p.detach().flatten() for p in weights])
        assert ((moved != 0) & (moved != 1)).float().mean() > 0.8, name


@pytest.fixture(scope="module")
def portrait():
    """A public-domain face that is in no training set here."""
    photo = skimage.data.astronaut()
    return align(photo, FaceDetector(DetectConfig()).find(photo)[0].points, 128)


def test_a_degraded_face_comes_out_closer_to_the_truth(vsp, tmp_path, portrait):
    keys = [f"portrait-{n}" for n in range(6)]
    lq = [degrade(portrait, key, 0, 128) for key in keys]
    file = io.BytesIO()
    writer = TarWriter(file)
    for key, face in zip(keys, lq, strict=True):
        writer.add(f"{key}.png", images.encode(face, "png"))
    writer.finish()
    (tmp_path / "lq.tar").write_bytes(file.getvalue())
    code, _, err = vsp("restore", tmp_path / "lq.tar", tmp_path / "out", "--pool", "local",
                       "--threads", 1)  # fmt: skip
    assert code == 0
    assert err.count("non-commercial") == 1
    restored = [
        cv2.imdecode(np.frombuffer(sample.members[0].data, np.uint8), cv2.IMREAD_COLOR_RGB)
        for sample in read_shard(str(tmp_path / "out" / "lq.tar"))
    ]

    def quality(faces):
        scores = [
            skimage.metrics.structural_similarity(face, portrait, channel_axis=2) for face in faces
        ]
        return float(np.mean(scores))

    assert len(restored) == len(lq)
    assert quality(restored) > quality(lq) + 0.02
