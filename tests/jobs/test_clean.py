"""`vsp clean` on a small set of known composition: faces of nobody, copies, broken files."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import torch
from constructed_pictures import drawn_faces
from constructed_set import build, read_truth
from safetensors.torch import save_file
from skimage.data import astronaut, coffee

from pipeline import images
from pipeline.shards import read_shard
from pipeline.tar import TarWriter
from vsp_model.mobilefacenet import MobileFaceNet

SIZE = 60
EXIT_BAD_RECORDS = 3


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faces") / "made"
    build(folder, drawn_faces(SIZE + 10, seed=0), size=SIZE)
    return folder


@pytest.fixture(scope="module")
def no_weights(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("none")


@pytest.fixture(scope="module")
def some_weights(tmp_path_factory) -> Path:
    """An identity network of random weights: it tells pictures apart, though not people."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save_file(MobileFaceNet().state_dict(), folder / "mobilefacenet_ms1m.safetensors")
    return folder


@pytest.fixture(scope="module")
def cleaned(faces, no_weights, tmp_path_factory) -> Path:
    """The set cleaned without an identity network."""
    from jobs.cleaning import CleanRequest, run_clean
    from jobs.running import RunFlags

    out = tmp_path_factory.mktemp("cleaned") / "out"
    request = CleanRequest(str(faces / "set"), str(out), weights=no_weights, threads=1)
    assert run_clean(request, RunFlags(codec_threads=2)).exit_code == EXIT_BAD_RECORDS
    return out


def manifest(out: Path) -> list[dict]:
    return ds.dataset(out / "manifest", format="parquet").to_table().to_pylist()


def files(folder: Path) -> dict[str, str]:
    """What a user sees, and the manifest."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "_vsp" not in path.relative_to(folder).parts
    }


def members(out: Path) -> dict[str, str]:
    return {
        sample.key: hashlib.sha256(sample.image.data).hexdigest()
        for shard in sorted(out.glob("*.tar"))
        for sample in read_shard(str(shard))
        if sample.image
    }


def attempts(out: Path) -> dict[str, str]:
    return {
        path.name: json.loads(path.read_text())["attempt"]
        for path in out.glob("_vsp/commits/*/*.json")
    }


# ------------------------------------------------------------------- what is kept and left out


def test_every_image_has_a_row_and_what_is_kept_is_kept_byte_for_byte(faces, cleaned):
    rows = manifest(cleaned)
    there, kept = members(faces / "set"), members(cleaned)
    assert {row["key"] for row in rows} == {record.key for record in read_truth(faces)}
    assert kept, "an empty set is clean, and useless"
    assert all(there[key] == digest for key, digest in kept.items())
    outcomes = {row["key"]: row["outcome"] for row in rows}
    assert set(kept) == {key for key, outcome in outcomes.items() if outcome == "kept"}


def test_nothing_is_restored_without_an_identity_network(cleaned):
    rows = manifest(cleaned)
    assert not any(row["decision"] == "restore" for row in rows)
    assert {row["outcome"] for row in rows} == {"kept", "rejected"}


def test_the_roles_are_found(faces, cleaned):
    found = {row["key"]: row["decision_reason"] for row in manifest(cleaned)}
    told = Counter((record.role, record.is_copy, found[record.key]) for record in read_truth(faces))
    assert {reason for (role, _, reason) in told if role == "corrupt"} == {"unusable"}
    exact = [key for key in told if key[0] == "exact"]
    assert sum(told[k] for k in exact if k[2] == "duplicate_exact") == sum(
        told[k] for k in exact if k[1]
    )


def test_metadata_go_along(cleaned):
    rows = [row for row in manifest(cleaned) if row["fields"]]
    assert rows
    assert all(row["licence"] and json.loads(row["fields"]) for row in rows)


def test_the_command_tells_what_became_of_the_set_and_verify_agrees(
    vsp, faces, cleaned, no_weights
):
    code, out, err = vsp("clean", faces / "set", cleaned, "--weights", no_weights, "--threads", 1)
    assert code == EXIT_BAD_RECORDS
    assert "kept" in out
    assert "duplicate_exact" in out
    assert "vsp weights add" in err
    code, out, err = vsp("verify", cleaned)
    assert code == 0, out + err
    code, out, _ = vsp("status", cleaned)
    assert code == EXIT_BAD_RECORDS
    assert "clean" in out


# ------------------------------------------------------------------------------ again and again


def test_a_verdict_redoes_its_shard_and_no_other(vsp, faces, cleaned, no_weights, tmp_path):
    before, there = attempts(cleaned), files(cleaned)
    row = next(r for r in manifest(cleaned) if r["outcome"] == "kept" and r["shard"] == "000000")
    verdicts = tmp_path / "verdicts.csv"
    verdicts.write_text(f"key,verdict\n{row['key']},accept\n")
    ask = ("clean", faces / "set", cleaned, "--weights", no_weights, "--threads", 1)
    vsp(*ask, "--overrule", verdicts)
    now = next(each for each in manifest(cleaned) if each["key"] == row["key"])
    assert (now["decision_reason"], now["outcome"]) == ("overruled", "restored")
    assert members(cleaned)[row["key"]] == now["sha256_out"] != row["sha256_out"]
    assert json.loads(now["operations"])[0]["taken"]
    assert attempts(cleaned)["000000.json"] != before["000000.json"]

    verdicts.write_text(f"key,verdict\n{row['key']},keep\n")
    vsp(*ask, "--overrule", verdicts)
    assert members(cleaned)[row["key"]] == row["sha256_out"]
    (cleaned / "_vsp" / "overrule.csv").unlink()
    vsp(*ask)
    assert files(cleaned) == there


def test_another_setting_of_the_inspection_is_refused(vsp, faces, cleaned, some_weights):
    code, _, err = vsp("clean", faces / "set", cleaned, "--weights", some_weights)
    assert code == 2
    assert "begun with other settings" in err


def test_a_dry_run_tells_time_and_space_and_writes_nothing(vsp, faces, no_weights, tmp_path):
    code, out, _ = vsp("clean", faces / "set", tmp_path / "out", "-n", "--weights", no_weights,
                       "--threads", 1)  # fmt: skip
    assert code == 0
    assert "inspect" in out
    assert "GB" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere.tar",), "nowhere.tar"),
        (("--set", "gate.worst=1"), "worst_share"),
        (("--weights", "nowhere"), "no such folder"),
        (("--overrule", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_a_mistake_is_one_line(vsp, faces, tmp_path, arguments, told):
    source = arguments if len(arguments) == 1 else (faces / "set",)
    options = arguments if len(arguments) == 2 else ()
    code, _, err = vsp("clean", *source, tmp_path / "out", *options)
    assert code == 2
    assert told in err.splitlines()[-1]


# ------------------------------------------------------------------------- with identity network


@pytest.mark.slow
def test_embeddings_are_gone_at_the_end_unless_they_are_wanted(vsp, faces, some_weights, tmp_path):
    ask = ("clean", faces / "set", tmp_path / "out", "--weights", some_weights, "--threads", 1,
           "--calibrate-faces", 4, "--set", "sample.min_detail=0")  # fmt: skip
    code, _, err = vsp(*ask)
    assert code == EXIT_BAD_RECORDS, err
    private = tmp_path / "out" / "_vsp" / "inspect" / "_vsp" / "private"
    assert not list(private.glob("*.parquet"))
    there = files(tmp_path / "out")
    assert "fewer than" in err, "four faces calibrate nothing"
    code, _, err = vsp(*ask, "--keep-embeddings")
    assert code == EXIT_BAD_RECORDS, err
    assert list(private.glob("*.parquet"))
    assert there.keys() == files(tmp_path / "out").keys()


# ------------------------------------------------------------------------------ odd input and OUT


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        writer = TarWriter(file)
        for name, data in members.items():
            writer.add(name, data)
        writer.finish()


def test_an_empty_shard_is_a_shard(vsp, no_weights, tmp_path):
    write_shard(tmp_path / "in" / "000000.tar", {})
    write_shard(tmp_path / "in" / "000001.tar", {"a.txt": b"no image"})
    code, _, err = vsp("clean", tmp_path / "in", tmp_path / "out", "--weights", no_weights)
    assert code == 0, err
    (row,) = manifest(tmp_path / "out")
    assert (row["key"], row["decision_reason"], row["outcome"]) == ("a", "no_image", "kept")
    assert (tmp_path / "out" / "000000.tar").is_file()


def test_a_folder_of_somebody_else_is_refused_before_any_work(vsp, faces, no_weights, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear all")
    code, _, err = vsp("clean", faces / "set", tmp_path / "out", "--weights", no_weights)
    assert code == 2
    assert "letter.txt: foreign file" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_unknown_keys_of_a_file_are_told_and_not_kept(vsp, faces, cleaned, no_weights, tmp_path):
    there = files(cleaned)
    (tmp_path / "v.csv").write_text("key,verdict\nnobody,keep\n")
    _, _, err = vsp("clean", faces / "set", cleaned, "--weights", no_weights, "--threads", 1,
                    "--overrule", tmp_path / "v.csv")  # fmt: skip
    assert "1 of 1 keys are not in this set, the first 'nobody'" in err
    assert "nobody" not in (cleaned / "_vsp" / "overrule.csv").read_text()
    (cleaned / "_vsp" / "overrule.csv").unlink()
    assert files(cleaned) == there


# ----------------------------------------------------------------------------------- from photos


def test_with_align_the_crops_are_the_set(vsp, no_weights, tmp_path):
    shards = {"000000": {"eileen.jpg": astronaut()}, "000001": {"cup.jpg": coffee()}}
    for shard, photos in shards.items():
        encoded = {name: images.encode(photo, "jpeg") for name, photo in photos.items()}
        write_shard(tmp_path / "in" / f"{shard}.tar", encoded)
    code, _, err = vsp("clean", tmp_path / "in", tmp_path / "out", "--align", "--weights",
                       no_weights, "--threads", 1, "--set", "align.size_px=128")  # fmt: skip
    assert code == 0, err
    (row,) = manifest(tmp_path / "out")
    assert (row["key"], row["outcome"], row["width_px"]) == ("eileen_0", "kept", 128)
    assert json.loads(row["operations"])[0]["operation"] == "align"
    crops = members(tmp_path / "out" / "_vsp" / "aligned")
    assert crops == members(tmp_path / "out")
