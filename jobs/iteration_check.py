"""What a loop asks of its cleanings, held against what can be before anything is trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs.iteration import BUILT_IN, TRAINED, LoopConfig, StageFile
from pipeline.errors import UserError
from vsp_model.ask import Ask, dial_of

PlaceOf = Callable[[str], str]
"""Where a setting was given, by its key."""


def check_cleaning(loop: LoopConfig, place_of: PlaceOf) -> None:
    """Refuse settings that no cleaning takes, and wishes that its model can't fulfil.

    Args:
        loop: Its files are there.
        place_of: For messages.

    Raises:
        UserError: In one line.
    """
    from jobs import config as configs
    from pipeline.cleaning.settings import CleanSettings

    with _named(place_of, "clean.set"):
        configs.resolve({}, CleanSettings, loop.clean.set, source="")
    if loop.clean.model != TRAINED or loop.clean.ask != Ask():
        _check_model(loop, place_of)


def _check_model(loop: LoopConfig, place_of: PlaceOf) -> None:
    from jobs.models import check_wishes, model_values
    from pipeline.replica import ReplicaConfig

    name = loop.clean.model
    if name == TRAINED:
        values = _to_be_trained(loop.stages[-1])
    else:
        with _named(place_of, "clean.model"):
            values = model_values(None if name == BUILT_IN else name)
    with _named(place_of, "clean.ask"):
        spec = {"model": values | {"ask": loop.clean.ask}}
        check_wishes(ReplicaConfig.model_validate(spec).model)
        if name == TRAINED:
            _check_quality(loop)


def _check_quality(loop: LoopConfig) -> None:
    """Refuse a quality of a model whose condition will be trained without scores."""
    from jobs.training import read_settings

    last = loop.stages[-1].stage
    teacher = "iqp-codes" if last == "iqp-fidelity" else last  # there the condition is frozen
    for stage in (each for each in loop.stages if each.stage == teacher):
        _, settings, data = read_settings(stage.stage, stage.file, {}, ())
        model = settings.model
        try:
            dial_of(loop.clean.ask, model.condition, model.kind, scored=bool(data.scores))
        except ValueError as error:
            raise UserError(f"{stage.file.name}: {error}") from None


def _to_be_trained(stage: StageFile) -> dict[str, Any]:
    """The model that a stage will have made, as one without weights."""
    from jobs.training import read_settings

    _, settings, _ = read_settings(stage.stage, stage.file, {}, ())
    model = settings.model.model_dump(mode="json")
    if stage.stage == "iqp-codes":
        model["fidelity_sides"] = ()  # what it makes has no stage III yet
    return {"kind": "untrained", "path": stage.file, "config": model}


@contextmanager
def _named(place_of: PlaceOf, key: str) -> Iterator[None]:
    """Say of a mistake which setting it is in, and where that was given."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place_of(key)}: {key}: {error}") from None
