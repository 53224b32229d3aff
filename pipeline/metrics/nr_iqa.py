"""MUSIQ, MANIQA, CLIP-IQA, TOPIQ by pyiqa, which runs in a process and an environment of its own.

pyiqa's licence is non-commercial and its companions conflict with ours, so that it is never
imported here. `iqa_program` runs under the Python of its environment and decodes for itself.
"""

import contextlib
import hashlib
import json
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline import images
from pipeline.errors import UserError
from pipeline.metrics.judge import Face, Score
from pipeline.metrics.table import BY_NAME

PROGRAM = Path(__file__).with_name("iqa_program.py")
_PREFIX = "pyiqa:"
_PATIENCE_S = 5.0
_FIX = "make an environment with `pip install 'pyiqa>=0.1.16' 'setuptools<82'` and name its Python"


class _Stopped(Exception):
    """The program is gone; the text says why."""


class _Program:
    """The running program. One caller at a time."""

    def __init__(self, python: Path, names: list[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the program
        try:
            self._process = subprocess.Popen(
                [python, "-I", "-u", PROGRAM, *names],  # -I: nothing of our own environment
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            )  # fmt: skip
        except OSError as error:
            self._log.close()
            raise _Stopped(f"cannot be started ({error.strerror})") from None
        self._end = weakref.finalize(self, _end, self._process, cast(BinaryIO, self._log))
        self._end.atexit = False  # then its input ends, and so does it
        self.greeting = self._answer()

    def ask(self, request: dict[str, Any], data: bytes) -> dict[str, Any]:
        """Send a request with the bytes it speaks of.

        Raises:
            _Stopped: If there is no answer any more.
        """
        assert self._process.stdin is not None
        head = json.dumps({**request, "size": len(data)}).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(head + data)
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        reason = self._last_words()
        self.close()
        raise _Stopped(reason)

    def _last_words(self) -> str:
        """How it ended, and the last line that it wrote."""
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if code < 0:
            return f"was killed by signal {-code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"ended with code {code}: {last}"

    def close(self) -> None:
        """End it and free its pipes; may be called again."""
        self._end()


def _end(process: subprocess.Popen[bytes], log: BinaryIO) -> None:
    process.kill()
    with contextlib.suppress(BrokenPipeError):  # bytes that nobody reads any more
        process.communicate()
    log.close()


class IqaJudge:
    """Metrics of the restored image alone, by pyiqa; see `judge.Judge`.

    Threads may share it: they take turns. A program that dies is started again once.
    """

    def __init__(self, python: Path, *metrics: str, seed: int = 0) -> None:
        """Start the program; it takes tens of seconds to load.

        Args:
            python: Of the environment that holds pyiqa.
            metrics: Names in `table.BY_NAME`, or names that pyiqa knows.
            seed: With an image's key it fixes what is random in a metric.

        Raises:
            UserError: If there is no pyiqa in that environment.
        """
        self.metrics = metrics
        self._python, self._seed = python, seed
        self._theirs = {name: pyiqa_name(name) for name in metrics}
        self._turn = threading.Lock()
        self._end = ""  # why there is no program any more
        self._may_restart = True
        try:
            self._program: _Program | None = self._start()
        except _Stopped as error:
            raise UserError(f"{python}: pyiqa {error}; {_FIX}") from None
        greeting = self._program.greeting
        self._errors: Mapping[str, str] = greeting["errors"]
        self.files: Mapping[str, str] = greeting["files"]
        self.library: str = greeting["library"]

    def score(self, face: Face) -> Mapping[str, Score]:
        """See `judge.Judge`. "failed", with the reason, where pyiqa or its weights are."""
        try:
            answer = self._ask(face)
        except _Stopped as error:
            return dict.fromkeys(self.metrics, Score.no("failed", f"pyiqa {error}"))
        return {ours: self._score(theirs, answer) for ours, theirs in self._theirs.items()}

    def close(self) -> None:
        """End the program."""
        with self._turn:
            self._end, self._may_restart = "was closed", False
            if self._program is not None:
                self._program.close()
                self._program = None

    def _start(self) -> _Program:
        return _Program(self._python, list(self._theirs.values()))

    def _ask(self, face: Face) -> dict[str, Any]:
        digest = hashlib.sha256(f"{self._seed}:{face.key}".encode()).digest()
        request = {"seed": int.from_bytes(digest[:4], "big")}
        data = images.encode(face.restored, "png")
        with self._turn:
            if self._program is None:
                self._restart()
            assert self._program is not None
            try:
                return self._program.ask(request, data)
            except _Stopped as error:
                self._program, self._end = None, str(error)
                raise

    def _restart(self) -> None:
        if not self._may_restart:
            raise _Stopped(self._end)
        self._may_restart = False
        self._program = self._start()

    def _score(self, theirs: str, answer: Mapping[str, Any]) -> Score:
        if theirs in self._errors:
            return Score.no("failed", self._errors[theirs])
        told = answer[theirs]
        return Score.of(told["value"]) if "value" in told else Score.no("failed", told["error"])


def pyiqa_name(metric: str) -> str:
    """What pyiqa calls a metric of the table; another name is its own."""
    known = BY_NAME.get(metric)
    return known.protocol.removeprefix(_PREFIX) if known else metric
