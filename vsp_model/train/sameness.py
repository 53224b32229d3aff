"""Whether a run is the one that a checkpoint belongs to: what decides a step must be the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from vsp_model.train.stage import StageConfig

_FREE_TO_CHANGE = {  # what may differ when a run is resumed: it does not change what a step does
    "log_images", "preview_images", "checkpoint_images", "keep_checkpoints", "best",
    "max_bad_steps", "num_images",
}  # fmt: skip
_JOINED_LATER = {"final_lr", "fall", "iqp-fidelity.patches", "iqp-fidelity.late"}
"""Null is what was done before these settings were there: an older run keeps its identity."""


def settings_of(config: StageConfig) -> dict[str, Any]:
    """All settings as JSON, without those that joined later and are null."""
    values: dict[str, Any] = json.loads(config.model_dump_json())
    kept: dict[str, Any] = _without_later(values, values["kind"])
    return kept


def config_identity(config: StageConfig) -> dict[str, Any]:
    """What of a configuration decides a step, as JSON; paths of judges do not."""
    values = _guarded(settings_of(config), config)
    for name in _FREE_TO_CHANGE:
        values["run"].pop(name, None)
    judges = values["judges"]
    for name in ("quality", "monitor"):  # one that is not asked is none
        if not judges[name]["path"]:
            del judges[name]
    for judge in judges.values():
        if isinstance(judge, dict):
            judge.pop("path")
            judge.pop("required")
    return values


def _without_later(value: Any, kind: str) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: _without_later(below, kind)
        for key, below in value.items()
        if below is not None or not _JOINED_LATER & {key, f"{kind}.{key}"}
    }


def _guarded(values: Any, config: StageConfig) -> Any:
    """Without the guard's settings where nothing is trained for a score."""
    if config.asks_quality or not isinstance(values, dict):
        return values
    return {key: _guarded(below, config) for key, below in values.items() if key != "guard"}


def changed_setting(stored: Any, config: StageConfig) -> tuple[str, Any, Any] | None:
    """What decides a step and was another when a checkpoint was written; see below."""
    return first_difference(_guarded(stored, config), config_identity(config))


def first_difference(old: Any, new: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """The first value in which two nested mappings differ: its dotted name, old and new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f"{place}.{key}" if place else key
            if found := first_difference(old.get(key), new.get(key), below):
                return found
        return None
    return None if old == new else (place, old, new)


def config_hash(config: StageConfig) -> str:
    """Sixteen hexadecimal digits of what decides a step."""
    text = json.dumps(config_identity(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
