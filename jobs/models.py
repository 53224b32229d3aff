"""What several commands ask about a model: which file, what is in it, where it can run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.replica import ModelSpec
    from vsp_model.ask import Ask
    from vsp_model.bundle import BundleInfo

BUILT_IN = {
    "vspbfr": "vspbfr-128.safetensors",
    "iqp": "iqp-128.safetensors",
    "idm": "idm-128.safetensors",
}
"""Names that stand for the trained models that come with the program."""
DEFAULT = "vspbfr"


def model_values(name: str | Path | None, ask: "Ask | None" = None) -> dict[str, Any]:
    """Describe a model as the settings want it.

    Args:
        name: A built-in model's name, a file, a name among `vsp weights`, or None for the default.
        ask: What is wanted of it beside the face; None: what it does by itself.

    Raises:
        UserError: If the file is missing, of neither kind or wrong inside.
    """
    from jobs import config as configs
    from pipeline.errors import UserError
    from vsp_model.bundle import RESTORERS

    path = model_path(name)
    if not path.is_file():
        raise UserError(f"{path}: no such model; give a .safetensors bundle or a model's .yaml")
    asked = ask.model_dump(mode="json", exclude_defaults=True) if ask else {}
    if path.suffix in (".yaml", ".yml"):
        model = configs.load_model_config(path).model_dump(mode="json")
        return {"kind": "untrained", "path": path.resolve(), "config": model, "ask": asked}
    if path.suffix == ".safetensors":
        info, digest = read_bundle(path)
        if info.config.kind not in RESTORERS:
            raise UserError(f"{path}: of kind {info.config.kind!r}, which restores nothing alone")
        return {"kind": "bundle", "path": path.resolve(), "sha256": digest, "ask": asked}
    raise UserError(f"{path}: neither .safetensors nor .yaml; make a bundle with `vsp convert`")


def model_path(name: str | Path | None) -> Path:
    """Where a model lies: one of `BUILT_IN` by its name, a file, or a name among `vsp weights`."""
    from pipeline.weights import resolve

    name = name or DEFAULT
    return built_in_model(str(name)) if str(name) in BUILT_IN else resolve(name)


def built_in_model(name: str = DEFAULT) -> Path:
    """A trained model that comes with the program, for faces of 128 pixels."""
    import vsp_model

    return Path(vsp_model.__file__).parent / "weights" / BUILT_IN[name]


def check_wishes(model: "ModelSpec") -> None:
    """See that a model can do what is asked of it, before anything is started.

    Raises:
        UserError: In one line.
    """
    from pipeline.errors import UserError
    from vsp_model.ask import Ask
    from vsp_model.checkpoints import hollow
    from vsp_model.registry import Model, build

    if model.kind not in ("bundle", "untrained"):
        return
    config: Any = model.config if model.kind == "untrained" else _info(model.path).config
    if model.estimate and config.kind != "idm":
        raise UserError(f"{model.path.name}: an estimate is for idm models, this is {config.kind}")
    ask = model.ask.model_copy(update={"start": "estimate"}) if model.estimate else model.ask
    if ask == Ask():
        return
    whole = hollow(lambda: build(config))
    if model.kind == "bundle":
        whole.load_state_dict(_knots(model.path), strict=False)
    try:
        cast(Model, whole).settle(ask)
    except ValueError as error:
        raise UserError(f"{model.path.name}: {error}") from None
    first: Any = _info(model.estimate.path).config if model.estimate else config
    if first.size != config.size:
        raise UserError(f"estimate: of {first.size} px, the model of {config.size} px")


def wishes(
    quality: str | None,
    guidance: float = 1.0,
    fidelity: float | None = None,
    steps: int | None = None,
) -> "Ask":
    """What the options of a command ask of a model.

    Args:
        quality: 0 to 1, or "nan" or "unknown"; None leaves it to the model.
        guidance: See `vsp_model.ask.Ask`, as the others.
        fidelity: Of IQP.
        steps: Of IDM.

    Raises:
        UserError: If one is no such thing.
    """
    from pydantic import ValidationError

    from pipeline.errors import UserError
    from vsp_model.ask import Ask
    from vsp_model.infer import explain

    wanted: str | float | None = quality
    if quality is not None:
        try:
            wanted = float(quality)
        except ValueError:
            wanted = quality
    if isinstance(wanted, str) and wanted != "unknown":
        raise UserError(f"--quality {quality}: expected 0 to 1, or unknown")
    try:
        return Ask.model_validate(
            {"quality": wanted, "guidance": guidance, "fidelity": fidelity, "steps": steps}
        )
    except ValidationError as error:
        raise UserError(f"--{explain(error)}") from None


def asked_model(name: str | None, ask: "Ask", estimate: str | None = None) -> dict[str, Any]:
    """A model, what is wanted of it, and the one whose restoration it starts from.

    Raises:
        UserError: As `model_values`; or if the estimate is no trained bundle.
    """
    from pipeline.errors import UserError

    if estimate is None:
        return model_values(name, ask)
    first = model_values(estimate)
    if first["kind"] != "bundle":
        raise UserError(f"--estimate {estimate}: expected trained weights (.safetensors)")
    chosen = {"path": first["path"], "sha256": first["sha256"]}
    return model_values(name, ask) | {"estimate": chosen}


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
    config: Any = model.config if model.kind == "untrained" else _info(model.path).config
    size: int = config.size  # what `model_values` names is a whole restorer
    return size


def _knots(path: Path) -> "dict[str, Tensor]":
    """What tells whether the model of a bundle was trained with scores, by its names."""
    from vsp_model.bundle import open_bundle

    with open_bundle(path) as bundle:
        names = [name for name in bundle.names("") if name.endswith(".knots")]
        return {name: tensor for name in names if (tensor := bundle.tensor(name)) is not None}


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
