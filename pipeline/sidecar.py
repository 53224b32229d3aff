"""The Parquet file beside a shard: one row for every record of the input, and no time in it.

So a sidecar is a function of the input's bytes and the configuration alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

Status = Literal[
    "restored", "degraded", "scored", "inspected", "copied", "rejected", "forgotten",
    "refused", "failed", "truncated",
]  # fmt: skip
# Records that are not as the user asked: a run that has some ends with exit code 3.
BAD_STATUSES = ("refused", "failed", "truncated")

_POINT = pa.list_(pa.float32())
_FACE = pa.struct(
    [
        pa.field("box", _POINT),
        pa.field("points", pa.list_(_POINT)),
        pa.field("score", pa.float32()),
        pa.field("decision", pa.string()),
    ]
)
# Explicit: a column of nulls would be inferred as type null and break scans of many sidecars.
SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("width_in", pa.int32()),
        pa.field("height_in", pa.int32()),
        pa.field("width_out", pa.int32()),
        pa.field("height_out", pa.int32()),
        pa.field("sha256_in", pa.string()),
        pa.field("sha256_out", pa.string()),
        pa.field("quality", pa.float64()),
        pa.field("faces", pa.list_(_FACE)),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_sha256", pa.string(), nullable=False),
        pa.field("config_hash", pa.string(), nullable=False),
    ]
)
_NEWER = "quality"  # what sidecars of earlier versions do not have
LAYOUTS = (tuple(SCHEMA.names), tuple(name for name in SCHEMA.names if name != _NEWER))
"""Columns of the sidecars that can be read; the first is what is written."""
CONFIG_KEY = b"vsp.config"  # metadata of the Parquet schema: the configuration as canonical JSON
REPEATING = ["shard", "status", "reason", "model", "model_sha256", "config_hash"]


@dataclass(frozen=True, slots=True)
class FaceRow:
    """One face that was found in a photo, in pixels of the upright photo (first pixel: 0 to 1).

    Attributes:
        box: x0, y0, x1, y1.
        points: Left eye, right eye, nose, left and right mouth corner, each as (x, y).
        score: The detector's confidence, 0 to 1.
        decision: "restored", or why it was left as it is.
    """

    box: tuple[float, float, float, float]
    points: tuple[tuple[float, float], ...]
    score: float
    decision: str


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one input record. Sizes in pixels; sha256 of the image member.

    `quality` is what a restored face was asked for, as a percentile of the training scores: NaN for
    unknown, None where the model has no such dial.
    """

    index: int
    key: str
    status: Status
    reason: str = ""
    member: str | None = None
    width_in: int | None = None
    height_in: int | None = None
    width_out: int | None = None
    height_out: int | None = None
    sha256_in: str | None = None
    sha256_out: str | None = None
    faces: tuple[FaceRow, ...] | None = None
    quality: float | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What every row of a run shares.

    Attributes:
        seed: Seed of the run.
        model: Name of the model, for people.
        model_sha256: What identifies its weights.
        config: Canonical JSON of everything that decides the output's bytes.
    """

    seed: int
    model: str
    model_sha256: str
    config: str

    @property
    def config_hash(self) -> str:
        """Sha256 of `config`, in hex."""
        return sha256(self.config.encode())


def sha256(data: bytes) -> str:
    """Sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def write_sidecar(file: BinaryIO, shard: str, rows: Sequence[Row], provenance: Provenance) -> None:
    """Write the rows of a shard to an open file, in the order given."""
    num_rows = len(rows)
    shared = {
        "shard": shard,
        "seed": provenance.seed,
        "model": provenance.model,
        "model_sha256": provenance.model_sha256,
        "config_hash": provenance.config_hash,
    }
    columns: dict[str, list[Any]] = {name: [value] * num_rows for name, value in shared.items()}
    for field in SCHEMA.names:
        if field not in columns:
            columns[field] = [getattr(row, field) for row in rows]
    columns["faces"] = [
        None if faces is None else [asdict(face) for face in faces] for faces in columns["faces"]
    ]
    schema = SCHEMA.with_metadata({CONFIG_KEY: provenance.config.encode()})
    pq.write_table(
        pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema),
        file,
        compression="zstd",
        compression_level=3,
        use_dictionary=REPEATING,
        write_page_checksum=True,
    )


def read_rows(file: BinaryIO) -> list[Row]:
    """The rows of a sidecar, in order."""
    parquet = pq.ParquetFile(file)
    names = [name for name in Row.__dataclass_fields__ if name in parquet.schema_arrow.names]
    records = parquet.read(columns=names).to_pylist()
    return [Row(**(record | {"faces": _faces(record["faces"])})) for record in records]


def _faces(faces: list[dict[str, Any]] | None) -> tuple[FaceRow, ...] | None:
    if faces is None:
        return None
    return tuple(
        FaceRow(
            box=tuple(face["box"]),
            points=tuple((x, y) for x, y in face["points"]),
            score=face["score"],
            decision=face["decision"],
        )
        for face in faces
    )


def warm() -> None:
    """Have pyarrow import what its first conversion needs: a second that no shard should wait."""
    pa.array([{"box": [0.0]}, None], _FACE)
