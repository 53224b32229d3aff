"""A model held by a worker: which weights, on which device, and batches of one fixed shape."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from pipeline import images
from vsp_model import checkpoints, registry
from vsp_model.ask import Ask
from vsp_model.randomness import NoiseMode
from vsp_model.registry import ModelConfig, Restorer
from vsp_model.runtime import Runtime, RuntimeConfig, keep_freed_memory


class Frozen(BaseModel):
    """A setting that cannot change and takes no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimator(Frozen):
    """Trained weights whose restoration another model starts from."""

    path: Path
    sha256: str


class _Ours(Frozen):
    """A model of ours, and what is wanted of it.

    Attributes:
        ask: Wishes beside the face: quality, fidelity, steps ...
        estimate: A model that restores first; this one refines what it gives (IDM).
    """

    ask: Ask = Ask()
    estimate: Estimator | None = None

    @model_validator(mode="after")
    def _begins_there(self) -> Self:
        if self.estimate and self.ask.start not in (None, "estimate"):
            raise ValueError(f"ask.start {self.ask.start}: with an estimate it is 'estimate'")
        return self

    @property
    def wishes(self) -> dict[str, Any]:
        """What decides the bytes beside the weights; empty for a model as it is."""
        asked = self.ask.model_dump(mode="json", exclude_defaults=True)
        wishes: dict[str, Any] = {"ask": asked} if asked else {}
        return wishes | ({"estimate": self.estimate.sha256} if self.estimate else {})

    def _named(self, name: str) -> str:
        asked = self.ask.model_dump(mode="json", exclude_defaults=True)
        words = [f"{wish} {value}" for wish, value in asked.items()]
        words += [f"from {self.estimate.path.name}"] if self.estimate else []
        return f"{name} ({', '.join(words)})" if words else name


class Bundle(_Ours):
    """Trained weights in one file."""

    kind: Literal["bundle"] = "bundle"
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """What the sidecar calls the model."""
        return self._named(self.path.name)


class Untrained(_Ours):
    """A seeded model without training: it proves the path, not the picture."""

    kind: Literal["untrained"] = "untrained"
    path: Path
    config: ModelConfig
    seed: int = 0

    @property
    def name(self) -> str:
        """What the sidecar calls the model."""
        return self._named(f"untrained {self.path.stem}")

    @property
    def sha256(self) -> str:
        """Identifies the weights: they follow from the config and the seed alone."""
        return _digest({"config": self.config.model_dump(mode="json"), "seed": self.seed})


class Baseline(Frozen):
    """Another team's restorer, loaded through spandrel; see `pipeline.baselines.others`.

    Attributes:
        path: Its checkpoint.
        weights_sha256: Of that file.
        arch: What it must hold.
        w: CodeFormer's fidelity: 0 the codebook's face, 1 closest to the input.
    """

    kind: Literal["baseline"] = "baseline"
    path: Path
    weights_sha256: str
    arch: Literal["gfpgan", "restoreformer", "codeformer"]
    w: float = Field(0.5, ge=0, le=1)

    @property
    def name(self) -> str:
        """What the sidecar calls the model."""
        return f"{self.path.name} (w {self.w:g})" if self.arch == "codeformer" else self.path.name

    @property
    def sha256(self) -> str:
        """Identifies the weights and what is done with them."""
        return _digest(self.model_dump(mode="json", exclude={"path"}))


class OwnCode(Frozen):
    """A user's function; see `pipeline.baselines.own`.

    Attributes:
        function: `package.module:function`.
        folder: Where it is looked for before the installed packages.
        size: Side of the faces that it is given and gives back, in pixels.
        source_sha256: Of the module's file.
    """

    kind: Literal["callable"] = "callable"
    function: str
    folder: Path
    size: int = Field(ge=8)
    source_sha256: str

    @property
    def name(self) -> str:
        """What the sidecar calls the model."""
        return self.function

    @property
    def sha256(self) -> str:
        """Identifies the code of its module; what that imports is not looked at."""
        return _digest(self.model_dump(mode="json", exclude={"folder"}))


ModelSpec = Annotated[Bundle | Untrained | Baseline | OwnCode, Field(discriminator="kind")]


class ReplicaConfig(Frozen):
    """Everything about the model that decides the bytes of a restored face on one device kind.

    Attributes:
        model: The weights.
        seed: With a face's key it fixes everything that is random.
        noise: "seeded", or "mean" for the same noise in every image.
        batch_size: Faces per run of the model; the last batch is padded, because another shape
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

    def settings(self) -> dict[str, Any]:
        """What decides the bytes: weights, not their path; the device's kind, not its number."""
        settings = self.model_dump(mode="json", exclude={"model"})
        settings["model"] = self.model.sha256
        if isinstance(self.model, _Ours):  # without wishes as before there were any
            settings |= self.model.wishes
        settings["runtime"]["device"] = self.runtime.device.partition(":")[0]
        return settings


def canonical(value: Mapping[str, Any]) -> str:
    """JSON in the one spelling that hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def load_model(config: ReplicaConfig) -> Restorer:
    """Make the restorer that `config` names ready to run, in a process that does nothing else."""
    keep_freed_memory()
    spec = config.model
    if isinstance(spec, Bundle | Untrained):
        return _load_own(spec, config.runtime)
    if isinstance(spec, Baseline):
        from pipeline.baselines.others import load_baseline

        return load_baseline(spec, config.runtime)
    from pipeline.baselines.own import load_own_code

    return load_own_code(spec)


def _load_own(spec: Bundle | Untrained, runtime: RuntimeConfig) -> Restorer:
    if isinstance(spec, Bundle):
        model = checkpoints.load(spec.path)
    else:
        model = registry.untrained(spec.config, seed=spec.seed)
    if spec.estimate is None:
        return Runtime(model, runtime, spec.ask)
    first = Runtime(checkpoints.load(spec.estimate.path), runtime)
    ask = spec.ask.model_copy(update={"start": "estimate"})
    return Refined(first, Runtime(model, runtime, ask))


class Refined:
    """Two models in a row: what the first makes of a face is where the second starts.

    Attributes:
        runtimes: Both.
        quality: See `Replica.quality`; the second's.
    """

    def __init__(self, first: Runtime, second: Runtime) -> None:
        """Take models of one size.

        Raises:
            ValueError: If they work on faces of different sizes.
        """
        if first.size != second.size:
            raise ValueError(f"estimate: of {first.size} px, the model of {second.size} px")
        self._first, self._second = first, second
        self.runtimes = (first, second)
        self.quality = second.quality

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self._second.size

    def restore(
        self, lq: Tensor, keys: Sequence[str], *, seed: int = 0, noise: NoiseMode = "seeded"
    ) -> Tensor:
        """See `vsp_model.registry.Restorer`."""
        estimate = self._first.restore(lq, keys, seed=seed, noise=noise)
        return self._second.restore(lq, keys, seed=seed, noise=noise, estimate=estimate)


LoadModel = Callable[[ReplicaConfig], Restorer]


class Replica:
    """A loaded model and its batch shape."""

    def __init__(self, config: ReplicaConfig, load: LoadModel = load_model) -> None:
        """Load the model; torch gets the plan's threads."""
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        self.config = config
        self._model = load(config)

    @property
    def size(self) -> int:
        """Working size S in pixels."""
        return self._model.size

    @property
    def quality(self) -> float | None:
        """The quality that is asked for, a percentile; NaN: unknown; None: it has no dial."""
        quality: float | None = getattr(self._model, "quality", None)
        return quality

    @property
    def batch_size(self) -> int:
        """Faces per run of the model."""
        return self.config.batch_size

    def new_batch(self, batch_size: int = 0) -> Tensor:
        """A zeroed float32 (B, 3, S, S) batch to be filled with `images.to_model`."""
        return images.new_batch(batch_size or self.batch_size, self.size)

    def run(self, batch: Tensor, keys: Sequence[str]) -> Tensor:
        """Restore a batch whose first `len(keys)` places are filled and whose others are zero.

        Args:
            batch: (B, 3, S, S) as `new_batch` makes it.
            keys: One a face, at most B.

        Returns:
            (B, 3, S, S) float32 on the CPU, not clamped, in memory of its own; the places beyond
            the keys mean nothing.
        """
        padded = [*keys, *(f"padding {slot}" for slot in range(len(keys), len(batch)))]
        config = self.config
        restored = self._model.restore(batch, padded, seed=config.seed, noise=config.noise)
        restored = restored.to("cpu")
        return restored.clone() if restored.data_ptr() == batch.data_ptr() else restored

    def warm(self) -> None:
        """Run once, so that the first face does not wait for first-time work."""
        self.run(self.new_batch(), [])

    def close(self) -> None:
        """Give the process its threads back."""
        torch.set_num_threads(self._threads_before)
