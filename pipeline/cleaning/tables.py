"""The tables of a cleaning run: what was seen, what was decided, what became of it.

    OUT/_vsp/inspect/inspected/<shard>.parquet       what was seen of each record
    OUT/_vsp/inspect/_vsp/private/<shard>.parquet    embeddings, removed at the end of the run
    OUT/_vsp/decide/decisions/<shard>.parquet        what was decided about it
    OUT/manifest/<shard>.parquet                     both, and what became of it
    OUT/_vsp/review/<shard>.tar                      restored faces that were not taken

Every row is a dataclass here and nowhere else; a column is a field of it. The rows of one table
stand in the order of the shard's records, and hold no time: they follow from input and settings.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, BinaryIO, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.storage import OWN_FOLDER

INSPECT = f"{OWN_FOLDER}/inspect"  # an output folder of its own: plan, commits, journal
INSPECTED = "inspected"  # below INSPECT
PRIVATE = f"{OWN_FOLDER}/private"  # below INSPECT
CALIBRATE = f"{OWN_FOLDER}/calibrate"  # an output folder of its own
ALIGNED = f"{OWN_FOLDER}/aligned"  # an output folder of its own: shards of crops
DECIDE = f"{OWN_FOLDER}/decide"
DECISIONS = f"{DECIDE}/decisions"
GROUPS = f"{DECIDE}/groups.parquet"  # one row an image, in the order of the whole set
IDENTITIES = f"{DECIDE}/identities.json"
THRESHOLDS = f"{DECIDE}/thresholds.json"
FACES = f"{DECIDE}/faces.json"  # how many the calibration takes
OVERRULE = f"{OWN_FOLDER}/overrule.csv"
TOMBSTONES = f"{OWN_FOLDER}/tombstones.json"
MANIFEST = "manifest"
REVIEW = f"{OWN_FOLDER}/review"

EMBEDDING_DIM = 128

InspectStatus = Literal["inspected", "copied", "refused", "failed", "truncated", "forgotten"]
Verdict = Literal["keep", "restore", "reject"]
Reason = Literal[
    "good",  # keep: at or above the calibrated quality
    "not_worst",  # keep: below it, or without one, but not among the worst of this set
    "no_profit",  # keep: the calibration found no gain at its level of damage
    "identity_unmeasurable",  # keep: at its level the identity net cannot tell people apart
    "no_identity_net",  # keep: nothing is restored without one
    "model_too_small",  # keep: it carries more detail than the model gives back
    "uncalibrated",  # keep: no calibration was made, so nothing may be restored
    "not_inspected",  # keep: looking at it failed, which is not its fault
    "worst",  # restore
    "overruled",  # whatever the user's file says
    "no_face", "several_faces", "too_small", "unusable",  # reject; unusable: refused by the decoder
    "duplicate_exact", "duplicate_near", "duplicate_flip",  # reject: a better copy stays
    "identity_outlier",  # reject: not the person that its field names
    "no_image",  # keep: a record without an image
    "forgotten",  # neither seen nor written
]  # fmt: skip
Outcome = Literal["kept", "restored", "fallback", "rejected", "failed", "forgotten"]
FallbackReason = Literal[
    "", "identity", "identity_unmeasurable", "not_damaged", "quality_not_better", "face_lost",
    "face_gained", "content_changed", "not_finite", "not_decodable", "failed",
]  # fmt: skip
CopyKind = Literal["exact", "near", "flip"]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What was seen of one record. None where it could not be, or does not apply.

    Attributes:
        index: Place among the shard's records, from 0.
        key: The record's name.
        status: "copied" for a record without an image; "forgotten" for one under a tombstone, of
            which nothing else is kept: its key is "".
        reason: Why it is not "inspected", or what is odd.
        member: Name of the image in the tar.
        sha256: Of the image's bytes, in hex.
        size_bytes: Of the image's file.
        width_px: Its width.
        height_px: Its height.
        format: jpeg, png, webp, tiff or bmp.
        num_faces: Faces that count; see `look.Look.faces`.
        face_box: x0, y0, x1, y1 of the largest, in pixels, the first pixel spanning 0 to 1.
        face_points: Its five points as x, y, x, y ...: left and right eye, nose, mouth's corners.
        face_score: The detector's confidence in it, 0 to 1.
        yaw_deg: Turn of the head to the viewer's right, from the five points; coarse.
        pitch_deg: Nod up, from the five points; coarse.
        roll_deg: Tilt clockwise.
        sharpness: See `measures.Measures`, as for the next eight.
        noise_sigma: See there.
        jpeg_quality: See there.
        blockiness: See there.
        exposure: See there.
        clipped_share: See there.
        contrast: See there.
        is_gray: See there.
        native_side_px: See there.
        quality: Of the quality net, calibrated, 0 worst to 1 best; it gates.
        classic: Of the classic measures alone, 0 worst to 1 best; it verifies and routes to review.
        phash: 64-bit perceptual hash as 16 hex digits.
        source: Where the image is from, as its metadata say.
        licence: Its licence.
        author: Its author.
        person: Who it is, if a field says so.
        fields: All metadata of the record as canonical JSON, one level deep, names with dots.
    """

    index: int
    key: str
    status: InspectStatus
    reason: str = ""
    member: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    format: str | None = None
    num_faces: int | None = None
    face_box: tuple[float, ...] | None = None
    face_points: tuple[float, ...] | None = None
    face_score: float | None = None
    yaw_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None
    sharpness: float | None = None
    noise_sigma: float | None = None
    jpeg_quality: int | None = None
    blockiness: float | None = None
    exposure: float | None = None
    clipped_share: float | None = None
    contrast: float | None = None
    is_gray: bool | None = None
    native_side_px: float | None = None
    quality: float | None = None
    classic: float | None = None
    phash: str | None = None
    source: str | None = None
    licence: str | None = None
    author: str | None = None
    person: str | None = None
    fields: str | None = None


@dataclass(frozen=True, slots=True)
class Private:
    """What can tell a person or a picture again; kept apart, and not longer than needed.

    Attributes:
        index: The record's place in its shard.
        prints: Hashes and a thumbnail, as `prints.make_prints` packs them.
        identity: (128,) float32 of length 1, None without a face or an identity net.
    """

    index: int
    prints: bytes | None = None
    identity: bytes | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done with one record.

    Attributes:
        index: The record's place in its shard.
        key: Its name.
        decision: Keep as it is, restore, or leave out.
        reason: Why, as a word that can be counted.
        detail: One line about it for people, "" where the reason says all.
        level: Level of damage that its quality stands for (`levels.LEVELS`), None above all.
        group: Number of its group of copies within the set, None alone.
        copy_kind: How it is a copy of the group's best; None for the best itself.
        copy_of: shard/key of the group's best, None for the best itself.
        copy_likeness: Correlation with the best once laid over it, 1 the same.
        identity_group: Number of the identity cluster, None without embeddings.
        identity_likeness: Cosine with the centre of its `person`'s images; None without one.
    """

    index: int
    key: str
    decision: Verdict
    reason: Reason
    detail: str = ""
    level: int | None = None
    group: int | None = None
    copy_kind: CopyKind | None = None
    copy_of: str | None = None
    copy_likeness: float | None = None
    identity_group: int | None = None
    identity_likeness: float | None = None


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of one record; the manifest's row is `Inspected`, `Decision` and this.

    Attributes:
        outcome: "fallback": restored, not accepted, the original kept byte for byte.
        fallback: Why it was not accepted.
        sha256_out: Of the image in the output shard, None without one.
        width_out_px: Its width.
        height_out_px: Its height.
        quality_after: Of the restored face by the net that gates: told, never judged by.
        classic_after: Of the restored face by the classic measures.
        identity: Cosine of identity embeddings, restored against original.
        identity_threshold: What it had to reach.
        content_change: See `accept.content_change`.
        num_faces_after: Faces found on the restored face.
        doubt: 0 clear to 1 doubtful: what a reviewer should see first; see `accept.doubt`.
        operations: JSON list of what was done, each with parameters and sha256 of the weights.
    """

    outcome: Outcome
    fallback: FallbackReason = ""
    sha256_out: str | None = None
    width_out_px: int | None = None
    height_out_px: int | None = None
    quality_after: float | None = None
    classic_after: float | None = None
    identity: float | None = None
    identity_threshold: float | None = None
    content_change: float | None = None
    num_faces_after: int | None = None
    doubt: float = 0.0
    operations: str = "[]"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the manifest, which is flat: a column for every field of the three.

    Attributes:
        shard: The shard's name.
        seen: What was seen.
        decided: What was decided.
        done: What became of it.
    """

    shard: str
    seen: Inspected
    decided: Decision
    done: Cleaned


Record = TypeVar("Record")
_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary(),
}  # fmt: skip
_FLOATS = pa.list_(pa.float64())


def _type(hint: Any) -> tuple[pa.DataType, bool]:
    """The Arrow type of a field, and whether it may be null."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    first = options[0]
    nullable = type(None) in options
    if get_origin(first) is Literal:
        first = str
    return (_FLOATS if get_origin(first) is tuple else _TYPES[first]), nullable


def schema_of(record: type) -> pa.Schema:
    """The columns of a table of such rows, in the order of the fields."""
    hints = get_type_hints(record)
    columns = []
    for field in fields(record):
        kind, nullable = _type(hints[field.name])
        columns.append(pa.field(field.name, kind, nullable=nullable))
    return pa.schema(columns)


def _manifest_schema() -> pa.Schema:
    columns = {"shard": pa.field("shard", pa.string(), nullable=False)}
    for record in (Inspected, Decision, Cleaned):
        for column in schema_of(record):
            columns.setdefault(column.name, column)  # index and key stand in two of them
    renamed = {"reason": "decision_reason", "detail": "decision_detail"}
    del columns["reason"], columns["detail"]
    names = list(columns)
    at = names.index("decision") + 1
    both = [pa.field(new, pa.string(), nullable=False) for new in renamed.values()]
    note = pa.field("note", pa.string(), nullable=False)  # Inspected.reason
    kept = [columns[name] for name in names]
    return pa.schema([*kept[:at], *both, note, *kept[at:]])


MANIFEST_SCHEMA = _manifest_schema()
"""Columns of the manifest: those of `Inspected` (its reason is `note`), of `Decision` (its reason
and detail are `decision_reason` and `decision_detail`) and of `Cleaned`, after `shard`."""


def manifest_values(entry: Entry) -> dict[str, Any]:
    """One row of the manifest."""
    seen, decided, done = entry.seen, entry.decided, entry.done
    values: dict[str, Any] = {"shard": entry.shard, "note": seen.reason}
    values |= {"decision_reason": decided.reason, "decision_detail": decided.detail}
    for part in (done, decided, seen):
        values |= {f.name: getattr(part, f.name) for f in fields(part)}
    return {name: values[name] for name in MANIFEST_SCHEMA.names}


def write_manifest(file: BinaryIO, entries: Sequence[Entry]) -> None:
    """Write a shard's part of the manifest."""
    write_columns(file, [manifest_values(entry) for entry in entries], MANIFEST_SCHEMA)


def write_rows(file: BinaryIO, rows: Sequence[Any], record: type) -> None:
    """Write rows of one dataclass."""
    names = [field.name for field in fields(record)]
    write_columns(file, [{n: getattr(row, n) for n in names} for row in rows], schema_of(record))


def write_columns(file: BinaryIO, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows as mappings; the bytes follow from rows and schema."""
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    pq.write_table(
        pa.table(columns, schema=schema),
        file,
        compression="zstd",
        compression_level=3,
        write_page_checksum=True,
    )


def read_table_rows(file: BinaryIO, record: type[Record]) -> list[Record]:
    """Rows of one dataclass, in order."""
    make: Callable[..., Record] = record
    names = schema_of(record).names
    return [
        make(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
        for values in pq.read_table(file, columns=names).to_pylist()
    ]


def as_matrix(values: Iterable[bytes | None], dtype: Any, dim: int) -> NDArray[Any]:
    """Packed vectors as one matrix (N, dim); a missing one is zeros."""
    empty = bytes(np.dtype(dtype).itemsize * dim)
    joined = b"".join(value or empty for value in values)
    return np.frombuffer(joined, dtype).reshape(-1, dim)
