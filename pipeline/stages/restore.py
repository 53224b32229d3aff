"""Restore the faces of a shard: decode, run the model on batches of one fixed shape, encode."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import torch
from pydantic import BaseModel, ConfigDict, Field

from pipeline import images
from pipeline.images import Header, ImageFault, Pixels
from pipeline.sample import Member, Sample
from pipeline.shards import Provenance, Row, ShardWriter, Status, read_shard, sha256
from pipeline.stage import Task
from vsp_model import checkpoints, registry
from vsp_model.faces import finite_items
from vsp_model.registry import Restorer
from vsp_model.runtime import Runtime, RuntimeConfig, keep_freed_memory
from vsp_model.vspbfr import VSPBFRConfig

# Records held between two runs of the model: a shard of nothing but copies must not pile up.
PENDING_BUDGET_BYTES = 64 * 2**20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bundle(_Frozen):
    """Trained weights in one file."""

    kind: Literal["bundle"] = "bundle"
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """What the sidecar calls the model."""
        return self.path.name


class Untrained(_Frozen):
    """A seeded model without training: it proves the path, not the picture."""

    kind: Literal["untrained"] = "untrained"
    path: Path
    config: VSPBFRConfig
    seed: int = 0

    @property
    def name(self) -> str:
        """What the sidecar calls the model."""
        return f"untrained {self.path.stem}"

    @property
    def sha256(self) -> str:
        """Identifies the weights: they follow from the config and the seed alone."""
        return sha256(
            _canonical({"config": self.config.model_dump(mode="json"), "seed": self.seed})
        )


ModelSpec = Annotated[Bundle | Untrained, Field(discriminator="kind")]


class RestoreConfig(_Frozen):
    """Everything that decides the bytes of a restored shard, for one release on one device kind.

    Attributes:
        model: The weights.
        seed: With a record's key it fixes everything that is random.
        noise: "seeded", or "mean" for the same noise in every image.
        batch_size: Images per run of the model; the last batch is padded, because another shape
            would sum in another order.
        threads: Torch threads of a worker; they too decide the order of sums.
        runtime: Device, precision and memory format.
    """

    model: ModelSpec
    seed: int = Field(0, ge=0)
    noise: Literal["seeded", "mean"] = "seeded"
    batch_size: int = Field(8, ge=1)
    threads: int = Field(1, ge=1)
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def provenance(self) -> Provenance:
        """What the sidecar says of the run: the weights, not their path; the kind of device."""
        settings = self.model_dump(mode="json", exclude={"model"})
        settings["model"] = self.model.sha256
        settings["runtime"]["device"] = self.runtime.device.partition(":")[0]
        return Provenance(
            seed=self.seed,
            model=self.model.name,
            model_sha256=self.model.sha256,
            config=_canonical(settings).decode(),
        )


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def load_model(spec: Bundle | Untrained, config: RuntimeConfig) -> Restorer:
    """Make the restorer that `spec` names ready to run, in a process that does nothing else."""
    keep_freed_memory()
    if isinstance(spec, Bundle):
        return Runtime(checkpoints.load(spec.path), config)
    return Runtime(registry.untrained(spec.config, seed=spec.seed), config)


@dataclass(slots=True)
class _Pending:
    """A record on its way: `lq` waits for the model, or the status is decided without it."""

    sample: Sample
    header: Header | None = None
    lq: Pixels | None = None
    status: Status = "restored"
    reason: str = ""


class RestoreStage:
    """Restore every record of a shard; see `Row` for what is written about each.

    The first image member is restored under its own name and in its own format, at the model's
    size. Other members are copied byte for byte. A refused or failed record leaves a row and its
    other members, but no image.
    """

    def __init__(
        self,
        config: RestoreConfig,
        load: Callable[[Bundle | Untrained, RuntimeConfig], Restorer] = load_model,
    ) -> None:
        """Plan the stage; `load` makes the model when the worker sets the stage up."""
        self._config = config
        self._load = load

    def setup(self) -> None:
        """Load and warm the model; torch gets the plan's threads, the codecs one."""
        self._threads_before = (torch.get_num_threads(), cv2.getNumThreads())
        torch.set_num_threads(self._config.threads)
        cv2.setNumThreads(1)
        self._model = self._load(self._config.model, self._config.runtime)
        self._batch = images.new_batch(self._config.batch_size, self._model.size)
        self._run([])

    def close(self) -> None:
        """Free the model and give the process its threads back."""
        if hasattr(self, "_threads_before"):
            torch.set_num_threads(self._threads_before[0])
            cv2.setNumThreads(self._threads_before[1])
        self.__dict__.pop("_model", None)

    def process(self, task: Task) -> Mapping[str, int]:
        """Restore one shard and publish it."""
        with ShardWriter(task, self._config.provenance) as writer:
            pending: list[_Pending] = []
            for sample in read_shard(task.source):
                pending.append(self._admit(sample))
                if self._is_full(pending):
                    self._flush(pending, writer)
                    pending = []
            self._flush(pending, writer)
            return writer.commit()

    def _is_full(self, pending: Sequence[_Pending]) -> bool:
        waiting = sum(record.lq is not None for record in pending)
        held = sum(len(member.data) for record in pending for member in record.sample.members)
        return waiting == self._config.batch_size or held > PENDING_BUDGET_BYTES

    def _admit(self, sample: Sample) -> _Pending:
        """Decode a record's image, or decide at once what becomes of the record."""
        if sample.fault:
            return _Pending(sample, status="truncated" if sample.truncated else "refused",
                            reason=sample.fault)  # fmt: skip
        image = sample.image
        if image is None:
            return _Pending(sample, status="copied", reason="no image member")
        try:
            header, pixels = images.decode(image.data)
        except ImageFault as fault:
            return _Pending(sample, status="refused", reason=f"{image.name}: {fault}")
        return _Pending(sample, header, images.resize(pixels, self._model.size),
                        reason=_merge_warning(sample))  # fmt: skip

    def _flush(self, pending: Sequence[_Pending], writer: ShardWriter) -> None:
        """Run the model on what waits for it and write every record, in order."""
        waiting = [record for record in pending if record.lq is not None]
        results = iter(self._run(waiting) if waiting else [])
        for record in pending:
            restored = next(results) if record.lq is not None else None
            if record.lq is not None and restored is None:
                record.status, record.reason = "failed", "the model returned NaN or infinity"
            self._write(record, restored, writer)

    def _run(self, waiting: Sequence[_Pending]) -> list[Pixels | None]:
        """Restore up to a batch of images; None where the result is not finite."""
        keys = [record.sample.key for record in waiting]
        keys += [f"padding {slot}" for slot in range(len(keys), self._config.batch_size)]
        for slot in range(self._config.batch_size):
            lq = waiting[slot].lq if slot < len(waiting) else None
            if lq is None:
                self._batch[slot].zero_()
            else:
                images.to_model(lq, self._batch, slot)
        config = self._config
        restored = self._model.restore(self._batch, keys, seed=config.seed, noise=config.noise)
        finite = finite_items(restored).tolist()
        pixels = images.to_uint8(torch.nan_to_num(restored))
        return [pixels[slot] if finite[slot] else None for slot in range(len(waiting))]

    def _write(self, record: _Pending, restored: Pixels | None, writer: ShardWriter) -> None:
        sample, header, image = record.sample, record.header, record.sample.image
        data = None
        if restored is not None and header is not None:
            data = images.encode(restored, header.format)
        row = Row(sample.index, sample.key, record.status, record.reason)
        if image is not None:
            row = replace(row, member=image.name, sha256_in=sha256(image.data))
        if header is not None:
            row = replace(row, width_in=header.width, height_in=header.height)
        if data is not None:
            size = self._model.size
            row = replace(row, width_out=size, height_out=size, sha256_out=sha256(data))
        writer.add(row, _output_members(sample, image, data))


def _output_members(sample: Sample, image: Member | None, data: bytes | None) -> list[Member]:
    """The record's files with the image replaced by its restoration, or left out without one."""
    restored = [] if image is None or data is None else [Member(image.name, data)]
    return [
        kept for member in sample.members for kept in (restored if member is image else [member])
    ]


def _merge_warning(sample: Sample) -> str:
    """Say that a key holds more images than one: often two files whose names merge at a dot."""
    others = [member.name for member in sample.members if member.is_image][1:]
    return f"copied as they are: {', '.join(others)}" if others else ""
