"""What comes with an image: source, licence, author, person, out of the JSON beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.replica import Frozen
from pipeline.sample import Sample

MAX_BYTES = 2**16
MAX_VALUE = 1000  # characters; a caption is metadata, a document is not


class FieldMap(Frozen):
    """Names under which data sets keep what the manifest has a column for; the first found counts.

    Attributes:
        source: Where an image is from.
        licence: Its licence.
        author: Its author.
        person: Who it is.
    """

    source: tuple[str, ...] = ("source", "url", "source_url", "photo_url", "repo", "origin")
    licence: tuple[str, ...] = ("licence", "license", "license_url", "rights")
    author: tuple[str, ...] = ("author", "photographer", "creator", "credit", "owner")
    person: tuple[str, ...] = ("person", "identity", "person_id", "id_name", "labels.person")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of an image beside its pixels; see `tables.Inspected`."""

    source: str | None = None
    licence: str | None = None
    author: str | None = None
    person: str | None = None
    fields: str | None = None


def metadata_of(sample: Sample, names: FieldMap) -> Metadata:
    """Read the record's first JSON member; one that is none, or too large, says nothing."""
    member = next((m for m in sample.members if m.name.lower().endswith(".json")), None)
    if member is None or len(member.data) > MAX_BYTES:
        return Metadata()
    try:
        values = json.loads(member.data)
    except (ValueError, RecursionError):
        return Metadata()
    if not isinstance(values, dict):
        return Metadata()
    flat = _flat(values)
    return Metadata(
        source=_first(flat, names.source),
        licence=_first(flat, names.licence),
        author=_first(flat, names.author),
        person=_first(flat, names.person),
        fields=json.dumps(flat, sort_keys=True, ensure_ascii=False),
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Words and numbers, those one level down as `outer.inner`; lists and long texts are left."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = {f"{name}.{n}": v for n, v in value.items()} if isinstance(value, dict) else {}
        for full, each in (inner or {name: value}).items():
            if isinstance(each, str | int | float | bool) and len(str(each)) <= MAX_VALUE:
                flat[full] = _clean(each)
    return flat


def _clean(value: str | float | bool) -> str | float | bool:
    """Text that Parquet can hold: a lone surrogate of JSON is no UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return value


def _first(flat: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((str(flat[name]) for name in names if flat.get(name) not in (None, "")), None)
