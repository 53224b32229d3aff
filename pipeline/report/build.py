"""An evaluation folder -> a report that opens from a disk, without a network."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import UserError
from pipeline.report import index, markup
from pipeline.report.album import Album, file_name, showable, thumbnail
from pipeline.report.compare import Changes, compare
from pipeline.report.escape import text
from pipeline.report.faces import Faces, read_faces
from pipeline.report.gallery import Galleries, extremes, pictures_script
from pipeline.report.markdown import markdown
from pipeline.report.site import Site
from pipeline.results import Results
from pipeline.storage import open_store

INDEX, MARKDOWN = "index.html", "results.md"
SCRIPTS, STYLE = ("report.js", "gallery.js"), "report.css"
# "file:" beside 'self', because what 'self' is on a disk is every browser's own business.
LINKED = "img-src 'self' file:; style-src 'self' file:; script-src 'self' file:"


class ReportConfig(BaseModel):
    """What a report holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: bool = True
    single_file: bool = False
    shown: int = Field(default=50, ge=1)
    """How many of the worst and of the best images a single file holds of a gallery."""
    compare: Path | str | None = None
    """Another evaluation folder, or the URL of one."""
    to: Path | None = None
    """Where it goes; OUT/report by default."""


@dataclass(frozen=True, slots=True)
class _Content:
    results: Results
    faces: Sequence[Faces]
    changes: tuple[Changes, str] | None


def write_report(folder: Path | str, config: ReportConfig) -> Path:
    """Write the report of an evaluation folder; an earlier one in its place is replaced.

    Args:
        folder: The evaluation folder, or the URL of one on an object store.
        config: What the report holds, and where it goes.

    Returns:
        The first page.

    Raises:
        UserError: If there are no results, or the target is in use for something else.
    """
    store = open_store(str(folder))
    if config.to is None and not store.is_local:
        raise UserError(f"{store.url}: a report is written on this machine; name a folder (--to)")
    results = Results.load(store)
    changes = None
    if config.compare:
        other = open_store(str(config.compare))
        changes = compare(results, Results.load(other)), other.url
    found = _in_order(results, read_faces(store))
    content = _Content(results, found, changes)
    site = Site(config.to or Path(folder) / "report")
    write = _write_single if config.single_file else _write_pages
    return write(site, content, config)


def _in_order(results: Results, found: Sequence[Faces]) -> list[Faces]:
    """Galleries in the order of the results' data sets and methods."""
    datasets = [info.name for info in results.datasets]
    methods = [info.name for info in results.methods]

    def place(names: Sequence[str], wanted: str) -> int:
        return names.index(wanted) if wanted in names else len(names)

    return sorted(found, key=lambda f: (place(datasets, f.dataset), place(methods, f.method)))


# ------------------------------------------------------------------------------- many pages


def _write_pages(site: Site, content: _Content, config: ReportConfig) -> Path:
    def shelve(data: bytes, sha256: str) -> str:
        shown, suffix = showable(data)
        name = file_name(sha256, suffix)
        site.add_picture(f"images/{name}", shown)
        return name

    galleries = Galleries(content.results, content.faces, Album(shelve) if config.images else None)
    for name in (*SCRIPTS, STYLE):
        site.write(f"assets/{name}", markup.asset(name))
    for key, script in galleries.scripts().items():
        site.write(f"data/{key}.js", script)
    for faces in content.faces:
        site.write(f"pages/{galleries.key(faces)}.html", _gallery_page(galleries, faces))
    site.write(MARKDOWN, markdown(content.results))
    keys = {(faces.dataset, faces.method): galleries.key(faces) for faces in content.faces}
    first = site.write(INDEX, _index_page(content, _linker(keys, "pages/{}.html")))
    site.prune()
    return first


def _linker(keys: dict[tuple[str, str], str], address: str) -> Callable[[str, str], str]:
    def link(dataset: str, method: str) -> str:
        key = keys.get((dataset, method))
        return address.format(key) if key else ""

    return link


def _index_page(content: _Content, link: Callable[[str, str], str]) -> str:
    note = f'<footer><a href="{MARKDOWN}">The tables as Markdown</a></footer>'
    body = index.body(content.results, content.faces, link, content.changes)
    return markup.page(
        title=text(index.title_of(content.results)),
        policy=LINKED,
        head=_style("assets/"),
        attributes="",
        body=body + note,
        scripts=_script("assets/report.js"),
    )


def _gallery_page(galleries: Galleries, faces: Faces) -> str:
    dataset, key = galleries.datasets[faces.dataset], galleries.key(faces)
    needed = ("assets/gallery.js", "data/meta.js", f"data/{dataset}.js", f"data/{key}.js")
    return markup.page(
        title=text(f"{faces.method} on {faces.dataset}"),
        policy=LINKED,
        head=_style("../assets/"),
        attributes=f'class="gallery-page" data-gallery="{key}" data-root="../"',
        body=f'<main><nav><a href="../{INDEX}">\u2190 Report</a></nav>'
        f"{markup.asset('gallery.html')}</main>",
        scripts="\n".join(_script(f"../{name}") for name in needed),
    )


def _style(folder: str) -> str:
    return f'<link rel="stylesheet" href="{folder}{STYLE}">'


def _script(address: str) -> str:
    return f'<script defer src="{address}"></script>'


# -------------------------------------------------------------------------------- one file


def _write_single(site: Site, content: _Content, config: ReportConfig) -> Path:
    pictures: dict[str, str] = {}

    def shelve(data: bytes, sha256: str) -> str:
        name = sha256[:16]
        pictures[name] = "data:image/webp;base64," + base64.b64encode(thumbnail(data)).decode()
        return name

    infos = content.results.metrics
    some = [extremes(faces, infos, config.shown) for faces in content.faces]
    galleries = Galleries(content.results, some, Album(shelve) if config.images else None)
    data = "".join(galleries.scripts().values()) + pictures_script(pictures)
    keys = {(faces.dataset, faces.method): galleries.key(faces) for faces in some}
    link = _linker(keys, "#gallery-{}/")
    told = f'<p class="note">The {config.shown} worst and the {config.shown} best of each.</p>'
    more = markup.section("galleries", "Galleries", told + markup.asset("gallery.html"))
    body = index.body(content.results, content.faces, link, content.changes, more if some else "")
    scripts = [markup.asset("report.js"), markup.asset("gallery.js"), data]
    style = markup.asset(STYLE)
    page = markup.page(
        title=text(index.title_of(content.results)),
        policy=f"img-src data:; style-src {_hash(style)}; "
        f"script-src {' '.join(_hash(script) for script in scripts)}",
        head=f"<style>{style}</style>",
        attributes="",
        body=body,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    first = site.write(INDEX, page)
    site.prune()
    (site.root / MARKDOWN).unlink(missing_ok=True)
    return first


def _hash(code: str) -> str:
    """How a policy names a script or style that stands in the page itself."""
    digest = hashlib.sha256(code.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
