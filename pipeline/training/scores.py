"""How good the faces of a training set are: what `vsp score` found, ready to be asked face by face.

A quality S is made once for each clean face, off line (IQPFR, Sec. III). Scorers have scales of
their own and crowd in narrow bands, so each is turned into the share of the training set that is
worse; S is the mean of these shares [I], where the released code takes the bare scores.

A shard is the scored one that lies at the same path; else the one of the same name in a folder of
the same name, so that scores outlive a move of the data. The name alone says nothing: `000000.tar`
is in every set.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.gather import unspelled
from pipeline.metrics.table import BY_NAME, Metric
from pipeline.scoring import aggregate_scores as matrix
from pipeline.scoring.aggregate_view import View, read_view
from pipeline.scoring.current import load_current
from pipeline.scoring.tables import PAIRS
from pipeline.storage import Store, is_remote, open_store
from pipeline.training.data import DataConfig
from pipeline.training.index import list_shards
from vsp_model.condition import NUM_KNOTS

_LOCATED = ["dataset", "method", "image_id", "restored_sha256", "gt_sha256", "restored_path"]
_FIX = "--metrics quality,quality-classic"

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float32]


class ScoreTable:
    """The quality of faces, looked up by shard and key.

    A face is 12 bytes: 64 bits of a hash of shard and key, and S. To read the table takes as much
    as `vsp score` took to make its own, a few hundred bytes a face for the time being. Usable from
    several threads.

    Attributes:
        folder: Of the run of `vsp score`.
        scorers: Metrics whose mean S is.
        known: Faces in the training shards that have an S, and belong to the knots.
        knots: S at even shares of these, (101,) float64, ascending: what a stage turns S into
            percentiles with.
        uncertainty: Deviation of the scorers about S, at even shares of these faces, (101,)
            float64; 0 throughout where there is one scorer. Only told: nothing reads a face's own,
            and the folder's values give it back for whatever shards are trained on.
    """

    def __init__(
        self,
        folder: str,
        scorers: Sequence[Metric],
        hashes: Hashes,
        values: Floats,
        is_trained: NDArray[np.bool_],
        labels: Mapping[str, str],
    ) -> None:
        """Turn scores into S.

        Args:
            folder: Where they come from.
            scorers: K metrics.
            hashes: (N,), ascending, each once.
            values: (K, N) what the scorers said, NaN for nothing.
            is_trained: (N,) whether a face lies in the training shards.
            labels: What the hashes call each shard of the settings that was scored, by its path.
        """
        self.folder = folder
        self.scorers = tuple(metric.name for metric in scorers)
        shares = np.stack(
            [_share(row, is_trained, metric) for row, metric in zip(values, scorers, strict=True)]
        )
        # A face that one of the scorers refused has none: a mean of fewer spreads more.
        self._labels, self._hashes = labels, hashes
        self._scores = shares.mean(axis=0).astype(np.float32)
        counts = is_trained & np.isfinite(self._scores)
        self.known = int(counts.sum())
        self.knots = _knots(self._scores[counts])
        self.uncertainty = _knots(shares.std(axis=0)[counts])

    def of(self, shard: str, keys: Sequence[str]) -> Floats:
        """S of the records of a shard, (N,); NaN where it is unknown.

        Args:
            shard: Path or URL of the tar, one of the settings'.
            keys: Of the records.
        """
        label = self._labels.get(_resolved(shard))
        if label is None or not len(self._hashes):
            return np.full(len(keys), np.nan, np.float32)
        wanted = _hashes(label, map(unspelled, keys))
        places = np.searchsorted(self._hashes, wanted).clip(max=len(self._hashes) - 1)
        is_there = self._hashes[places] == wanted
        return np.where(is_there, self._scores[places], np.float32(np.nan))

    @cached_property
    def digest(self) -> str:
        """Sha256 of what it holds: with another one, a run is another run."""
        return hashlib.sha256(self._hashes.tobytes() + self._scores.tobytes()).hexdigest()


def open_scores(config: DataConfig) -> ScoreTable | None:
    """The table that the settings name, None where they name none.

    Raises:
        UserError: If it is no folder of `vsp score`, lacks a scorer, holds two different scores of
            one face, or none of a face to train on, or if two shards may be the same scored one.
    """
    if not config.scores:
        return None
    store = open_store(config.scores)
    view = read_view(store)
    found = matrix.read_scores(store, view, load_current(store).weights)
    scorers = _scorers(config, found.metrics)
    rows = [found.metrics.index(metric) for metric in scorers]
    values = np.where(found.values[rows] < 0, np.nan, found.values[rows]).astype(np.float32)
    scored = _labels(store)
    places = _matched(config, list(scored))
    labels = {shard: scored[place] for shard, place in places.items()}
    trained = {places.get(_resolved(shard), "") for shard in list_shards(config.train)}
    hashes, is_trained = _located(store, view, scored, trained)
    known = _once(config, hashes, values, is_trained)
    table = ScoreTable(config.scores, scorers, *known, labels)
    if not table.known:
        raise knows_none(config)
    return table


def knows_none(config: DataConfig) -> UserError:
    """What to say where no face to train on has a score."""
    shards = config.train[0] if config.train else "SHARDS"
    return UserError(
        f"data.scores {config.scores}: knows none of the faces of data.train; make it with "
        f"`vsp score {shards} {config.scores} {_FIX}`"
    )


def _scorers(config: DataConfig, found: Sequence[Metric]) -> list[Metric]:
    """The metrics to use: those named, else all that look at the image alone."""
    alone = {metric.name: metric for metric in found if metric.kind == "alone"}
    wanted = config.scorers or tuple(alone)
    missing = [name for name in wanted if name not in alone]
    if missing and missing[0] in BY_NAME and BY_NAME[missing[0]].kind != "alone":
        raise UserError(
            f"data.scorers: {missing[0]} compares with a truth; known: {', '.join(alone)}"
        )
    if missing or not wanted:
        name = missing[0] if missing else "no quality"
        raise UserError(
            f"data.scores {config.scores}: holds no scores of {name}; add them with `vsp score "
            f"SHARDS {config.scores} --metrics {missing[0] if missing else 'quality'}`"
        )
    return [alone[name] for name in wanted]


def _labels(store: Store) -> dict[str, str]:
    """What each scored shard is called in the hashes: as much of its path's end as tells it."""
    paths: set[str] = set()
    for name in store.list(PAIRS):
        table = pq.read_table(pa.BufferReader(store.read(name)), columns=["restored_path"])
        paths.update(table["restored_path"].unique().to_pylist())
    parts = {path: PurePosixPath(path.removesuffix(".tar")).parts for path in sorted(paths)}
    count, longest = 1, max(map(len, parts.values()), default=1)
    while count < longest and len({names[-count:] for names in parts.values()}) < len(parts):
        count += 1
    return {path: "/".join(names[-count:]) for path, names in parts.items()}


def _matched(config: DataConfig, scored: Sequence[str]) -> dict[str, str]:
    """Which scored shard each shard of the settings is, by path; those that are none are left out.

    Raises:
        UserError: If that can't be told.
    """
    ours = dict.fromkeys(map(_resolved, list_shards((*config.train, *config.validation))))
    places = {shard: shard for shard in scored if shard in ours}
    named: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for shard in scored:
        if shard not in places:
            named[_tail(shard)].append(shard)
    moved: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for shard in ours:
        if shard not in places and _tail(shard) in named:
            moved[_tail(shard)].append(shard)
    for tail, shards in moved.items():
        both = shards if len(shards) > 1 else named[tail]
        if len(both) > 1:
            raise UserError(
                f"data.scores {config.scores}: {both[0]} and {both[1]} have the same name and the "
                "same folder's name, so which faces the scores are of can't be told; score again"
            )
        places[shards[0]] = named[tail][0]
    return places


def _tail(shard: str) -> tuple[str, ...]:
    """The names of its folder and itself."""
    return PurePosixPath(shard.removesuffix(".tar")).parts[-2:]


def _located(
    store: Store, view: View, labels: Mapping[str, str], trained: set[str]
) -> tuple[Hashes, NDArray[np.bool_]]:
    """The hash of each of the view's pairs, and whether it lies in a training shard."""
    hashes, is_trained = np.zeros(len(view), np.uint64), np.zeros(len(view), bool)
    for name in store.list(PAIRS):
        table = pq.read_table(pa.BufferReader(store.read(name)), columns=_LOCATED)
        places = view.locate(table)
        shards = table["restored_path"].to_pylist()
        keys = table["image_id"].to_pylist()
        digests = [_hash(labels[shard], key) for shard, key in zip(shards, keys, strict=True)]
        hashes[places] = np.array(digests, np.uint64)
        is_trained[places] = [shard in trained for shard in shards]
    return hashes, is_trained


def _once(
    config: DataConfig, hashes: Hashes, values: Floats, is_trained: NDArray[np.bool_]
) -> tuple[Hashes, Floats, NDArray[np.bool_]]:
    """Each face once, by ascending hash; a face may stand under several methods, if they agree."""
    order = np.argsort(hashes, kind="stable")
    alone, first = np.unique(hashes[order], return_index=True)
    largest = np.fmax.reduceat(values[:, order], first, axis=1)
    least = np.fmin.reduceat(values[:, order], first, axis=1)
    if (largest > least).any():
        count = int((largest > least).any(axis=0).sum())
        raise UserError(
            f"data.scores {config.scores}: {count} faces have two different scores, of two "
            "methods or data sets; score the training set into a folder of its own"
        )
    return alone, largest, is_trained[order][first]


def _share(values: Floats, is_trained: NDArray[np.bool_], metric: Metric) -> NDArray[np.float64]:
    """Empirical distribution: the share of the training faces that are worse, half of the equal."""
    known = np.sort(values[is_trained & np.isfinite(values)])
    below, upto = (np.searchsorted(known, values, side) for side in ("left", "right"))
    share = (below + upto) / (2 * max(1, len(known)))
    share = share if metric.better == "higher" else 1 - share
    return np.where(np.isfinite(values), share, np.nan)


def _knots(values: NDArray[np.floating]) -> NDArray[np.float64]:
    if not len(values):
        return np.full(NUM_KNOTS, np.nan)
    knots: NDArray[np.float64] = np.quantile(
        values.astype(np.float64), np.linspace(0, 1, NUM_KNOTS)
    )
    return knots


def _resolved(shard: str) -> str:
    """As `vsp score` stores it: it follows links."""
    return shard if is_remote(shard) else str(Path(shard).resolve())


def _hashes(shard: str, keys: Iterable[str]) -> Hashes:
    return np.array([_hash(shard, key) for key in keys], np.uint64)


def _hash(shard: str, key: str) -> int:
    """64 bits: among a hundred million faces two share one with a chance of 1 in 4000."""
    text = f"{shard}\0{key}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
