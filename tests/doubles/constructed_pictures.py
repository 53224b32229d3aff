"""What a constructed set is made of beside plain faces: copies, damaged files, what is no face."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import simplejpeg
import skimage.data
import torch

from pipeline import images
from pipeline.images import Pixels
from pipeline.shards import read_shard
from vsp_model import checkpoints

Draw = np.random.Generator
PRIOR = Path(__file__).parents[2] / "vsp_model" / "weights" / "vspbfr-128.safetensors"
NO_FACES = (
    "brick", "cell", "clock", "coffee", "coins", "colorwheel", "grass", "gravel", "horse",
    "hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "text",
)  # fmt: skip
TRUNCATION = 0.5  # of the codes: fewer odd faces


@dataclass(frozen=True, eq=False)
class Source:
    """One photo of one person.

    Attributes:
        key: Of the photo.
        data: Its file.
        facts: source, licence, author, and points where they are known.
        person: Who it is: photos of one person share it.
    """

    key: str
    data: bytes
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    person: str = ""

    @property
    def pixels(self) -> Pixels:
        """(S, S, 3) uint8 RGB."""
        return images.decode(self.data)[1]


def shared_faces(folder: Path) -> list[Source]:
    """The faces of `faces-train`, 128 x 128, in the order of their shards."""
    found = []
    for path in sorted((folder / "data" / "faces-train").glob("*.tar")):
        for sample in read_shard(str(path)):
            image, text = sample.image, sample.members[-1]
            assert image
            known = json.loads(text.data)
            facts = {
                "source": known["repo"],
                "licence": known["licence"],
                "author": known["path"],
                "landmarks5": known["landmarks5"],
                "age": known["labels"].get("age"),
            }
            found.append(Source(sample.key, image.data, facts, sample.key))
    return found


@torch.inference_mode()
def drawn_faces(count: int, seed: int) -> list[Source]:
    """Faces of nobody, 64 x 64, drawn by the built-in model's prior; and the astronaut."""
    prior = checkpoints.load(PRIOR).prior.eval()
    stream = torch.Generator().manual_seed(seed)
    width, slots = prior.config.style_dim, prior.config.num_slots
    codes = prior.mapping(torch.randn(count, width, generator=stream))
    centre = prior.mapping(torch.randn(512, width, generator=stream)).mean(dim=0)
    codes = centre + TRUNCATION * (codes - centre)
    pictures = [
        picture
        for part in codes.split(32)
        for picture in images.to_uint8(prior(part[:, None].expand(-1, slots, -1), image=True).image)
    ]
    facts = {"source": "drawn by the built-in prior", "licence": "none needed", "author": "nobody"}
    drawn = [
        Source(f"drawn{n:04}", images.encode(picture, "jpeg"), facts, f"drawn{n:04}")
        for n, picture in enumerate(pictures)
    ]
    return [astronaut(), *drawn]


def astronaut(size: int = 128) -> Source:
    """Eileen Collins, by NASA: public domain."""
    whole = skimage.data.astronaut()[0:220, 115:335]
    facts = {"source": "scikit-image", "licence": "public domain", "author": "NASA"}
    return Source("astronaut", images.encode(images.resize(whole, size), "jpeg"), facts, "collins")


# ------------------------------------------------------------------------------------- copies


def recompressed(source: Source, draw: Draw) -> bytes:
    """JPEG of quality 30 to 95."""
    quality = int(draw.integers(30, 96))
    return simplejpeg.encode_jpeg(source.pixels, quality=quality, colorsubsampling="420")


def resized(source: Source, draw: Draw) -> bytes:
    """Half its size to the whole."""
    pixels = source.pixels
    return images.encode(images.resize(pixels, round(len(pixels) * draw.uniform(0.5, 1))), "jpeg")


def cropped(source: Source, draw: Draw) -> bytes:
    """Up to 5 % of its side cut off, anywhere."""
    return images.encode(_cropped(source.pixels, draw), "jpeg")


def _cropped(pixels: Pixels, draw: Draw) -> Pixels:
    size = len(pixels)
    side = round(size * draw.uniform(0.95, 0.99))
    top, left = draw.integers(0, size - side + 1, 2)
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def lightened(source: Source, draw: Draw) -> bytes:
    """Gamma 0.7 to 1.4."""
    return images.encode(_lightened(source.pixels, draw), "jpeg")


def _lightened(pixels: Pixels, draw: Draw) -> Pixels:
    table = np.rint(255 * (np.arange(256) / 255) ** draw.uniform(0.7, 1.4)).astype(np.uint8)
    return table[pixels]


def reworked(source: Source, draw: Draw) -> bytes:
    """All four: cropped, lightened, made smaller, compressed."""
    pixels = _lightened(_cropped(source.pixels, draw), draw)
    pixels = images.resize(pixels, round(len(pixels) * draw.uniform(0.5, 1)))
    quality = int(draw.integers(30, 96))
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")


NEAR: Mapping[str, Callable[[Source, Draw], bytes]] = {
    "jpeg": recompressed, "resize": resized, "crop": cropped, "gamma": lightened, "all": reworked,
}  # fmt: skip


def mirrored(source: Source) -> bytes:
    """Its mirror image."""
    return images.encode(np.ascontiguousarray(source.pixels[:, ::-1]), "jpeg")


# --------------------------------------------------------------------------- what is no face


def no_face(number: int, draw: Draw, size: int) -> tuple[str, bytes]:
    """Name and file of a piece of a texture, of an object, or of noise."""
    name = (*NO_FACES, "noise", "clouds")[number % (len(NO_FACES) + 2)]
    if name == "noise":
        pixels = draw.integers(0, 256, (size, size, 3), np.uint8)
    elif name == "clouds":
        coarse = draw.integers(0, 256, (6, 6, 3), np.uint8)
        pixels = np.asarray(
            cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8
        )
    else:
        pixels = _piece(getattr(skimage.data, name)(), draw, size)
    return name, images.encode(pixels, "jpeg")


def _piece(whole: np.ndarray, draw: Draw, size: int) -> Pixels:
    if whole.dtype == bool:
        whole = whole.astype(np.uint8) * 255
    if whole.ndim == 2:
        whole = np.repeat(whole[:, :, None], 3, axis=2)
    side = int(draw.integers(min(size, *whole.shape[:2]), min(whole.shape[:2]) + 1))
    top, left = (int(draw.integers(0, length - side + 1)) for length in whole.shape[:2])
    return images.resize(
        np.ascontiguousarray(whole[top : top + side, left : left + side, :3]), size
    )


def side_by_side(one: Source, other: Source) -> bytes:
    """Two faces in one crop, each at seven eighths of its size."""
    size = min(len(one.pixels), len(other.pixels))
    halves = []
    for each in (one, other):
        small = images.resize(each.pixels, size * 7 // 8)
        left = (len(small) - size // 2) // 2
        halves.append(small[:, left : left + size // 2])
    both = np.concatenate(halves, axis=1)
    beyond = size - len(both)
    whole = cv2.copyMakeBorder(both, beyond // 2, beyond - beyond // 2, 0, 0, cv2.BORDER_REFLECT)
    return images.encode(np.asarray(whole, np.uint8), "jpeg")


def broken(source: Source, number: int, draw: Draw) -> tuple[str, bytes]:
    """Kind and bytes of a file that cannot be used: cut short, or no image at all."""
    kind = ("cut", "text", "cut", "zeros", "chance", "cut", "empty")[number % 7]
    if kind == "cut":
        return kind, source.data[: int(len(source.data) * draw.uniform(0.05, 0.9))]
    if kind == "text":
        return kind, b"<html><body>404: this image is no longer here</body></html>"
    return kind, {"zeros": bytes(4096), "chance": draw.bytes(4096), "empty": b""}[kind]
