"""Published checkpoints -> one bundle. One file is in memory at a time; nothing is lost in silence.

A first pass opens each file (memory-mapped: names, shapes and filter kernels are read), infers the
networks' configurations and compares every tensor with them. A second pass converts the files one
after the other. ``vsp_model.export`` is the way back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue, ValidationError
from torch import Tensor

from vsp_model import published_files as files
from vsp_model.bundle import BundleInfo, Specs, TrainingInfo, compare, specs_of, writing
from vsp_model.code_diffuser import CodeDiffuserConfig
from vsp_model.config import Config
from vsp_model.files import CheckpointError, checksum_path, record_checksum, sha256_of
from vsp_model.infer import explain
from vsp_model.networks import PARTS, Network
from vsp_model.published import ConstantRule, load_published
from vsp_model.style_encoder import StyleEncoderConfig
from vsp_model.stylegan2 import StyleGAN2Config

_WHOLES = {
    "vspbfr": {"encoder", "prior", "diffuser", "restoration"},
    "e4e": {"encoder", "prior"},
    "stylegan2": {"prior"},
    "identity": {"identity"},
}
_FILE_OF = {
    "encoder": files.ENCODER_FILE,
    "prior": f"{files.ENCODER_FILE} or a StyleGAN2 checkpoint",
    "diffuser": files.DIFFUSER_FILE,
    "restoration": files.RESTORATION_FILE,
}


@dataclass
class Source:
    """One published file and what of it goes into the bundle."""

    path: Path
    kind: str
    parts: dict[str, Config]
    """Configuration of each network, by part of the bundle."""
    extras: Specs
    """Tensors beside the networks', by name in the bundle."""
    options: dict[str, JsonValue]
    ada_aug_p: float | None
    lines: list[str]
    """What is used, dropped and left out, for a reader."""


@dataclass
class Plan:
    """What a conversion does."""

    sources: list[Source]
    info: BundleInfo
    specs: Specs
    """Every tensor of the bundle."""

    @property
    def lines(self) -> list[str]:
        """The plan for a reader."""
        return [f"{source.path}: {line}" for source in self.sources for line in source.lines]


def convert(paths: Sequence[Path], out: Path, *, training: bool = False) -> Plan:
    """Plan and write. See ``plan_conversion`` and ``write``."""
    plan = plan_conversion(paths, training=training)
    write(plan, out)
    return plan


def plan_conversion(paths: Sequence[Path], *, training: bool = False) -> Plan:
    """Look into the files, and refuse what can't be converted whole.

    Args:
        paths: published files, one of each kind; names are free, a file is known by its contents.
        training: also keep what only training needs.

    Raises:
        CheckpointError: in one line, naming file, section and tensor.
        OSError: if a file can't be read.
    """
    sources = [_survey(path) for path in paths]
    _refuse_doubles([(source.path, source.kind) for source in sources])
    kind = _whole({part for source in sources for part in source.parts})
    for source in sources:
        _settle(source, kind, training=training)
    _refuse_doubles([(source.path, part) for source in sources for part in source.parts])
    parts = {part: config for source in sources for part, config in source.parts.items()}
    specs = {
        f"{part}.{name}": spec
        for part, config in parts.items()
        for name, spec in PARTS[part].specs(config).items()
    }
    for source in sources:
        specs |= source.extras
    return Plan(sources, _info(kind, parts, sources, training=training), specs)


def write(plan: Plan, out: Path) -> str:
    """Convert file by file into a bundle, whole or not at all; returns its sha256."""
    digests = {source.kind: sha256_of(source.path) for source in plan.sources}
    info = plan.info.model_copy(update={"sources": digests})
    checksum_path(out).unlink(missing_ok=True)
    with writing(out, plan.specs, info) as writer:
        for source in plan.sources:
            contents = files.read(source.path)
            for part, tensors in contents.sections.items():
                target = part if part in source.parts else f"training.{part}"
                if target in source.parts:
                    layout = PARTS[target].layout(source.parts[target])
                    writer.write(f"{target}.", load_published(layout, tensors))
            extras = _extras(contents, source.parts)
            writer.write("", {name: extras[name] for name in source.extras})
    return record_checksum(out)


# ---------------------------------------------------------------------------------- first pass


def _survey(path: Path) -> Source:
    contents = files.read(path)
    parts: dict[str, Config] = {}
    lines = []
    for section in files.SECTIONS[contents.kind]:
        tensors = contents.sections.get(section.part)
        if tensors:
            parts[section.part] = _checked(contents, section, tensors)
            lines.append(f"{section} -> {section.part}, {len(tensors)} tensors")
    lines += [f"{entry} dropped" for entry in contents.dropped]
    options = contents.options or {}
    _check_options(path, options, parts.get("prior"))
    extras = specs_of(_extras(contents, parts))
    return Source(path, contents.kind, parts, extras, options, contents.ada_aug_p, lines)


def _checked(
    contents: files.Contents, section: files.Section, tensors: Mapping[str, Tensor]
) -> Config:
    """Infer a network's configuration and compare every tensor with it."""
    network, where = PARTS[section.part], f"{contents.path}: {section.container or 'file'}"
    try:
        config = network.infer(tensors)
        found = specs_of(tensors)
        compare(
            _spelled(contents.kind, section, network.published_specs(config)),
            _spelled(contents.kind, section, found),
            where,
        )
        _check_kernels(network, config, tensors)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    return config


def _spelled(kind: str, section: files.Section, specs: Specs) -> Specs:
    return {files.their_spelling(kind, section, name): spec for name, spec in specs.items()}


def _check_kernels(network: Network, config: Config, tensors: Mapping[str, Tensor]) -> None:
    for rule in network.layout(config):
        if isinstance(rule, ConstantRule):
            rule.check(tensors[rule.published[0]])


def _check_options(path: Path, options: Mapping[str, JsonValue], prior: Config | None) -> None:
    """Refuse options that name another network: its tensors may have the same names."""
    encoder_type = options.get("encoder_type", files.ENCODER_TYPE)
    if encoder_type != files.ENCODER_TYPE:
        raise CheckpointError(
            f"{path}: opts: encoder_type {encoder_type!r}, expected {files.ENCODER_TYPE!r}"
        )
    size = options.get("stylegan_size")
    if size is not None and isinstance(prior, StyleGAN2Config) and size != prior.size:
        raise CheckpointError(
            f"{path}: opts: stylegan_size {size}, but the decoder has the size {prior.size}"
        )


def _extras(contents: files.Contents, parts: Mapping[str, Config]) -> dict[str, Tensor]:
    """Tensors beside the networks', by their name in a bundle."""
    latent_avg, extras = contents.latent_avg, {}
    encoder = parts.get("encoder")
    if isinstance(encoder, StyleEncoderConfig):
        used = _average_codes(contents, encoder)
        extras["encoder.latent_avg"] = used
        if latent_avg is not None and not _same(used, latent_avg):
            extras["kept.latent_avg"] = latent_avg
    elif latent_avg is not None:
        extras["kept.mean_latent"] = latent_avg
    prefix = f"{files.LATENT_DISCRIMINATOR}."
    return extras | {prefix + name: t for name, t in contents.latent_discriminator.items()}


def _average_codes(contents: files.Contents, config: StyleEncoderConfig) -> Tensor:
    """What the encoder adds to its codes, (T, D); zeros if the file's options say so."""
    shape, average = (config.num_tokens, config.style_dim), contents.latent_avg
    options = contents.options or {}
    if average is not None and tuple(average.shape) not in (shape, shape[1:], (1, shape[1])):
        raise CheckpointError(
            f"{contents.path}: tensor latent_avg is {tuple(average.shape)}, expected {shape}"
        )
    if not options.get("start_from_latent_avg", True):
        return torch.zeros(shape)
    if average is None:
        raise CheckpointError(
            f"{contents.path}: missing tensor latent_avg (opts: start_from_latent_avg is true)"
        )
    return average.expand(shape)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


# -------------------------------------------------------------------------------- the whole


def _refuse_doubles(named: Sequence[tuple[Path, str]]) -> None:
    seen: dict[str, Path] = {}
    for path, name in named:
        if name in seen:
            raise CheckpointError(f"{name} is in both {seen[name]} and {path}; give one")
        seen[name] = path


def _whole(parts: set[str]) -> str:
    """The kind of bundle that these parts make."""
    main = {part for part in parts if not part.startswith("training.")}
    main = main - {"identity"} or main
    for kind, needed in _WHOLES.items():
        if main == needed:
            return kind
    missing = [part for part in _FILE_OF if part not in main]
    raise CheckpointError(
        f"found {', '.join(sorted(main)) or 'nothing'}; a restorer also needs "
        + ", ".join(f"{part} (in {_FILE_OF[part]})" for part in missing)
    )


def _settle(source: Source, kind: str, *, training: bool) -> None:
    """Name the parts as this kind of bundle does and leave out what is not asked for."""
    if kind != "identity" and "identity" in source.parts:
        source.parts["training.identity"] = source.parts.pop("identity")
    if training:
        return
    for names in (source.parts, source.extras):
        for name in [name for name in names if name.startswith("training.")]:
            del names[name]
            source.lines.append(f"{name} left out, --training keeps it")
    if source.ada_aug_p is not None:
        source.lines.append("ada_aug_p left out, --training keeps it")


def _info(
    kind: str, parts: Mapping[str, Config], sources: Sequence[Source], *, training: bool
) -> BundleInfo:
    main = {
        name: config.model_dump(mode="json") for name, config in parts.items() if "." not in name
    }
    if isinstance(parts.get("diffuser"), CodeDiffuserConfig):  # its tensors don't show the tokens
        main["diffuser"]["num_tokens"] = main["encoder"]["num_tokens"]
    values: dict[str, object] = {"config": {"kind": kind, **main}}
    if training:
        named = {name: parts.get(f"training.{name}") for name in ("discriminator", "identity")}
        augment = [s.ada_aug_p for s in sources if s.ada_aug_p is not None]
        values["training"] = TrainingInfo.model_validate(
            {n: c and c.model_dump(mode="json") for n, c in named.items()}
            | {"ada_aug_p": augment[0] if augment else None}
        )
    values["options"] = {k: v for source in sources for k, v in source.options.items()}
    values["notes"] = tuple(
        f"{source.kind}: {line}"
        for source in sources
        for line in source.lines
        if line.endswith("dropped")
    )
    try:
        return BundleInfo.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"the files don't belong together: {explain(error)}") from None
