import hashlib
import os
import pickle
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import known_weights, weights
from pipeline.errors import UserError
from pipeline.known_weights import KNOWN
from pipeline.metrics.families import FAMILIES, SET_FAMILIES
from pipeline.weights import add, default_folder, entries, find, resolve, verify_all


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VSP_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"weights" * 1000)
    return path


def state_of(name, found):
    return next(entry.state for entry in found if entry.name == name)


def test_the_table_is_well_formed():
    assert len({known.name for known in KNOWN}) == len(KNOWN)
    for known in KNOWN:
        assert set(known.sha256) <= set("0123456789abcdef")
        assert len(known.sha256) in (0, 8, 10, 64)
        if 0 < len(known.sha256) < 64:  # its authors put it into the name, where we have it from
            assert f"-{known.sha256}." in known.name
        told = (known.what, known.used_by, known.source, known.training_data)
        assert all((*told, known.code_licence, known.weight_licence))


def test_every_file_that_a_metric_needs_is_known():
    needs = {need for family in (*FAMILIES, *SET_FAMILIES) for need in family.needs}
    names = {name for need in needs for name in need.names}
    assert len(names) > 10
    assert names <= {known.name for known in KNOWN}


def test_the_bundled_file_is_the_one_in_the_table(folder):
    (yunet,) = [known for known in KNOWN if known.bundled]
    data = yunet.bundled.read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (yunet.sha256, yunet.size_bytes)
    assert find(yunet.name) == yunet.bundled


def test_known_checksums_are_those_of_the_files_at_hand(shared_dir):
    rows = (shared_dir / "weights" / "weights.csv").read_text()
    assert all(known.sha256 in rows for known in KNOWN if len(known.sha256) == 64)


def test_the_folder_is_chosen_as_documented(monkeypatch, tmp_path):
    monkeypatch.setattr(weights.sys, "platform", "linux")
    monkeypatch.delenv("VSP_WEIGHTS", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == Path.home() / ".cache/vsp/weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vsp/weights"
    monkeypatch.setenv("VSP_WEIGHTS", "~/w")
    assert default_folder() == Path.home() / "w"


def test_add_copies_whole_records_and_is_idempotent(folder, source):
    would = add(source, dry_run=True)
    assert would.is_new
    assert not folder.exists()
    added = add(source)
    assert added == would
    assert added.path.read_bytes() == source.read_bytes()
    assert {path.name for path in folder.iterdir()} == {source.name, f"{source.name}.sha256"}
    checked = subprocess.run(["sha256sum", "-c", f"{source.name}.sha256"], cwd=folder, check=False)
    assert checked.returncode == 0
    assert not add(source).is_new


def test_a_known_file_is_known_by_its_content_and_held_to_its_name(folder, tmp_path):
    (yunet,) = [known for known in KNOWN if known.bundled]
    renamed = tmp_path / "detector (1).bin"
    renamed.write_bytes(yunet.bundled.read_bytes())
    assert add(renamed).path == folder / yunet.name
    assert state_of(yunet.name, entries()) == "present"
    wrong = tmp_path / "vgg16-397923af.pth"
    wrong.write_bytes(b"an error page")
    with pytest.raises(UserError, match=r"is not that of vgg16-397923af.pth \(397923af\)"):
        add(wrong)
    assert not (folder / wrong.name).exists()


def test_of_one_file_under_two_names_the_one_that_it_has_is_kept(folder, tmp_path, monkeypatch):
    data = b"one file"
    digest = hashlib.sha256(data).hexdigest()
    theirs = [known for known in KNOWN if known.sha256 == "6726825d"]
    assert len(theirs) == 2
    monkeypatch.setattr(
        known_weights, "KNOWN", tuple(replace(known, sha256=digest[:8]) for known in theirs)
    )
    for name, kept in [*((known.name, known.name) for known in theirs), ("x", theirs[0].name)]:
        (tmp_path / name).write_bytes(data)
        assert add(tmp_path / name, dry_run=True).path.name == kept


def test_the_first_file_of_a_name_is_pinned_until_its_record_is_removed(folder, tmp_path):
    first, other = tmp_path / "GFPGANv1.4.pth", tmp_path / "other" / "GFPGANv1.4.pth"
    other.parent.mkdir()
    first.write_bytes(b"published")
    other.write_bytes(b"another file")
    path = add(first).path
    path.unlink()
    with pytest.raises(UserError, match=r"another file has this name, sha256 [0-9a-f]{64}.*sha256"):
        add(other)
    path.write_bytes(b"damaged")  # the same file repairs it
    assert add(first).is_new
    assert path.read_bytes() == b"published"
    path.unlink()
    path.with_name(f"{path.name}.sha256").unlink()
    assert add(other).is_new
    assert state_of(path.name, verify_all()) == "present"


def test_what_must_not_be_added_is_refused_in_one_line(folder, source, tmp_path):
    add(source)
    other = tmp_path / "other.bin"
    other.write_bytes(b"other")
    for arguments, told in [
        ((other, source.name), "another file has this name"),
        ((tmp_path / "no.pt",), "no such file"),
        ((tmp_path,), "no such file"),
        ((other, "../up.bin"), "plain file name"),
        ((other, ".hidden"), "plain file name"),
        ((other, "x.sha256"), "plain file name"),
    ]:
        with pytest.raises(UserError, match=told) as error:
            add(*arguments)
        assert "\n" not in str(error.value)
    (tmp_path / "other.bin.sha256").write_text("0" * 64 + "  other.bin\n")
    with pytest.raises(UserError, match="changed or damaged"):
        add(other)
    assert {path.name for path in folder.iterdir()} == {source.name, f"{source.name}.sha256"}


def test_a_failed_copy_leaves_nothing(folder, source, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        add(source)
    assert not list(folder.iterdir())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_is_unpickled(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code_diffuser.pt").write_bytes(pickle.dumps(Bomb()))
    add(tmp_path / "code_diffuser.pt")
    verify_all()
    assert not (tmp_path / "exploded").exists()


def test_verify_finds_damage_and_what_has_no_record(folder, source):
    path = add(source).path
    (folder / "loose.bin").write_bytes(b"x")
    assert state_of(source.name, verify_all()) == "present"
    assert state_of("loose.bin", verify_all()) == "unrecorded"
    with path.open("r+b") as file:
        file.write(b"W")
    assert state_of(source.name, entries()) == "present"  # listing does not hash
    assert state_of(source.name, verify_all()) == "damaged"


def test_find_and_resolve_say_where_to_get_what_is_missing(folder, source):
    with pytest.raises(UserError, match=r"not in .*Wanglong2/VSPBFR.*weights add"):
        find("restoration_net.pt")
    with pytest.raises(UserError, match=r"no such model.*which holds none"):
        resolve("mine")
    path = add(source).path
    assert resolve("mine") == resolve("mine.safetensors") == path == find(source.name)
    assert resolve(source) == source
    with pytest.raises(UserError, match=r"there: mine\.safetensors"):
        resolve("mein")
    with pytest.raises(UserError, match="no such model"):
        resolve("weights/../mine.safetensors")
