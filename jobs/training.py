"""A training run put together: settings, parts, judges, faces; and one worker's share of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, create_model
from torch import nn

from jobs import config as configs
from pipeline.errors import UserError
from pipeline.storage import is_remote, stat_input
from pipeline.training.data import DataConfig
from pipeline.training.index import list_shards
from vsp_model.bundle import open_bundle
from vsp_model.files import sha256_of
from vsp_model.networks import build_part, load_part, part_config
from vsp_model.quality import BUILT_IN
from vsp_model.train.diffuser import DiffuserConfig, DiffuserStage
from vsp_model.train.encoder import EncoderConfig, EncoderStage, begin_at_average
from vsp_model.train.idm import IDMStage, IDMTrainConfig
from vsp_model.train.iqp_books import IQPBooksConfig, IQPBooksStage
from vsp_model.train.iqp_codes import IQPCodesConfig, IQPCodesStage
from vsp_model.train.iqp_fidelity import IQPFidelityConfig, IQPFidelityStage
from vsp_model.train.judges import JudgesConfig
from vsp_model.train.prior import PriorConfig, PriorStage
from vsp_model.train.reconstruction import ReconstructionConfig, ReconstructionStage
from vsp_model.train.restorer import RestorerConfig, RestorerStage
from vsp_model.train.stage import Stage, StageConfig

if TYPE_CHECKING:
    from pipeline.training.scores import ScoreTable
    from vsp_model.config import Config
    from vsp_model.train.judges import Judges

KINDS: Mapping[str, Mapping[str, tuple[type[StageConfig], type[Stage]]]] = {
    "prior": {
        "reconstruction": (ReconstructionConfig, ReconstructionStage),
        "gan": (PriorConfig, PriorStage),
    },
    "encoder": {"encoder": (EncoderConfig, EncoderStage)},
    "diffuser": {"diffuser": (DiffuserConfig, DiffuserStage)},
    "restorer": {"restorer": (RestorerConfig, RestorerStage)},
    "iqp-books": {"iqp-books": (IQPBooksConfig, IQPBooksStage)},
    "iqp-codes": {"iqp-codes": (IQPCodesConfig, IQPCodesStage)},
    "iqp-fidelity": {"iqp-fidelity": (IQPFidelityConfig, IQPFidelityStage)},
    "idm": {"idm": (IDMTrainConfig, IDMStage)},
}
"""Stages as the command names them, and the kinds of file that each takes."""
JUDGES = ("lpips", "identity", "quality", "monitor")
RARE = ("quality", "monitor")
"""Judges that few stages ask: nothing is said where they are not there."""
COMES_ALONG = "built-in"
_CLASSES = {kind: classes for kinds in KINDS.values() for kind, classes in kinds.items()}
# Parts that each kind trains or uses; a part is taken from --from where that has it.
_USED = {
    "reconstruction": ("encoder", "prior"),
    "gan": ("prior",),
    "encoder": ("encoder", "prior"),
    "diffuser": ("encoder", "prior", "diffuser"),
    "restorer": ("encoder", "prior", "diffuser", "condition", "restoration"),
    "iqp-books": ("hq_encoder", "dictionary"),
    "iqp-codes": ("hq_encoder", "dictionary", "lq_encoder", "embedding", "predictor"),
    "iqp-fidelity": ("dictionary", "lq_encoder", "embedding", "predictor", "fusion"),
    "idm": ("unet",),
}
# What may differ between two sittings of a run: faces and scores are told by what they hold.
_PLACES = {
    "train", "validation", "validation_faces", "threads", "ahead_steps", "cache",
    "scores", "scorers",
}  # fmt: skip


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a worker needs to know.

    Attributes:
        stage: As the command names it.
        kind: Of the stage, as its file says.
        config: Of the stage; its judges' paths are found.
        data: Which faces.
        sources: Bundles with parts that were trained before; later ones win.
        out: Folder or URL of the run.
        device: Of each worker: "cpu", "cuda", "cuda:1".
        command: As the user typed it, for the report.
    """

    stage: str
    kind: str
    config: StageConfig
    data: DataConfig
    sources: tuple[Path, ...]
    out: str
    device: str
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Strings and lists of them, for workers whose working folder is another."""
        shards = {
            "train": tuple(map(_absolute, self.data.train)),
            "validation": tuple(map(_absolute, self.data.validation)),
            "scores": self.data.scores and _absolute(self.data.scores),
        }
        judges = self.config.judges
        paths = {
            name: judge.model_copy(update={"path": _placed(judge.path)})
            for name in JUDGES
            if (judge := getattr(judges, name))
        }
        config = self.config.model_copy(update={"judges": judges.model_copy(update=paths)})
        return {
            "stage": self.stage,
            "kind": self.kind,
            "config": config.model_dump_json(),
            "data": self.data.model_copy(update=shards).model_dump_json(),
            "sources": [_absolute(str(path)) for path in self.sources],
            "out": _absolute(self.out),
            "device": self.device,
            "command": self.command,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainingJob":
        """What `to_dict` gave."""
        return cls(
            **{
                **values,
                "config": _CLASSES[values["kind"]][0].model_validate_json(values["config"]),
                "data": DataConfig.model_validate_json(values["data"]),
                "sources": tuple(map(Path, values["sources"])),
            }
        )


def _placed(path: str) -> str:
    """A judge's file as seen from anywhere."""
    return _absolute(path) if path and path != COMES_ALONG else path


def _absolute(url: str) -> str:
    return url if is_remote(url) else str(Path(url).absolute())


def read_settings(
    stage: str, path: Path, data: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[str, StageConfig, DataConfig]:
    """Read a stage's YAML: its kind, its settings, its faces.

    Args:
        stage: A name of `KINDS`.
        path: Of the file. Its `model` may be the path of a model's file, seen from there.
        data: What the command line says of the faces.
        overrides: Each `a.b=c`.

    Raises:
        UserError: In one line.
    """
    if stage not in KINDS:
        raise UserError(f"{stage}: no such stage; known: {', '.join(KINDS)}")
    values, places = configs.read_values(path)
    kind = str(values.get("kind"))
    kinds = KINDS[stage]
    if kind not in kinds:
        known = kind in _CLASSES
        whose = next((name for name, those in KINDS.items() if kind in those), "")
        hint = f"that is `vsp train {whose}`" if known else f"expected {' or '.join(kinds)}"
        raise UserError(f"{path}: kind: {kind!r} is not for `vsp train {stage}`; {hint}")
    if isinstance(values.get("model"), str):
        model = configs.load_model_config(path.parent / values["model"])
        values["model"] = model.model_dump(mode="json")
    values["data"] = {**(values.get("data") or {}), **data}
    config_class = kinds[kind][0]
    schema: type[BaseModel] = create_model(
        "TrainingFile", __base__=config_class, data=(DataConfig, ...)
    )
    checked = configs.resolve(values, schema, overrides, places, str(path))
    faces: DataConfig = getattr(checked, "data")  # noqa: B009 - the class is made here
    _check_colours(checked, faces, path)
    return kind, config_class.model_validate(checked.model_dump(exclude={"data"})), faces


def _check_colours(config: Any, data: DataConfig, path: Path) -> None:
    """A transfer of colours would bring back the cast that a model is to learn to remove."""
    model = config.model
    if model.kind == "iqp" and model.colour_transfer and not data.degradation.keeps_colour:
        raise UserError(
            f"{path}: model.colour_transfer gives the restored picture the degraded one's colours, "
            "which data.degradation.colour changes; set it to false"
        )


def find_judges(config: StageConfig) -> tuple[JudgesConfig, list[str]]:
    """A stage's judges with the paths of their files, and a line for each term that is off.

    Raises:
        UserError: If one that the configuration insists on, or trains for, is missing.
    """
    from pipeline.weights import find

    found, lines = {}, []
    for name in JUDGES:
        judge = getattr(config.judges, name)
        if judge.path and judge.path != COMES_ALONG and not Path(judge.path).exists():
            try:
                judge = judge.model_copy(update={"path": str(find(judge.path))})
            except UserError as error:
                if judge.required or (name == "quality" and config.asks_quality):
                    raise UserError(f"judges.{name}: {error}") from None
                lines.append(f"{name}: off, {error}")
                judge = judge.model_copy(update={"path": ""})
        elif not judge.path:
            if judge.required:
                raise UserError(f"judges.{name}: required, but no path is given")
            if name in RARE:
                continue
            lines.append(f"{name}: off, the configuration gives no path")
        found[name] = judge
    return config.judges.model_copy(update=found), lines


def find_parts(job: TrainingJob) -> dict[str, Path]:
    """Which bundle each part is taken from; the others are new.

    Raises:
        UserError: If a part that must have been trained before is missing, or another network.
    """
    needed = _CLASSES[job.kind][1].needs
    found = {}
    for name in _USED[job.kind]:
        config: Config | None = getattr(job.config.model, name)
        if config is None:
            continue
        source = _source_of(name, config, job.sources)
        if source is not None:
            found[name] = source
        elif name in needed:
            where = f"{', '.join(map(str, job.sources))}: no {name} in it; " if job.sources else ""
            raise UserError(
                f"{where}the {job.kind} needs a trained {name}: give its run or bundle with --from"
            )
    return found


def _source_of(name: str, config: "Config", sources: Sequence[Path]) -> Path | None:
    for path in reversed(sources):
        with open_bundle(path) as bundle:
            if not bundle.names(f"{name}."):
                continue
            there = part_config(bundle.info, name)
            if there != config:
                from vsp_model.train.sameness import first_difference

                old = there.model_dump(mode="json") if there else {}
                place, theirs, ours = first_difference(
                    old, config.model_dump(mode="json"), f"model.{name}"
                ) or (f"model.{name}", "?", "?")
                raise UserError(
                    f"{path}: its {name} is another network: {place} is {theirs!r} there, "
                    f"{ours!r} here; use the model it was trained with"
                )
            return path
    return None


def build_stage(job: TrainingJob, judges: "Judges") -> Stage:
    """The stage with its parts: from `--from` where it has them, new and seeded elsewhere.

    Raises:
        UserError: As `find_parts`.
    """
    _check_groups(job.config)
    sources = find_parts(job)
    parts: dict[str, Any] = {}
    for name in _USED[job.kind]:
        config: Config | None = getattr(job.config.model, name)
        if config is not None:
            source = sources.get(name)
            parts[name] = load_part(source, name) if source else _new(name, config, job)
    if job.kind == "encoder" and "encoder" not in sources:
        begin_at_average(parts["encoder"], parts["prior"], job.config.run.seed)
    if job.kind == "iqp-codes" and "lq_encoder" not in sources:  # begins as the clean one's [C]
        parts["lq_encoder"].load_state_dict(parts["hq_encoder"].state_dict())
    with torch.random.fork_rng(devices=[]):  # for what the stage makes itself: a discriminator
        torch.manual_seed(job.config.run.seed)
        return _CLASSES[job.kind][1](job.config, parts, judges, job.device)


def _new(name: str, config: "Config", job: TrainingJob) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.config.run.seed)
        return build_part(name, config)


def _check_groups(config: StageConfig) -> None:
    """A discriminator looks at groups of a part; a part must hold whole ones."""
    adversary = getattr(config, "adversary", None)
    if adversary is None:
        return
    group = adversary.network.group_size
    part = config.run.part_size or config.run.batch_size
    if part > group and part % group:
        raise UserError(
            f"run: parts of {part} faces, but adversary.network.group_size is {group}; "
            f"use --set run.part_size={group}"
        )


def origin_of(
    job: TrainingJob, num_faces: int, scores: "ScoreTable | None" = None
) -> dict[str, Any]:
    """What decides a step beside the stage's settings, as JSON."""
    shards = list_shards(job.data.train)
    sizes = [stat_input(shard) for shard in shards]
    names = [
        f"{Path(shard).name} {size.size_bytes if size else 0}"
        for shard, size in zip(shards, sizes, strict=True)
    ]
    told = {"scores": scores.digest[:16]} if scores else {}  # as before where there are none
    return {
        "data": {
            **json.loads(job.data.model_dump_json(exclude=_PLACES, exclude_none=True)),
            "faces": num_faces,
            "shards": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16],
        },
        "from": {name: sha256_of(path)[:16] for name, path in find_parts(job).items()},
        "judges": _judges_told(job.config.judges),
        **told,
    }


def _judges_told(judges: JudgesConfig) -> dict[str, Any]:
    """Which judges there are; of those that a score is trained for with, what they hold."""
    told: dict[str, Any] = {
        name: bool(getattr(judges, name).path)
        for name in JUDGES
        if name not in RARE or getattr(judges, name).path
    }
    if judges.quality.path:  # as before where there is none
        told["quality"] = _digest(judges.quality.path)
        told["monitor"] = _digest(judges.monitor.path) if judges.monitor.path else "classic"
    return told


def _digest(path: str) -> str:
    return sha256_of(BUILT_IN if path == COMES_ALONG else Path(path))[:16]
