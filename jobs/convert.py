"""`vsp convert`: published checkpoints -> one bundle, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

EXAMPLE = "vsp convert published/*.pt --out vspbfr-512.safetensors"
BACK = "vsp convert vspbfr-512.safetensors --to-published published/"
HALF = "vsp convert runs/restorer/model.safetensors --half --out mine.safetensors"


def command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Published files, or one bundle with --to-published."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The bundle to write (.safetensors).")
    ] = None,
    to_published: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"The way back: {BACK}"),
    ] = None,
    training: Annotated[
        bool,
        typer.Option(help="Also keep what only training needs, such as the discriminator."),
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help=f"Store a bundle again in half the bytes: {HALF}")
    ] = False,
    notice: Annotated[
        str, typer.Option(help="With --half: terms of the weights, told to whoever runs them.")
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="With --half: what the model does where nobody asks, as steps=2 of IDM.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Say what would be used and dropped, and stop.")
    ] = False,
) -> None:
    """Turn published checkpoints into one bundle, and back.

    Reads style_encoder_decoder.pt (or an e4e checkpoint), code_diffuser.pt, restoration_net.pt,
    Arcface.pth and StyleGAN2 checkpoints, by their contents and without running what is in them.
    Every tensor is used exactly once; what is dropped is listed. Files that exist are not replaced.
    """
    from pipeline.errors import UserError

    if (out is None) == (to_published is None):
        raise UserError(f"give --out or --to-published, as in: {EXAMPLE}")
    if (notice or overrides) and not half:
        raise UserError(f"--notice and --set go with --half, as in: {HALF}")
    if out is not None and half:
        to_half(sources, out, notice, overrides or (), dry_run=dry_run)
    elif out is not None:
        to_bundle(sources, out, training=training, dry_run=dry_run)
    elif to_published is not None:
        from_bundle(sources, to_published, dry_run=dry_run)


def to_bundle(sources: list[Path], out: Path, *, training: bool, dry_run: bool) -> None:
    """Convert published files into a bundle and tell what became of their entries.

    Raises:
        UserError: If `out` exists or is no name for a bundle.
        CheckpointError: If the files can't be converted whole.
    """
    from vsp_model.convert import plan_conversion, write
    from vsp_model.files import checksum_path

    _check_new(out)
    plan = plan_conversion(sources, training=training)
    for line in plan.lines:
        typer.echo(line)
    if dry_run:
        typer.echo(f"would write {len(plan.specs)} tensors ({plan.info.config.kind}) -> {out}")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    digest = write(plan, out)
    typer.echo(f"wrote {len(plan.specs)} tensors ({plan.info.config.kind}) -> {out}")
    typer.echo(f"sha256 {digest} (in {checksum_path(out).name})")


def to_half(
    sources: list[Path], out: Path, notice: str, overrides: Sequence[str], *, dry_run: bool
) -> None:
    """Write a model's bundle again with float16 weights, which are float32 when they are read.

    Raises:
        UserError: If `out` exists or is no name for a bundle, there is not one source, or a setting
            is unknown or changes the network.
        CheckpointError: If the source holds no whole model.
    """
    from pipeline.errors import UserError
    from vsp_model.checkpoints import load, save_parts
    from vsp_model.files import sha256_of

    _check_new(out)
    if len(sources) != 1:
        raise UserError(f"--half takes one bundle, got {len(sources)} files")
    model = load(sources[0])
    if dry_run:
        typer.echo(f"would write {sources[0]} as float16 -> {out}")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    origin = {sources[0].name: sha256_of(sources[0])}
    parts = dict(model.named_children())
    config = _with_settings(model, overrides)
    digest = save_parts(parts, config, out, half=True, sources=origin, notice=notice)
    typer.echo(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")


def _with_settings(model: Any, overrides: Sequence[str]) -> Any:
    """The model's configuration with some settings changed, which its weights must fit.

    Raises:
        UserError: If a setting is unknown, or the network would be another.
    """
    from jobs import config as configs
    from pipeline.errors import UserError
    from vsp_model.bundle import specs_of
    from vsp_model.checkpoints import hollow
    from vsp_model.registry import build

    values = model.config.model_dump(mode="json")
    config = configs.resolve(values, type(model.config), overrides)
    if specs_of(hollow(lambda: build(config)).state_dict()) != specs_of(model.state_dict()):
        raise UserError(f"--set {overrides[0]}: makes another network; train it")
    return config


def _check_new(out: Path) -> None:
    from pipeline.errors import UserError

    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: expected a name that ends in .safetensors")
    if out.exists():
        raise UserError(f"{out}: exists; name another file or remove it")


def from_bundle(sources: list[Path], folder: Path, *, dry_run: bool) -> None:
    """Convert a bundle into the published files, after checking its recorded checksum.

    Raises:
        UserError: If there is not exactly one source.
        CheckpointError: If the bundle can't be converted.
    """
    from pipeline.errors import UserError
    from vsp_model.export import export, plan_export
    from vsp_model.files import checksum_path, sha256_of, verify

    if len(sources) != 1:
        raise UserError(f"--to-published takes one bundle, got {len(sources)} files")
    bundle = sources[0]
    for line in plan_export(bundle).lines:
        typer.echo(line)
    if dry_run:
        typer.echo(f"would write them -> {folder}")
        return
    if checksum_path(bundle).exists():
        verify(bundle)
    for path in export(bundle, folder):
        typer.echo(f"wrote {path}, sha256 {sha256_of(path)}")
