"""A removal request: nothing is left, whatever interrupts it."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import clean_folder
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cleaning import tables
from pipeline.cleaning.decide import version_of
from pipeline.cleaning.manifest.read import read_manifest
from pipeline.cleaning.overrule import load
from pipeline.cleaning.removal.chosen import Request, choose, plain_of, removal_of
from pipeline.cleaning.removal.forget import finish_pending, forget, is_pending
from pipeline.cleaning.removal.scan import Sought, scan
from pipeline.cleaning.removal.tombstones import Tombstones, digest_of_face
from pipeline.cleaning.tables import Inspected, read_table_rows
from pipeline.errors import UserError
from pipeline.ledger import Ledger
from pipeline.shards import read_shard
from pipeline.storage import LocalStore, open_store
from pipeline.verify import verify


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    return clean_folder.make_clean_folder(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def folder(template, tmp_path):
    """A copy of the finished OUT; IN is shared, for nobody may write there."""
    shutil.copytree(template.out, tmp_path / "out")
    return LocalStore(tmp_path / "out")


def remove(store, **request):
    chosen = choose(store, Request(**request))
    stones = Tombstones.load(store)
    plain = plain_of(store, chosen)
    removal = removal_of(store, chosen, plain, stones)
    return chosen, Sought(removal, stones, plain), forget(store, removal, stones, plain)


def outcomes(store):
    table = read_manifest(store, ["key", "outcome"]).to_pydict()
    return dict(zip(table["key"], table["outcome"], strict=True))


def problems(store):
    return verify(Ledger(store), Ledger(store).plan()).problems


def test_before_a_removal_the_scan_finds_every_trace(folder):
    chosen = choose(folder, Request(key="ann/two"))
    stones = Tombstones.load(folder)
    plain = plain_of(folder, chosen)
    report = scan(folder, Sought(removal_of(folder, chosen, plain, stones), stones, plain))
    found = {line.removeprefix(f"{folder.url}/").partition(":")[0] for line in report.remains}
    places = {"000000.tar", "000000.parquet", "000001.parquet", "manifest/000000.parquet",
              "_vsp/inspect/inspected/000000.parquet", "_vsp/inspect/_vsp/private/000000.parquet",
              "_vsp/decide/decisions/000001.parquet"}  # fmt: skip
    assert places <= found


def test_an_image_goes_with_its_exact_copies_and_leaves_blank_rows(folder):
    chosen, _, report = remove(folder, key="ann/two")
    assert report.remains == []
    assert report.num_files > 30
    assert [image.name for image in chosen.exact] == ["000001/copied"]
    with folder.open(f"{tables.INSPECT}/inspected/000000.parquet") as file:
        assert read_table_rows(file, Inspected)[1] == Inspected(1, "", "forgotten")
    row = read_manifest(folder).to_pylist()[1]
    assert (row["outcome"], row["decision_reason"]) == ("forgotten", "forgotten")
    assert {name for name, value in row.items() if value not in (None, "", 0.0, "[]")} == {
        "shard", "index", "status", "decision", "decision_reason", "outcome"
    }  # fmt: skip
    assert len(Tombstones.load(folder)) == 1
    assert problems(folder) == []
    counts = verify(Ledger(folder), Ledger(folder).plan()).counts
    assert counts["forgotten"] == 2


def test_a_near_copy_stays_and_no_longer_names_what_it_was_a_copy_of(folder):
    chosen, _, report = remove(folder, key="ann/one")
    assert [image.key for image in chosen.near] == ["ann/one-small"]
    assert report.remains == []
    row = read_manifest(folder).to_pylist()[3]
    assert (row["key"], row["copy_of"], row["outcome"]) == ("ann/one-small", None, "rejected")
    assert "ann/one" not in row["decision_detail"]
    groups = pq.read_table(folder.path(f"{tables.DECIDE}/groups.parquet")).to_pylist()
    assert groups[0]["copy_group"] == groups[3]["copy_group"] == -1
    assert problems(folder) == []


def test_near_copies_go_along_when_asked_for(folder):
    chosen, _, report = remove(folder, key="ann/one", copies=True)
    assert [image.key for image in chosen.images] == ["ann/one", "ann/one-small"]
    assert (report.remains, problems(folder)) == ([], [])


def test_a_person_goes_from_verdicts_reviews_trials_and_findings(folder):
    _, _, report = remove(folder, person="bob")
    assert report.remains == []
    assert load(folder) == {}
    with folder.open(f"{tables.REVIEW}/000000.tar") as file:
        assert len(file.read()) == 1024  # two end blocks
    trials = next(folder.list(f"{tables.CALIBRATE}/_vsp/trials"))
    assert pq.read_table(folder.path(trials)).num_rows == 0
    found = json.loads(folder.read(f"{tables.DECIDE}/identities.json"))
    assert (found["merges"], len(found["outliers"])) == ([], 1)
    assert "ann/one" in outcomes(folder)


def test_an_identity_cluster_and_a_source_are_found(folder):
    keys = {image.key for image in choose(folder, Request(person="group:1")).images}
    assert keys == {"bob_one", "bob_two", "bob_three"}
    below = choose(folder, Request(source=f"{clean_folder.SOURCE}bob/")).images
    assert {image.key for image in below} == keys
    one = choose(folder, Request(source=f"{clean_folder.SOURCE}bob/2")).images
    assert [image.key for image in one] == ["bob_one"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [({"key": "nobody"}, "no image"), ({"person": "group:x"}, "expected a number"),
     ({"person": "eve"}, "no image"), ({"source": "https://else"}, "no image")],
)  # fmt: skip
def test_what_fits_nothing_is_one_line(folder, request_, words):
    with pytest.raises(UserError, match=words):
        choose(folder, Request(**request_))


def test_the_journals_keep_their_other_lines(folder):
    remove(folder, key="torn")
    lines = [json.loads(line) for line in folder.read("_vsp/journal.jsonl").decode().splitlines()]
    assert [line["event"] for line in lines] == ["begun"]
    inner = open_store(f"{folder.url}/{tables.INSPECT}")
    assert b"ann/one.jpg" in inner.read("_vsp/journal.jsonl")  # of another shard
    remove(folder, key="ann/one")
    assert b"ann/one" not in inner.read("_vsp/journal.jsonl")


def test_without_embeddings_all_else_goes(folder):
    """They are removed when a run ends, though its commits name them."""
    shutil.rmtree(folder.path(f"{tables.INSPECT}/{tables.PRIVATE}"))
    shutil.rmtree(folder.path(f"{tables.CALIBRATE}/_vsp/trials"))
    _, sought, report = remove(folder, person="bob")
    assert (report.remains, len(sought.plain.identities)) == ([], 0)
    assert problems(folder) == []
    assert list(folder.list(f"{tables.INSPECT}/{tables.PRIVATE}")) == []


def test_of_a_run_that_only_looked_so_far_the_rows_go(folder):
    for name in [*folder.list(), *folder.list("_vsp/commits"), "_vsp/plan.json"]:
        folder.remove(name)
    _, _, report = remove(folder, key="ann/one")
    assert report.remains == []
    with folder.open(f"{tables.INSPECT}/inspected/000000.parquet") as file:
        assert read_table_rows(file, Inspected)[0].status == "forgotten"


def test_what_stays_keeps_its_bytes(folder):
    before = {s.key: s.members for s in read_shard(f"{folder.url}/000001.tar")}
    remove(folder, key="bob_two")
    after = {s.key: s.members for s in read_shard(f"{folder.url}/000001.tar")}
    del before["bob_two"]
    assert before == after


def test_a_foreign_file_that_knows_the_image_is_named(folder):
    chosen = choose(folder, Request(key="bob_two"))
    vector = next(iter(plain_of(folder, chosen).identities))
    digest = chosen.images[0].sha256
    folder.write("notes.txt", b"see bob_two.jpg for more")
    folder.write("hash.json", json.dumps({"a": [digest]}).encode())
    folder.write("image.bin", clean_folder.image_of(clean_folder.MADE[6]))
    out = io.BytesIO()
    moved = (vector + np.float32(4e-7)).astype(np.float32).tobytes()
    import pyarrow as pa

    pq.write_table(pa.table({"v": [b"\0" * 512, moved]}), out)
    folder.write("mine/vectors.parquet", out.getvalue())
    _, _, report = remove(folder, key="bob_two")
    found = dict(line.removeprefix(f"{folder.url}/").split(": ") for line in report.remains)
    assert found == {
        "notes.txt": "names the key", "hash.json": "holds the sha256 of an image",
        "image.bin": "holds an image", "mine/vectors.parquet": "holds an embedding",
    }  # fmt: skip


def test_keys_of_digits_and_common_words_raise_no_false_alarm(folder):
    _, _, report = remove(folder, key="copied")  # a word of every sidecar
    assert report.remains == []


def test_tombstones_and_the_pending_file_name_nobody(folder, monkeypatch):
    monkeypatch.setattr("pipeline.cleaning.removal.forget.scan", stop)
    with pytest.raises(Stop):
        remove(folder, person="bob")
    text = folder.read("_vsp/forgetting.json") + folder.read(tables.TOMBSTONES)
    digests = [clean_folder.entry_of(made).seen.sha256 for made in clean_folder.MADE]
    assert not any(word in text.decode() for word in ["bob", *filter(None, digests)])


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


class Mortal(LocalStore):
    """A store whose process dies before or after its n-th change."""

    left = 0
    after = False

    def _step(self, work):
        Mortal.left -= 1
        if Mortal.left == 0 and not Mortal.after:
            raise Stop
        result = work()
        if Mortal.left == 0:
            raise Stop
        return result

    def write(self, name, data):
        return self._step(lambda: LocalStore.write(self, name, data))

    def publish(self, attempt, name):
        return self._step(lambda: LocalStore.publish(self, attempt, name))

    def stage(self, attempt, names):
        return self._step(lambda: LocalStore.stage(self, attempt, names))

    def remove(self, name):
        return self._step(lambda: LocalStore.remove(self, name))

    def discard(self, attempt):
        if Mortal.left != 0:  # a dead process tidies nothing
            LocalStore.discard(self, attempt)


@pytest.mark.parametrize(
    ("after", "stride"),
    [(False, 6), pytest.param(False, 1, marks=pytest.mark.slow),
     pytest.param(True, 3, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_removal_interrupted_at_any_change_is_finished(
    folder, tmp_path, monkeypatch, after, stride
):
    monkeypatch.setattr(
        "pipeline.cleaning.removal.forget.open_store", lambda url: Mortal(url_path(url))
    )
    Mortal.after = after
    copy = tmp_path / "copy"
    num_steps = 1 - stride
    while True:
        num_steps += stride
        shutil.copytree(folder.root, copy)
        Mortal.left = num_steps
        store, died = Mortal(copy), True
        with contextlib.suppress(Stop):
            remove(store, key="ann/two")
            died = False
        if not died:
            break
        Mortal.left = 0
        plain = LocalStore(copy)
        began = is_pending(plain)
        report = finish_pending(plain)
        assert (report is not None) == began
        if report is None and num_steps > 3:
            assert outcomes(plain).get("ann/two") is None, "the last step was done"
        if report is None and "ann/two" in outcomes(plain):
            assert num_steps <= 2
            remove(plain, key="ann/two")
        assert report is None or report.remains == []
        assert not is_pending(plain)
        assert "ann/two" not in outcomes(plain)
        assert problems(plain) == [], num_steps
        assert plain.attempts() == []
        shutil.rmtree(copy)
    assert num_steps > 20


def url_path(url):
    from pathlib import Path

    return Path(url)


KILLED = """
import os, signal, sys
from pathlib import Path
import pipeline.cleaning.removal.forget as forgetting
from pipeline.cleaning.removal.chosen import Request, choose, plain_of, removal_of
from pipeline.cleaning.removal.tombstones import Tombstones
from pipeline.storage import LocalStore
store = LocalStore(Path(sys.argv[1]))
chosen = choose(store, Request(person="ann"))
stones = Tombstones.load(store)
plain = plain_of(store, chosen)
forgetting._edit_decisions = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
forgetting.forget(store, removal_of(store, chosen, plain, stones), stones, plain)
"""


def test_a_killed_removal_is_finished_by_the_next_command(folder):
    ended = subprocess.run([sys.executable, "-c", KILLED, folder.url], check=False)
    assert ended.returncode == -9
    assert is_pending(folder)
    report = finish_pending(folder)
    assert report.remains == []
    assert problems(folder) == []
    assert set(outcomes(folder)) == {
        "", "bob_one", "bob_two", "bob_three", "stone", "notes", "torn", "cat"
    }  # fmt: skip


def test_verify_wants_a_tombstone_for_every_blank_row(folder):
    remove(folder, key="bob_two")
    Tombstones(b"0" * 32).save(folder)
    assert any("no tombstone" in line for line in problems(folder))


def test_verify_sees_a_manifest_that_disagrees_with_the_shard(folder, template):
    ledger = Ledger(folder)
    record = ledger.commit(ledger.plan(), "000000")
    name = "manifest/000000.parquet"
    rows = read_manifest(folder).to_pylist()[:5]
    rows[1]["sha256_out"] = "0" * 64
    file = io.BytesIO()
    tables.write_columns(file, rows, tables.MANIFEST_SCHEMA)
    folder.write(name, file.getvalue())
    for each in record["files"]:
        if each["name"] == name:
            from pipeline.sidecar import sha256

            each |= {"sha256": sha256(file.getvalue()), "size_bytes": len(file.getvalue())}
    folder.write(f"_vsp/commits/{ledger.plan().id}/000000.json", json.dumps(record).encode())
    assert problems(folder) == [
        "manifest/000000.parquet: ann/two: another sha256 than the sidecar's",
        "000000.tar: ann/two.jpg: not what its row says",
    ]


def test_crops_keep_their_places_when_one_goes(template, tmp_path):
    """With crops cut first, the next steps count records of the crops' tar."""
    from pipeline.cleaning.removal.rewrite import Edit, rewrite_unit

    store = LocalStore(tmp_path / "aligned")
    plan = clean_folder._begin(store, "align", clean_folder._units(template.source))
    photos = [clean_folder.Row(i, f"p{i}", "copied") for i in range(3)]
    members = [(f"p{i}_0.{kind}", b"%d" % i) for i in range(3) for kind in ("png", "json")]
    sidecar = clean_folder._as_bytes(
        clean_folder.write_sidecar, "a", photos, clean_folder.Provenance(0, "", "", "{}")
    )
    files = {"a.parquet": sidecar, "a.tar": clean_folder._tar(members)}
    clean_folder._publish(store, plan, "a", files, ["copied"] * 3)
    record = next(Ledger(store).commits(plan))
    edit = Edit(gone=frozenset({1}), crops=frozenset({1}))
    assert rewrite_unit(store, plan, record, "a.parquet", edit)
    after = next(Ledger(store).commits(plan))
    assert after["counts"] == {"copied": 2, "forgotten": 1}
    samples = list(read_shard(f"{store.url}/a.tar"))
    assert [s.key for s in samples] == ["p0_0", "_vsp_forgotten/000001", "p2_0"]
    assert not rewrite_unit(store, plan, after, "a.parquet", edit)


@pytest.mark.slow
def test_an_object_store_forgets_too(object_store, tmp_path):
    made = clean_folder.make_clean_folder(tmp_path, f"{object_store.url}/out")
    _, _, report = remove(made.store, key="ann/two")
    assert (report.remains, report.num_files > 30) == ([], True)
    assert problems(made.store) == []
    assert made.store.attempts() == []


# -------------------------------------------------------------------- what others say of an image


def commits_text(folder):
    return b"".join(folder.read(name) for name in folder.list("_vsp/commits")).decode()


def test_a_person_goes_from_the_reasons_that_a_commit_counts(folder):
    assert "rejected: identity_outlier: not like the others of ann" in commits_text(folder)
    _, _, report = remove(folder, person="ann")
    assert report.remains == []
    assert "others of ann" not in commits_text(folder)
    reasons = Ledger(folder).commit(Ledger(folder).plan(), "000000")["reasons"]
    assert reasons["forgotten: forgotten"] == 3
    assert reasons["rejected: no_face"] == 1


def test_the_proof_finds_persons_and_sources_within_a_sentence(folder):
    source = f"{clean_folder.SOURCE}bob/2"
    folder.write("a.txt", b"not like the others of bob, it seems")
    folder.write("b.json", json.dumps({"why": f"taken from {source}."}).encode())
    folder.write("c.txt", f"{source}/34 and {source}4 are others', as is bobby".encode())
    chosen, sought, report = remove(folder, person="bob")
    assert source in chosen.lone_sources
    after_a_crash = Sought(sought.removal, sought.stones)
    assert (after_a_crash.text(source), after_a_crash.text("bob")) == (
        "names the source", "names the person"
    )  # fmt: skip
    found = dict(line.removeprefix(f"{folder.url}/").split(": ") for line in report.remains)
    assert found == {"a.txt": "names the person", "b.json": "names the source"}


def test_a_person_of_whom_something_stays_may_be_named(folder):
    folder.write("a.txt", b"not like the others of ann")
    chosen, _, report = remove(folder, key="ann/one")
    assert (chosen.lone_persons, report.remains) == (frozenset(), [])


def group_row(shard, index, kind, of, likeness, group=0):
    return {"shard": shard, "index": index, "copy_group": group, "copy_kind": kind, "copy_of": of,
            "copy_likeness": likeness, "identity_group": index, "identity_likeness": 0.9,
            "is_outlier": False}  # fmt: skip


def groups_of(store):
    return pq.read_table(store.path(tables.GROUPS))


def test_groups_are_found_by_shard_and_index_whatever_tables_are_there(folder):
    """`faces` comes before `faces-2`, `faces-2.parquet` before `faces.parquet`."""
    alone = (None, -1, 0.0, -1)
    clean_folder.write_groups(
        folder, [group_row("faces", 0, *alone), group_row("faces-2", 0, *alone),
                 group_row("000001", 1, *alone)]
    )  # fmt: skip
    remove(folder, key="bob_two")
    table = groups_of(folder)
    assert table["identity_group"].to_pylist() == [0, 0, -1]
    assert table.schema.metadata[b"vsp.of"] == b"0"


def test_groups_that_do_not_name_their_images_go(folder):
    pq.write_table(groups_of(folder).drop_columns(["shard", "index"]), folder.path(tables.GROUPS))
    remove(folder, key="bob_two")
    assert folder.stat(tables.GROUPS) is None


def test_under_a_mirrored_best_what_was_upright_is_the_flip(folder):
    clean_folder.write_groups(
        folder, [group_row("000001", 1, None, 0, 1.0), group_row("000001", 2, "near", 0, 0.9),
                 group_row("000001", 3, "flip", 0, 0.97), group_row("000001", 6, "flip", 0, 0.95)]
    )  # fmt: skip
    remove(folder, key="bob_two")
    rows = [(row["copy_kind"], row["copy_of"]) for row in groups_of(folder).to_pylist()]
    assert rows == [(None, -1), ("flip", 2), (None, 2), ("near", 2)]


def test_what_was_seen_goes_where_no_commit_covers_it(folder):
    """The OUT of `vsp manifest apply` has such tables, and no plan beside them."""
    shutil.rmtree(folder.path(f"{tables.INSPECT}/_vsp"))
    _, _, report = remove(folder, key="ann/two")
    assert report.remains == []
    with folder.open(f"{tables.INSPECT}/inspected/000000.parquet") as file:
        assert read_table_rows(file, Inspected)[1] == Inspected(1, "", "forgotten")


def versions(store):
    return {unit.shard: unit.version for unit in Ledger(store).plan().units}


def planned(store):
    """What the next run would call the shards' versions."""
    return {shard: version_of(store, version.rpartition(" ")[0], shard)
            for shard, version in versions(store).items()}  # fmt: skip


@pytest.mark.parametrize("stops_at", ["", "_edit_groups", "_refresh_versions"])
def test_no_shard_is_done_again_for_what_was_forgotten(folder, monkeypatch, stops_at):
    before = versions(folder)
    if stops_at:
        with monkeypatch.context() as patch, contextlib.suppress(Stop):
            patch.setattr(f"pipeline.cleaning.removal.forget.{stops_at}", stop)
            remove(folder, key="ann/two")
        finish_pending(folder)
    else:
        remove(folder, key="ann/two")
    assert versions(folder) == planned(folder)
    assert set(versions(folder).values()).isdisjoint(before.values())


def test_what_was_decided_anew_before_a_removal_is_still_carried_out(folder):
    name = f"{tables.DECISIONS}/000001.parquet"
    with folder.open(name) as file:
        rows = read_table_rows(file, tables.Decision)
    out = io.BytesIO()
    tables.write_rows(out, [replace(row, detail="anew") for row in rows], tables.Decision)
    folder.write(name, out.getvalue())
    remove(folder, key="ann/two")
    assert versions(folder)["000000"] == planned(folder)["000000"]
    assert versions(folder)["000001"] != planned(folder)["000001"]


def test_a_forgotten_crop_leaves_the_place_of_its_face(template, tmp_path):
    """So that the photo's face is not cut out again where crops have another size."""
    store = LocalStore(tmp_path / "out")
    keys = ("p_0", "p_1", "q_12")
    seen = [Inspected(i, key, "inspected", sha256=f"{i}" * 64) for i, key in enumerate(keys)]
    out = io.BytesIO()
    tables.write_rows(out, seen, Inspected)
    store.write(f"{tables.INSPECT}/{tables.INSPECTED}/a.parquet", out.getvalue())
    photos = [clean_folder.Row(i, key, "copied", sha256_in=key * 64) for i, key in enumerate("pq")]
    provenance = clean_folder.Provenance(0, "", "", "{}")
    sidecar = clean_folder._as_bytes(clean_folder.write_sidecar, "a", photos, provenance)
    store.write(f"{tables.ALIGNED}/a.parquet", sidecar)
    crops = [(f"{key}.png", key.encode()) for key in keys]
    store.write(f"{tables.ALIGNED}/a.tar", clean_folder._tar(crops))
    remove(store, key="p_1")
    stones = Tombstones.load(store)
    assert stones.covers(digest_of_face("p" * 64, 1))
    assert not stones.covers(digest_of_face("p" * 64, 0))
    assert not stones.covers("p" * 64)
    remove(store, key="q_12")
    assert Tombstones.load(store).covers(digest_of_face("q" * 64, 12))
    assert Tombstones.load(store).covers("q" * 64)
