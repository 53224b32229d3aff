"""What the quality network is fitted on: public-domain pictures under damage of known severity."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data as skimage_data

from pipeline.cleaning.quality.damage import TRAINED, Kind, damage, severity_of
from pipeline.errors import UserError
from pipeline.images import Pixels, decode, encode, new_batch, resize, to_model
from pipeline.training.ahead import run_ahead
from vsp_model.quality import SIZES, Calibration, QualityInfo, QualityNet
from vsp_model.randomness import generator_for
from vsp_model.train.quality import QualityBatch, QualityTrainConfig, train

Faces = Mapping[str, Pixels]
PICTURES = ("astronaut", "chelsea", "coffee", "rocket")
"""Of scikit-image, which come with it: NASA's and SpaceX's public-domain photographs, CC0."""
HELD_OUT_SHARE = 5
"""One face in so many is never trained on: for the calibration and for what is claimed."""
NUM_KNOTS = 101
MIN_FACES = 20
_KINDS_A_LEVEL = 3  # of the calibration

_SIZE_SHARE = (0.12, 0.23, 0.65)  # of the batches, by SIZES
_PICTURE_SHARE = 0.12
_CLEAN_SHARE, _SINGLE_SHARE = 0.2, 0.5  # the rest is mixed
_VARIANTS = 4  # of one face in a batch, so that ranking compares what differs in damage alone
_BLURS: tuple[Kind, ...] = ("blur", "defocus", "reduction", "sharpen")
_NOISES: tuple[Kind, ...] = ("noise", "grain")


def is_held_out(key: str) -> bool:
    """Whether a face is kept out of training; follows from its key alone."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


def split(faces: Faces) -> tuple[dict[str, Pixels], dict[str, Pixels]]:
    """Faces to train on, and faces held out.

    Raises:
        UserError: If there are too few of either.
    """
    held_out = {key: face for key, face in faces.items() if is_held_out(key)}
    trained = {key: face for key, face in faces.items() if key not in held_out}
    if len(trained) < MIN_FACES or len(held_out) < MIN_FACES // HELD_OUT_SHARE:
        raise UserError(
            f"{len(faces)} faces: too few; give at least {2 * MIN_FACES}, clean, of 128 pixels"
        )
    return trained, held_out


# ------------------------------------------------------------------------------------ training


def batches(faces: Faces, config: QualityTrainConfig) -> Iterator[QualityBatch]:
    """Batches for the whole run; each follows from the seed and its number alone."""
    pictures = _pictures()

    def jobs() -> Generator[list[Callable[[], QualityBatch]], None, None]:
        for number in range(config.num_steps):
            yield [partial(_batch, faces, pictures, config, number)]

    for (batch,) in run_ahead(jobs(), threads=1, ahead=3):
        yield batch


def _batch(
    faces: Faces, pictures: Sequence[Pixels], config: QualityTrainConfig, number: int
) -> QualityBatch:
    keys = sorted(faces)
    stream = generator_for(config.seed, f"{number}", "quality batch")
    size = SIZES[int(stream.choice(len(SIZES), p=_SIZE_SHARE))]
    batch, severity = new_batch(config.batch_size, size), torch.zeros(config.batch_size)
    for slot in range(config.batch_size):
        if slot % _VARIANTS == 0:
            clean = _clean(faces, keys, pictures, size, stream)
        face, amount = _damaged(clean, stream, config.seed, f"{number}/{slot}")
        to_model(np.ascontiguousarray(face), batch, slot)
        severity[slot] = amount
    return QualityBatch(batch, severity)


def _pictures() -> list[Pixels]:
    return [np.ascontiguousarray(getattr(skimage_data, name)()[:, :, :3]) for name in PICTURES]


def _clean(
    faces: Faces,
    keys: Sequence[str],
    pictures: Sequence[Pixels],
    size: int,
    stream: np.random.Generator,
) -> Pixels:
    """A clean picture at a side: a face, or a part of another picture; toned at random."""
    if stream.random() < _PICTURE_SHARE:
        whole = pictures[int(stream.integers(len(pictures)))]
        side = int(stream.integers(int(1.5 * size), min(whole.shape[:2]) + 1))
        top, left = (int(stream.integers(length - side + 1)) for length in whole.shape[:2])
        picture = whole[top : top + side, left : left + side]
    else:
        picture = faces[keys[int(stream.integers(len(keys)))]]
    picture = resize(picture, size)
    return _toned(picture[:, ::-1] if stream.random() < 0.5 else picture, stream)


def _toned(picture: Pixels, stream: np.random.Generator) -> Pixels:
    """Other light, contrast, colours; a camera's mild sharpening or softness: no damage."""
    gamma, gain, shift = (
        stream.uniform(0.65, 1.5),
        stream.uniform(0.7, 1.3),
        stream.uniform(-12, 12),
    )
    colour, casts, amount = stream.uniform(0.3, 1.3), stream.normal(0, 4, 3), stream.random()
    gray, plain = stream.random() < 0.12, stream.random() < 0.3
    if plain:
        return np.ascontiguousarray(picture)
    x = 255 * (picture.astype(np.float32) / 255) ** np.float32(gamma)
    luma = (x @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    x = luma + (0 if gray else colour) * (x - luma) + (0 if gray else casts)
    x = 128 + gain * (x - 128) + shift
    x = x.astype(np.float32)
    if amount < 0.4:
        x += np.float32(amount) * (x - cv2.GaussianBlur(x, (0, 0), 0.8))
    elif amount < 0.5:
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), amount - 0.15), np.float32)
    toned: Pixels = np.clip(np.rint(x), 0, 255).astype(np.uint8)
    return toned


def _damaged(
    clean: Pixels, stream: np.random.Generator, seed: int, key: str
) -> tuple[Pixels, float]:
    """A damaged copy and its severity: nothing, one kind, or two or three in a row."""
    kind = TRAINED[int(stream.integers(len(TRAINED)))]
    choice, amount, stored = stream.random(), float(stream.random()), stream.random()
    mixed = _mixture(stream)
    if choice < _CLEAN_SHARE:
        face, severity = clean, 0.0
    elif choice < _CLEAN_SHARE + _SINGLE_SHARE:
        face, severity = damage(clean, kind, amount, seed=seed, key=key), amount
    else:
        face = clean
        for each, share in mixed:
            face = damage(face, each, share, seed=seed, key=f"{key}/{each}")
        severity = severity_of(face, clean)
    if stored < 0.3:  # as shards store faces
        face = decode(encode(np.ascontiguousarray(face), "jpeg"))[1]
    return face, severity


def _mixture(stream: np.random.Generator) -> list[tuple[Kind, float]]:
    """Kinds in the order in which a camera, a web site and a scan would add them."""
    blur = _BLURS[int(stream.integers(len(_BLURS)))]
    noise = _NOISES[int(stream.integers(len(_NOISES)))]
    wanted: tuple[Kind, ...] = (blur, noise, "jpeg")
    amounts = stream.random(3) ** 0.8
    left_out = int(stream.integers(6))  # 3 and above: all three
    pairs = zip(wanted, amounts.tolist(), strict=True)
    return [pair for number, pair in enumerate(pairs) if number != left_out]


# --------------------------------------------------------------------------------- calibration


def calibrate(net: QualityNet, held_out: Faces, *, seed: int = 0) -> dict[int, Calibration]:
    """Severities of the reference population at even shares, by side.

    The population: every held-out face undamaged, and at each of the severities 0.1, 0.2 ... 1 by
    three of the trained kinds in turn; each severity counts alike, so that quality falls about
    evenly with it.
    """
    found = {}
    for size in SIZES:
        severities = [
            predicted
            for number, (key, face) in enumerate(sorted(held_out.items()))
            for predicted in _severities(net, resize(face, size), number, seed, key)
        ]
        knots = np.quantile(severities, np.linspace(0, 1, NUM_KNOTS))
        found[size] = Calibration(knots=tuple(_rising(knots)))
    return found


def _severities(net: QualityNet, face: Pixels, number: int, seed: int, key: str) -> list[float]:
    copies = [face]
    for level in range(1, 11):
        for turn in range(_KINDS_A_LEVEL):
            kind = TRAINED[(number + level + 3 * turn) % len(TRAINED)]
            copies.append(damage(face, kind, level / 10, seed=seed, key=key))
    told = predict(net, copies)
    return told[:1] * _KINDS_A_LEVEL + told[1:]


def predict(net: QualityNet, faces: Sequence[Pixels]) -> list[float]:
    """Severities of faces of one side, which is one of `SIZES`."""
    batch = new_batch(len(faces), faces[0].shape[0])
    for slot, face in enumerate(faces):
        to_model(np.ascontiguousarray(face), batch, slot)
    with torch.inference_mode():
        told: list[float] = net(batch).tolist()
    return told


def _rising(values: NDArray[np.float64]) -> list[float]:
    """Strictly ascending, equal neighbours moved by as little as matters to nobody."""
    out = [round(float(values[0]), 6)]
    for value in values[1:]:
        out.append(max(round(float(value), 6), round(out[-1] + 1e-6, 6)))
    return out


# ----------------------------------------------------------------------------------- the whole


def fit(
    faces: Faces,
    config: QualityTrainConfig,
    on_step: Callable[[int, dict[str, float], QualityNet], None] = lambda step, terms, net: None,
    start: QualityNet | None = None,
) -> tuple[QualityNet, QualityInfo]:
    """Train on most faces, calibrate on the held-out ones.

    Args:
        faces: Clean faces by key, uint8 (S, S, 3) RGB, at least 128 pixels.
        config: How to train.
        on_step: Told each step's number, losses and the network so far.
        start: Weights to begin with; None for random ones.

    Raises:
        UserError: If there are too few faces.
    """
    trained, held_out = split(faces)
    net = train(batches(trained, config), config, on_step, start)
    facts = {
        "trained_on": len(trained),
        "calibrated_on": len(held_out),
        "pictures": list(PICTURES),
        "kinds": list(TRAINED),
        "training": config.model_dump(mode="json"),
    }
    calibration = calibrate(net, held_out, seed=config.seed)
    return net, QualityInfo(config=config.net, calibration=calibration, facts=facts)
