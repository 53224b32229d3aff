"""The small parts of a cleaning run: tables, metadata, verdicts, the choice of faces to try."""

import io
import json

import pyarrow as pa
import pytest

from pipeline.cleaning import overrule
from pipeline.cleaning.calibration.sample import SampleConfig, choose_faces
from pipeline.cleaning.metadata import FieldMap, metadata_of
from pipeline.cleaning.tables import (
    MANIFEST_SCHEMA,
    Cleaned,
    Decision,
    Entry,
    Inspected,
    Private,
    manifest_values,
    read_table_rows,
    write_rows,
)
from pipeline.errors import UserError
from pipeline.plan import Unit
from pipeline.sample import Member, Sample
from pipeline.storage import LocalStore


def sample(facts: object) -> Sample:
    data = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return Sample(0, "a", (Member("a.jpg", b""), Member("a.json", data)))


# -------------------------------------------------------------------------------------- tables


def test_rows_come_back_as_they_were_written():
    rows = [
        Inspected(0, "a", "inspected", face_box=(1.0, 2.0, 3.0, 4.0), is_gray=True, quality=0.5),
        Inspected(1, "b", "refused", "b.jpg: cut"),
    ]
    file = io.BytesIO()
    write_rows(file, rows, Inspected)
    file.seek(0)
    assert read_table_rows(file, Inspected) == rows


def test_a_table_of_nothing_can_be_read():
    file = io.BytesIO()
    write_rows(file, [], Private)
    file.seek(0)
    assert read_table_rows(file, Private) == []


def test_the_manifest_keeps_both_reasons_apart():
    entry = Entry(
        "000000",
        Inspected(0, "a", "refused", "a.jpg: cut"),
        Decision(0, "a", "reject", "unusable", "no image"),
        Cleaned("rejected"),
    )
    values = manifest_values(entry)
    assert values["note"] == "a.jpg: cut"
    assert (values["decision_reason"], values["decision_detail"]) == ("unusable", "no image")
    assert list(values) == MANIFEST_SCHEMA.names


# ------------------------------------------------------------------------------------ metadata


def test_metadata_are_found_under_their_usual_names_and_one_level_down():
    facts = {"license": "CC0", "url": "u", "labels": {"person": "p1", "age": 3}, "points": [1, 2]}
    found = metadata_of(sample(facts), FieldMap())
    assert (found.source, found.licence, found.author, found.person) == ("u", "CC0", None, "p1")
    assert json.loads(found.fields) == {
        "license": "CC0", "url": "u", "labels.person": "p1", "labels.age": 3,
    }  # fmt: skip


def test_odd_names_are_mapped():
    names = FieldMap(licence=("rights_statement",))
    assert metadata_of(sample({"rights_statement": "x", "licence": "y"}), names).licence == "x"


@pytest.mark.parametrize(
    "facts", [b"{", b"\xff\xfe", b"[" * 5000, b'{"a": "' + b"x" * 2**17 + b'"}', [1], "text"]
)
def test_what_is_no_metadata_says_nothing(facts):
    assert metadata_of(sample(facts), FieldMap()).source is None


def test_a_lone_surrogate_does_not_break_the_table():
    found = metadata_of(sample(b'{"source": "\\ud800"}'), FieldMap())
    file = io.BytesIO()
    row = Inspected(0, "a", "inspected", source=found.source, fields=found.fields)
    write_rows(file, [row], Inspected)
    file.seek(0)
    assert read_table_rows(file, Inspected) == [row]


# -------------------------------------------------------------------------------------- verdicts


def test_verdicts_are_kept_and_the_last_line_counts(tmp_path):
    store = LocalStore(tmp_path)
    overrule.save(store, overrule.parse("key,verdict\na,keep\na,reject\n", "x"))
    assert overrule.load(store) == {("", "a"): "reject"}


def test_a_verdict_with_a_shard_goes_before_one_without():
    verdicts = {("", "a"): "keep", ("s1", "a"): "reject"}
    assert overrule.verdict_on(verdicts, "s1", "a") == "reject"
    assert overrule.verdict_on(verdicts, "s2", "a") == "keep"
    assert overrule.verdict_on(verdicts, "s2", "b") is None


def test_a_users_file_takes_a_verdict_back(tmp_path):
    (tmp_path / "v.csv").write_text("key,verdict\na,none\nb,keep\n")
    more = overrule.read_file(tmp_path / "v.csv")
    assert overrule.joined({("", "a"): "reject", ("", "c"): "keep"}, more) == {
        ("", "b"): "keep", ("", "c"): "keep",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line"), [("a,b\n", ":1:"), ("key,verdict\na,keep\nb,perhaps\n", ":3:")]
)
def test_a_wrong_line_is_named(text, line):
    with pytest.raises(UserError, match=line):
        overrule.parse(text, "v.csv")


# ------------------------------------------------------------------------------------- the sample


def seen(num_shards: int = 3, per_shard: int = 40) -> pa.Table:
    rows = [
        {
            "shard": f"{shard:06d}", "index": index, "key": f"k{shard}-{index}",
            "status": "inspected", "num_faces": 1 + (index == 0), "quality": index / per_shard,
            "native_side_px": 128.0 if index != per_shard - 1 else 20.0, "yaw_deg": 0.0,
        }
        for shard in range(num_shards)
        for index in range(per_shard)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def chosen(**settings):
    names = [f"{shard:06d}" for shard in range(3)]
    units = {name: Unit(name, f"{name}.tar", 1, "") for name in names}
    return choose_faces(seen(), units, 128, 0, SampleConfig(**settings))


def test_the_best_faces_are_tried_evenly_over_the_shards():
    batches = chosen(faces=10)
    assert sorted(len(batch.indices) for batch in batches) == [3, 3, 4]
    places = [index for batch in batches for index in batch.indices]
    assert min(places) >= 19, "below the median of the set"
    assert 39 not in places, "its pixels carry no detail"


def test_the_choice_follows_from_seed_and_keys():
    assert chosen(faces=10) == chosen(faces=10)


def test_a_set_too_small_gives_what_it_has():
    assert sum(len(batch.indices) for batch in chosen(faces=1000)) == 57


def test_a_set_without_good_faces_gives_none():
    table = seen().slice(0, 1)
    assert choose_faces(table, {}, 128, 0, SampleConfig()) == []
