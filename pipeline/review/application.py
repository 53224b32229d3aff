"""What the page may ask for: rows, one row, a picture by row number and side, a verdict.

It knows nothing of sockets or headers: an address in, an `Answer` out.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from pipeline.cleaning.manifest import coverage
from pipeline.cleaning.manifest.read import batches
from pipeline.cleaning.overrule import VERDICTS, Overrules, verdict_on
from pipeline.errors import RunError, UserError
from pipeline.ledger import Ledger
from pipeline.report.escape import text
from pipeline.review import words
from pipeline.review.catalogue import ORDERS, Catalogue, Query
from pipeline.review.coverage_page import coverage_page
from pipeline.review.pictures import SIDES, NoPicture, Pictures, Side, servable, thumbnail
from pipeline.review.verdicts import Refused, Verdicts, effect
from pipeline.storage import Store, is_remote

PAGE_ROWS = 60
_ASSETS = {
    "icon.svg": "image/svg+xml",
    "review.css": "text/css; charset=utf-8",
    "review.js": "text/javascript; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
}
_WORDED = ("outcome", "decision_reason", "fallback", "source", "person", "key")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back.

    Attributes:
        body: The bytes.
        type: Their media type.
        status: HTTP status.
    """

    body: bytes
    type: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK


class BadRequest(ValueError):
    """An address or body that no page of ours sends; one line."""


def json_answer(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """A JSON answer."""
    return Answer(json.dumps(value).encode(), status=status)


def error_answer(status: HTTPStatus, message: str) -> Answer:
    """An error that the page shows."""
    return json_answer({"error": message}, status)


class Application:
    """The review of one output folder; usable from several threads.

    Attributes:
        catalogue: Its manifest.
        verdicts: Its overrule file.
    """

    def __init__(self, store: Store) -> None:
        """Read the manifest.

        Raises:
            UserError: If the folder holds no cleaning run's manifest, or a damaged one.
        """
        self._store = store
        self.catalogue = Catalogue(store)
        self.verdicts = Verdicts(store)
        self.verdicts.current()  # a damaged file is told now, not at the first verdict
        plan = Ledger(store).plan()
        self._units = plan.units if plan else ()
        self._pictures = Pictures(store, {unit.shard: unit.source for unit in self._units})
        self._coverage: bytes | None = None

    def command(self) -> str:
        """The command that applies the verdicts, as it is typed."""
        sources = [unit.source for unit in self._units]
        return f"vsp clean {shlex.quote(_named(sources))} {shlex.quote(self._store.url)}"

    # ------------------------------------------------------------------------------ addresses

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        """Answer a GET; `path` has been decoded once.

        Raises:
            BadRequest: If nothing has that address.
        """
        parts = path.removeprefix("/").split("/")
        match parts:
            case [""]:
                return self._page("review.html")
            case ["coverage"]:
                return self._coverage_page()
            case ["assets", name] if name in _ASSETS:
                return Answer(_asset(name), _ASSETS[name])
            case ["api", "about"]:
                return json_answer(self._about())
            case ["api", "rows"]:
                return self._told(lambda: self._rows(query))
            case ["api", "row", number]:
                row = self._row_number(number)
                return self._told(lambda: self._row(row))
            case ["picture", number, side] if side in SIDES:
                row = self._row_number(number)
                return self._picture(row, side, query.get("size") == "small")
        raise BadRequest("nothing here")

    def post(self, path: str, body: Any) -> Answer:
        """Answer a POST with a JSON body.

        Raises:
            BadRequest: If nothing has that address, or the body is not what it should be.
        """
        if path != "/api/verdict":
            raise BadRequest("nothing here")
        if not isinstance(body, dict) or set(body) != {"row", "verdict", "seen"}:
            raise BadRequest("expected row, verdict and seen")
        row, verdict, seen = body["row"], body["verdict"], body["seen"]
        is_number = isinstance(row, int) and not isinstance(row, bool)
        if not is_number or not 0 <= row < len(self.catalogue):
            raise BadRequest("no such row")
        if verdict not in ("", *VERDICTS) or seen not in ("", *VERDICTS):
            raise BadRequest(f"expected one of {', '.join(VERDICTS)}, or nothing")
        return self._told(lambda: self._decide(row, verdict, seen))

    def _row_number(self, word: str) -> int:
        if not (word.isascii() and word.isdigit() and len(word) < 12):
            raise BadRequest("no such row")
        if int(word) >= len(self.catalogue):
            raise BadRequest("no such row")
        return int(word)

    def _told(self, work: Callable[[], Any]) -> Answer:
        """What can go wrong without anybody's fault becomes a line on the page."""
        try:
            return json_answer(work())
        except (Refused, UserError, RunError) as error:
            return error_answer(HTTPStatus.CONFLICT, str(error))

    # ------------------------------------------------------------------------------- answers

    def _page(self, name: str) -> Answer:
        page = _asset(name).decode().replace("$OUT", text(self._store.url))
        return Answer(page.encode(), "text/html; charset=utf-8")

    def _coverage_page(self) -> Answer:
        if self._coverage is None:
            found = coverage.merged(batches(self._store, coverage.COLUMNS))
            self._coverage = coverage_page(found, self._store.url).encode()
        return Answer(self._coverage, "text/html; charset=utf-8")

    def _about(self) -> dict[str, Any]:
        told = {"outcome": words.OUTCOMES, "decision_reason": words.REASONS,
                "fallback": words.FALLBACKS}  # fmt: skip
        choices: dict[str, Any] = {}
        for name in ("outcome", "decision_reason", "fallback", "source"):
            found = self.catalogue.choices(name)
            choices[name] = found and [
                [word, told.get(name, {}).get(word, word), count] for word, count in found
            ]
        return {"out": self._store.url, "rows": len(self.catalogue), "choices": choices,
                "shards": [len(self.catalogue.parts), len(self._units)],
                "command": self.command()}  # fmt: skip

    def _rows(self, asked: Mapping[str, str]) -> dict[str, Any]:
        overrules = self.verdicts.current()
        found = self.catalogue.select(_query(asked), overrules)
        page = self._page_number(asked, found, overrules)
        rows: list[int] = found[page * PAGE_ROWS : (page + 1) * PAGE_ROWS].tolist()
        return {
            "total": len(found), "page": page, "pages": max(1, -(-len(found) // PAGE_ROWS)),
            "first": page * PAGE_ROWS, "decided": len(overrules),
            "rows": [self._brief(row, overrules) for row in rows],
        }  # fmt: skip

    def _page_number(self, asked: Mapping[str, str], found: Any, overrules: Overrules) -> int:
        """The page that is asked for: by its number, or that of the first row without verdict."""
        last = max(0, (len(found) - 1) // PAGE_ROWS)
        if asked.get("page") == "undecided":
            decided = {row for row, _ in self.catalogue.decided(overrules)}
            open_ones = (n for n, row in enumerate(found.tolist()) if row not in decided)
            return next(open_ones, 0) // PAGE_ROWS
        return min(last, int(_number(asked.get("page", "0"), "page")))

    def _brief(self, row: int, overrules: Overrules) -> dict[str, Any]:
        """A row as the list shows it."""
        shard, key = self.catalogue.place(row)
        outcome, status = self.catalogue.word("outcome", row), self.catalogue.word("status", row)
        reason = self.catalogue.word("decision_reason", row)
        fallback = self.catalogue.word("fallback", row)
        return {
            "row": row, "shard": shard, "key": key, "outcome": outcome,
            "told": words.OUTCOMES[outcome], "why": (fallback or reason).replace("_", " "),
            "quality": self.catalogue.number("quality", row),
            "after": self.catalogue.number("quality_after", row),
            "doubt": self.catalogue.number("doubt", row) or 0.0,
            "verdict": verdict_on(overrules, shard, key) or "",
            "before": status == "inspected", "restored": outcome in ("restored", "fallback"),
        }  # fmt: skip

    def _row(self, row: int) -> dict[str, Any]:
        """A row in full."""
        values = self.catalogue.full(row)
        overrules = self.verdicts.current()
        copy = None
        if values["copy_of"]:
            shard, _, key = values["copy_of"].partition("/")
            copy = self.catalogue.find(shard, key)
        return self._brief(row, overrules) | {
            "sentence": words.sentence(values), "sections": words.sections(values),
            "brief": words.brief(values),
            "copy": None if copy is None else {"row": copy, "key": values["copy_of"]},
            "pictures": {side: self._missing(values, side) for side in SIDES},
            "effects": {verdict: _effect(values, verdict) for verdict in VERDICTS},
        }  # fmt: skip

    def _missing(self, values: Mapping[str, Any], side: Side) -> str:
        """Why a picture cannot be shown, "" if it can."""
        try:
            servable(self._pictures.read(values, side))
        except NoPicture as why:
            return str(why)
        return ""

    def _picture(self, row: int, side: Side, is_small: bool) -> Answer:
        try:
            data = self._pictures.read(self.catalogue.full(row), side)
            type, body = thumbnail(data) if is_small else servable(data)
        except NoPicture as why:
            return error_answer(HTTPStatus.NOT_FOUND, str(why))
        except RunError as error:
            return error_answer(HTTPStatus.CONFLICT, str(error))
        return Answer(body, type)

    def _decide(self, row: int, verdict: str, seen: str) -> dict[str, Any]:
        values = self.catalogue.full(row)
        if verdict:
            effect(values, cast(Any, verdict))  # refuses what cannot be
        place = self.catalogue.place(row)
        now = self.verdicts.write(place, cast(Any, verdict or None), seen)
        return {"row": row, "verdict": now, "decided": len(self.verdicts.current())}


def _named(sources: list[str]) -> str:
    """How a user names these tars: the one, the folder that holds no others, else "IN"."""
    if len(sources) == 1:
        return sources[0]
    folders = {source.rpartition("/")[0] for source in sources}
    if len(folders) != 1 or is_remote(sources[0]):
        return "IN"
    folder = Path(folders.pop())
    is_all = {str(path) for path in folder.glob("*.tar")} == set(sources)
    return str(folder) if is_all else "IN"


def _effect(values: Mapping[str, Any], verdict: Any) -> dict[str, Any]:
    """What a button does, or why it cannot."""
    try:
        return {"told": effect(values, verdict), "can": True}
    except Refused as why:
        return {"told": str(why), "can": False}


def _query(asked: Mapping[str, str]) -> Query:
    order = asked.get("order", "doubt")
    verdict = asked.get("verdict", "")
    if order not in ORDERS or verdict not in ("", "decided", *VERDICTS):
        raise BadRequest("no such order or verdict")
    named = {name: asked.get(name, "") for name in _WORDED}
    low, high = (_number(word, "quality") if (word := asked.get(name, "")) else None
                 for name in ("low", "high"))  # fmt: skip
    return Query(**named, low=low, high=high, verdict=verdict, order=order)


def _number(word: str, name: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise BadRequest(f"{name}: not a number") from None
    if not 0 <= value < 1e9:  # NaN is neither
        raise BadRequest(f"{name}: out of range")
    return value


def _asset(name: str) -> bytes:
    return files("pipeline.review").joinpath("assets", name).read_bytes()
