import itertools
import json
import threading
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from pipeline.degradation import FREE_FORM
from pipeline.errors import UserError
from pipeline.training import source as sources
from pipeline.training.ahead import run_ahead
from pipeline.training.data import DataConfig
from pipeline.training.index import build_index
from pipeline.training.source import FaceSource, open_source, validation_batches
from pipeline.training.stream import StreamedSource
from vsp_model.train.batch import Parts

SIZE = 32
NUM_FACES = 20
POINTS = [[8.5, 10.5], [22.5, 11.5], [15.5, 18.5], [10.5, 24.5], [21.5, 25.5]]
PARTS = Parts(batch_size=8, part_size=2)  # five steps are two epochs
TURNED = FREE_FORM.model_copy(update={"flip_probability": 1.0})
STRAIGHT = FREE_FORM.model_copy(update={"flip_probability": 0.0})
GRAY_OFF = {"gray_probability": 0.0, "haze_probability": 0.0}


class Faces:
    """Shards of small faces below a folder."""

    def __init__(self, folder, make):
        self.folder, self.make = folder, make

    def shard(self, name, members, cut=None):
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{name}.tar").write_bytes(self.make.tar_bytes(members)[:cut])

    def fill(self):
        """Shards of 7, 7 and 6 faces, of which the first has no points."""
        for number, start in enumerate((0, 7, 14)):
            members = []
            for face in range(start, min(start + 7, NUM_FACES)):
                members.append((f"f{face:02d}.jpg", self.make.jpeg(face)))
                if face:
                    facts = json.dumps({"landmarks5": POINTS}).encode()
                    members.append((f"f{face:02d}.json", facts))
            self.shard(number, members)
        return self

    def config(self, **rest):
        return DataConfig(**{"train": (str(self.folder),), "size": SIZE} | rest)

    def source(self, on_fault=None, **rest):
        config = self.config(**rest)
        return FaceSource(config, build_index(config.train), 5, on_fault)


@pytest.fixture
def empty(tmp_path, make):
    return Faces(tmp_path / "faces", make)


@pytest.fixture
def faces(empty):
    return empty.fill()


def take(source, num_steps, parts=PARTS, first=0):
    batches = source.batches(parts, first)
    steps = list(itertools.islice(batches, num_steps))
    batches.close()
    return steps


def workers(source, world, num_steps):
    """What each of `world` workers is given."""
    return [take(source, num_steps, Parts(8, 2, r, world)) for r in range(world)]


def streams(steps):
    return [stream for step in steps for batch in step for stream in batch.streams]


def keys(steps):
    return [key for step in steps for batch in step for key in batch.keys]


def same(a, b):
    pairs = zip(a, b, strict=True)
    return all(
        torch.equal(x, y) if x.isfinite().all() else np.array_equal(x, y, equal_nan=True)
        for one, two in pairs
        for first, second in zip(one, two, strict=True)
        for x, y in zip(first[2:], second[2:], strict=True)
    )


# Which faces


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_out_each_epoch_without_rest(faces, world):
    given = [streams(steps) for steps in workers(faces.source(), world, 5)]
    assert len({len(own) for own in given}) == 1
    wanted = [f"{number}@{epoch}" for epoch in (0, 1) for number in range(NUM_FACES)]
    assert sorted(itertools.chain(*given)) == sorted(wanted)


@pytest.mark.parametrize("world", [2, 4])
def test_the_global_batch_does_not_depend_on_the_workers(faces, world):
    source = faces.source()
    alone = take(source, 3)
    together = [
        [own[part // world] for part, own in zip(range(4), itertools.cycle(step))]
        for step in zip(*workers(source, world, 3), strict=True)
    ]
    assert keys(together) == keys(alone)
    assert same(together, alone)


def test_epochs_differ_and_so_do_seeds(faces):
    index = build_index(faces.config().train)
    orders = {tuple(keys(take(FaceSource(faces.config(), index, seed), 2))) for seed in (5, 6)}
    orders.add(tuple(keys(take(FaceSource(faces.config(), index, 5), 2, first=5))))  # epoch 2
    assert len(orders) == 3
    assert {len(set(order)) for order in orders} == {16}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_goes_on_from_any_step(faces, streamed):
    source, _ = open_source(faces.config(streamed=streamed, shuffle_buffer=4), 5)
    whole = take(source, 6)
    rest = take(source, 3, first=3)
    assert keys(rest) == keys(whole[3:])
    assert streams(rest) == streams(whole[3:])
    assert same(rest, whole[3:])


def test_threads_change_nothing(faces):
    one, three = (take(faces.source(threads=threads), 6) for threads in (1, 3))
    assert keys(one) == keys(three)
    assert same(one, three)


# How they look


def test_a_batch_is_what_a_stage_expects(faces):
    ((batch, *_),) = take(faces.source(), 1)
    for images in (batch.lq, batch.hq):
        assert images.shape == (2, 3, SIZE, SIZE)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert -1 <= images.min() < images.max() <= 1
    assert batch.points.shape == (2, 5, 2)
    assert not torch.equal(batch.lq, batch.hq)


def test_faces_without_points_have_none(faces):
    unknown = {
        key: bool(torch.isnan(points).all())
        for step in take(faces.source(), 3)
        for batch in step
        for key, points in zip(batch.keys, batch.points, strict=True)
    }
    assert [key for key, is_unknown in unknown.items() if is_unknown] == ["f00"]


@pytest.mark.parametrize("side", [SIZE, 2 * SIZE])
@pytest.mark.parametrize(("degradation", "flips"), [(TURNED, True), (STRAIGHT, False)])
def test_points_follow_what_is_drawn_at_them(empty, side, degradation, flips):
    scale = side // SIZE
    drawn = np.zeros((SIZE, SIZE, 3), np.uint8)
    for value, (x, y) in enumerate(POINTS, 1):
        drawn[int(y), int(x)] = 50 * value
    image = cv2.imencode(".png", drawn.repeat(scale, 0).repeat(scale, 1))[1].tobytes()
    facts = json.dumps({"landmarks5": (np.array(POINTS) * scale).tolist()}).encode()
    empty.shard("0", [("a.png", image), ("a.json", facts)])
    config = degradation.model_copy(update=GRAY_OFF)
    ((batch,),) = take(empty.source(degradation=config), 1, Parts(1, 1))
    at = [round(127.5 + 127.5 * batch.hq[0, 0, int(y), int(x)].item()) for x, y in batch.points[0]]
    assert at == ([100, 50, 150, 250, 200] if flips else [50, 100, 150, 200, 250])
    eyes = batch.points[0, :2, 0]
    assert eyes[0] < eyes[1]  # left stays left in the picture


@pytest.mark.parametrize("far", [-100.0, 1e5])
def test_points_far_outside_are_a_mistake(empty, make, far):
    facts = json.dumps({"landmarks5": [[far, 1.0], *POINTS[1:]]}).encode()
    empty.shard("0", [("a.jpg", make.jpeg()), ("a.json", facts)])
    ((batch,),) = take(empty.source(), 1, Parts(1, 1))
    assert torch.isnan(batch.points).all()


@pytest.mark.parametrize(("fraction", "is_clean"), [(1.0, True), (0.0, False)])
def test_some_faces_are_left_clean(faces, fraction, is_clean):
    for batch in take(faces.source(clean_fraction=fraction), 1)[0]:
        assert torch.equal(batch.lq, batch.hq) == is_clean


# What can't be used


def spoil(empty, make):
    """Six records, of which the fourth and fifth and the last can't be used."""
    wide = cv2.imencode(".png", np.zeros((SIZE, SIZE + 8, 3), np.uint8))[1].tobytes()
    images = [make.jpeg(), make.jpeg(1), make.png(2, 20), b"none", make.png(3, 15), wide]
    empty.shard("0", [(f"{n}.png", image) for n, image in enumerate(images)])


@pytest.mark.parametrize("threads", [1, 3])
def test_a_bad_image_is_replaced_by_the_next_good_one_and_told_once(empty, make, threads):
    spoil(empty, make)
    told = []
    source = empty.source(lambda *fault: told.append(fault), threads=threads)
    found = take(source, 6, Parts(6, 3))
    for step in found:
        assert [len(batch.keys) for batch in step] == [3, 3]
        pairs = [p for batch in step for p in zip(batch.streams, batch.keys, strict=True)]
        by_place = {stream[0]: key for stream, key in pairs}
        assert by_place == {"0": "0", "1": "1", "2": "2", "3": "0", "4": "0", "5": "0"}
    assert sorted(told) == [
        ("3", "no JPEG, PNG, WebP, TIFF or BMP"),
        ("4", "15 x 15 pixels, under half of 32"),
        ("5", "40 x 32 pixels, an aligned face is square"),
    ]
    assert len(source.faults.reasons) == 3
    assert same(found, take(source, 6, Parts(6, 3)))


def test_shards_without_a_usable_face_are_refused_at_the_start(empty, make, monkeypatch):
    empty.shard("0", [(f"{number}.jpg", b"none") for number in range(4)])
    with pytest.raises(UserError, match=r"^no usable face in 4 records .* data\.train; 3:"):
        empty.source()
    empty.shard("1", [("good.jpg", make.jpeg())])
    assert set(keys(take(empty.source(), 2))) == {"good"}
    monkeypatch.setattr(sources, "MAX_REPLACED", 3)
    with pytest.raises(UserError, match="no usable face in 3 records"):
        empty.source()


def test_trouble_in_a_thread_reaches_who_asks(faces):
    source = faces.source()
    for path in faces.folder.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="changed since training began"):
        take(source, 1)


def test_shards_to_train_and_to_validate_on_are_apart(faces):
    config = faces.config(validation=(str(faces.folder / "1.tar"),))
    with pytest.raises(UserError, match=r"1\.tar: in data\.train and data\.validation"):
        open_source(config, 5)


# Threads


def test_closing_ends_the_threads_and_gives_opencv_its_own_back(faces):
    def ours():
        return [thread for thread in threading.enumerate() if "vsp-faces" in thread.name]

    before = cv2.getNumThreads()
    batches = faces.source(threads=2).batches(PARTS, 0)
    next(batches)
    assert ours()
    assert cv2.getNumThreads() == 1
    batches.close()
    assert not ours()
    assert cv2.getNumThreads() == before


def test_work_ahead_is_bounded_in_order_and_ends():
    begun = []

    def steps():
        for step in range(20):
            begun.append(step)
            yield [lambda step=step, job=job: (step, job) for job in range(2)]

    seen = 0
    for results in run_ahead(steps(), threads=3, ahead=4):
        assert results == [(seen, 0), (seen, 1)]
        seen += 1
        assert len(begun) <= seen + 4
    assert seen == 20


@pytest.mark.parametrize("where", ["job", "steps"])
def test_an_exception_comes_at_its_step(where):
    def steps():
        yield [lambda: 1]
        if where == "steps":
            raise OSError(where)
        yield [lambda: int("job")]

    results = run_ahead(steps(), threads=1, ahead=2)
    assert next(results) == [1]
    with pytest.raises((OSError, ValueError), match=where):
        next(results)


# Validation


def test_validation_faces_are_the_first_usable_ones_and_never_turned(faces, empty, make):
    config = DataConfig(
        validation=(str(faces.folder),), validation_faces=9, size=SIZE, degradation=TURNED,
        clean_fraction=1.0,
    )  # fmt: skip
    faces.shard("00", [("bad.jpg", b"none"), ("good.jpg", make.jpeg(3))])
    told = []
    batches = validation_batches(config, 4, lambda *fault: told.append(fault))
    assert [len(batch.keys) for batch in batches] == [4, 4, 1]
    assert keys([batches]) == [*(f"f{n:02d}" for n in range(7)), "good", "f07"]
    assert streams([batches])[-2:] == ["8@-1", "9@-1"]
    assert told == [("bad", "no JPEG, PNG, WebP, TIFF or BMP")]
    assert batches[0].points[1].tolist() == POINTS
    assert not torch.equal(batches[0].lq, batches[0].hq)
    assert same([batches], [validation_batches(config, 4)])


def test_validation_without_shards_or_faces(empty):
    assert validation_batches(DataConfig(size=SIZE), 4) == []
    empty.shard("0", [("a.jpg", b"none")])
    with pytest.raises(UserError, match="no usable face; a: no JPEG"):
        validation_batches(DataConfig(validation=(str(empty.folder),), size=SIZE), 4)


# Streamed


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("buffer", [1, 5, 100])
def test_streams_cover_each_epoch_once(faces, world, buffer):
    source, warnings = open_source(faces.config(streamed=True, shuffle_buffer=buffer), 5)
    assert isinstance(source, StreamedSource)
    assert not warnings
    parts = [Parts(3, 1, rank, world) for rank in range(world)]
    steps = [take(source, 50 // len(own.own), own) for own in parts]
    for epoch in (0, 1):
        seen = Counter(
            key
            for own in steps
            for key, stream in zip(keys(own), streams(own), strict=True)
            if stream.endswith(f"@{epoch}")
        )
        assert seen == Counter(f"f{number:02d}" for number in range(NUM_FACES))


def test_a_stream_is_shuffled_anew_each_epoch(faces):
    found = keys(take(StreamedSource(faces.config(shuffle_buffer=5), 5), 5))
    assert len({tuple(found[:20]), tuple(found[20:]), tuple(sorted(found[:20]))}) == 3


def test_streamed_bad_faces_and_broken_shards_are_told(empty, make):
    spoil(empty, make)
    empty.shard("1", [("cut.png", make.png()), ("lost.png", make.png())], cut=-4096)
    told = []
    source = StreamedSource(empty.config(), 5, lambda *fault: told.append(fault))
    assert set(keys(take(source, 6, Parts(7, 7)))) <= {"0", "1", "2", "cut"}
    assert sorted(key for key, _ in told) == ["1", "3", "4", "5"]
    assert any("truncated at byte" in reason for _, reason in told)


def test_shards_of_one_name_are_told_apart(faces, make):
    other = Faces(faces.folder.with_name("other"), make)
    other.shard("0", [(f"g{number}.jpg", make.jpeg(number)) for number in range(4)])
    config = faces.config(train=(str(faces.folder), str(other.folder)))
    found = take(StreamedSource(config, 5), 3)
    assert len(set(streams(found))) == len(set(keys(found))) == NUM_FACES + 4


def test_streams_without_faces_are_refused(faces, empty):
    with pytest.raises(UserError, match="3 shards for 4 workers"):
        StreamedSource(faces.config(), 5).batches(Parts(8, 2, 0, 4), 0)
    with pytest.raises(UserError, match=r"data\.train is empty"):
        StreamedSource(DataConfig(size=SIZE), 5)
    for path in faces.folder.glob("*.tar"):
        path.unlink()
    empty.shard("0", [("a.txt", b"")])
    with pytest.raises(UserError, match="no face in 1 shards"):
        take(StreamedSource(empty.config(), 5), 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_faces_come_from_an_object_store(faces, object_store, tmp_path, streamed):
    from pipeline.storage import open_store

    store = open_store(f"{object_store.url}/in")
    for path in faces.folder.glob("*.tar"):
        store.write(path.name, path.read_bytes())
    settings = {"streamed": streamed, "cache": str(tmp_path / "cache")}
    there, _ = open_source(faces.config(train=(store.url,), **settings), 5)
    here, _ = open_source(faces.config(**settings), 5)
    assert same(take(there, 3), take(here, 3))
    assert (tmp_path / "cache").exists() != streamed
