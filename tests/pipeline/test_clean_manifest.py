"""Manifests: read, asked, written as lists, applied to another copy; nothing else is reached."""

import io
import sys

import clean_folder
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cleaning import tables
from pipeline.cleaning.manifest import apply, query
from pipeline.cleaning.manifest.export import columns_of, export, safe
from pipeline.cleaning.manifest.query import ask
from pipeline.cleaning.manifest.read import batches, find, parts, read_any, read_manifest, scan
from pipeline.cleaning.removal.tombstones import Tombstones
from pipeline.cleaning.tables import Decision, Inspected, read_table_rows
from pipeline.errors import UserError
from pipeline.plan import find_shards, shard_units
from pipeline.storage import LocalStore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return clean_folder.make_clean_folder(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def manifest(made):
    return read_manifest(made.store)


def test_a_manifest_has_a_row_for_every_record_in_order(made, manifest):
    assert parts(made.store) == ["manifest/000000.parquet", "manifest/000001.parquet"]
    assert manifest.schema.equals(tables.MANIFEST_SCHEMA)
    names = zip(manifest["shard"].to_pylist(), manifest["key"].to_pylist(), strict=True)
    assert list(names) == [(m.shard, m.key) for m in clean_folder.MADE]


def test_it_is_found_by_its_out_its_folder_or_a_file(made, manifest, tmp_path):
    assert find(f"{made.out}/manifest/").url == made.out
    pq.write_table(manifest, tmp_path / "all.parquet")
    for place in (made.out, f"{made.out}/manifest", str(tmp_path / "all.parquet")):
        assert read_any(place, ["key"]).equals(manifest.select(["key"]))


def test_what_is_no_manifest_is_one_line(tmp_path):
    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    for name, words in (("text", "not readable"), ("other", "lacks"), ("none", "no such file")):
        with pytest.raises(UserError, match=words):
            read_any(str(tmp_path / f"{name}.parquet"))


@pytest.mark.parametrize("table", [True, False])
def test_a_question_is_answered(made, manifest, table):
    sql = "select outcome, count(*) from manifest group by 1 order by 2, 1 limit 1"
    answer = ask(manifest if table else scan(made.store), sql)
    assert (answer.columns, list(answer.rows)) == (("outcome", "count_star()"), [("fallback", 2)])


ATTACKS = [
    "copy manifest to '{file}'",
    "explain analyze copy manifest to '{file}'",
    "select * from query('copy manifest to ''{file}''')",
    "export database '{file}'",
    "attach '{file}'",
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/etc/passwd')",
    "select * from '/etc/passwd'",
    "select * from sniff_csv('/etc/passwd')",
    "select * from glob('/etc/*')",
    "select * from read_csv('https://example.com/a.csv')",
    "select * from read_parquet('s3://bucket/a.parquet')",
    "install httpfs",
    "load httpfs",
    "load '{file}'",
    "set enable_external_access = true",
    "reset lock_configuration",
    "pragma enable_external_access",
    "select 1; set enable_external_access = true",
    "create table mine as select 1",
    "delete from manifest",
    "create secret (type s3)",
    "select * from duckdb_secrets()",
    "select * from secret",
    "select getenv('HOME')",
    "call pragma_version()",
    "",
]


@pytest.mark.parametrize("sql", ATTACKS)
def test_a_question_reaches_nothing_but_the_manifest(manifest, tmp_path, sql):
    secret = pa.table({"x": [1]})  # Python's variables are out of reach
    file = tmp_path / "taken"
    with pytest.raises(UserError) as refused:
        list(ask(manifest, sql.format(file=file)).rows)
    assert len(secret) == 1
    assert "\n" not in str(refused.value)
    assert not file.exists()


def test_a_question_takes_bounded_memory(manifest, monkeypatch):
    monkeypatch.setitem(query._SETTINGS, "memory_limit", "50MB")
    with pytest.raises(UserError, match="Memory"):
        list(ask(manifest, "select range from range(10000000000) order by random()").rows)


def test_without_duckdb_one_line_says_how_to_get_it(manifest, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UserError, match=r"pip install 'vsp-restore\[clean\]'"):
        ask(manifest, "select 1")


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=cmd()", "'=cmd()"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("\tx", "'\tx"), (-1, -1),
     ("a=b", "a=b"), ([1.5], "[1.5]"), (None, None)],
)  # fmt: skip
def test_no_cell_is_a_formula(cell, written):
    assert safe(cell) == written


def test_the_list_of_changes_says_what_a_licence_asks_for(made):
    file = io.BytesIO()
    assert export(batches(made.store, columns_of("changes")), "changes", file) == 2
    head, first, _ = file.getvalue().decode().splitlines()
    assert head.startswith("shard,key,source,author,licence,changes,model_sha256")
    assert "CC0-1.0" in first
    assert "face restored by vspbfr-128" in first
    assert clean_folder.MODEL_SHA256 in first


def test_a_forgotten_row_is_on_no_list(made, manifest):
    gone = Decision(0, "", "reject", "forgotten")
    blank = tables.Entry("s", Inspected(0, "", "forgotten"), gone, tables.Cleaned("forgotten"))
    table = pa.Table.from_pylist([tables.manifest_values(blank)], tables.MANIFEST_SCHEMA)
    for what in ("decisions", "clean", "changes"):
        assert export([table.select(columns_of(what))], what, io.BytesIO()) == 0


# --------------------------------------------------------------------------------------- apply


def _mirror(folder, members):
    (folder / "in").mkdir()
    (folder / "in" / "all.tar").write_bytes(clean_folder._tar(members))
    return shard_units(find_shards(str(folder / "in")))


def _decided(store):
    with store.open(f"{tables.DECISIONS}/all.parquet") as file:
        return {row.key: row for row in read_table_rows(file, Decision)}


def test_images_are_known_by_their_bytes_whatever_their_names(made, tmp_path):
    images = {m.key: clean_folder.image_of(m) for m in clean_folder.MADE}
    units = _mirror(tmp_path, [
        ("a.jpg", images["ann/two"]), ("b.jpg", images["bob_one"]), ("c.jpg", images["stone"]),
        ("d.jpg", images["ann/two"]), ("e.jpg", clean_folder.image_of(clean_folder.MADE[0]) + b"x"),
        ("f.json", b"{}"), ("g.jpg", images["ann/one"]), ("g.json", b'{"licence": "mine"}'),
    ])  # fmt: skip
    store = LocalStore(tmp_path / "out")
    known = apply.Known(read_any(made.out, apply.COLUMNS))
    applied = apply.write_tables(store, units, known)
    found = {key: (row.decision, row.reason) for key, row in _decided(store).items()}
    assert found == {
        "a": ("restore", "overruled"), "b": ("keep", "overruled"), "c": ("reject", "no_face"),
        "d": ("reject", "duplicate_exact"), "e": ("keep", "uncalibrated"),
        "f": ("keep", "no_image"), "g": ("keep", "overruled"),
    }  # fmt: skip
    assert applied.counts == {"restored": 1, "kept": 3, "rejected": 1, "copies": 1, "unknown": 1}
    with store.open(f"{tables.INSPECT}/inspected/all.parquet") as file:
        rows = {row.key: row for row in read_table_rows(file, Inspected)}
    theirs = clean_folder.entry_of(clean_folder.MADE[1]).seen
    assert (rows["a"].quality, rows["a"].face_points) == (theirs.quality, theirs.face_points)
    assert (rows["a"].licence, rows["g"].licence) == ("CC0-1.0", "mine")
    assert rows["e"].quality is None


def test_a_copy_counts_as_kept_if_any_of_its_rows_stayed(made):
    known = apply.Known(read_any(made.out, apply.COLUMNS))
    copied = clean_folder.entry_of(clean_folder.MADE[5]).seen.sha256
    assert known.row(copied)["outcome"] == "restored"
    assert known.row("0" * 64) is None
    assert known.weights() == apply.Weights("vspbfr-128", clean_folder.MODEL_SHA256, 0)


def test_what_was_forgotten_here_does_not_come_back(made, tmp_path):
    image = clean_folder.image_of(clean_folder.MADE[0])
    units = _mirror(tmp_path, [("a.jpg", image)])
    store = LocalStore(tmp_path / "out")
    stones = Tombstones.load(store)
    digest = clean_folder.entry_of(clean_folder.MADE[0]).seen.sha256
    stones.with_images([stones.keyed(digest)]).save(store)
    apply.write_tables(store, units, apply.Known(read_any(made.out, apply.COLUMNS)))
    assert _decided(store)[""].reason == "forgotten"


def test_an_out_belongs_to_one_manifest(tmp_path):
    store = LocalStore(tmp_path)
    apply.claim(store, "a")
    apply.claim(store, "a")
    with pytest.raises(UserError, match="another manifest"):
        apply.claim(store, "b")


def test_tombstones_know_an_image_and_tell_nothing(tmp_path):
    store = LocalStore(tmp_path)
    stones = Tombstones.load(store)
    assert not stones.covers("ab")
    stones.with_images([stones.keyed("ab")]).save(store)
    again = Tombstones.load(store)
    assert (again.covers("ab"), again.covers("cd"), len(again)) == (True, False, 1)
    assert b"ab" not in store.read(tables.TOMBSTONES).replace(again.secret.hex().encode(), b"")[:40]
    assert Tombstones.load(LocalStore(tmp_path / "other")).keyed("ab") != again.keyed("ab")
    store.write(tables.TOMBSTONES, b"{}")
    with pytest.raises(UserError, match="damaged"):
        Tombstones.load(store)
