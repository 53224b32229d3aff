"""Which metrics are to be computed, by whom, with which files; what is missing, with the fix."""

import difflib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pipeline.errors import UserError
from pipeline.metrics.families import (
    FAMILIES,
    IQA_FAMILIES,
    IQA_PYTHON,
    SET_FAMILIES,
    Family,
    Need,
)
from pipeline.metrics.judge import Extractor, Judge
from pipeline.metrics.table import BY_NAME
from pipeline.replica import canonical
from vsp_model.files import sha256_of

DEFAULT, ALL = "default", "all"
AnyFamily = Family[Judge] | Family[Extractor]
_ALL: tuple[AnyFamily, ...] = (*FAMILIES, *IQA_FAMILIES, *SET_FAMILIES)
BY_FAMILY = {family.name: family for family in _ALL}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A family that is to be run; it can be pickled for a worker.

    Attributes:
        family: Its name.
        metrics: Those of its metrics that are wanted.
        paths: Where each file that it needs lies.
        files: File name -> sha256.
    """

    family: str
    metrics: tuple[str, ...]
    paths: Mapping[str, Path]
    files: Mapping[str, str]

    @property
    def definition(self) -> AnyFamily:
        """The row in the list of families."""
        return BY_FAMILY[self.family]

    @property
    def is_of_sets(self) -> bool:
        """Whether it gives features."""
        return any(self.family == each.name for each in SET_FAMILIES)

    @property
    def weights_sha256(self) -> str:
        """Identifies its files: the sha256 of the only one, or of all; "" without any."""
        if len(self.files) < 2:
            return next(iter(self.files.values()), "")
        return hashlib.sha256(canonical(self.files).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Choice:
    """What `choose` found.

    Attributes:
        chosen: Families to run.
        missing: Metrics that are not computed, a line each with the fix.
    """

    chosen: tuple[Chosen, ...]
    missing: tuple[str, ...]


def choose(
    names: Sequence[str], folder: Path, *, has_truth: bool, has_reference: bool,
    given: Mapping[Need, Path] = MappingProxyType({}),
) -> Choice:  # fmt: skip
    """Resolve what the user asked for.

    Args:
        names: Metrics or families, or `default` (whatever is at hand), or `all`.
        folder: Where weight files are.
        has_truth: Whether there are truths to compare with.
        has_reference: Whether there is a clean set to compare with.
        given: Files that the user named: pyiqa's Python, a model of clean faces.

    Raises:
        UserError: If a name is unknown, or one that was named cannot be computed.
    """
    wanted = _wanted(names)
    chosen: list[Chosen] = []
    missing: dict[str, list[str]] = {}
    for family in BY_FAMILY.values():
        metrics = tuple(name for name in family.metrics if name in wanted)
        possible = tuple(name for name in metrics if _has_input(name, has_truth, has_reference))
        for name in metrics:
            if name in names and name not in possible:
                raise UserError(f"--metrics {name}: needs {_input_of(name)}")
        if not possible:
            continue
        fault = _fault(family, folder, given)
        if not fault:
            chosen.append(_chosen(family, possible, folder, given))
        elif set(names) & {family.name, *possible}:
            raise UserError(f"--metrics {', '.join(possible)}: {fault}")
        else:
            missing.setdefault(fault, []).extend(possible)
    lines = (f"{', '.join(metrics)}: {fault}" for fault, metrics in missing.items())
    return Choice(tuple(chosen), tuple(lines))


def _wanted(names: Sequence[str]) -> set[str]:
    wanted: set[str] = set()
    for name in names:
        if name == ALL:
            wanted |= {metric for family in BY_FAMILY.values() for metric in family.metrics}
        elif name == DEFAULT:
            families = [family for family in BY_FAMILY.values() if family.by_default]
            wanted |= {metric for family in families for metric in family.metrics}
        elif name in BY_NAME:
            wanted.add(name)
        elif name in BY_FAMILY:
            wanted |= set(BY_FAMILY[name].metrics)
        else:
            raise UserError(f"--metrics {name}: no such metric; {_near(name, BY_NAME)}")
    return wanted


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _has_input(name: str, has_truth: bool, has_reference: bool) -> bool:
    if compares_with_truth(name):
        return has_truth
    return has_reference or not compares_with_reference(name)


def compares_with_truth(name: str) -> bool:
    """Whether a metric looks at the truth of the same image, or at the set of truths."""
    return BY_NAME[name].kind != "alone" and not compares_with_reference(name)


def compares_with_reference(name: str) -> bool:
    """Whether a metric of sets compares with a clean set, not with the truths."""
    return BY_NAME[name].protocol.endswith(":reference")


def _input_of(name: str) -> str:
    if compares_with_reference(name):
        return "a clean set to compare with; give --reference"
    return "the true faces; give --gt"


def _fault(family: AnyFamily, folder: Path, given: Mapping[Need, Path]) -> str:
    """Why a family cannot run, with the fix; "" if it can."""
    if absent := family.absent_packages:
        return f"needs {', '.join(absent)}; pip install 'vsp-restore[{family.extra}]'"
    for need in family.needs:
        if _path(need, folder, given) is None:
            if need is IQA_PYTHON:
                return "needs pyiqa in an environment of its own; give its --iqa-python"
            names = " or ".join(need.names)
            return f"needs {names} (`vsp weights list`)"
    return ""


def _path(need: Need, folder: Path, given: Mapping[Need, Path]) -> Path | None:
    if known := given.get(need, need.bundled):
        return known
    return next((folder / name for name in need.names if (folder / name).is_file()), None)


def _chosen(
    family: AnyFamily, metrics: tuple[str, ...], folder: Path, given: Mapping[Need, Path]
) -> Chosen:
    paths = {}
    for need in family.needs:
        path = _path(need, folder, given)
        assert path, "looked at before"
        paths[need.role] = path
    own = [path for role, path in paths.items() if role != IQA_PYTHON.role]
    files = {path.name: sha256_of(path) for path in own}
    return Chosen(family.name, metrics, paths, files)
