"""Which images count: the pairs of an evaluation folder, and per data set what belongs together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.scoring.tables import PAIRS, REFERENCE_METHOD, TRUTH_METHOD
from pipeline.storage import Store

PSEUDO_METHODS = (TRUTH_METHOD, REFERENCE_METHOD)
_SHOWN = 5
_SHAS = ("restored_sha256", "gt_sha256", "lq_sha256")

Places = NDArray[np.int64]


class PairRow(NamedTuple):
    """One image of a method, as the pairs have it."""

    dataset: str
    method: str
    image_id: str
    method_rev: str
    dataset_rev: str
    restored_sha256: str
    gt_sha256: str
    lq_sha256: str
    group: str


class View:
    """All pairs, numbered in the order of data set, method and image id.

    Words are kept as numbers, in alphabetical order: rows are as many as images times methods.

    Attributes:
        coded: Column -> (P,) numbers of its words.
        words: Column -> its words; all columns of sha256s share theirs.
    """

    def __init__(self, table: pa.Table) -> None:
        """Take the pairs, with the columns of `PairRow`.

        Raises:
            UserError: If an image stands twice.
        """
        groups = [[name] for name in PairRow._fields if name not in _SHAS] + [list(_SHAS)]
        self.coded: dict[str, Places] = {}
        self.words: dict[str, list[str]] = {}
        for names in groups:
            numbered, words = _numbered([table[name] for name in names])
            self.coded |= dict(zip(names, numbered, strict=True))
            self.words |= dict.fromkeys(names, words)
        self._numbers = {
            name: {word: number for number, word in enumerate(self.words[name])}
            for name in ("dataset", "method", "image_id", "restored_sha256")
        }
        keys = self._key(*(self.coded[name] for name in PairRow._fields[:3]))
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self.coded = {name: column[order] for name, column in self.coded.items()}
        for place in np.flatnonzero(np.diff(self._keys) == 0)[:1]:
            row = self[place]
            raise UserError(
                f"{PAIRS}/: {row.image_id} of {row.method} on {row.dataset} stands twice; "
                "score this method again"
            )

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place: int | np.int64) -> PairRow:
        return PairRow(*(self.words[n][self.coded[n][place]] for n in PairRow._fields))

    def _key(self, dataset: Places, method: Places, image: Places) -> Places:
        return (dataset * len(self.words["method"]) + method) * len(self.words["image_id"]) + image

    def has(self, column: str) -> NDArray[np.bool_]:
        """Whether each pair has a word in a column, (P,)."""
        is_empty_there = self.words[column][0] == ""  # words are sorted
        return np.asarray((self.coded[column] > 0) | (not is_empty_there), bool)

    def locate(self, table: pa.Table, restored: str = "restored_sha256") -> Places:
        """The number of the pair that each row of a table is about, -1 for a leftover: (rows,).

        Args:
            table: With the columns dataset, method, image_id, gt_sha256.
            restored: Its column with the sha256 of the image itself.
        """
        shas = known(self._numbers["restored_sha256"])
        names = ("dataset", "method", "image_id")
        key = [codes(table[name], known(self._numbers[name])) for name in names]
        own, gt = codes(table[restored], shas), codes(table["gt_sha256"], shas)
        keys = self._key(*key)
        places = np.searchsorted(self._keys, keys)
        places[places == len(self._keys)] = 0
        current = np.minimum.reduce([*key, own, gt]) >= 0
        current &= self._keys[places] == keys
        current &= self.coded["restored_sha256"][places] == own
        current &= self.coded["gt_sha256"][places] == gt
        return np.where(current, places, -1)


def _numbered(columns: Sequence[pa.ChunkedArray]) -> tuple[list[Places], list[str]]:
    """Columns as numbers of the words that they share, which are sorted."""
    found: dict[str, int] = {}

    def number(word: str) -> int:
        return found.setdefault(word, len(found))

    numbered = [codes(column, number) for column in columns]
    words = sorted(found)
    place = np.empty(len(words), np.int64)
    place[[found[word] for word in words]] = np.arange(len(words))
    return [place[numbers] for numbers in numbered], words


def known(words: Mapping[str, int]) -> Callable[[str], int]:
    """Numbers words by a list; -1 for one that is not on it."""
    return lambda word: words.get(word, -1)


def codes(column: pa.ChunkedArray, number: Callable[[str], int]) -> Places:
    """The number of each word of a column, (rows,); every word is asked for once."""
    found = [np.empty(0, np.int64)]
    for chunk in column.chunks:
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        numbers = np.array([number(word) for word in coded.dictionary.to_pylist()], np.int64)
        # Arrow's own to_numpy imports pandas, which takes longer than all the rest.
        found.append(numbers[np.from_dlpack(coded.indices)])
    return np.concatenate(found)


def read_view(store: Store) -> View:
    """Read the pairs of an evaluation folder.

    Raises:
        UserError: If there are none.
    """
    columns = list(PairRow._fields)
    tables = []
    for name in store.list(PAIRS):
        with store.open(name) as file:
            tables.append(pq.ParquetFile(file).read(columns=columns))
    if not any(map(len, tables)):
        raise UserError(f"{store.url}: nothing is scored there; start with `vsp score`")
    return View(pa.concat_tables(tables))


@dataclass(slots=True, eq=False)
class DatasetView:
    """The images of one data set.

    Attributes:
        name: Its name.
        methods: Restorers, sorted.
        ids: (N,) image ids that all of them have, sorted.
        places: Method, "truth" and "reference" included -> (N,) number of each id's row in the
            view, -1 where it has none. Of "reference" the ids are its own.
        groups: (N,) group of each id, "" for none.
        revs: Method -> what data set its rows name, and what it made.
        warnings: What a reader must know, a line each.
    """

    name: str
    methods: tuple[str, ...]
    ids: tuple[str, ...]
    places: dict[str, Places]
    groups: NDArray[np.str_]
    revs: dict[str, tuple[str, str]]
    warnings: list[str] = field(default_factory=list)

    @property
    def group_names(self) -> list[str]:
        """Groups that an image is in, sorted."""
        return sorted(set(self.groups.tolist()) - {""})

    def in_group(self, group: str) -> NDArray[np.bool_]:
        """Whether each image is in a group, (N,); all are in ""."""
        return np.asarray((self.groups == group) | (group == ""), bool)


def dataset_views(view: View, *, intersection: bool) -> list[DatasetView]:
    """What belongs together, by data set.

    Args:
        view: All pairs.
        intersection: Take the images that all methods of a data set have; else that they have the
            same ones is required.

    Raises:
        UserError: If methods of a data set have different images, without `intersection`; if they
            have none in common.
    """
    found = []
    for number in np.unique(view.coded["dataset"]):
        rows = np.flatnonzero(view.coded["dataset"] == number)
        methods = view.coded["method"][rows]
        places = {view.words["method"][m]: rows[methods == m] for m in np.unique(methods)}
        if any(method not in PSEUDO_METHODS for method in places):
            name = view.words["dataset"][number]
            found.append(_dataset(view, name, places, intersection=intersection))
    return found


def _dataset(
    view: View, name: str, rows: Mapping[str, Places], *, intersection: bool
) -> DatasetView:
    """One data set; `rows` are the pairs of each method, by image id."""
    image = view.coded["image_id"]
    methods = tuple(method for method in rows if method not in PSEUDO_METHODS)
    made = _made(view, {method: rows[method] for method in methods})
    common = everything = image[made[methods[0]]]
    for method in methods[1:]:
        common = np.intersect1d(common, image[made[method]], assume_unique=True)
        everything = np.union1d(everything, image[made[method]])
    if len(everything) != len(common) and not intersection:
        raise UserError(_difference(view, name, made, common))
    if not len(common):
        raise UserError(
            f"{name}: {', '.join(methods)} have no image in common; score the same ones"
        )
    places = {
        method: own if method == REFERENCE_METHOD else _at(own, image[own], common)
        for method, own in rows.items()
    }
    together = np.stack([places[method] for method in methods])
    ids = tuple(view.words["image_id"][number] for number in common)
    revs = {
        method: (row.dataset_rev, row.method_rev)
        for method in methods
        for row in [view[rows[method][0]]]
    }
    found = DatasetView(name, methods, ids, places, _groups(view, together), revs)
    if left_out := len(everything) - len(common):
        found.warnings.append(
            f"{name}: {left_out} of {len(everything)} images are left out: not all methods have "
            "them (--intersection)"
        )
    found.warnings += _disagreements(view, found, together)
    return found


def _made(view: View, rows: Mapping[str, Places]) -> dict[str, Places]:
    """The pairs that count for each method: of several, those that it has an image of.

    A truth without image is a row of a method that stands alone; beside another it would be a mean
    over other images than the other's.
    """
    if len(rows) < 2:
        return dict(rows)
    has_image = view.has("restored_sha256")
    return {method: own[has_image[own]] for method, own in rows.items()}


def _at(rows: Places, images: Places, wanted: Places) -> Places:
    """The row of each wanted image, -1 for none; `images` are sorted."""
    spots = np.minimum(np.searchsorted(images, wanted), len(images) - 1)
    return np.where(images[spots] == wanted, rows[spots], -1)


def _difference(view: View, name: str, rows: Mapping[str, Places], common: Places) -> str:
    """Which methods have images that others lack."""
    parts = []
    for method, own in rows.items():
        more = np.setdiff1d(view.coded["image_id"][own], common)
        if len(more):
            shown = ", ".join(view.words["image_id"][number] for number in more[:_SHOWN])
            parts.append(f"{method} has {len(more)} more ({shown}{' ...' * (len(more) > _SHOWN)})")
    return (
        f"{name}: the methods have different images: {'; '.join(parts)}; score the same images, "
        "or compare the common ones with --intersection"
    )


def _groups(view: View, together: Places) -> NDArray[np.str_]:
    """The group of each image, as the first method that names one has it."""
    words = np.array(view.words["group"], str)[view.coded["group"][together]]
    first = (words != "").argmax(axis=0)
    return np.asarray(np.take_along_axis(words, first[None], axis=0)[0], str)


def _disagreements(view: View, dataset: DatasetView, together: Places) -> Iterator[str]:
    """What is not the same for all methods, though the data set's name is."""
    if len({rev for rev, _ in dataset.revs.values()}) > 1:
        listed = ", ".join(f"{method} {rev}" for method, (rev, _) in dataset.revs.items())
        yield f"{dataset.name}: the methods were scored on different revisions ({listed})"
    for what, column in (("truths", "gt_sha256"), ("inputs", "lq_sha256")):
        numbers, there = view.coded[column][together], view.has(column)[together]
        first = np.take_along_axis(numbers, there.argmax(axis=0)[None], axis=0)
        if differing := int(((numbers != first) & there).any(axis=0).sum()):
            yield f"{dataset.name}: methods do not agree on the {what} of {differing} images"
