"""A user's function as a restorer: one RGB face in, uint8 (S, S, 3), another of that kind out."""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor

from pipeline import images
from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.replica import OwnCode
from vsp_model.faces import check_faces
from vsp_model.files import sha256_of
from vsp_model.randomness import NoiseMode

Function = Callable[[Pixels], Pixels]


class FaceByFace:
    """A function of one face as a `registry.Restorer`."""

    def __init__(self, function: Function, size: int) -> None:
        """Restore faces of `size` pixels with `function`."""
        self.size = size
        self._function = function

    def restore(
        self, lq: Tensor, keys: Sequence[str], *, seed: int = 0, noise: NoiseMode = "seeded"
    ) -> Tensor:
        """See `registry.Restorer`; seed and noise change nothing.

        Raises:
            UserError: If the function gives back something else than a face of this size.
        """
        check_faces(lq, self.size, keys)
        batch = images.new_batch(len(lq), self.size)
        for slot, face in enumerate(images.to_uint8(lq)):
            images.to_model(self._checked(self._function(face)), batch, slot)
        return batch

    def _checked(self, face: Pixels) -> Pixels:
        wanted = (self.size, self.size, 3)
        if not isinstance(face, np.ndarray) or face.dtype != np.uint8 or face.shape != wanted:
            found = f"{getattr(face, 'dtype', type(face).__name__)} {getattr(face, 'shape', '')}"
            raise UserError(f"the function gave back {found}; expected uint8 {wanted}")
        return np.ascontiguousarray(face)


def load_own_code(spec: OwnCode) -> FaceByFace:
    """Import the module of `package.module:function`: this runs it.

    Raises:
        UserError: If there is no such function.
    """
    module, _, name = spec.function.partition(":")
    if str(spec.folder) not in sys.path:
        sys.path.insert(0, str(spec.folder))
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UserError(f"{spec.function}: {error}; looked in {spec.folder}, too") from None
    if not callable(function):
        raise UserError(f"{spec.function}: no function {name!r} in {module}")
    return FaceByFace(cast(Function, function), spec.size)


def source_sha256(function: str, folder: Path) -> str:
    """Sha256 of the file that holds `package.module:function`; nothing of it is run.

    Args:
        function: Its name.
        folder: Where its package is looked for before the installed ones.

    Raises:
        UserError: If there is no such module.
    """
    module = function.partition(":")[0]
    path: list[str] | None = [str(folder), *sys.path]
    for depth in range(1, module.count(".") + 2):
        spec = PathFinder.find_spec(".".join(module.split(".")[:depth]), path)
        path = list(spec.submodule_search_locations or []) if spec else []
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"{function}: no module {module} in {folder} or among the installed ones")
    return sha256_of(Path(spec.origin))
