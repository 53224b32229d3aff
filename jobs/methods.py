"""A method of a benchmark as something that runs here: its weights or code, and their terms."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmark.config import (
    Benchmark,
    CallableMethod,
    Method,
    ModelMethod,
    SpandrelMethod,
)
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.replica import ModelSpec

UNTRAINED = "untrained: this shows that the path works, not what the method can do"


def check_code_allowed(benchmark: Benchmark, path: Path, *, allow_code: bool) -> None:
    """Refuse a benchmark that would run code of its author, unless that is asked for.

    Raises:
        UserError: Naming the code.
    """
    for name, method in benchmark.methods.items():
        if isinstance(method, CallableMethod) and not allow_code:
            raise UserError(
                f"{path}: methods.{name} runs the code of {method.function}; "
                "read it, then allow it with --allow-code"
            )


def find_models(benchmark: Benchmark, folder: Path) -> "dict[str, ModelSpec]":
    """What each method runs that runs here; folders and the inputs themselves need nothing.

    Args:
        benchmark: Its methods.
        folder: Where functions are looked for first.

    Raises:
        UserError: Naming the method whose file or package is missing.
        CheckpointError: If a bundle is not whole.
    """
    found: dict[str, ModelSpec] = {}
    for name, method in benchmark.methods.items():
        try:
            values = _values(method, folder)
            if values:
                found[name] = _spec(values)
        except UserError as error:
            raise UserError(f"methods.{name}: {error}") from None
    return found


def _spec(values: dict[str, Any]) -> "ModelSpec":
    from jobs.models import check_wishes
    from pipeline.replica import ReplicaConfig

    model = ReplicaConfig.model_validate({"model": values}).model
    check_wishes(model)
    return model


def _values(method: Method, folder: Path) -> dict[str, Any]:
    if isinstance(method, ModelMethod):
        from jobs.models import asked_model

        return asked_model(method.path or None, method.ask, method.estimate or None)
    if isinstance(method, SpandrelMethod):
        return _baseline(method)
    if isinstance(method, CallableMethod):
        from pipeline.baselines.own import source_sha256

        digest = source_sha256(method.function, folder)
        return {"kind": "callable", "function": method.function, "folder": folder,
                "size": method.size, "source_sha256": digest}  # fmt: skip
    return {}


def _baseline(method: SpandrelMethod) -> dict[str, Any]:
    from pipeline.baselines.others import check_installed
    from pipeline.weights import find
    from vsp_model.files import sha256_of

    check_installed(method.arch)
    path = Path(method.path)
    if not path.is_file():
        if path.name != method.path:
            raise UserError(f"{path}: no such file; give a checkpoint of {method.arch}")
        path = find(method.path)
    return {"kind": "baseline", "path": path, "weights_sha256": sha256_of(path),
            "arch": method.arch, "w": method.w}  # fmt: skip


def notice_of(method: Method, spec: "ModelSpec | None") -> str:
    """What a reader must know of a method's weights; "" for nothing."""
    terms = ""
    if spec is not None and spec.kind == "baseline":
        from pipeline.baselines.others import ARCHITECTURES

        terms = ARCHITECTURES[spec.arch].terms
    elif spec is not None and spec.kind == "bundle":
        from jobs.models import read_bundle

        terms = read_bundle(spec.path)[0].notice
    elif spec is not None and spec.kind == "untrained":
        terms = UNTRAINED
    return "; ".join(filter(None, [terms, method.notice]))
