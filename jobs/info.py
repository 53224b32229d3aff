"""`vsp info`: what a model holds and costs, counted; and how fast it runs here, measured."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vsp_model.bundle import BundleInfo
    from vsp_model.cost import Cost, ModelCost, Speed
    from vsp_model.registry import AnyConfig

EXAMPLE = "vsp info configs/models/vspbfr-512.yaml configs/models/iqp-512.yaml --bench --threads 2"
Precision = Literal["fp32", "bf16", "fp16"]
BYTES_PER_GIB = 2**30

COUNTED = (
    "Counted: multiply-accumulates (MAC) of the convolutions and matrix products of one image, "
    "from the shapes alone (torch's formulas give 2 per MAC, halved). Not counted: "
    "everything elementwise (activations, normalisation, noise, resizing, styles scaling weights). "
    "The FIR filters of the resampling layers run as depthwise convolutions; both sums are given."
)


@dataclass(frozen=True)
class Source:
    """The file that was asked about; of a bundle also its digest and what it says of itself."""

    path: Path
    config: "AnyConfig"
    sha256: str | None = None
    bundle: "BundleInfo | None" = None


def command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="A model's YAML, a .safetensors, or vspbfr, iqp, idm (built in); several are "
            "compared.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    bench: Annotated[bool, typer.Option("--bench", help="Also measure speed and memory.")] = False,
    device: Annotated[str, typer.Option(help="Of --bench: cpu, cuda, cuda:1, mps ...")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Of --bench: images per run.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of --bench: torch threads; all cores by default.")
    ] = None,
    dtype: Annotated[
        Precision, typer.Option(help="Of --bench: fp32, or autocast to a shorter type.")
    ] = "fp32",
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Print the model's settings, and stop.")
    ] = False,
) -> None:
    """Count parameters and operations of models, beside the paper's where it is the published one.

    Counting builds and runs nothing: the 512 model needs no more memory than the 64 one. --bench
    builds the model (untrained, if all there is is a YAML) and times it on random images.
    """
    from jobs.models import num_cores, pick_device
    from vsp_model.cost import count

    found = [find_source(source) for source in sources]
    if dry_run:
        for source in found:
            typer.echo(source.config.model_dump_json(indent=1))
        return
    if bench:
        device = pick_device(device)
    seen: list[Seen] = []
    for source in found:
        speed = (
            measure(source, device, batch_size, threads or num_cores(), dtype) if bench else None
        )
        seen.append(Seen(source, count(source.config), speed))
    if as_json:
        reports = [to_json(each.source, each.cost, each.speed) for each in seen]
        typer.echo(json.dumps(reports if len(reports) > 1 else reports[0], indent=1))
        return
    for each in seen:
        show(each.source, each.cost, each.speed)
    if len(seen) > 1:
        show_beside(seen)


@dataclass(frozen=True)
class Seen:
    """What was found out about one model."""

    source: Source
    cost: "ModelCost"
    speed: "Speed | None"


def show_beside(seen: Sequence[Seen]) -> None:
    """The models side by side."""
    from rich.console import Console

    table = new_table("model", "size", "parameters", "GMAC, with FIR", "images/s", "peak GiB")
    for each in seen:
        total, speed = each.cost.total, each.speed
        peak = speed.peak_bytes if speed else None
        table.add_row(
            each.source.path.name,
            f"{each.source.config.size} px",
            f"{total.parameters / 1e6:,.2f} M",
            f"{(total.macs + total.fir_macs) / 1e9:,.2f}",
            f"{speed.images_per_s_median:.3g}" if speed else "-",
            f"{peak / BYTES_PER_GIB:.2f}" if peak else "-",
        )
    Console(highlight=False).print(table)


def find_source(path: Path) -> Source:
    """Read what the file says of its model; no weights are read into memory.

    Raises:
        UserError: If the file is missing, of neither kind, wrong inside, or holds no restorer.
        CheckpointError: If a bundle is not whole or was changed.
    """
    from jobs.models import model_path, model_values, read_bundle
    from pipeline.errors import UserError
    from pipeline.replica import Untrained
    from vsp_model.registry import AnyConfig

    path = model_path(path)
    if path.suffix == ".safetensors" and path.is_file():
        info, digest = read_bundle(path)
        if not isinstance(info.config, AnyConfig):
            kind = info.config.kind
            raise UserError(f"{path}: a bundle of kind {kind!r}; only whole restorers are counted")
        return Source(path, info.config, digest, info)
    return Source(path, Untrained.model_validate(model_values(path)).config)


def measure(
    source: Source, device: str, batch_size: int, threads: int, dtype: Precision
) -> "Speed":
    """Build the model and time it.

    Raises:
        RunError: If the batch does not fit into the device's memory.
    """
    import torch

    from pipeline.errors import RunError
    from vsp_model import checkpoints, cost, registry
    from vsp_model.runtime import Runtime, RuntimeConfig

    torch.set_num_threads(threads)
    model = checkpoints.load(source.path) if source.bundle else registry.untrained(source.config)
    runtime = Runtime(model, RuntimeConfig(device=device, precision=dtype))
    try:
        return cost.measure(runtime, batch_size)
    except torch.OutOfMemoryError:
        raise RunError(
            f"--batch-size {batch_size}: more than the memory of {device} holds; take a smaller one"
        ) from None


def is_published(config: "AnyConfig") -> bool:
    """True for the network that the paper's numbers are about."""
    return config.kind == "vspbfr" and config == type(config)()


def to_json(source: Source, cost: "ModelCost", speed: "Speed | None") -> dict[str, Any]:
    """Everything as plain values: counts of one image, seconds, bytes."""
    from vsp_model.cost import PAPER_OPERATIONS, PAPER_PARAMETERS

    info = source.bundle
    report: dict[str, Any] = {
        "path": str(source.path),
        "sha256": source.sha256,
        "bundle": info.model_dump(mode="json", exclude={"config"}) if info else None,
        "config": source.config.model_dump(mode="json"),
        "modules": {name: asdict(each) for name, each in cost.modules.items()},
        "sum": asdict(cost.total),
        "generator_with_image": None,
        "sum_with_image": None,
        "counted": COUNTED,
        "published": None,
        "bench": None,
    }
    if cost.generator_with_image:
        report["generator_with_image"] = asdict(cost.generator_with_image)
        report["sum_with_image"] = asdict(cost.total_with_image)
    if is_published(source.config):
        report["published"] = {
            "parameters": PAPER_PARAMETERS,
            "operations": PAPER_OPERATIONS,
            "source": "VSPBFR, Table III",
            "unexplained": unexplained(cost),
        }
    if speed:
        rates = {
            "images_per_s_median": speed.images_per_s_median,
            "images_per_s_best": speed.images_per_s_best,
        }
        report["bench"] = {**asdict(speed), **rates, "weights": "bundle" if info else "untrained"}
    return report


def unexplained(cost: "ModelCost") -> str:
    """What of the paper's row our counts don't reach, and the nearest that was found."""
    from vsp_model.cost import PAPER_OPERATIONS, PAPER_PARAMETERS

    guess, extra = cost.paper_guess, PAPER_PARAMETERS - cost.total.parameters
    return (
        f"Unexplained: the paper's {extra / 1e6:.2f} M more parameters "
        f"({extra / cost.total.parameters:.2%}) could not be traced. No combination of the "
        f"modules as they run gives {PAPER_OPERATIONS / 1e9:.2f} G, neither in MACs nor with two "
        "operations per MAC. Nearest, found by trying: MACs with the whole generator and the style "
        f"encoder fed 512 pixels instead of its 256, {guess.macs / 1e9:.2f} G without FIR, "
        f"{(guess.macs + guess.fir_macs) / 1e9:.2f} G with."
    )


def show(source: Source, cost: "ModelCost", speed: "Speed | None") -> None:
    """Print everything for a person."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    parts = [*facts(source), module_table(source.config, cost), COUNTED]
    if is_published(source.config):
        parts += [paper_table(cost), unexplained(cost)]
    if speed:
        parts.append(speed_table(speed, "the bundle's" if source.bundle else "untrained (seeded)"))
    for part in parts:  # a table brings its own margin
        console.print(Padding(part, (0, 1)) if isinstance(part, str) else part)


def facts(source: Source) -> Iterator[str]:
    """Lines above the counts: which file, which model, and what a bundle was made from."""
    from rich.markup import escape

    config, info = source.config, source.bundle
    what = "the published configuration" if is_published(config) else "not the published one"
    yield f"[bold]{escape(str(source.path))}[/bold]"
    yield f"{config.kind} at {config.size} px, {what}; {'bundle' if info else 'no weights'}"
    if info:
        yield f"sha256 {source.sha256}"
        for name, digest in info.sources.items():
            yield f"made from {escape(name)}\nsha256 {digest}"
        if info.training:
            yield "holds what training goes on from"
        yield from map(escape, info.notes)


def module_titles(config: "AnyConfig") -> dict[str, str]:
    """What the modules are, for people."""
    if config.kind == "iqp":
        side = config.encoder.latent_side
        return {
            "lq_encoder": f"encoder of the degraded picture to {side} x {side}",
            "dictionary": "codebooks and decoder",
            "predictor": "Transformer that predicts the codes",
            "embedding": "quality condition",
            "fusion": f"fidelity, at {', '.join(map(str, config.fidelity_sides))}",
        }
    if config.kind == "idm":
        return {"unet": f"U-Net, {config.steps} step{'s' * (config.steps > 1)}"}
    steps = config.diffuser.num_steps if config.diffuser else 0
    return {
        "style_encoder": f"style encoder at {config.encoder.input_size} px",
        "code_diffuser": f"code diffuser, {steps} steps",
        "stylegan_generator": f"facial feature bank to {min(config.size, config.prior.size)} px",
        "restoration_net": f"restoration net at {config.size} px",
        "condition": "quality condition",
    }


def module_table(config: "AnyConfig", cost: "ModelCost") -> "Table":
    """Parameters, buffers and MACs of every module and their sum."""
    titles = module_titles(config)
    letter, unit = ("G", 1e9) if cost.total.macs >= 1e10 else ("M", 1e6)
    macs = (f"{letter}MAC,\nno FIR", f"{letter}MAC,\nwith FIR")
    table = new_table("module", "parameters", "buffers", *macs)

    def add(name: str, each: "Cost", style: str = "") -> None:
        counts = (f"{each.parameters:,}", f"{each.buffers:,}")
        values = (each.macs, each.macs + each.fir_macs)
        table.add_row(name, *counts, *(f"{value / unit:,.3f}" for value in values), style=style)

    for name, each in cost.modules.items():
        add(titles[name], each)
    table.add_section()
    add("sum for one restoration", cost.total, style="bold")
    if config.kind == "vspbfr" and cost.generator_with_image:
        table.add_section()
        add(f"generator with {config.prior.size} px image", cost.generator_with_image)
        add("sum with that generator", cost.total_with_image)
    return table


def paper_table(cost: "ModelCost") -> "Table":
    """Our counts beside the paper's row; no cell holds both."""
    from vsp_model.cost import PAPER_OPERATIONS, PAPER_PARAMETERS

    table = new_table("", "parameters", "operations", "one operation is")
    for name, each in (
        ("counted: one restoration", cost.total),
        ("counted: with the whole generator", cost.total_with_image),
    ):
        parameters, macs = f"{each.parameters / 1e6:.2f} M", f"{each.macs / 1e9:.2f} G"
        table.add_row(name, parameters, macs, "a MAC, no FIR")
    table.add_section()
    parameters, operations = f"{PAPER_PARAMETERS / 1e6:.2f} M", f"{PAPER_OPERATIONS / 1e9:.2f} G"
    table.add_row("published: VSPBFR, Table III", parameters, operations, "not known")
    return table


def speed_table(speed: "Speed", weights: str) -> "Table":
    """What was measured, and on what."""
    table = new_table("measured here", "")
    peak = "not told by this system"
    if speed.peak_bytes is not None:
        peak = f"{speed.peak_bytes / BYTES_PER_GIB:.2f} GiB {speed.peak_of}"
    precision = speed.precision if speed.precision == "fp32" else f"{speed.precision} autocast"
    rows = {
        "images/s, median": f"{speed.images_per_s_median:.3g}",
        "images/s, best": f"{speed.images_per_s_best:.3g}",
        "timed": f"{len(speed.round_s)} batches of {speed.batch_size}",
        "peak memory": peak,
        "precision": precision,
        "device": speed.device,
        "torch": f"{speed.torch}, {speed.threads} threads",
        "weights": weights,
        "result": "finite" if speed.finite else "NaN or infinite values",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def new_table(first: str, *others: str) -> "Table":
    """A table without borders; the first column is text, the others stand to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
