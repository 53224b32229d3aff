"""Local folders in which files are built before they go to an object store.

They lie under `$VSP_SCRATCH`, else the system's folder for temporary files. Every process has one,
with a lock beside it; who makes a new one removes those whose process is gone, so a worker that
was killed leaves its files only until the next one starts on that machine.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from pipeline.errors import UserError


def scratch_folder() -> Path:
    """This process's own folder; it goes away when the process ends.

    Raises:
        UserError: If none can be made.
    """
    root = Path(os.environ.get("VSP_SCRATCH") or tempfile.gettempdir())
    return _own_folder(root / f"vsp-{os.getuid()}", os.getpid())


@cache
def _own_folder(root: Path, pid: int) -> Path:
    """The folder of process `pid` (a fork has another); its lock is never closed but by its end."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise UserError(f"{root}: belongs to somebody else; set VSP_SCRATCH to another folder")
        _sweep(root)
        while True:
            folder = root / f"{pid}-{os.urandom(4).hex()}"
            lock = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_EXCL)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:  # else swept between making and locking it
                break
            os.close(lock)
        folder.mkdir()
    except OSError as error:
        raise UserError(f"{root}: {error.strerror}; set VSP_SCRATCH to another folder") from None
    atexit.register(_remove_own, folder, pid)
    return folder


def _sweep(root: Path) -> None:
    """Remove the folders of processes that hold their lock no longer."""
    for path in root.glob("*.lock"):
        with contextlib.suppress(OSError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()


def _remove_own(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork of it
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
