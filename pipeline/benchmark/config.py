"""What BENCH.yaml holds: data sets and methods, each under its name.

Paths are relative: those of data to `root`, all others and `root` itself to the YAML.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.replica import Frozen
from pipeline.scoring.pairs import slug
from pipeline.scoring.tables import REFERENCE_METHOD, TRUTH_METHOD
from pipeline.storage import is_remote
from vsp_model.ask import Ask

PUBLISHED_SIZE = 512
_DATASET = "{dataset}"


class Dataset(Frozen):
    """Faces to restore, made here of clean ones or given.

    Attributes:
        hq: Clean faces, shards or a folder of images, to be degraded.
        portraits: Degrade scikit-image's portrait instead, four times: to try things out.
        preset: Ranges of the degradation: a name of `vsp degrade --list-presets`, or a YAML.
        ranges: Some of them replaced.
        size: Side of the degraded faces in pixels.
        seed: Of the degradation; the benchmark's by default.
        lq: Degraded faces as they are, shards or a folder of images, instead of clean ones.
        gt: Their truths, of the same names.
        reference: Clean set or statistics file that FID compares with.
        groups: CSV with the columns key and group; scores are also told by group.
        limit: Only the first N faces; 0 for all.
        published: Tables whose printed numbers stand beside.
        note: For the reader.
    """

    hq: str = ""
    portraits: bool = False
    preset: str = "stage-2"
    ranges: dict[str, Any] = Field(default_factory=dict)
    size: int = Field(PUBLISHED_SIZE, ge=8)
    seed: int | None = Field(None, ge=0)
    lq: str = ""
    gt: str = ""
    reference: str = ""
    groups: str = ""
    limit: int = Field(0, ge=0)
    published: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_synthetic(self) -> bool:
        """Whether it is degraded here."""
        return not self.lq

    @property
    def has_truth(self) -> bool:
        """Whether restored faces can be compared with true ones."""
        return self.is_synthetic or bool(self.gt)

    @property
    def source(self) -> str:
        """The faces that it begins with; "" for the portraits."""
        return self.hq or self.lq

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if sum(map(bool, (self.hq, self.lq, self.portraits))) != 1:
            raise ValueError("give one of hq (clean faces), lq (degraded ones), portraits")
        if self.gt and not self.lq:
            raise ValueError("gt belongs to lq; of hq the truths are known")
        made = {"preset", "ranges", "size", "seed"} & self.model_fields_set
        if self.lq and made:
            raise ValueError(f"{min(made)} belongs to hq: faces of lq are taken as they are")
        return self

    @model_validator(mode="after")
    def _knows_preset(self) -> Self:
        from pipeline.presets import PRESETS

        if self.preset not in PRESETS and Path(self.preset).suffix not in (".yaml", ".yml"):
            near = difflib.get_close_matches(self.preset, PRESETS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PRESETS)}"
            raise ValueError(f"preset {self.preset}: no such preset; {hint}")
        return self


class _Method(Frozen):
    """What every method may carry.

    Attributes:
        notice: Terms, or what a reader must know; it stands in the results.
    """

    notice: str = ""


class ModelMethod(_Method):
    """A network of ours.

    Attributes:
        path: vspbfr, iqp or idm, a bundle, a name among `vsp weights`, or a model's YAML
            (untrained); "" for the default.
        noise: "seeded", or "mean" for the same noise in every image.
        ask: What is wanted of it: quality, fidelity, steps ...
        estimate: A model, named like `path`, whose restoration it starts from (IDM).
    """

    kind: Literal["model"] = "model"
    path: str = ""
    noise: Literal["seeded", "mean"] = "seeded"
    ask: Ask = Ask()
    estimate: str = ""


class FolderMethod(_Method):
    """What anyone has restored: images of the data set's names, in folders or shards.

    Attributes:
        path: Of all data sets, with `{dataset}` where they differ; or one for each data set.
        key_regex: What of a name counts, where a method adds to it: `(.*)_restored`.
    """

    kind: Literal["folder"] = "folder"
    path: str | dict[str, str]
    key_regex: str = ""

    def of(self, dataset: str) -> str:
        """Where its images of a data set lie; "" where it has none."""
        if isinstance(self.path, str):
            return self.path.replace(_DATASET, dataset)
        return self.path.get(dataset, "")


class SpandrelMethod(_Method):
    """Another team's checkpoint, loaded through spandrel.

    Attributes:
        path: The file, or its name among `vsp weights`.
        arch: What it holds.
        w: CodeFormer's fidelity.
    """

    kind: Literal["spandrel"] = "spandrel"
    path: str
    arch: Literal["gfpgan", "restoreformer", "codeformer"]
    w: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _w_is_of_codeformer(self) -> Self:
        if self.arch != "codeformer" and "w" in self.model_fields_set:
            raise ValueError(f"w is CodeFormer's; {self.arch} has none")
        return self


class CallableMethod(_Method):
    """A function of one RGB face, uint8 (S, S, 3), that gives back another.

    Attributes:
        function: `package.module:function`; looked for beside the YAML first.
        size: Side S of the faces that it is given, in pixels.
    """

    kind: Literal["callable"] = "callable"
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    size: int = Field(PUBLISHED_SIZE, ge=8)


class ClassicMethod(_Method):
    """The degraded faces themselves: what a method has to be better than."""

    kind: Literal["classic"] = "classic"


Method = Annotated[
    ModelMethod | FolderMethod | SpandrelMethod | CallableMethod | ClassicMethod,
    Field(discriminator="kind"),
]


class Settings(Frozen):
    """What a benchmark holds beside data sets and methods.

    Attributes:
        title: Of the report.
        seed: Fixes everything random, the degradation included.
        root: Folder that paths of data are relative to.
        metrics: `default` for all that are at hand, or names.
        precision: Of the networks.
        complexity: Whether parameters, operations and speed of the networks are told, too.
        published: Tables whose printed numbers stand beside, besides those of the data sets.
    """

    title: str = ""
    seed: int = Field(0, ge=0)
    root: str = "."
    metrics: str | tuple[str, ...] = "default"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    complexity: bool = False
    published: tuple[str, ...] = ()


class Benchmark(Settings):
    """A whole benchmark; without data sets it tells what the methods cost."""

    datasets: dict[str, Dataset] = Field(default_factory=dict)
    methods: dict[str, Method] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_names("data set", self.datasets, ())
        check_names("method", self.methods, (TRUTH_METHOD, REFERENCE_METHOD))
        if not self.datasets and not self.complexity:
            raise ValueError("no data set; give `datasets`, or `complexity: true`")
        for name, method in self.methods.items():
            if isinstance(method, FolderMethod):
                self._check_folder(name, method)
        return self

    def _check_folder(self, name: str, method: FolderMethod) -> None:
        if isinstance(method.path, dict):
            unknown = [each for each in method.path if each not in self.datasets]
            if unknown:
                raise ValueError(f"methods.{name}.path: no data set {unknown[0]!r}")
        elif len(self.datasets) > 1 and _DATASET not in method.path:
            raise ValueError(
                f"methods.{name}.path: one folder for {len(self.datasets)} data sets; "
                "put {dataset} into it, or give one for each data set"
            )

    @property
    def metric_names(self) -> str:
        """As `vsp score --metrics` takes them."""
        return self.metrics if isinstance(self.metrics, str) else ",".join(self.metrics)

    @property
    def tables(self) -> tuple[str, ...]:
        """Every published table that stands beside, once."""
        of_data = [name for dataset in self.datasets.values() for name in dataset.published]
        return tuple(dict.fromkeys([*self.published, *of_data]))

    def only(self, names: Iterable[str]) -> "Benchmark":
        """The same with some of its methods.

        Raises:
            ValueError: If there is none of a name.
        """
        for name in names:
            if name not in self.methods:
                near = difflib.get_close_matches(name, self.methods, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.methods)}"
                raise ValueError(f"no method {name}; {hint}")
        kept = {name: method for name, method in self.methods.items() if name in set(names)}
        return self.model_copy(update={"methods": kept})

    def located(self, folder: Path) -> "Benchmark":
        """The same with absolute paths.

        Args:
            folder: Where the YAML lies.
        """
        root = (folder / Path(self.root).expanduser()).resolve()
        datasets = {name: _located(each, root, folder) for name, each in self.datasets.items()}
        methods = {name: _placed(each, root, folder) for name, each in self.methods.items()}
        return self.model_copy(update={"datasets": datasets, "methods": methods, "root": str(root)})


def check_names(what: str, names: Iterable[str], kept: Iterable[str]) -> None:
    """Refuse names that cannot be told apart as files, or that are kept for something else.

    Raises:
        ValueError: Naming them.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not name.isprintable() or not name.strip():
            raise ValueError(f"{what} {name!a}: expected a printable name")
        if name in kept:
            raise ValueError(f"{what} {name}: this name is kept; choose another")
        other = seen.setdefault(slug(name).casefold(), name)
        if other != name:
            raise ValueError(f"{what}s {other} and {name}: files of both would have one name")


def _located(dataset: Dataset, root: Path, folder: Path) -> Dataset:
    names = ("hq", "lq", "gt", "reference", "groups")
    paths = {name: _absolute(getattr(dataset, name), root) for name in names}
    if Path(dataset.preset).suffix:
        paths["preset"] = _absolute(dataset.preset, folder)
    return dataset.model_copy(update=paths)


def _placed(method: Method, root: Path, folder: Path) -> Method:
    if isinstance(method, FolderMethod):
        path = method.path
        located: str | Mapping[str, str] = (
            _absolute(path, root)
            if isinstance(path, str)
            else {name: _absolute(each, root) for name, each in path.items()}
        )
        return method.model_copy(update={"path": located})
    if isinstance(method, ModelMethod | SpandrelMethod):
        names = ("path", "estimate") if isinstance(method, ModelMethod) else ("path",)
        placed = {name: _beside(getattr(method, name), folder) for name in names}
        return method.model_copy(update=placed)
    return method


def _beside(path: str, folder: Path) -> str:
    """A file seen from `folder`; what is only a name stays one."""
    beside = folder / Path(path).expanduser()
    is_name = not path or (Path(path).name == path and not beside.exists())
    return path if is_name else str(beside.resolve())


def _absolute(path: str, root: Path) -> str:
    """`path` below `root`; patterns of shards stay patterns, URLs are left alone."""
    if not path or is_remote(path):
        return path
    return str(root / Path(path).expanduser())
