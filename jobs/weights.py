"""`vsp weights`: the folder of weight files, known by their sha256. Nothing is downloaded."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.images import Pixels
    from pipeline.scoring.sources import Found
    from pipeline.weights import Entry

EXAMPLE = "vsp weights add downloads/restoration_net.pt"
EXIT_DAMAGED = 1
EXIT_FAILED = 1
# Of what is known of a file; `sha256_known` is in full, or how it begins.
_TOLD = ("what", "used_by", "code_licence", "weight_licence", "training_data", "source")
Folder = Annotated[
    Path | None, typer.Option(help="Another folder than $VSP_WEIGHTS or the user's cache.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Tell it as JSON.")]

app = typer.Typer(
    help="""List, add, verify and test weight files.

    They are kept in $VSP_WEIGHTS, or in vsp/weights of the user's cache, each with its sha256.
    Nothing is downloaded and nothing in a file is run: for a missing one, `list` says where to get
    it.""",
    epilog=f"Example: {EXAMPLE}",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)


@app.command("list", epilog="Example: vsp weights list --json")
def list_command(folder: Folder = None, as_json: AsJson = False) -> None:
    """Show what is there, what is missing and where to get it."""
    from pipeline.weights import default_folder, entries

    folder = folder or default_folder()
    found = entries(folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "files": _as_dicts(found, folder)}, indent=1))
        return
    for entry in found:
        typer.echo(_line(entry))
    num_there = sum(entry.path is not None for entry in found)
    typer.echo(f"{num_there} of {len(found)} files in {folder}")


@app.command("add", epilog=f"Example: {EXAMPLE}")
def add_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The weight file.")],
    name: Annotated[
        str, typer.Option(help="Name to keep it under; its own, or that of the known file it is.")
    ] = "",
    folder: Folder = None,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Check it, say what would be done, and stop.")
    ] = False,
) -> None:
    """Copy a file in, whole or not at all, and record its sha256.

    A file whose sha256 is not that of the known file of its name is refused. It is never unpickled.
    """
    from pipeline.weights import add

    added = add(file, name, folder, dry_run=dry_run)
    done = "would add" if dry_run else "added"
    if not added.is_new:
        done = "was there already:"
    what = added.known.what if added.known else "a file of your own"
    typer.echo(f"{done} {added.path} ({what}), sha256 {added.sha256}")


@app.command("verify", epilog="Example: vsp weights verify")
def verify_command(folder: Folder = None, as_json: AsJson = False) -> int:
    """Hash every file again. Exit code: 0 all as recorded, 1 some are not."""
    from pipeline.weights import default_folder, verify_all

    folder = folder or default_folder()
    found = verify_all(folder)
    damaged = [entry for entry in found if entry.state == "damaged"]
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "files": _as_dicts(found, folder)}, indent=1))
    else:
        for entry in damaged:
            typer.echo(f"vsp: {entry.path}: {entry.problem}; add it again", err=True)
        for entry in found:
            if entry.state == "unrecorded":
                typer.echo(
                    f"vsp: {entry.path}: no checksum; record it with `vsp weights add`", err=True
                )
        typer.echo(f"{len(found) - len(damaged)} of {len(found)} files are as they should be")
    return EXIT_DAMAGED if damaged else 0


@app.command("self-test", epilog="Example: vsp weights self-test yunet_n_dynamic.onnx")
def self_test_command(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="One file; every one that is there.")
    ] = "",
    folder: Folder = None,
    as_json: AsJson = False,
) -> int:
    """Compute known values with the files that are there. Exit code: 0 all as known, 1 some not."""
    from pipeline.golden import self_test

    tested = self_test(name, folder)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in tested], indent=1))
    else:
        for each in tested:
            typer.echo(f"{each.verdict:<6} {each.name}: {each.line}")
    return EXIT_FAILED if any(each.verdict == "FAILED" for each in tested) else 0


@app.command("fit-niqe", epilog="Example: vsp weights fit-niqe clean/ own-niqe.npz")
def fit_niqe_command(
    clean: Annotated[
        str, typer.Argument(metavar="CLEAN", help="Clean faces: a folder of images, or shards.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model, an .npz.")],
) -> None:
    """Learn what clean faces look like, for `vsp score --niqe-model`.

    The metric is niqe-small: NIQE in blocks of 32 pixels. Compare numbers of one model only.
    """
    from pipeline.errors import UserError
    from pipeline.metrics.natural import fit, save_model
    from pipeline.scoring.sources import find_images

    if out.suffix != ".npz":
        raise UserError(f"{out}: expected a name that ends in .npz")
    found = find_images(clean, truths=True)
    left_out: list[str] = []
    save_model(out, fit(_decoded(found, left_out)))
    typer.echo(f"{out}: fitted on {len(found) - len(left_out)} images")


@app.command(
    "fit-quality",
    epilog="Example: vsp weights fit-quality faces/ quality.safetensors --keys 'congress_*'",
)
def fit_quality_command(
    clean: Annotated[
        str, typer.Argument(metavar="CLEAN", help="Clean faces: a folder of images, or shards.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The network, a .safetensors.")],
    keys: Annotated[str, typer.Option(help="Take only keys like this (* and ?).")] = "*",
    steps: Annotated[int, typer.Option(help="Training steps, of 32 faces each.", min=1)] = 3000,
    seed: Annotated[int, typer.Option(help="Of weights and damage.")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="Begin with this network; random weights without it.")
    ] = None,
) -> None:
    """Train the quality score of `vsp clean` without labels, and calibrate it.

    Faces are damaged by known amounts; the network learns to tell how much. One face in five is
    kept out of training, for the calibration. One thread takes about 20 minutes.
    """
    from pipeline.cleaning.quality.fit import fit
    from pipeline.errors import UserError
    from vsp_model.quality import load, save
    from vsp_model.train.quality import QualityTrainConfig

    if out.suffix != ".safetensors":
        raise UserError(f"{out}: expected a name that ends in .safetensors")

    def show(step: int, losses: dict[str, float], net: object) -> None:
        if step % 100 == 0:
            told = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
            typer.echo(f"step {step}: {told}", err=True)

    begun = load(start)[0] if start else None
    config = QualityTrainConfig(num_steps=steps, seed=seed)
    net, info = fit(_clean_faces(clean, keys), config, show, begun)
    digest = save(net, info, out)
    facts = info.facts
    typer.echo(
        f"{out}: trained on {facts['trained_on']} faces, calibrated on {facts['calibrated_on']}, "
        f"sha256 {digest}"
    )


def _clean_faces(clean: str, keys: str) -> "dict[str, Pixels]":
    """The faces whose keys are wanted; what cannot be read is told."""
    from fnmatch import fnmatchcase

    from pipeline import images
    from pipeline.scoring.sources import find_images, read_place
    from vsp_model.quality import SIZES

    faces = {}
    for key, place in find_images(clean, truths=True).items():
        if not fnmatchcase(key, keys):
            continue
        try:
            pixels = images.decode(read_place(place))[1]
            if min(pixels.shape[:2]) < max(SIZES):
                raise images.ImageFault(f"smaller than {max(SIZES)} pixels")
            faces[key] = pixels
        except (images.ImageFault, OSError) as error:
            typer.echo(f"vsp: {key}: left out ({error})", err=True)
    return faces


def _decoded(found: "Found", left_out: list[str]) -> "Iterator[Pixels]":
    """The images that can be read; what cannot is told, and its key goes to `left_out`."""
    from pipeline import images
    from pipeline.metrics.natural import SMALL_BLOCK_PX
    from pipeline.scoring.sources import read_place

    for key, place in found.items():
        try:
            pixels = images.decode(read_place(place))[1]
            if min(pixels.shape[:2]) < SMALL_BLOCK_PX:
                raise images.ImageFault(f"smaller than {SMALL_BLOCK_PX} pixels")
            yield pixels
        except (images.ImageFault, OSError) as error:
            left_out.append(key)
            typer.echo(f"vsp: {key}: left out ({error})", err=True)


def _line(entry: "Entry") -> str:
    head = f"{entry.state:<10} {entry.name}"
    if entry.size_bytes is not None:
        head += f" ({entry.size_bytes / 1e6:.1f} MB)"
    if entry.known is None:
        return head
    known = entry.known
    text = (
        f"{head}: {known.what}; for {known.used_by}; code {known.code_licence}; "
        f"weights {known.weight_licence}; trained on {known.training_data}"
    )
    return f"{text}; get it from {known.source}" if entry.path is None else text


def _as_dicts(found: "Sequence[Entry]", folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "state": entry.state,
            "path": str(entry.path) if entry.path else None,
            "looked_for": str(folder / entry.name),
            "size_bytes": entry.size_bytes,
            "sha256": entry.sha256 or None,
            "problem": entry.problem or None,
            **{name: getattr(entry.known, name, None) or None for name in _TOLD},
            "sha256_known": (entry.known.sha256 if entry.known else "") or None,
        }
        for entry in found
    ]
