"""Pairs by key, and their current view on disk."""

import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.scoring.pairs import (
    PairSet,
    check_complete,
    pair_up,
    read_groups,
    slug,
    truths_revision,
    write_pairs,
)
from pipeline.scoring.sources import Place
from pipeline.scoring.tables import PAIRS_SCHEMA
from pipeline.storage import LocalStore


def places(*keys):
    return {key: Place(f"{key}.png", 0, 3, f"sha-{key}") for key in keys}


def test_pairs_go_by_key_and_keep_what_is_on_one_side():
    pairs = pair_up(places("b", "a", "extra"), places("a", "b", "missing"), groups={"a": "old"})

    assert [pair.image_id for pair in pairs] == ["a", "b", "extra", "missing"]
    assert [bool(pair.restored.path) for pair in pairs] == [True, True, True, False]
    assert [bool(pair.gt.path) for pair in pairs] == [True, True, False, True]
    assert [pair.group for pair in pairs] == ["old", "", "", ""]


def test_strictness_names_what_is_missing_and_what_is_too_many():
    pairs = pair_up(places("a", "extra"), places("a", "missing"))

    with pytest.raises(UserError) as error:
        check_complete(pairs, "out/", "gt/")

    assert "1 missing: missing" in str(error.value)
    assert "1 not in gt/: extra" in str(error.value)
    check_complete(pair_up(places("a"), places("a")), "out/", "gt/")


def test_a_revision_changes_with_contents_not_with_order():
    one = PairSet("m", "d", pair_up(places("a", "b"), None), "")
    same = PairSet("other", "d", pair_up(places("b", "a"), None), "")
    other = PairSet("m", "d", pair_up(places("a") | {"b": Place("b", 0, 1, "new")}, None), "")

    assert one.method_rev == same.method_rev != other.method_rev
    assert truths_revision(pair_up(places("a"), places("a"))) != truths_revision(
        pair_up(places("a"), {"a": Place("a", 0, 1, "new")})
    )


def test_the_view_is_a_table_of_the_schema(tmp_path):
    pairs = pair_up(places("a"), places("a"), places("a"))
    write_pairs(LocalStore(tmp_path), PairSet("m x", "d", pairs, "rev"))

    (path,) = (tmp_path / "pairs" / "d").iterdir()
    table = pq.read_table(path)

    assert table.schema.equals(PAIRS_SCHEMA)
    (row,) = table.to_pylist()
    assert (row["method"], row["restored_sha256"], row["lq_path"]) == ("m x", "sha-a", "a.png")


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", "", "é", "a" * 300, "x\\y"])
def test_a_slug_is_one_plain_name_and_tells_names_apart(name):
    found = slug(name)

    assert found.isascii()
    assert found not in ("", ".", "..")
    assert "/" not in found
    assert "\\" not in found
    assert len(found) <= 60
    assert found != slug(name + "x")


def test_groups_come_from_a_csv(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("key,group\na,young\nb,old\n")
    assert read_groups(path) == {"a": "young", "b": "old"}

    path.write_text("name,group\na,young\n")
    with pytest.raises(UserError, match="expected the columns key,group"):
        read_groups(path)
