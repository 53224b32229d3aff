"""The table of qualities that training reads: what S is, whom it knows, what is refused."""

import io
import json
import shutil

import numpy as np
import pytest
from score_folder import EvaluationFolder

from pipeline.errors import UserError
from pipeline.images import decode
from pipeline.metrics.judge import Face
from pipeline.metrics.quality import ClassicJudge, QualityJudge
from pipeline.sample import group
from pipeline.storage import open_store
from pipeline.tar import read_tar
from pipeline.training.data import DataConfig
from pipeline.training.scores import open_scores
from pipeline.training.source import open_source, validation_batches
from vsp_model.quality import BUILT_IN
from vsp_model.train.batch import Parts

SIZE = 32
KEYS = [f"f{number}" for number in range(8)]
QUALITY = dict(zip(KEYS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), strict=True))
NIQE = dict(zip(KEYS, (9.0, 8.0, 7.0, 6.0, 4.0, 5.0, 3.0, 2.0), strict=True))  # lower is better


@pytest.fixture
def shards(tmp_path, make):
    """Shards `a` and `b` of four faces each."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for name, keys in (("a", KEYS[:4]), ("b", KEYS[4:])):
        members = [(f"{key}.png", make.png(int(key[1:]), 64)) for key in keys]
        (folder / f"{name}.tar").write_bytes(make.tar_bytes(members))
    return folder


@pytest.fixture
def scored(tmp_path, shards):
    """Write a folder of scores; metric -> values by key."""

    def write(scores, name="scores", method="m", shard=lambda key: "ab"[key in KEYS[4:]]):
        folder = EvaluationFolder(tmp_path / name)
        for key in KEYS:
            path = str(shards / f"{shard(key)}.tar")
            folder.add_pairs("d", method, [key], has_truth=False, restored_path=path)
        for metric, values in scores.items():
            folder.add_scores("d", method, metric, values)
        folder.write()
        return str(tmp_path / name)

    return write


def config(shards, scores, **rest):
    settings = {"train": (str(shards),), "size": SIZE, "scores": scores}
    return DataConfig(**settings | rest)


def qualities(source, num_steps=2):
    batches = source.batches(Parts(8, 4), 0)
    found = {
        key: quality.item()
        for _, step in zip(range(num_steps), batches, strict=False)
        for batch in step
        for key, quality in zip(batch.keys, batch.quality, strict=True)
    }
    batches.close()
    return found


def of_all(table, shards):
    parts = (("a.tar", KEYS[:4]), ("b.tar", KEYS[4:]))
    return np.concatenate([table.of(str(shards / name), keys) for name, keys in parts])


def test_s_is_the_mean_of_the_shares_that_are_worse(shards, scored):
    table = open_scores(config(shards, scored({"quality": QUALITY, "niqe": NIQE})))
    assert table.scorers == ("niqe", "quality")  # in the order of the table of metrics
    quality = (np.arange(8) + 0.5) / 8
    niqe = quality[[0, 1, 2, 3, 5, 4, 6, 7]]
    s = of_all(table, shards)
    assert s == pytest.approx((quality + niqe) / 2)
    assert table.known == 8
    assert table.knots[[0, 50, 100]] == pytest.approx([s.min(), np.median(s), s.max()])
    assert (np.diff(table.knots) >= 0).all()
    spread = np.abs(quality - niqe) / 2
    assert table.uncertainty[[0, 100]] == pytest.approx([0, spread.max()])


def test_the_distribution_is_that_of_the_training_shards(shards, scored):
    folder = scored({"quality": QUALITY})
    apart = {"train": (str(shards / "b.tar"),), "validation": (str(shards / "a.tar"),)}
    table = open_scores(config(shards, folder, **apart))
    assert table.known == 4
    assert table.of(str(shards / "b.tar"), KEYS[4:]) == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert table.of(str(shards / "a.tar"), KEYS[:4]).tolist() == [
        0,
        0,
        0,
        0,
    ]  # worse than all of them


@pytest.mark.parametrize("streamed", [False, True])
def test_every_face_brings_its_quality(shards, scored, streamed):
    lost = {key: value for key, value in QUALITY.items() if key != "f2"}
    folder = scored({"quality": lost | {"f3": -1.0, "f4": "failed", "f5": np.nan}})
    settings = config(shards, folder, streamed=streamed, shuffle_buffer=3)
    source, lines = open_source(settings, 0)
    found = qualities(source)
    unknown = {key for key, quality in found.items() if np.isnan(quality)}
    assert unknown == {"f2", "f3", "f4", "f5"}
    known = {key: quality for key, quality in found.items() if key not in unknown}
    assert known == pytest.approx({"f0": 0.125, "f1": 0.375, "f6": 0.625, "f7": 0.875})
    (line,) = lines
    assert ("4 faces of the shards" if streamed else "4 of 8 faces have no score") in line
    assert source.scores.known == 4


def test_validation_faces_are_shares_of_the_training_faces(shards, scored):
    folder = scored({"quality": QUALITY})
    apart = {"train": (str(shards / "b.tar"),), "validation": (str(shards / "a.tar"),)}
    settings = config(shards, folder, **apart)
    source, _ = open_source(settings, 0)
    for scores in (source.scores, None):
        (batch,) = validation_batches(settings, 8, scores=scores)
        assert batch.quality.tolist() == [0, 0, 0, 0]


def copied(shards, folder):
    """The same faces' shards in another folder."""
    return shutil.copytree(shards, folder)


def test_a_shard_that_was_not_scored_is_unknown_whatever_its_name(shards, scored, tmp_path):
    other = copied(shards, tmp_path / "held-out")
    settings = config(shards, scored({"quality": QUALITY}), validation=(str(other),))
    table = open_scores(settings)
    assert np.isnan(of_all(table, other)).all()
    assert np.isfinite(of_all(table, shards)).all()
    (batch,) = validation_batches(settings, 8, scores=table)
    assert batch.quality.isnan().all()
    same_name = copied(shards, tmp_path / "elsewhere" / shards.name)  # the scored ones are there
    assert np.isnan(
        of_all(
            open_scores(config(shards, settings.scores, validation=(str(same_name),))), same_name
        )
    ).all()


def test_scores_outlive_a_move_of_the_data(shards, scored, tmp_path):
    folder = scored({"quality": QUALITY})
    before = open_scores(config(shards, folder))
    moved = tmp_path / "disk" / shards.name
    moved.parent.mkdir()
    shards.rename(moved)
    after = open_scores(config(moved, folder))
    assert (of_all(after, moved) == of_all(before, shards)).all()
    assert after.digest == before.digest
    link = tmp_path / "link"
    link.symlink_to(moved)
    both = open_scores(config(moved, folder, validation=(str(link),)))  # the same files
    assert (of_all(both, link) == of_all(before, shards)).all()
    twin = copied(moved, tmp_path / "twin" / shards.name)
    with pytest.raises(UserError, match=r"faces/a\.tar and .*faces/a\.tar have the same name"):
        open_scores(config(moved, folder, validation=(str(twin),)))


def test_two_scored_folders_may_hold_shards_of_one_name(shards, tmp_path):
    other = copied(shards, tmp_path / "part" / shards.name)
    folder = EvaluationFolder(tmp_path / "parts")
    for number, where in enumerate((shards, other)):
        for key in KEYS:
            path = str(where / f"{'ab'[key in KEYS[4:]]}.tar")
            folder.add_pairs(f"d{number}", "m", [key], has_truth=False, restored_path=path)
        values = {key: value + 0.01 * number for key, value in QUALITY.items()}
        folder.add_scores(f"d{number}", "m", "quality", values)
    folder.write()
    settings = config(shards, str(tmp_path / "parts"), train=(str(shards), str(other)))
    table = open_scores(settings)
    assert table.known == 16
    assert (of_all(table, shards) < of_all(table, other)).all()
    last = copied(shards, tmp_path / "third" / shards.name)
    with pytest.raises(UserError, match="have the same name"):
        open_scores(settings.model_copy(update={"train": (str(last),)}))


def test_a_flipped_face_keeps_its_score(shards, scored):
    from pipeline.degradation import FREE_FORM

    turned = FREE_FORM.model_copy(update={"flip_probability": 1.0})
    folder = scored({"quality": QUALITY})
    both = [open_source(config(shards, folder, degradation=d), 0)[0] for d in (FREE_FORM, turned)]
    assert qualities(both[0]) == qualities(both[1])


def test_one_scorer_is_asked_for_by_name(shards, scored):
    folder = scored({"quality": QUALITY, "niqe": NIQE, "psnr": QUALITY})
    assert open_scores(config(shards, folder)).scorers == ("niqe", "quality")
    assert open_scores(config(shards, folder, scorers=("quality",))).scorers == ("quality",)
    assert (open_scores(config(shards, folder, scorers=("niqe",))).uncertainty == 0).all()
    with pytest.raises(UserError, match="psnr compares with a truth; known: niqe, quality"):
        open_scores(config(shards, folder, scorers=("psnr",)))
    with pytest.raises(UserError, match=r"no scores of musiq.*--metrics musiq"):
        open_scores(config(shards, folder, scorers=("musiq",)))


def test_a_face_that_one_scorer_refused_has_none(shards, scored):
    folder = scored({"quality": QUALITY, "niqe": NIQE | {"f0": "too_small"}})
    table = open_scores(config(shards, folder))
    assert np.isnan(table.of(str(shards / "a.tar"), ["f0"])).all()
    assert table.known == 7


def test_scores_of_other_faces_are_refused(shards, scored, make):
    with pytest.raises(UserError, match=r"knows none .*`vsp score .* --metrics quality"):
        open_scores(config(shards, scored({"quality": QUALITY}, shard=lambda key: "c")))
    folder = scored({"quality": QUALITY})
    other = [(f"g{number}.png", make.png(number, 64)) for number in range(4)]
    for name in "ab":
        (shards / f"{name}.tar").write_bytes(make.tar_bytes(other))
    with pytest.raises(UserError, match="knows none of the faces"):
        open_source(config(shards, folder), 0)
    with pytest.raises(UserError, match="nothing is scored there"):
        open_scores(config(shards, str(shards)))


def test_two_opinions_of_one_face_are_refused_and_two_equal_ones_are_one(shards, scored, tmp_path):
    folder = EvaluationFolder(tmp_path / "two")
    for method in ("m", "n"):
        for key in KEYS[:4]:
            folder.add_pairs(
                "d", method, [key], has_truth=False, restored_path=str(shards / "a.tar")
            )
        folder.add_scores("d", method, "quality", {key: QUALITY[key] for key in KEYS[:4]})
    folder.write()
    settings = config(shards, str(tmp_path / "two"))
    assert open_scores(settings).known == 4
    folder.scores[-1]["value"] = 0.9
    folder.write()
    with pytest.raises(UserError, match="1 faces have two different scores"):
        open_scores(settings)


def test_two_sets_share_a_folder(shards, tmp_path):
    folder = EvaluationFolder(tmp_path / "both")
    for name, keys in (("a", KEYS[:4]), ("b", KEYS[4:])):
        path = str(shards / f"{name}.tar")
        folder.add_pairs(f"of {name}", "m", keys, has_truth=False, restored_path=path)
        folder.add_scores(f"of {name}", "m", "quality", {key: QUALITY[key] for key in keys})
    folder.write()
    source, lines = open_source(config(shards, str(tmp_path / "both")), 0)
    assert (source.scores.known, lines) == (8, ())
    assert qualities(source) == pytest.approx({k: (n + 0.5) / 8 for n, k in enumerate(KEYS)})


def test_vsp_score_makes_the_table(shards, tmp_path, capsys):
    from jobs.cli import main

    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["score", str(shards), str(out), "--metrics", "quality,quality-classic",
              "--no-report", "--threads", "2"])  # fmt: skip
    assert stop.value.code == 0, capsys.readouterr().err
    table = open_scores(config(shards, str(out)))
    assert table.scorers == ("quality", "quality-classic")
    judges = QualityJudge(BUILT_IN), ClassicJudge()
    values = {}
    for shard in ("a", "b"):
        for sample in group(read_tar(io.BytesIO((shards / f"{shard}.tar").read_bytes()))):
            face = Face(sample.key, decode(sample.image.data)[1])
            values[sample.key] = [*(v for j in judges for v in j.score(face).values())]
    ranks = np.array([[score.value for score in row] for row in values.values()]).argsort(0)
    shares = (ranks.argsort(0) + 0.5) / len(KEYS)
    found = of_all(table, shards)
    assert found == pytest.approx(shares.mean(axis=1))
    digest = open_scores(config(shards, str(out))).digest
    assert digest == table.digest


def test_scores_come_from_an_object_store(shards, scored, object_store):
    folder = scored({"quality": QUALITY})
    there, here = open_store(f"{object_store.url}/scores"), open_store(folder)
    for name in here.list():
        there.write(name, here.read(name))
    tables = [open_scores(config(shards, place)) for place in (there.url, folder)]
    assert tables[0].digest == tables[1].digest
    assert json.dumps(tables[0].knots.tolist()) == json.dumps(tables[1].knots.tolist())
