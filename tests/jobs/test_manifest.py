"""`vsp manifest`: what is printed, what is refused, and another copy of a set cleaned by it."""

import csv
import io
import json
import shutil

import clean_folder
import pytest

from pipeline.cleaning.manifest.read import read_manifest
from pipeline.storage import LocalStore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return clean_folder.make_clean_folder(tmp_path_factory.mktemp("clean"))


def test_show_counts_every_image_and_tells_medians(vsp, made):
    code, out, _ = vsp("manifest", "show", made.out)
    assert code == 0
    assert out.startswith("12 images\n")
    assert [line.split() for line in out.splitlines() if "restored  restore" in line] == [
        ["restored", "restore", "worst", "2"]
    ]
    assert "restored, after          2          0.8" in out


def test_query_prints_a_table_json_and_csv(vsp, made):
    sql = "select outcome, count(*) n from manifest group by all order by n desc, outcome limit 2"
    assert vsp("manifest", "query", made.out, sql)[1] == (
        "outcome   n\nrejected  5\nkept      3\n"
    )  # fmt: skip
    lines = vsp("manifest", "query", made.out, sql, "--json")[1].splitlines()
    assert json.loads(lines[0]) == {"outcome": "rejected", "n": 5}
    assert vsp("manifest", "query", made.out, "select key from changes order by key")[1] == (
        "key\nann/two\nbob_two\n"
    )


def test_query_writes_safe_csv(vsp, made):
    answer = vsp("manifest", "query", made.out, "select '=1+1' x, -1 y", "--csv")
    assert answer == (0, "x,y\n'=1+1,-1\n", "")


@pytest.mark.parametrize(
    "sql", ["selct 1", "copy manifest to 'x.csv'", "select nope from manifest"]
)
def test_a_mistake_in_a_query_is_one_line(vsp, made, sql):
    code, out, err = vsp("manifest", "query", made.out, sql)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("vsp: ")


def test_a_table_shows_no_control_characters(vsp, made):
    out = vsp("manifest", "query", made.out, "select chr(27) || '[31mred' as x")[1]
    assert "\x1b" not in out


@pytest.mark.parametrize(("what", "num_lines"), [("decisions", 12), ("clean", 6), ("changes", 2)])
def test_export_writes_a_list_whole(vsp, made, tmp_path, what, num_lines):
    file = tmp_path / "list.csv"
    file.write_text("an older one")
    code, out, _ = vsp("manifest", "export", made.out, file, "--what", what)
    assert (code, out) == (0, f"{file}: {num_lines} lines\n")
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert len(rows) == num_lines
    assert list(tmp_path.iterdir()) == [file]
    if what == "changes":
        assert rows[0]["licence"] == "CC0-1.0"
        assert rows[0]["author"] == "author of 1"
        assert rows[0]["model_sha256"] == clean_folder.MODEL_SHA256


def test_export_into_out_or_nowhere_is_refused(vsp, made, tmp_path):
    for file, word in ((f"{made.out}/x.csv", "lies in"), (tmp_path / "no" / "x.csv", "no such"),
                       (tmp_path, "is a folder")):  # fmt: skip
        code, _, err = vsp("manifest", "export", made.out, file)
        assert code == 2
        assert word in err


def test_a_folder_without_a_manifest_is_refused(vsp, tmp_path):
    assert vsp("manifest", "show", tmp_path) == (
        2, "", f"vsp: {tmp_path}: no manifest here; give the OUT of a `vsp clean` that ended\n"
    )  # fmt: skip


def test_identities_lists_findings_and_faces_of_both_sets(vsp, made):
    code, out, _ = vsp("manifest", "identities", made.out)
    assert code == 0
    assert "stranger" in out
    out = vsp("manifest", "identities", made.out, "--against", made.out)[1]
    assert f"of the same person in {made.out}: 27\n" in out


def test_overlap_without_embeddings_is_one_line(vsp, made, tmp_path):
    shutil.copytree(made.out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "_vsp" / "inspect" / "_vsp" / "private")
    code, _, err = vsp("manifest", "identities", made.out, "--against", tmp_path / "out")
    assert code == 2
    assert "--keep-embeddings" in err


def test_apply_wants_the_weights_that_the_manifest_names(vsp, made, tmp_path):
    code, _, err = vsp("manifest", "apply", made.out, made.source, tmp_path / "out")
    assert code == 2
    assert "abababababababab" in err
    assert not (tmp_path / "out").exists()


def _as_if_by(made, folder, sha256):
    """The manifest as one file that names other weights, as somebody may pass it on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = read_manifest(made.store)
    texts = [text.replace(clean_folder.MODEL_SHA256, sha256) for text in
             table["operations"].to_pylist()]  # fmt: skip
    at = table.schema.get_field_index("operations")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(texts)),
                   folder / "theirs.parquet")  # fmt: skip
    return folder / "theirs.parquet"


@pytest.mark.slow
def test_apply_cleans_a_copy_with_other_shards_and_keys(vsp, made, tmp_path):
    from jobs.models import built_in_model
    from vsp_model.files import sha256_of

    theirs = _as_if_by(made, tmp_path, sha256_of(built_in_model()))
    images = {m.key: clean_folder.image_of(m) for m in clean_folder.MADE}
    members = [(f"x{i}.jpg", data) for i, data in enumerate(images.values()) if data]
    members += [("again.jpg", images["ann/one"]), ("new.jpg", clean_folder._jpeg(
        clean_folder.face(99)))]  # fmt: skip
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "all.tar").write_bytes(clean_folder._tar(members))
    out = tmp_path / "out"
    code, text, err = vsp("manifest", "apply", theirs, tmp_path / "mirror", out,
                          "--device", "cpu")  # fmt: skip
    assert code in (0, 3), err
    counts = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) == 2)
    assert counts == {
        "copies": "2", "kept": "4", "rejected": "4", "restored": "2", "unknown": "1"
    }  # fmt: skip
    assert "restored again: 0 with the manifest's bytes, 2 with others" in text  # made up ones
    rows = {row["key"]: row for row in read_manifest(LocalStore(out)).to_pylist()}
    assert (rows["x1"]["outcome"], rows["x1"]["decision_reason"]) == ("restored", "overruled")
    assert rows["x0"]["sha256_out"] == rows["x0"]["sha256"]
    assert rows["again"]["copy_of"] == "all/x0"
    assert rows["x4"]["outcome"] == "rejected"
    assert rows["x0"]["quality"] == read_manifest(made.store)["quality"][0].as_py()
    assert vsp("verify", out)[0] == 0
    again = vsp("manifest", "apply", out, tmp_path / "mirror", tmp_path / "out2")
    assert "restored again: 2 with the manifest's bytes, 0 with others" in again[1]


def test_apply_refuses_the_out_of_something_else(vsp, made, tmp_path):
    from jobs.models import built_in_model
    from vsp_model.files import sha256_of

    theirs = _as_if_by(made, tmp_path, sha256_of(built_in_model()))
    shutil.copytree(made.out, tmp_path / "out")
    code, _, err = vsp("manifest", "apply", theirs, made.source, tmp_path / "out")
    assert (code, "another command" in err) == (2, True)
