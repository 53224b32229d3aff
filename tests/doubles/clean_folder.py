"""A small finished OUT of a cleaning run, made without networks by the engine's own machinery.

Twelve records in two shards, every outcome among them; pictures are an astronaut's face (public
domain), turned, tinted and blurred by the record's number.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from skimage.data import astronaut

from pipeline.cleaning import decide, overrule, tables
from pipeline.cleaning.calibration.sample import Batch
from pipeline.cleaning.calibration.thresholds import CalibrateConfig, Level, Thresholds, Trial
from pipeline.cleaning.tables import Cleaned, Decision, Entry, Inspected, Private
from pipeline.commit import Attempt
from pipeline.ledger import Ledger
from pipeline.plan import Plan, Unit, find_shards, new_plan, shard_units
from pipeline.sidecar import Provenance, Row, write_sidecar
from pipeline.stage import Task
from pipeline.storage import Store, open_store
from pipeline.tar import TarWriter

SIDE_PX = 96
PRINT_BYTES = 64
MODEL_SHA256 = "ab" * 32
SOURCE = "https://photos.example/"


@dataclass(frozen=True)
class Made:
    """One record: who is on it, what was decided, what became of it."""

    shard: str
    index: int
    key: str
    person: str | None
    decision: str
    reason: str
    outcome: str
    fallback: str = ""
    copy_of: str | None = None
    level: int | None = None
    like: int | None = None  # number of the record whose bytes it has


MADE = (
    Made("000000", 0, "ann/one", "ann", "keep", "good", "kept"),
    Made("000000", 1, "ann/two", "ann", "restore", "worst", "restored", level=3),
    Made("000000", 2, "bob_one", "bob", "restore", "worst", "fallback", "identity", level=4),
    Made("000000", 3, "ann/one-small", "ann", "reject", "duplicate_near", "rejected",
         copy_of="000000/ann/one"),
    Made("000000", 4, "stone", None, "reject", "no_face", "rejected"),
    Made("000001", 0, "copied", "ann", "reject", "duplicate_exact", "rejected",
         copy_of="000000/ann/two", like=1),
    Made("000001", 1, "bob_two", "bob", "restore", "worst", "restored", level=2),
    Made("000001", 2, "stranger", "ann", "reject", "identity_outlier", "rejected"),
    Made("000001", 3, "bob_three", "bob", "keep", "not_worst", "kept"),
    Made("000001", 4, "notes", None, "keep", "no_image", "kept"),
    Made("000001", 5, "torn", None, "reject", "unusable", "rejected"),
    Made("000001", 6, "cat", "cat", "restore", "worst", "fallback", "quality_not_better", level=2),
)  # fmt: skip
SHARDS = ("000000", "000001")


@dataclass(frozen=True)
class CleanFolder:
    """What `make_clean_folder` made: IN, OUT as path or URL and as a store, OUT's plan."""

    source: Path
    out: str
    store: Store
    plan: Plan


def make_clean_folder(root: Path, out: str = "", *, keep_embeddings: bool = True) -> CleanFolder:
    """Make IN and a finished OUT of `vsp clean IN OUT`; the same bytes every time, but for times.

    IN: `<root>/in/00000{0,1}.tar`, for each record KEY.jpg (96 px) and KEY.json (source, licence,
    author, person); "notes" has no image, "torn" a broken one, "copied" the bytes of "ann/two".
    OUT, under a plan "clean" with commits: 00000x.tar and .parquet (kept, fallback: the original's
    bytes; restored: a sharper one; rejected: nothing), manifest/00000x.parquet, _vsp/review tars
    with the two faces that fell back. Below _vsp: inspect (a plan and commits of its own:
    inspected/, _vsp/records/, and _vsp/private/ with keep_embeddings), calibrate (likewise:
    _vsp/records/, _vsp/trials/ with keep_embeddings), decide (decisions/, groups.parquet,
    thresholds.json, identities.json), journals, overrule.csv with a verdict on bob_one.

    Args:
        root: Where IN is made, and OUT as `<root>/out`.
        out: Another place or URL for OUT.
        keep_embeddings: Whether the private tables stay.
    """
    source, out = root / "in", out or str(root / "out")
    source.mkdir(parents=True)
    for shard in SHARDS:
        (source / f"{shard}.tar").write_bytes(_tar(_input_members(shard)))
    store = open_store(out)
    _decide(store)
    units = [replace(unit, version=decide.version_of(store, unit.version, unit.shard))
             for unit in _units(source)]  # fmt: skip
    plan = _begin(store, "clean", units)
    for shard in SHARDS:
        _commit_cleaned(store, plan, shard)
    _inspect(open_store(f"{out}/{tables.INSPECT}"), source, keep_embeddings)
    _calibrate(open_store(f"{out}/{tables.CALIBRATE}"), source, keep_embeddings)
    overrule.save(store, {("000000", "bob_one"): "accept"})
    ledger = Ledger(store)
    ledger.note("begun", plan=plan.id, shard="000001", attempt="0", worker="local")
    ledger.note("condemned", plan=plan.id, shard="000001", index=5, reason="torn.jpg: broken")
    return CleanFolder(source, out, store, plan)


def records(shard: str) -> list[Made]:
    """The records of a shard, in order."""
    return [made for made in MADE if made.shard == shard]


def number(made: Made) -> int:
    return MADE.index(made)


def face(seed: int, side_px: int = SIDE_PX, blur_px: float = 0.0) -> np.ndarray:
    """The astronaut's face, (side, side, 3) uint8 RGB, turned and tinted by `seed`."""
    rng = np.random.default_rng(seed)
    turn = cv2.getRotationMatrix2D((224, 110), float(rng.uniform(-12, 12)), 1.0)
    turned = cv2.warpAffine(astronaut(), turn, (512, 512), flags=cv2.INTER_LINEAR)
    crop = cv2.resize(turned[15:205, 129:319], (side_px, side_px), interpolation=cv2.INTER_AREA)
    tinted = crop.astype(np.float32) * rng.uniform(0.75, 1.1, 3) + rng.normal(0, 2, crop.shape)
    pixels = np.clip(tinted, 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(pixels, (0, 0), blur_px) if blur_px else pixels


def image_of(made: Made) -> bytes | None:
    """The record's image in IN."""
    if made.key == "notes":
        return None
    seed = number(made) if made.like is None else made.like
    if made.key == "ann/one-small":
        return _jpeg(face(0, SIDE_PX // 2))
    if made.key == "stone":
        noise = np.random.default_rng(4).integers(60, 120, (12, 12, 3), np.uint8)
        return _jpeg(cv2.resize(noise, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC))
    data = _jpeg(face(seed, blur_px=2.0 if made.level or made.like else 0.0))
    return data[: len(data) // 2] if made.key == "torn" else data


def restored_of(made: Made) -> bytes:
    """What the restorer made of it."""
    return _jpeg(face(number(made)))


def fields_of(made: Made) -> dict[str, str]:
    """The record's metadata in IN; "" and None are left out."""
    fields = {"source": f"{SOURCE}{made.person or 'things'}/{number(made)}", "licence": "CC0-1.0",
              "author": f"author of {number(made)}", "person": made.person}  # fmt: skip
    return {name: value for name, value in fields.items() if value}


def identity_of(made: Made) -> np.ndarray:
    """A made-up embedding, (128,) float32 of length 1: near for one person, apart for others."""
    person = "other" if made.key == "stranger" else made.person or ""
    seed = int.from_bytes(person.encode().ljust(8, b"\0")[:8])
    centre = np.random.default_rng(seed).normal(0, 1, 128)
    vector = centre + np.random.default_rng(number(made)).normal(0, 0.3, 128)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def entry_of(made: Made) -> Entry:
    """The record's row of the manifest."""
    data = image_of(made)
    fields = fields_of(made)
    seen = Inspected(made.index, made.key, "copied", "no image member",
                     fields=json.dumps(fields, sort_keys=True), **fields)  # fmt: skip
    if data is not None:
        seen = _seen(seen, made, data)
    data = restored_of(made) if made.outcome == "restored" else data
    has_out = made.decision != "reject" and data is not None
    done = Cleaned(
        outcome=made.outcome, fallback=made.fallback,
        sha256_out=hashlib.sha256(data).hexdigest() if has_out else None,
        width_out_px=SIDE_PX if has_out else None, height_out_px=SIDE_PX if has_out else None,
    )  # fmt: skip
    if made.decision == "restore":
        accepted = made.outcome == "restored"
        done = replace(
            done, quality_after=0.8, classic_after=0.75 if accepted else 0.35, identity=0.9 if
            made.fallback != "identity" else 0.3, identity_threshold=0.45, content_change=0.1,
            num_faces_after=1, doubt=0.1 if accepted else 0.5 + number(made) / 100,
            operations=json.dumps([{"operation": "restore", "model_sha256": MODEL_SHA256,
                                    "model": "vspbfr-128", "seed": 0}]),
        )  # fmt: skip
    return Entry(made.shard, seen, decision_of(made), done)


def decision_of(made: Made) -> Decision:
    group = {"ann/one": 0, "ann/one-small": 0, "ann/two": 1, "copied": 1}.get(made.key)
    persons = {"ann": 0, "bob": 1, "cat": 2}
    kinds = {"duplicate_near": "near", "duplicate_exact": "exact"}
    return Decision(
        made.index, made.key, made.decision, made.reason,
        _detail(made), made.level, group,
        kinds.get(made.reason), made.copy_of, 0.99 if made.copy_of else None,
        persons.get(made.person or "") if made.key != "stranger" else 7,
        0.9 if made.person else None,
    )  # fmt: skip


def _detail(made: Made) -> str:
    if made.reason == "identity_outlier":
        return f"not like the others of {made.person}"
    return f"copy of {made.copy_of}" if made.copy_of else ""


def _seen(seen: Inspected, made: Made, data: bytes) -> Inspected:
    x = number(made)
    known = replace(
        seen, member=f"{made.key}.jpg", sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data), format="jpeg",
    )  # fmt: skip
    if made.key == "torn":
        return replace(known, status="refused", reason=f"{made.key}.jpg: the file is cut")
    side_px = SIDE_PX // 2 if made.key == "ann/one-small" else SIDE_PX
    known = replace(
        known, status="inspected", reason="", width_px=side_px, height_px=side_px,
        sharpness=0.4 + x / 40, noise_sigma=2.0, jpeg_quality=95, blockiness=0.1, exposure=0.5,
        clipped_share=0.01, contrast=0.5, is_gray=False, native_side_px=side_px * 0.8, num_faces=0,
        quality=0.3 + x / 40 if made.level else 0.9 - x / 40, classic=0.4 if made.level else 0.8,
        phash=f"{x:016x}",
    )  # fmt: skip
    if made.key == "stone":
        return known
    points = (35.0, 45.0, 62.0, 45.0, 48.0, 60.0, 38.0, 72.0, 60.0, 72.0)
    return replace(
        known, num_faces=1, face_box=(20.0, 15.0, 80.0, 90.0), face_points=points, face_score=0.95,
        yaw_deg=-20.0 + 4 * x, pitch_deg=0.0, roll_deg=1.0,
    )  # fmt: skip


def _jpeg(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorsubsampling="444")


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    writer = TarWriter(file)
    for name, data in members:
        writer.add(name, data)
    writer.finish()
    return file.getvalue()


def _members(made: Made, data: bytes | None) -> list[tuple[str, bytes]]:
    notes = (f"{made.key}.json", json.dumps(fields_of(made)).encode())
    return [notes] if data is None else [(f"{made.key}.jpg", data), notes]


def _input_members(shard: str) -> list[tuple[str, bytes]]:
    return [member for made in records(shard) for member in _members(made, image_of(made))]


def _begin(store: Store, job: str, units: Sequence[Unit]) -> Plan:
    provenance = Provenance(0, "vspbfr-128", MODEL_SHA256, '{"model_size":96,"seed":0}')
    plan = new_plan(job, provenance, units, {})
    Ledger(store).save(plan)
    return plan


def _units(source: Path) -> Sequence[Unit]:
    return shard_units(find_shards(str(source)))


def _publish(
    store: Store, plan: Plan, shard: str, files: dict[str, bytes], statuses, reasons=()
) -> None:
    with Attempt(store, Task(shard, "", store.url, plan.id)) as attempt:
        for name, data in files.items():
            attempt.open(name).write(data)
        facts = {"batch": {"smallest": 2, "planned": 2}, "reasons": dict(Counter(reasons))}
        attempt.commit(list(files), Counter(statuses), facts)


def _as_bytes(write, *arguments) -> bytes:
    file = io.BytesIO()
    write(file, *arguments)
    return file.getvalue()


def _row(entry: Entry) -> Row:
    seen, done = entry.seen, entry.done
    status = {"restored": "restored", "rejected": "rejected"}.get(done.outcome, "copied")
    reason, detail = entry.decided.reason, entry.decided.detail
    if seen.status == "refused":
        status, reason = "refused", seen.reason
    return Row(
        seen.index, seen.key, status, f"{reason}: {detail}" if detail else reason,
        seen.member, seen.width_px, seen.height_px, done.width_out_px, done.height_out_px,
        seen.sha256, done.sha256_out if done.outcome == "restored" else None,
    )  # fmt: skip


def _commit_cleaned(store: Store, plan: Plan, shard: str) -> None:
    here = records(shard)
    entries = [entry_of(made) for made in here]
    rows = [_row(entry) for entry in entries]
    made_of = {made: restored_of(made) for made in here if made.decision == "restore"}
    members = [
        member for made in here if made.decision != "reject"
        for member in _members(made, made_of[made] if made.outcome == "restored"
                               else image_of(made))
    ]  # fmt: skip
    review = [(f"{m.index:06d}.jpg", made_of[m]) for m in here if m.outcome == "fallback"]
    provenance = Provenance(0, plan.model, plan.model_sha256, plan.config)
    files = {
        f"{tables.REVIEW}/{shard}.tar": _tar(review),
        f"{tables.MANIFEST}/{shard}.parquet": _as_bytes(tables.write_manifest, entries),
        f"{shard}.parquet": _as_bytes(write_sidecar, shard, rows, provenance),
        f"{shard}.tar": _tar(members),
    }
    reasons = [f"{row.status}: {row.reason}" for row in rows if row.reason]
    _publish(store, plan, shard, files, [row.status for row in rows], reasons)


def _inspect(store: Store, source: Path, keep_embeddings: bool) -> None:
    plan = _begin(store, "inspect", _units(source))
    for shard in SHARDS:
        seen = [entry_of(made).seen for made in records(shard)]
        private = [
            Private(made.index, bytes([number(made)]) * PRINT_BYTES, identity_of(made).tobytes())
            if row.num_faces else Private(made.index)
            for made, row in zip(records(shard), seen, strict=True)
        ]  # fmt: skip
        rows = [Row(row.index, row.key, row.status, sha256_in=row.sha256) for row in seen]
        files = {
            f"{tables.PRIVATE}/{shard}.parquet": _as_bytes(tables.write_rows, private, Private),
            f"{tables.INSPECTED}/{shard}.parquet": _as_bytes(tables.write_rows, seen, Inspected),
        }
        files |= _engine_rows(shard, rows)
        _publish(store, plan, shard, files, [row.status for row in seen])
        if not keep_embeddings:
            store.remove(f"{tables.PRIVATE}/{shard}.parquet")
    Ledger(store).note("failed", plan=plan.id, shard="000000", error="ann/one.jpg: a hiccup")


def _calibrate(store: Store, source: Path, keep_embeddings: bool) -> None:
    taken = [made for made in records("000001") if made.decision == "keep" and made.person]
    batch = Batch("000001", str(source / "000001.tar"), tuple(made.index for made in taken))
    plan = _begin(store, "calibrate", [batch.as_unit()])
    batch.save(store)
    trials = [
        Trial(made.key, level, 0.5, 0.4, 0.3, 0.4, 0.6, 0.1, 1, identity_of(made).tobytes(),
              identity_of(made).tobytes(), made.person)
        for made in taken for level in range(1, 6)
    ]  # fmt: skip
    rows = [Row(made.index, made.key, "restored") for made in taken]
    name = f"_vsp/trials/{batch.name}.parquet"
    files = {name: _as_bytes(tables.write_rows, trials, Trial)}
    _publish(
        store,
        plan,
        batch.name,
        files | _engine_rows(batch.name, rows),
        [row.status for row in rows],
    )
    if not keep_embeddings:
        store.remove(name)


def _engine_rows(unit: str, rows: list[Row]) -> dict[str, bytes]:
    provenance = Provenance(0, "", "", "{}")
    return {f"_vsp/records/{unit}.parquet": _as_bytes(write_sidecar, unit, rows, provenance)}


def _decide(store: Store) -> None:
    for shard in SHARDS:
        data = _as_bytes(tables.write_rows, [decision_of(m) for m in records(shard)], Decision)
        store.write(f"{tables.DECISIONS}/{shard}.parquet", data)
    levels = tuple(Level(level=level, count=2) for level in range(1, 6))
    thresholds = Thresholds(levels=levels, keep_quality=0.55, refusal="", conclusion="made up",
                            config=CalibrateConfig(), facts={})  # fmt: skip
    store.write(tables.THRESHOLDS, thresholds.model_dump_json().encode())
    found = {"outliers": [["000001", "stranger", "ann", 0.12]], "merges": [["ann", "bob", 0.61]]}
    store.write(f"{tables.DECIDE}/identities.json", json.dumps(found, indent=1).encode())
    write_groups(store, [_group_row(made) for made in MADE])


def write_groups(store: Store, rows: list[dict[str, object]]) -> None:
    """Write the table of groups with its digest beside, as the run does."""
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"vsp.of": "0"})
    store.write(tables.GROUPS, _as_bytes(lambda file: pq.write_table(table, file)))


def _group_row(made: Made) -> dict[str, object]:
    decision = decision_of(made)
    best = made.copy_of or f"{made.shard}/{made.key}"
    at = next(i for i, other in enumerate(MADE) if f"{other.shard}/{other.key}" == best)
    is_alone = decision.group is None
    return {
        "shard": made.shard, "index": made.index,
        "copy_group": -1 if is_alone else decision.group, "copy_kind": decision.copy_kind,
        "copy_of": -1 if is_alone else at, "copy_likeness": 0.0 if is_alone else 0.99,
        "identity_group": -1 if decision.identity_group is None else decision.identity_group,
        "identity_likeness": 0.9, "is_outlier": made.reason == "identity_outlier",
    }  # fmt: skip
