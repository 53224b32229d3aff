"""A cleaning run put together: input, networks, settings; and what is told before it begins."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jobs.cleaning import CleanRequest
from jobs.running import RunFlags
from pipeline.cleaning import overrule
from pipeline.cleaning.look import LookConfig
from pipeline.cleaning.settings import CleanSettings
from pipeline.cleaning.tables import CALIBRATE
from pipeline.plan import Unit, check_apart, find_shards, limited, shard_units
from pipeline.storage import Store, open_store

if TYPE_CHECKING:
    from pipeline.replica import ModelSpec

IDENTITY_FILE = "mobilefacenet_ms1m.safetensors"
SMALL_PX = 256
"""A model up to this size runs on one thread: the cores are better spent on looking at its faces,
and threads of both kinds that wait for each other cost more than they give."""
ADD_IDENTITY = (
    f"no identity network: images are scored, compared and gated, none is restored; add it with "
    f"`vsp weights add {IDENTITY_FILE}`"
)


@dataclass(frozen=True)
class CleanRun:
    """Everything that the steps share.

    Attributes:
        request: What the user asked for.
        flags: How it is run.
        units: The shards to be cleaned.
        settings: What is decided by.
        values: The replica's settings: model, seed, batch, threads, device.
        model: The weights.
        model_size: Side on which they work, in pixels.
        look: The networks that look.
        scorer_sha256: Of the quality network.
        lpips: Weights of LPIPS; None where they are not at hand.
    """

    request: CleanRequest
    flags: RunFlags
    units: tuple[Unit, ...]
    settings: CleanSettings
    values: Mapping[str, Any]
    model: "ModelSpec"
    model_size: int
    look: LookConfig
    scorer_sha256: str
    lpips: Path | None

    @property
    def out(self) -> str:
        """The output folder."""
        return self.request.out.rstrip("/")

    @cached_property
    def store(self) -> Store:
        """The same, opened."""
        return open_store(self.out)

    def begin(self) -> None:
        """Make the output folder."""
        from pipeline.plan import make_out
        from pipeline.storage import LocalStore

        if isinstance(self.store, LocalStore):
            make_out(self.store.root)


def make_run(request: CleanRequest, flags: RunFlags) -> CleanRun:
    """Look at everything that the user named.

    Raises:
        UserError: If something is missing or does not fit.
    """
    from jobs import config as configs
    from jobs.models import model_size
    from pipeline.cleaning.quality.scorer import QualityScorer
    from pipeline.replica import ReplicaConfig

    if request.overrule is not None:
        overrule.read_file(request.overrule)  # a wrong line is told before hours of work
    sources = find_shards(request.source)
    root = request.source if Path(request.source).is_dir() else None
    check_apart(sources, request.out, root)
    settings = configs.resolve({}, CleanSettings, request.overrides)
    values = _replica_values(request, flags)
    model = ReplicaConfig.model_validate(values).model
    identity, lpips = _weights(request.weights)
    return CleanRun(
        request=request,
        flags=flags,
        units=limited(shard_units(sources), request.limit),
        settings=settings,
        values=values,
        model=model,
        model_size=model_size(model),
        look=identity,
        scorer_sha256=QualityScorer().sha256,
        lpips=lpips,
    )


def _replica_values(request: CleanRequest, flags: RunFlags) -> dict[str, Any]:
    """The model and where it runs; what decides last bits stays as the folder was begun."""
    from jobs.models import (
        check_wishes,
        default_batch_size,
        model_size,
        model_values,
        num_cores,
        pick_device,
    )
    from pipeline.replica import ReplicaConfig

    there = _begun_with(request.out) if not flags.restart else {}
    device = pick_device(request.device, elsewhere=bool(flags.ray_address))
    values = {"model": model_values(request.model, request.ask), "seed": request.seed}
    spec = ReplicaConfig.model_validate(values).model
    check_wishes(spec)
    size = model_size(spec)
    cores = max(1, num_cores() // flags.workers)
    return values | {
        "batch_size": request.batch_size or there.get("batch_size") or default_batch_size(device),
        "threads": request.threads or there.get("threads") or (1 if size <= SMALL_PX else cores),
        "runtime": {"device": device},
    }


def _begun_with(out: str) -> Mapping[str, Any]:
    """The settings of the last step that has begun there, as far as they are a model's."""
    from jobs.running import existing_settings

    return existing_settings(out) or existing_settings(f"{out.rstrip('/')}/{CALIBRATE}")


def _weights(folder: Path | None) -> tuple[LookConfig, Path | None]:
    """The identity network and LPIPS, as far as they are at hand.

    Raises:
        UserError: If the folder is missing.
    """
    from pipeline.errors import UserError
    from pipeline.metrics.families import SQUEEZENET
    from pipeline.weights import default_folder
    from vsp_model.files import sha256_of

    if folder is not None and not folder.is_dir():
        raise UserError(f"--weights {folder}: no such folder")
    place = folder or default_folder()
    identity = place / IDENTITY_FILE
    trunks = (place / name for name in SQUEEZENET.names)
    lpips = next((path.resolve() for path in trunks if path.is_file()), None)
    if not identity.is_file():
        return LookConfig(), lpips
    return LookConfig(identity=identity.resolve(), identity_sha256=sha256_of(identity)), lpips


def take_crops(run: CleanRun) -> CleanRun:
    """The run on the crops that `align` made: they stand for the input from here on."""
    from pipeline.cleaning.tables import ALIGNED

    sources = find_shards(f"{run.out}/{ALIGNED}")
    return replace(run, units=shard_units(sources))


def tell_plan(run: CleanRun) -> None:
    """Say what would be done, and nothing else."""
    from jobs.cleaning_estimate import estimate, lines

    if run.flags.as_json:
        facts = asdict(estimate(run)) | {"settings": run.settings.model_dump(mode="json")}
        typer.echo(json.dumps(facts))
        return
    typer.echo(run.settings.model_dump_json(indent=1))
    if not run.look.identity:
        typer.echo(ADD_IDENTITY, err=True)
    for line in lines(estimate(run), run):
        typer.echo(line)
