"""YAML and `--set` into checked models; a mistake is one line: its place, the nearest name."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from pipeline.errors import UserError

if TYPE_CHECKING:
    from vsp_model.registry import ModelConfig

Model = TypeVar("Model", bound=BaseModel)
MAX_DEPTH = 16
Place = tuple[str, ...]


def load(path: Path, schema: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file as `schema`, with `a.b=c` overrides applied on top.

    Raises:
        UserError: In one line: file, line, key, what is wrong and what was perhaps meant.
    """
    values, places = read_values(path)
    return resolve(values, schema, overrides, places, str(path))


def read_values(path: Path) -> tuple[dict[str, Any], dict[Place, str]]:
    """Read the keys and values of a YAML file, and where each key stands.

    Raises:
        UserError: If it can't be read or is no mapping.
    """
    try:
        text = path.read_text("utf-8")
        _refuse_bombs(path, text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; give the path of a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}:1: expected keys and values")
    return values, dict(_places(path, node))


def _refuse_bombs(path: Path, text: str) -> None:
    """Refuse what a stranger's YAML may do to its reader: aliases of aliases, endless nesting."""
    anchored: list[bool] = []  # of every collection that is open
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) and any(anchored):
            raise UserError(f"{path}:{line}: an alias (*name) within an anchor; write it out")
        if isinstance(event, yaml.CollectionStartEvent):
            anchored.append(event.anchor is not None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchored.pop()
        if len(anchored) > MAX_DEPTH:
            raise UserError(f"{path}:{line}: nested more than {MAX_DEPTH} deep")


def load_model_config(path: Path, overrides: Sequence[str] = ()) -> "ModelConfig":
    """Read a model's configuration: what a YAML of `configs/models/` holds under `model`."""
    from vsp_model.registry import ModelConfig

    schema = create_model(
        "ModelFile", __config__=ConfigDict(extra="forbid"), model=(ModelConfig, ...)
    )
    config: ModelConfig = getattr(load(path, schema, overrides), "model")  # noqa: B009 - no stub
    return config


def resolve(
    values: Mapping[str, Any],
    schema: type[Model],
    overrides: Sequence[str] = (),
    places: Mapping[Place, str] | None = None,
    source: str = "settings",
) -> Model:
    """Check `values`, with the overrides on top, as `schema`.

    Args:
        values: Nested mappings, as YAML gives them.
        schema: The pydantic model to make.
        overrides: Each `a.b=c`; the value is read as YAML.
        places: Where each key stands, for the messages.
        source: The place of a key that `places` does not know.

    Raises:
        UserError: As `load`.
    """
    merged, known = dict(values), dict(places or {})
    for override in overrides:
        merged, place = _override(merged, override)
        known[place] = f"--set {override}"
    try:
        return schema.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, schema, known, source)) from None


def _places(path: Path, node: yaml.Node | None, at: Place = ()) -> Iterator[tuple[Place, str]]:
    """Yield `file:line` of every key below a YAML node; a key given twice is refused."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = f"{path}:{key.start_mark.line + 1}"
        if key.value in seen:
            raise UserError(f"{line}: {'.'.join((*at, key.value))}: given twice")
        seen.add(key.value)
        yield (*at, key.value), line
        yield from _places(path, value, (*at, key.value))


def _override(values: dict[str, Any], override: str) -> tuple[dict[str, Any], Place]:
    """Set one `a.b=c`; returns the new mapping and the place that was set."""
    name, equals, text = override.partition("=")
    place = tuple(name.split("."))
    if not equals or not all(place):
        raise UserError(f"--set {override}: expected key=value, for instance --set noise=mean")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML; quote it") from None
    return _with(values, place, value), place


def _with(values: Mapping[str, Any], place: Place, value: Any) -> dict[str, Any]:
    head, *rest = place
    if rest:
        below = values.get(head)
        value = _with(below if isinstance(below, Mapping) else {}, tuple(rest), value)
    return {**values, head: value}


def _explain(
    error: ValidationError, schema: type[BaseModel], places: Mapping[Place, str], source: str
) -> str:
    """The first problem in one line, and how many more there are."""
    first, *others = error.errors(include_url=False)
    *above, last = [str(part) for part in first["loc"]] or [""]
    keys, names = _descend(schema, above)
    at = (*keys, last) if last else ()
    where = next((places[at[:n]] for n in range(len(at), 0, -1) if at[:n] in places), source)
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        text, at = _unknown(last, names), keys
    elif isinstance(first["input"], str | int | float):
        text += f", got {first['input']!r}"
    more = f" (and {len(others)} more)" if others else ""
    return ": ".join(filter(None, [where, ".".join(at), text])) + more


def _unknown(key: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return f"unknown key {key!r}; {hint}"


def _descend(schema: type[BaseModel], at: Sequence[str]) -> tuple[Place, list[str]]:
    """Follow pydantic's location; returns its keys, and the field names that may stand there.

    Pydantic puts the tag of a union's member into the location; it is no key of the file.
    """
    models, keys = [schema], []
    for part in at:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [below for field in fields for below in _models_in(field.annotation)]
        if fields or part.isdigit():
            keys.append(part)
    return tuple(keys), sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
