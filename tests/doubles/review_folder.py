"""A larger finished OUT to review: drawn faces, names that mean harm, a bias that can be found."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import simplejpeg
from report_folder import HOSTILE, face

from pipeline.cleaning.tables import MANIFEST, REVIEW, Cleaned, Decision, Entry, Inspected
from pipeline.cleaning.tables import write_manifest as write
from pipeline.ledger import Ledger
from pipeline.plan import find_shards, new_plan, shard_units
from pipeline.sidecar import Provenance
from pipeline.storage import LocalStore
from pipeline.tar import TarWriter

SIZE = 64
HOSTILE_KEYS = tuple(name.replace(".", "_").replace("/", "|") for name in HOSTILE)
# outcome, reason, fallback; what every ten records come to
FATES = (
    ("kept", "good", ""), ("kept", "not_worst", ""), ("restored", "worst", ""),
    ("fallback", "worst", "identity"), ("kept", "good", ""), ("rejected", "too_small", ""),
    ("restored", "worst", ""), ("kept", "good", ""), ("fallback", "worst", "quality_not_better"),
    ("kept", "model_too_small", ""),
)  # fmt: skip


def write_review(root: Path, num_faces: int = 130, num_shards: int = 2) -> LocalStore:
    """Make `root/in` and `root/out`; children are left out far more often than adults."""
    store = LocalStore(root / "out")
    (root / "in").mkdir(parents=True)
    for shard in range(num_shards):
        numbers = range(shard * num_faces // num_shards, (shard + 1) * num_faces // num_shards)
        _write_shard(root / "in", store, f"{shard:06d}", numbers)
    plan = new_plan(
        "clean", Provenance(0, "", "", "{}"), shard_units(find_shards(str(root / "in"))), {}
    )
    Ledger(store).save(plan)
    return store


def key_of(number: int) -> str:
    """The first records have names that mean harm."""
    return HOSTILE_KEYS[number] if number < len(HOSTILE_KEYS) else f"face{number:04d}"


def _write_shard(source: Path, store: LocalStore, shard: str, numbers: range) -> None:
    entries, before, after, aside = [], [], [], []
    for index, number in enumerate(numbers):
        pixels = face(number, SIZE)
        coarse = pixels[::4, ::4].repeat(4, 0).repeat(4, 1)
        data, restored = _jpeg(coarse), _jpeg(pixels)
        entry = _entry(shard, index, number, data)
        entries.append(entry)
        name, outcome = f"{entry.seen.key}.jpg", entry.done.outcome
        before.append((name, data))
        if outcome != "rejected":
            after.append((name, restored if outcome == "restored" else data))
        if outcome == "fallback":
            aside.append((f"{index:06d}.jpg", restored))
    (source / f"{shard}.tar").write_bytes(_tar(before))
    store.write(f"{shard}.tar", _tar(after))
    store.write(f"{REVIEW}/{shard}.tar", _tar(aside))
    manifest = io.BytesIO()
    write(manifest, entries)
    store.write(f"{MANIFEST}/{shard}.parquet", manifest.getvalue())


def _entry(shard: str, index: int, number: int, data: bytes) -> Entry:
    rng = np.random.default_rng(number)
    outcome, reason, fallback = FATES[number % len(FATES)]
    age = int(rng.integers(4, 80))
    if age < 18:  # the bias
        outcome, reason, fallback = ("rejected", "several_faces", "")
    quality = float(rng.uniform(0.05, 0.35) if reason == "worst" else rng.uniform(0.4, 1.0))
    fields = {"age": age, "gender": HOSTILE[2] if number % 2 else "female", "note": f"n{number}"}
    key = key_of(number)
    seen = Inspected(
        index, key, "inspected", member=f"{key}.jpg", sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data), width_px=SIZE, height_px=SIZE, format="jpeg", num_faces=1,
        face_score=0.93, yaw_deg=float(rng.normal(0, 18)), pitch_deg=float(rng.normal(0, 9)),
        roll_deg=1.5, sharpness=quality, noise_sigma=2.0, jpeg_quality=95, blockiness=0.1,
        exposure=float(rng.uniform(0.25, 0.7)), clipped_share=0.01, contrast=0.5,
        is_gray=bool(number % 7 == 0), native_side_px=SIZE * quality, quality=quality,
        classic=quality * 0.9, source=("album", "web", HOSTILE[0])[number % 3], licence="CC0-1.0",
        author=HOSTILE[1], person=f"person {number // 4}", fields=json.dumps(fields),
    )  # fmt: skip
    verdict = {"kept": "keep", "rejected": "reject"}.get(outcome, "restore")
    is_tried = verdict == "restore"
    detail = HOSTILE[2] if number < len(HOSTILE) else ""
    done = Cleaned(
        outcome, fallback, width_out_px=SIZE, height_out_px=SIZE,
        quality_after=0.8 if is_tried else None, classic_after=0.7 if is_tried else None,
        identity=float(rng.uniform(0.3, 0.95)) if is_tried else None,
        identity_threshold=0.45 if is_tried else None, content_change=0.1 if is_tried else None,
        num_faces_after=1 if is_tried else None, doubt=float(rng.uniform(0.2, 0.9)) * is_tried,
    )  # fmt: skip
    return Entry(
        shard, seen, Decision(index, key, verdict, reason, detail, 3 if is_tried else None), done
    )


def _jpeg(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorsubsampling="444")


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    writer = TarWriter(file)
    for name, data in members:
        writer.add(name, data)
    writer.finish()
    return file.getvalue()
