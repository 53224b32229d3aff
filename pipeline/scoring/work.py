"""What is left to score: the wanted scores less those there, in units of a few images.

A score is known by contents: sha256 of image and truth, the metric's protocol, its weights. So a
new metric adds work and redoes nothing, and an image that was replaced is scored again, alone. What
a unit holds depends on the pairs and on what is missing, never on when a run was killed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.metrics.choose import Chosen, compares_with_reference, compares_with_truth
from pipeline.metrics.families import SET_FAMILIES
from pipeline.metrics.table import BY_NAME, BY_PROTOCOL
from pipeline.plan import Unit
from pipeline.scoring.pairs import Pair, PairSet, slug
from pipeline.scoring.sources import Place
from pipeline.scoring.tables import FEATURES, REFERENCE_METHOD, SCORES, TRUTH_METHOD
from pipeline.storage import OWN_FOLDER, Store, load_json

IMAGES_PER_UNIT = 64
DIGEST_DIGITS = 16
WORK = f"{OWN_FOLDER}/work"
Side = Literal["restored", "gt", "reference"]
# (image id, restored sha256, truth's sha256, protocol or extractor family, weights sha256)
_Done = set[tuple[str, str, str, str, str]]


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a unit."""

    image_id: str
    restored: Place
    gt: Place


@dataclass(frozen=True, slots=True)
class Work:
    """What one unit is to do.

    Attributes:
        method: Whose images.
        method_rev: Hash of all of its images.
        dataset: Of what.
        dataset_rev: Hash of all of its truths.
        side: What the images are.
        wanted: Family -> metrics.
        items: The images.
    """

    method: str
    method_rev: str
    dataset: str
    dataset_rev: str
    side: Side
    wanted: Mapping[str, Sequence[str]]
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """The unit's name: it follows from the contents."""
        contents = [[i.image_id, i.restored.sha256, i.gt.sha256] for i in self.items]
        facts = [self.method, self.dataset, self.side, self.wanted, contents]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"{_unit_prefix(self.dataset, self.method)}{digest[:DIGEST_DIGITS]}"

    @property
    def compares(self) -> bool:
        """Whether something of it looks at truths."""
        names = [name for metrics in self.wanted.values() for name in metrics]
        return any(map(compares_with_truth, names))

    def save(self, store: Store) -> None:
        """Write it where its worker looks for it."""
        store.write(f"{WORK}/{self.name}.json", json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, store: Store, name: str) -> "Work":
        """Read what `save` wrote."""
        facts: dict[str, Any] = load_json(store, f"{WORK}/{name}.json")
        items = [
            Item(item["image_id"], Place(**item["restored"]), Place(**item["gt"]))
            for item in facts["items"]
        ]
        return cls(**facts | {"items": tuple(items)})


def missing_work(
    store: Store, pair_set: PairSet, chosen: Sequence[Chosen], without: Set[str] = frozenset()
) -> Iterator[Work]:
    """What is to be done for a method: its units, in the order of its images.

    Args:
        store: The evaluation folder.
        pair_set: The method's images.
        chosen: What is wanted of them.
        without: Units whose scores do not count.
    """
    side = _side(pair_set.method)
    wanted = [(each, _wanted(each, side)) for each in chosen]
    done = _done(_Rows(store, pair_set, without), chosen)
    pairs = pair_set.pairs
    for start in range(0, len(pairs), IMAGES_PER_UNIT):
        groups: dict[str, list[Item]] = {}
        for pair in pairs[start : start + IMAGES_PER_UNIT]:
            left = _left(pair, wanted, done)
            if left:
                item = Item(pair.image_id, pair.restored, pair.gt)
                groups.setdefault(json.dumps(left), []).append(item)
        for left_text, items in groups.items():
            yield Work(
                pair_set.method, pair_set.method_rev, pair_set.dataset, pair_set.dataset_rev,
                side, json.loads(left_text), tuple(items),
            )  # fmt: skip


def forget_work(store: Store, work: Iterable[Work]) -> None:
    """Remove what told workers what to do; the commits say what was done."""
    for each in work:
        store.remove(f"{WORK}/{each.name}.json")


def is_unit_of(shard: str, dataset: str, method: str) -> bool:
    """Whether a unit's name is that of a method on a data set; slugs may hold dots themselves."""
    return shard[:-DIGEST_DIGITS] == _unit_prefix(dataset, method)


def _unit_prefix(dataset: str, method: str) -> str:
    return f"{slug(dataset)}.{slug(method)}."


def held_metrics(store: Store, shard: str) -> set[str]:
    """What a unit has scores of: metrics, and families of metrics of sets."""
    held = {
        family.name
        for family in SET_FAMILIES
        if store.stat(f"{FEATURES}/{family.name}/{shard}.parquet") is not None
    }
    try:
        with store.open(f"{SCORES}/{shard}.parquet") as file:
            column = pq.read_table(file, columns=["metric"])["metric"]
    except FileNotFoundError:
        return held
    protocols = set(column.to_pylist())
    return held | {BY_PROTOCOL[p].name if p in BY_PROTOCOL else p for p in protocols}


def as_unit(work: Work) -> Unit:
    """The unit as the engine counts it."""
    return Unit(work.name, f"{WORK}/{work.name}.json", len(work.items), "")


def _side(method: str) -> Side:
    if method == TRUTH_METHOD:
        return "gt"
    return "reference" if method == REFERENCE_METHOD else "restored"


def _wanted(chosen: Chosen, side: Side) -> tuple[str, ...]:
    """The metrics that images of a side have from a family; of set metrics the features count."""
    if side == "restored":
        return chosen.metrics
    if chosen.is_of_sets:
        of_side = side == "gt" or any(map(compares_with_reference, chosen.metrics))
        return chosen.metrics if of_side else ()
    alone = side == "gt"
    return tuple(name for name in chosen.metrics if alone and BY_NAME[name].kind == "alone")


def _left(
    pair: Pair, wanted: Iterable[tuple[Chosen, Sequence[str]]], done: _Done
) -> dict[str, list[str]]:
    """Family -> metrics that the pair has no score of."""
    left: dict[str, list[str]] = {}
    for chosen, metrics in wanted:
        for name in metrics:
            subject = chosen.family if chosen.is_of_sets else BY_NAME[name].protocol
            contents = pair.restored.sha256, pair.gt.sha256
            if (pair.image_id, *contents, subject, chosen.weights_sha256) not in done:
                left.setdefault(chosen.family, []).append(name)
    return left


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a method on a data set, those of some units left out."""

    store: Store
    pair_set: PairSet
    without: Set[str]

    def tables(self, folder: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of them, file by file."""
        for name in self.store.list(folder):
            shard = name.rpartition("/")[2].removesuffix(".parquet")
            wanted = is_unit_of(shard, self.pair_set.dataset, self.pair_set.method)
            if shard in self.without or not wanted:
                continue
            with self.store.open(name) as file:
                table = pq.read_table(file, columns=[*columns, "method", "dataset"])
            same = pc.and_(
                pc.equal(pc.cast(table["method"], pa.string()), self.pair_set.method),
                pc.equal(pc.cast(table["dataset"], pa.string()), self.pair_set.dataset),
            )
            yield table.filter(same)


def _done(rows: _Rows, chosen: Sequence[Chosen]) -> _Done:
    """The scores and features that are there."""
    columns = ["image_id", "restored_sha256", "gt_sha256", "metric", "weights_sha256"]
    done: _Done = set()
    known: dict[str, str] = {}  # one copy of each word, however many rows have it

    def words(table: pa.Table, name: str) -> list[str]:
        return [known.setdefault(word, word) for word in table[name].to_pylist()]

    for table in rows.tables(SCORES, columns):
        done.update(zip(*(words(table, name) for name in columns), strict=True))
    for each in chosen:
        if each.is_of_sets:
            names = ["image_id", "sha256", "gt_sha256", "weights_sha256"]
            for table in rows.tables(f"{FEATURES}/{each.family}", names):
                for *contents, weights in zip(*(words(table, n) for n in names), strict=True):
                    done.add((*contents, each.family, weights))
    return done
