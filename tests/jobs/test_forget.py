"""`vsp forget`: what it tells, what it asks, what it refuses; and what `vsp verify` makes of it."""

import shutil
from pathlib import Path

import clean_folder
import pyarrow.parquet as pq
import pytest

from pipeline.cleaning.manifest import apply as applying
from pipeline.cleaning.manifest.read import read_manifest
from pipeline.cleaning.removal import forget as forgetting
from pipeline.cleaning.removal.chosen import Request, choose, plain_of, removal_of
from pipeline.cleaning.removal.tombstones import Tombstones
from pipeline.locks import run_lock
from pipeline.storage import LocalStore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return clean_folder.make_clean_folder(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def out(made, tmp_path):
    shutil.copytree(made.out, tmp_path / "out")
    return tmp_path / "out"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_dry_run_tells_everything_and_changes_nothing(vsp, out, made):
    before = files(out)
    code, text, _ = vsp("forget", out, "--key", "ann/one", "-n")
    assert code == 0
    assert "1 image of " in text
    assert "000000/ann/one-small" in text  # the near copy that stays
    assert f"{made.source}/000000.tar: ann/one" in text  # the original, for the user to remove
    assert "not forgotten: weights" in text
    assert clean_folder.MODEL_SHA256[:16] in text
    assert files(out) == before


def test_an_image_is_removed_proved_and_counted(vsp, out):
    code, text, err = vsp("forget", out, "--key", "ann/two", "--yes")
    assert (code, err) == (0, "")
    assert "000001/copied (the same bytes)" in text
    assert "forgotten: 2 images; tombstones in OUT: 1" in text
    assert "files (" in text
    assert "none knows of it" in text
    code, text, _ = vsp("verify", out)
    assert (code, "2 forgotten" in text, "all is well" in text) == (0, True, True)


def test_a_source_goes_and_a_rest_is_named(vsp, out):
    (out / "notes.txt").write_text("bob_two is in here")
    code, text, err = vsp("forget", out, "--source", f"{clean_folder.SOURCE}bob/", "--yes")
    assert code == 1
    assert err == f"vsp: {out}/notes.txt: names the key\n"
    assert "1 still know of it" in text


def test_a_person_is_shown_and_not_removed_unasked(vsp, out):
    before = files(out)
    code, text, err = vsp("forget", out, "--person", "group:1")
    assert (code, "--yes" in err) == (2, True)
    assert [line.strip() for line in text.splitlines()[1:4]] == [
        "000000/bob_one", "000001/bob_two", "000001/bob_three"
    ]  # fmt: skip
    after = {name: data for name, data in files(out).items() if not name.endswith(".lock")}
    assert before == after


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
def test_on_a_terminal_the_user_is_asked(vsp, out, monkeypatch, answer, code):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert vsp("forget", out, "--key", "cat")[0] == code
    assert vsp("forget", out, "--key", "cat", "-n")[0] == (2 if code == 0 else 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--key", "nobody"], "--key nobody: no image of"), ([], "exactly one of"),
     (["--key", "a", "--person", "b"], "exactly one of"),
     (["--person", "ann", "--shard", "000000"], "goes with --key")],
)  # fmt: skip
def test_what_cannot_be_is_one_line(vsp, out, arguments, words):
    code, text, err = vsp("forget", out, "--yes", *arguments)
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_key_of_several_shards_wants_a_shard(vsp, out, tmp_path):
    store = LocalStore(out)
    table = f"{forgetting.tables.INSPECT}/inspected/"
    store.write(f"{table}000009.parquet", store.read(f"{table}000001.parquet"))
    code, _, err = vsp("forget", out, "--key", "cat", "-n")
    assert (code, "--shard" in err) == (2, True)
    assert vsp("forget", out, "--key", "cat", "--shard", "000001", "-n")[0] == 0


def test_another_folder_is_refused(vsp, tmp_path):
    code, _, err = vsp("forget", tmp_path, "--key", "a", "--yes")
    assert (code, "give its OUT" in err) == (2, True)


def test_nothing_is_removed_while_a_run_is_at_work(vsp, out):
    with run_lock(LocalStore(out)):
        code, text, err = vsp("forget", out, "--key", "cat", "--yes")
    assert (code, text) == (1, "")
    assert "another" in err


@pytest.mark.parametrize("command", [["verify"], ["forget", "--key", "cat", "--yes"]])
def test_an_interrupted_removal_is_ended_first(vsp, out, monkeypatch, command):
    store = LocalStore(out)
    chosen = choose(store, Request(person="bob"))
    stones = Tombstones.load(store)
    plain = plain_of(store, chosen)
    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_edit_groups", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forgetting.forget(store, removal_of(store, chosen, plain, stones), stones, plain)
    assert forgetting.is_pending(store)
    code, _, err = vsp(command[0], out, *command[1:])
    assert (code, "ended a removal" in err) == (0, True)
    assert not forgetting.is_pending(store)
    assert not any(b"bob_" in data for data in files(out).values())


def test_weights_of_the_loop_around_it_are_listed(vsp, made, tmp_path):
    (tmp_path / "_steps").mkdir()
    shutil.copytree(made.out, tmp_path / "round-0" / "clean")
    (tmp_path / "round-1").mkdir()
    (tmp_path / "round-1" / "restorer.safetensors").touch()
    text = vsp("forget", tmp_path / "round-0" / "clean", "--key", "cat", "-n")[1]
    assert "restorer.safetensors" in text


def test_a_copy_cleaned_by_a_manifest_forgets_before_its_last_step_too(vsp, made, tmp_path):
    """Its tables were written without a run: no plan, no commit."""
    store = LocalStore(tmp_path / "mine")
    applying.claim(store, "0" * 64)
    known = applying.Known(read_manifest(made.store, applying.COLUMNS))
    applying.write_tables(store, clean_folder._units(made.source), known)
    code, text, err = vsp("forget", store.root, "--key", "ann/two", "--yes")
    assert (code, err) == (0, "")
    assert "forgotten: 2 images" in text
    digest = clean_folder.entry_of(clean_folder.MADE[1]).seen.sha256
    written = [str(pq.read_table(path).to_pylist()) for path in store.root.rglob("*.parquet")]
    assert len(written) == 4
    assert not any(digest in text or "ann/two" in text for text in written)
