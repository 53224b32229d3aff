"""A bundle -> the published files, every tensor bit-equal and in the published order."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from vsp_model import published_files as files
from vsp_model.bundle import Bundle, BundleConfig, InversionConfig, compare, open_bundle
from vsp_model.code_diffuser import CodeDiffuserConfig
from vsp_model.config import Config
from vsp_model.files import CheckpointError, whole_or_absent
from vsp_model.networks import PARTS, part_config
from vsp_model.published import store_published
from vsp_model.published_files import ENCODER_TYPE
from vsp_model.vspbfr import VSPBFRConfig

_FILES_OF = {
    "vspbfr": (files.ENCODER_FILE, files.DIFFUSER_FILE, files.RESTORATION_FILE),
    "e4e": (files.ENCODER_FILE,),
    "stylegan2": (files.STYLEGAN2_FILE,),
    "identity": (files.IDENTITY_FILE,),
}


@dataclass(frozen=True)
class Piece:
    """One network of a bundle and its place in a published file."""

    section: files.Section
    part: str
    config: Config


@dataclass
class Export:
    """What goes into which file."""

    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    """By published file name."""

    @property
    def lines(self) -> list[str]:
        """The plan for a reader."""
        return [
            f"{name}: {piece.part} -> {piece.section}"
            for name, pieces in self.pieces.items()
            for piece in pieces
        ]


def export(path: Path, folder: Path) -> list[Path]:
    """Write the published files of a bundle into a folder; returns their paths.

    Each file is whole or absent. Files that are there already are not touched.

    Raises:
        CheckpointError: if the bundle is damaged, if its configuration has no published form, or if
            a file of such a name exists.
        OSError: if something can't be read or written.
    """
    plan = plan_export(path)
    targets = [folder / name for name in plan.pieces]
    for target in targets:
        if target.exists():
            raise CheckpointError(f"{target}: exists; name another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for target, (name, pieces) in zip(targets, plan.pieces.items(), strict=True):
        # Opened for each file anew: what was read stays mapped until the bundle is closed.
        with open_bundle(path) as bundle, whole_or_absent(target) as file:
            torch.save(_entries(bundle, name, pieces), file)
    return targets


def plan_export(path: Path) -> Export:
    """What ``export`` would write."""
    with open_bundle(path) as bundle:
        return _plan(bundle)


def _plan(bundle: Bundle) -> Export:
    plan, left = Export(), set(bundle.specs)
    kind = bundle.info.config.kind
    if kind not in _FILES_OF:
        raise CheckpointError(f"{bundle.path}: of kind {kind!r}, which has no published form")
    if bundle.names("condition."):
        raise CheckpointError(
            f"{bundle.path}: has a quality condition; the published files have no place for it"
        )
    names = _FILES_OF[kind]
    if bundle.names("training.identity."):
        names = (*names, files.IDENTITY_FILE)
    for name in names:
        for section in files.SECTIONS[name]:
            piece = _piece(bundle, section)
            if piece is not None:
                plan.pieces.setdefault(name, []).append(piece)
                left -= {f"{piece.part}.{n}" for n in bundle.names(f"{piece.part}.")}
    beside = ("kept.", f"{files.LATENT_DISCRIMINATOR}.")
    stray = sorted(name for name in left if not name.startswith(beside))
    if stray:
        raise CheckpointError(f"{bundle.path}: unknown tensor {stray[0]}")
    return plan


def _piece(bundle: Bundle, section: files.Section) -> Piece | None:
    """Find a section's network in the bundle and check it; None if training left it out."""
    part = section.part
    if part == "identity" and bundle.info.config.kind != "identity":
        part = "training.identity"
    config = part_config(bundle.info, part)
    if section.optional and not bundle.names(f"{part}."):
        return None
    if config is None:
        raise CheckpointError(f"{bundle.path}: {part} is null; the published files need one")
    found = {name: bundle.specs[f"{part}.{name}"] for name in bundle.names(f"{part}.")}
    compare(PARTS[part].specs(config), found, f"{bundle.path}: {part}")
    _check_form(bundle.path, part, config)
    return Piece(section, part, config)


def _check_form(path: Path, part: str, config: Config) -> None:
    """Refuse a configuration that a reader of the published file could not find out again."""
    try:
        again = PARTS[part].infer(PARTS[part].published_hollow(config))
    except ValueError as error:
        raise CheckpointError(f"{path}: {part}: no published form: {error}") from None
    if isinstance(config, CodeDiffuserConfig):  # the tokens are the encoder's
        again = again.model_copy(update={"num_tokens": config.num_tokens})
    for name, value in config:
        if value != getattr(again, name):
            raise CheckpointError(
                f"{path}: {part}.{name} is {value}; the published files have no place for it "
                f"and mean {getattr(again, name)}"
            )


def _entries(bundle: Bundle, name: str, pieces: list[Piece]) -> dict[str, Any]:
    """One published file as ``torch.save`` takes it."""
    entries: dict[str, Any] = {}
    for piece in pieces:
        layout = PARTS[piece.part].layout(piece.config)
        tensors = store_published(layout, bundle.tensors(f"{piece.part}."))
        container = piece.section.container
        held = entries if container is None else entries.setdefault(container, {})
        for our_name, tensor in tensors.items():
            held[files.their_spelling(name, piece.section, our_name)] = tensor
    if name == files.ENCODER_FILE:
        entries |= _encoder_entries(bundle)
    if name == files.STYLEGAN2_FILE:
        entries |= _named("latent_avg", bundle.tensor("kept.mean_latent"))
    training = bundle.info.training
    if name in (files.RESTORATION_FILE, files.STYLEGAN2_FILE) and training is not None:
        entries |= {} if training.ada_aug_p is None else {"ada_aug_p": training.ada_aug_p}
    return entries


def _encoder_entries(bundle: Bundle) -> dict[str, Any]:
    """Average code and options; the code as it was in the file, if that was not what is used."""
    options = bundle.info.options or _default_options(bundle.info.config)
    kept = bundle.tensor("kept.latent_avg")
    if kept is None and options.get("start_from_latent_avg", True):
        kept = bundle.tensor("encoder.latent_avg")
    entries = {"opts": dict(options), **_named("latent_avg", kept)}
    discriminator = bundle.tensors(f"{files.LATENT_DISCRIMINATOR}.")
    if discriminator:
        held = {name: tensor.clone() for name, tensor in discriminator.items()}
        entries["discriminator_state_dict"] = held
    return entries


def _default_options(config: BundleConfig) -> dict[str, JsonValue]:
    """What the published loader asks for, of a model that was never a published file."""
    assert isinstance(config, VSPBFRConfig | InversionConfig)
    return {
        "encoder_type": ENCODER_TYPE,
        "stylegan_size": config.prior.size,
        "start_from_latent_avg": True,
    }


def _named(name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    """A clone: a view would take the whole bundle along into the file."""
    return {} if tensor is None else {name: tensor.clone()}
