"""The folder that a report is written into; only names of our making, nothing of others touched."""

from pathlib import Path

from pipeline.errors import UserError
from vsp_model.files import whole_or_absent

MARK = ".vsp-report"
FOLDERS = ("assets", "data", "images", "pages")


class Site:
    """A report's folder, new or of an earlier report, which is replaced."""

    def __init__(self, root: Path) -> None:
        """Take `root`.

        Raises:
            UserError: If it holds something that no report is.
        """
        if root.is_dir() and any(root.iterdir()) and not (root / MARK).is_file():
            raise UserError(f"{root}: holds files that are no report; give a new or empty folder")
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: not a folder; give another --to")
        root.mkdir(parents=True, exist_ok=True)
        (root / MARK).touch()
        self.root = root
        self._written: set[Path] = set()

    def write(self, name: str, data: bytes | str) -> Path:
        """Write a file whole."""
        path = self._path(name)
        with whole_or_absent(path) as file:
            file.write(data if isinstance(data, bytes) else data.encode())
        return path

    def add_picture(self, name: str, data: bytes) -> None:
        """Write a picture whose name says its content; one that is there is left as it is."""
        path = self._path(name)
        if not (path.is_file() and path.stat().st_size == len(data)):
            path.write_bytes(data)

    def _path(self, name: str) -> Path:
        path = self.root / name
        assert ".." not in path.parts, "names are of our making"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._written.add(path)
        return path

    def prune(self) -> None:
        """Remove what an earlier report left in the folders of reports."""
        for folder in FOLDERS:
            below = sorted((self.root / folder).rglob("*"), reverse=True)
            for path in [*below, self.root / folder]:
                if path.is_dir():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif path not in self._written:
                    path.unlink(missing_ok=True)
