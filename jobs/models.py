"""What several commands ask about a model: which file, what is in it, where it can run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.replica import ModelSpec
    from vsp_model.bundle import BundleInfo

BUILT_IN = "vspbfr-128.safetensors"


def model_values(name: str | Path | None) -> dict[str, Any]:
    """Describe a model as the settings want it.

    Args:
        name: A file, a name among `vsp weights`, or None for the built-in model.

    Raises:
        UserError: If the file is missing, of neither kind or wrong inside.
    """
    from jobs import config as configs
    from pipeline.errors import UserError
    from pipeline.weights import resolve

    path = built_in_model() if name is None else resolve(name)
    if not path.is_file():
        raise UserError(f"{path}: no such model; give a .safetensors bundle or a model's .yaml")
    if path.suffix in (".yaml", ".yml"):
        model = configs.load_model_config(path).model_dump(mode="json")
        return {"kind": "untrained", "path": path.resolve(), "config": model}
    if path.suffix == ".safetensors":
        return {"kind": "bundle", "path": path.resolve(), "sha256": read_bundle(path)[1]}
    raise UserError(f"{path}: neither .safetensors nor .yaml; make a bundle with `vsp convert`")


def built_in_model() -> Path:
    """The trained model that comes with the program: 128 pixels, 12 MB."""
    import vsp_model

    return Path(vsp_model.__file__).parent / "weights" / BUILT_IN


def tell_terms(model: "ModelSpec") -> None:
    """Say once a run what its user must know of the weights: their terms, or that there are none.

    Args:
        model: As the run's settings name it.
    """
    import typer

    line = ""
    if model.kind == "untrained":
        line = (
            f"untrained model {model.path.name} (seed {model.seed}): this shows that the path "
            "works, not what the method can do; give trained weights with --model"
        )
    elif model.kind == "bundle":
        line = _info(model.path).notice
    if line:
        typer.echo(line, err=True)


def model_size(model: "ModelSpec") -> int:
    """Side of the faces that a model works on, in pixels."""
    if model.kind == "callable":
        return model.size
    if model.kind == "baseline":
        from pipeline.baselines.others import SIZE

        return SIZE
    config = model.config if model.kind == "untrained" else _info(model.path).config
    assert config.kind == "vspbfr", "what `model_values` names is whole"
    return config.size


def _info(path: Path) -> "BundleInfo":
    from vsp_model.bundle import open_bundle

    with open_bundle(path) as bundle:
        return bundle.info


def read_bundle(path: Path) -> "tuple[BundleInfo, str]":
    """What a bundle says of itself, and its sha256; no weights are read into memory.

    Raises:
        CheckpointError: If it is not whole, or differs from the checksum recorded beside it.
    """
    from vsp_model.bundle import open_bundle
    from vsp_model.files import checksum_path, sha256_of, verify

    with open_bundle(path) as bundle:
        info = bundle.info
    return info, verify(path) if checksum_path(path).is_file() else sha256_of(path)


def pick_device(name: str, *, elsewhere: bool = False) -> str:
    """The device that `--device` means; refuses one that this machine does not have.

    Args:
        name: What the user gave.
        elsewhere: Other machines do the work, and one that is named is theirs.

    Raises:
        UserError: If there is none of that name.
    """
    import torch

    from pipeline.errors import UserError
    from vsp_model.runtime import resolve_device

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if elsewhere:
        return name
    try:
        resolve_device(name)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    return name


def default_batch_size(device: str) -> int:
    """Faces per run of the model: a GPU wants more to do at once."""
    return 16 if device.startswith("cuda") else 8


def default_codec_threads(device: str) -> int:
    """Threads that decode and encode for a model: on the CPU they take from the model's cores."""
    return 1 if device == "cpu" else 4


def default_workers(device: str, gpus_per_worker: float) -> int:
    """Replicas of the model: one, or as many as the GPUs of this machine hold."""
    if device != "cuda":
        return 1
    import torch

    return max(1, int(torch.cuda.device_count() / gpus_per_worker))


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
