"""What the gallery pages load: ids, names of pictures and scores as compact arrays.

A data set's file holds what all methods share; each method has a file of its own, so that a page
loads one of them and others only when they are looked at.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.report.album import Album
from pipeline.report.escape import script
from pipeline.report.faces import ROLES, STATUS_NAMES, Faces, Scores
from pipeline.report.grid import decimals
from pipeline.results import MetricInfo, Results

# What galleries are sorted by at first: the first of these that has values, else any that has.
SENSIBLE = (
    "lpips-vgg", "lpips-alex", "lpips-squeeze", "identity", "psnr", "niqe", "niqe-small",
)  # fmt: skip
_SIGNIFICANT = 6


@dataclass(frozen=True, slots=True)
class Galleries:
    """All galleries of a report.

    Attributes:
        results: For the metrics' names and directions.
        faces: One gallery each.
        album: Pictures, or None for scores only.
    """

    results: Results
    faces: Sequence[Faces]
    album: Album | None

    @property
    def datasets(self) -> dict[str, str]:
        """Data set -> the short name it has in files and addresses."""
        return _numbered("d", (each.dataset for each in self.faces))

    @property
    def methods(self) -> dict[str, str]:
        """Method -> the short name it has in files and addresses."""
        return _numbered("m", (each.method for each in self.faces))

    def key(self, faces: Faces) -> str:
        """The short name of one gallery."""
        return f"{self.datasets[faces.dataset]}-{self.methods[faces.method]}"

    def scripts(self) -> dict[str, str]:
        """Short name -> script that hands over its data; "meta" for what concerns all."""
        made = {"meta": _call("meta", "", self._meta())}
        for dataset, key in self.datasets.items():
            mine = [each for each in self.faces if each.dataset == dataset]
            if self.album:
                self.album.add(p for each in mine for role in ROLES for p in each.places[role])
            shared = self._shared(mine)
            made[key] = _call("dataset", key, shared)
            for each in mine:
                made[self.key(each)] = _call("method", self.key(each), self._own(each, shared))
        return made

    def _infos(self) -> list[MetricInfo]:
        scored = {protocol for each in self.faces for protocol in each.scores}
        return [info for info in self.results.metrics if info.protocol in scored]

    def _meta(self) -> dict[str, Any]:
        infos = self._infos()
        names = [info.name for info in infos]
        values = {info.name: [c.value for c in self.results.cells
                              if c.metric == info.name and c.value is not None]
                  for info in infos}  # fmt: skip
        return {
            "images": self.album is not None,
            "statuses": STATUS_NAMES,
            "metrics": [
                {"name": info.name, "unit": info.unit, "better": info.better,
                 "digits": decimals(info, values[info.name]), "protocol": info.protocol}
                for info in infos
            ],
            "datasets": {key: dataset for dataset, key in self.datasets.items()},
            "methods": {key: method for method, key in self.methods.items()},
            "galleries": {
                self.key(each): names.index(info.name) if (info := sensible(each, infos)) else 0
                for each in self.faces
            },
        }  # fmt: skip

    def _shared(self, mine: Sequence[Faces]) -> dict[str, Any]:
        """Ids, groups, inputs and truths of a data set, over all its methods."""
        ids = sorted({key for each in mine for key in each.ids})
        groups: dict[str, str] = {}
        pictures: dict[str, dict[str, str]] = {"lq": {}, "gt": {}}
        for each in mine:
            for row, key in enumerate(each.ids):
                groups[key] = groups.get(key) or each.groups[row]
                for role, names in pictures.items():
                    if self.album and not names.get(key):
                        names[key] = self.album.name(each.places[role][row])
        shared: dict[str, Any] = {"ids": ids}
        if any(groups.values()):
            shared["groups"] = [groups[key] for key in ids]
        if self.album:
            shared |= {role: [names[key] for key in ids] for role, names in pictures.items()}
        return shared

    def _own(self, faces: Faces, shared: Mapping[str, Any]) -> dict[str, Any]:
        """What is a method's own; `has` says of which images it has a pair."""
        rows = {key: row for row, key in enumerate(faces.ids)}
        order = [rows.get(key) for key in shared["ids"]]
        own: dict[str, Any] = {"scores": [self._scores(faces, info, order)
                                          for info in self._infos()]}  # fmt: skip
        own["has"] = [int(row is not None) for row in order]
        if self.album is None:
            return own
        for role in ROLES:
            names = [row if row is None else self.album.name(faces.places[role][row])
                     for row in order]  # fmt: skip
            if role != "restored":  # shared by all methods, unless this one has others
                names = [mine or common for mine, common in zip(names, shared[role], strict=True)]
            if names != shared.get(role):
                own[role] = names
        return own

    def _scores(
        self, faces: Faces, info: MetricInfo, order: Sequence[int | None]
    ) -> dict[str, Any]:
        scores = faces.scores.get(info.protocol)
        if scores is None:
            return {"values": [], "troubles": {}}
        values = [None if row is None else _short(float(scores.values[row])) for row in order]
        troubles: dict[str, list[int]] = {}
        for place, row in enumerate(order):
            if row is not None and (status := int(scores.statuses[row])) > 0:
                troubles.setdefault(str(status), []).append(place)
        return {"values": values, "troubles": troubles}


def _numbered(letter: str, names: Iterable[str]) -> dict[str, str]:
    return {name: f"{letter}{number}" for number, name in enumerate(dict.fromkeys(names))}


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.{_SIGNIFICANT}g}")


def _call(kind: str, key: str, value: Any) -> str:
    return f'"use strict";vsp.receive({script(kind)},{script(key)},{script(value)});\n'


def pictures_script(pictures: Mapping[str, str]) -> str:
    """The script that hands over pictures that stand in the page itself: name -> data URI."""
    return _call("pictures", "", dict(pictures))


def sensible(faces: Faces, infos: Sequence[MetricInfo]) -> MetricInfo | None:
    """By which metric a gallery is sorted at first."""
    usable = {
        info.name: info
        for info in infos
        if info.protocol in faces.scores and np.isfinite(faces.scores[info.protocol].values).any()
    }
    return next((usable[name] for name in (*SENSIBLE, *usable) if name in usable), None)


def extremes(faces: Faces, infos: Sequence[MetricInfo], shown: int) -> Faces:
    """The images of the worst and the best values only, `shown` of each."""
    info = sensible(faces, infos)
    if info is None:
        return _some(faces, range(min(len(faces.ids), 2 * shown)))
    values = faces.scores[info.protocol].values
    badness = {"higher": -values, "lower": values, "zero": np.abs(values)}[info.better]
    order = [int(row) for row in np.argsort(-badness, kind="stable") if not math.isnan(values[row])]
    chosen = {*order[:shown], *order[max(0, len(order) - shown) :]}
    return _some(faces, sorted(chosen))


def _some(faces: Faces, rows: Sequence[int]) -> Faces:
    index = np.asarray(rows, np.intp)
    return replace(
        faces,
        ids=[faces.ids[row] for row in rows],
        groups=[faces.groups[row] for row in rows],
        places={role: [places[row] for row in rows] for role, places in faces.places.items()},
        scores={
            protocol: Scores(scores.values[index], scores.statuses[index])
            for protocol, scores in faces.scores.items()
        },
    )
