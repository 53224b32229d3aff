import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from report_folder import HOSTILE, face, write_evaluation

from pipeline import images
from pipeline.errors import UserError
from pipeline.report.album import Album
from pipeline.report.build import ReportConfig, write_report
from pipeline.report.markdown import markdown
from pipeline.report.terminal import WIDTH, table_lines
from pipeline.results import Results
from pipeline.scoring.pairs import Pair, PairSet, slug, write_pairs
from pipeline.scoring.sources import NOWHERE, Place, find_images
from pipeline.storage import LocalStore, open_store


class Page(HTMLParser):
    """Tags with their attributes, and the text, as a browser would take them."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self._in_code = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._in_code = False

    def handle_data(self, data):
        if not self._in_code:
            self.words.append(data)

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, write_evaluation(folder)


@pytest.fixture(scope="module")
def report(evaluation):
    folder, _ = evaluation
    return write_report(folder, ReportConfig()).parent


@pytest.fixture(scope="module")
def single(evaluation, tmp_path_factory):
    to = tmp_path_factory.mktemp("single") / "report"
    return write_report(evaluation[0], ReportConfig(single_file=True, shown=1, to=to))


def pages(report):
    return {path: Page(path.read_text("utf-8")) for path in sorted(report.rglob("*.html"))}


def data_of(report, key):
    """The value that a data script hands over."""
    script = (report / "data" / f"{key}.js").read_text()
    return json.loads(re.fullmatch(r'"use strict";vsp\.receive\([^,]+,[^,]+,(.*)\);\n', script)[1])


# ------------------------------------------------------------------------- hostile names


def test_no_name_becomes_a_tag_an_attribute_or_code(report, single):
    for path, page in {**pages(report), **pages(single.parent)}.items():
        assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)], path
        for image in page.of("img"):
            assert image.keys() <= {"alt", "draggable"}
        for script in page.of("script"):
            source = script.get("src", "")
            assert re.fullmatch(r"((\.\./)?(assets|data)/[\w.-]+\.js)?", source)
        for link in page.of("a"):
            assert re.fullmatch(r"(\.\./)?[\w./-]*(#[\w/-]+)?", link["href"])


def test_no_produced_file_holds_a_hostile_name_as_it_is(report, single):
    texts = [p for p in report.rglob("*") if p.suffix in (".html", ".js", ".md")]
    assert len(texts) > 15
    for path in [*texts, single]:
        written = path.read_text("utf-8")
        raws = ["<img src=x", "</script><script>alert"]
        raws += [] if path.suffix == ".md" else ["\"quoted\" 'twice'"]
        assert [raw for raw in raws if raw in written] == [], path


def test_hostile_names_are_shown_as_they_are(report):
    first = "".join(Page((report / "index.html").read_text("utf-8")).words)
    assert all(name in first for name in HOSTILE[:3])
    assert data_of(report, "d0")["ids"] == sorted(HOSTILE)


def test_files_have_names_of_our_making_and_stay_in_their_folder(tmp_path):
    out = tmp_path / "out"
    write_evaluation(out, HOSTILE[:4], HOSTILE[3:5], 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    index = write_report(out, ReportConfig())
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before.keys()
    assert all(path.is_relative_to(out / "report") for path in made)
    names = [path.relative_to(index.parent).as_posix() for path in made]
    assert all(re.fullmatch(r"(\w+/)*[\w.-]+", name) for name in names), names
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_pages_may_load_nothing_from_elsewhere(report, single):
    for path, page in {**pages(report), **pages(single.parent)}.items():
        policies = [meta["content"] for meta in page.of("meta") if "http-equiv" in meta]
        assert len(policies) == 1, path
        assert policies[0].startswith("default-src 'none'")
        assert "unsafe" not in policies[0]
    assert not any("//" in a.get("href", "") for a in Page(single.read_text("utf-8")).of("a"))


# ------------------------------------------------------------------------------- content


def test_every_value_stands_with_its_interval_and_the_best_is_marked(evaluation, report):
    page = (report / "index.html").read_text("utf-8")
    results = evaluation[1]
    cells = [c for c in results.cells if c.metric == "psnr" and not c.group]
    for cell in cells:
        assert f'<span class="value">{cell.value:.2f}</span>' in page
        assert f"[{cell.low:.2f},\u00a0{cell.high:.2f}]" in page
    best = max(cells[:4], key=lambda cell: cell.value)
    assert f'<td class="best" data-value="{best.value!r}">' in page


def test_measured_and_published_numbers_share_no_table(report):
    page = (report / "index.html").read_text("utf-8")
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    published = [table for table in tables if "111.37" in table]
    assert len(published) == 1
    assert "<small>" not in published[0]
    assert "Table II" in page
    assert "not measured here" in page


def test_missing_warnings_provenance_and_protocols_are_told(evaluation, report):
    words = "".join(Page((report / "index.html").read_text("utf-8")).words)
    results = evaluation[1]
    told = [*results.missing, *results.warnings, *results.provenance.values()]
    told += [info.protocol for info in results.metrics]
    told += [sha for info in results.metrics for sha in info.weights.values()]
    assert [line for line in told if line not in words] == []


def test_a_gallery_has_each_image_with_scores_and_statuses(evaluation, report):
    meta, shared, own = (data_of(report, key) for key in ("meta", "d0", "d0-m1"))
    assert len(list((report / "pages").iterdir())) == len(meta["galleries"]) == 8
    assert len(own["restored"]) == len(shared["lq"]) == len(shared["ids"]) == 6
    names = [metric["name"] for metric in meta["metrics"]]
    identity = own["scores"][names.index("identity")]
    failed = [place for place, value in enumerate(identity["values"]) if value is None]
    assert failed
    assert identity["troubles"] == {str(meta["statuses"].index("no_face")): failed}
    cells = [c for c in evaluation[1].cells if (c.dataset, c.method) == ("CelebA-Test", "VSPBFR")]
    mean = next(c.value for c in cells if c.metric == "psnr" and not c.group)
    values = own["scores"][names.index("psnr")]["values"]
    assert sum(values) / len(values) == pytest.approx(mean, rel=1e-5)


def test_pictures_keep_their_bytes_and_what_no_browser_shows_becomes_png(evaluation, report):
    originals = {path.read_bytes() for path in (evaluation[0] / "pictures").rglob("*.*")}
    copies = [path for path in (report / "images").rglob("*.*") if path.is_file()]
    assert {path.suffix for path in copies} == {".png", ".jpg", ".webp"}
    made = [path for path in copies if path.read_bytes() not in originals]
    assert len(made) == 2  # the two truths that are BMP
    for path in made:
        assert (images.decode(path.read_bytes())[1].shape) == (64, 64, 3)
    # 2 data sets x 6 images x (4 methods + input + truth), and each once.
    assert len(copies) == 72


def test_an_image_that_changed_or_went_is_left_out_with_a_note(tmp_path):
    write_evaluation(tmp_path, ["one"], ["set"], 3, ids=["a", "b", "c"])
    changed, gone, kept = sorted((tmp_path / "pictures" / "0" / "restored0").iterdir())
    changed.write_bytes(images.encode(face(99, 64), "png"))
    gone.unlink()
    report = write_report(tmp_path, ReportConfig()).parent
    names = data_of(report, "d0-m0")["restored"]
    assert names[0].startswith("!changed")
    assert names[1].startswith("!not found")
    assert (report / "images" / names[2]).read_bytes() == kept.read_bytes()
    assert changed.read_bytes() not in {p.read_bytes() for p in report.rglob("*.png")}


def test_an_image_that_a_method_has_not_made_keeps_its_place(tmp_path):
    write_evaluation(tmp_path, ["one", "two"], ["set"], 2, ids=["a", "b"])
    restored, gt = (
        find_images(str(tmp_path / "pictures" / "0" / role)) for role in ("restored1", "gt")
    )
    pairs = (Pair("a", NOWHERE, gt["00000"]), Pair("b", restored["00001"], gt["00001"]))
    write_pairs(LocalStore(tmp_path), PairSet("two", "set", pairs, "rev"))
    report = write_report(tmp_path, ReportConfig()).parent
    own = data_of(report, "d0-m1")
    assert own["has"] == [1, 1]
    assert own["restored"][0] == ""
    assert (report / "images" / own["restored"][1]).is_file()
    assert own["scores"][0]["values"][0] is None
    assert "lq" not in own  # it names no input: that of the data set, as the other knows it
    assert all(data_of(report, "d0")["lq"])


def test_without_images_only_scores(evaluation, tmp_path):
    report = write_report(evaluation[0], ReportConfig(images=False, to=tmp_path / "r")).parent
    assert not list(report.rglob("*.png"))
    assert data_of(report, "meta")["images"] is False
    assert "restored" not in data_of(report, "d0-m0")


def test_a_single_file_holds_the_worst_and_best_in_itself(single):
    assert {path.name for path in single.parent.rglob("*")} == {".vsp-report", "index.html"}
    page = single.read_text("utf-8")
    method = json.loads(re.search(r'vsp\.receive\("method","d0-m0",(\{.*?\})\);\n', page)[1])
    assert sum(method["has"]) == 2
    assert "data:image/webp;base64," in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)


def test_a_new_report_replaces_the_old_one_and_nothing_else(tmp_path):
    write_evaluation(tmp_path, ["one"], ["set"], 2)
    old = write_report(tmp_path, ReportConfig()).parent
    (old / "images" / "00").mkdir(exist_ok=True)
    (old / "images" / "00" / "old.png").touch()
    (old / "mine.txt").touch()
    assert write_report(tmp_path, ReportConfig(images=False)).parent == old
    assert not (old / "images").exists()
    assert (old / "mine.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UserError, match="no report; give a new"):
        write_report(tmp_path, ReportConfig(to=tmp_path / "other"))


def test_pictures_in_tars_are_read_in_place_also_from_an_object_store(object_store):
    pictures = [images.encode(face(n, 16), kind) for n, kind in enumerate(("png", "bmp"))]
    tar = b"header..".join([b"", *pictures])
    open_store(object_store.url).write("a.tar", tar)
    places = [
        Place(
            f"{object_store.url}/a.tar",
            tar.index(data),
            len(data),
            hashlib.sha256(data).hexdigest(),
        )
        for data in pictures
    ]
    kept = {}
    album = Album(lambda data, sha256: kept.setdefault(sha256, data) and sha256)
    album.add(places * 2)
    assert [kept[album.name(place)] for place in places] == pictures
    album.add([Place(f"{object_store.url}/absent.png", 0, 3, "0" * 64)])
    assert album.name(Place("any", sha256="0" * 64)).startswith("!not found")


def test_an_evaluation_on_an_object_store_needs_a_folder_here(evaluation, object_store, tmp_path):
    remote, local = open_store(f"{object_store.url}/out"), LocalStore(evaluation[0])
    for name in local.list():
        if not name.startswith(("pictures/", "report/")):
            remote.write(name, local.read(name))
    with pytest.raises(UserError, match="name a folder"):
        write_report(remote.url, ReportConfig())
    there = write_report(remote.url, ReportConfig(images=False, to=tmp_path / "there"))
    here = write_report(evaluation[0], ReportConfig(images=False, to=tmp_path / "here"))
    assert there.read_bytes() == here.read_bytes()


def test_results_alone_make_a_report_without_galleries(evaluation, tmp_path):
    evaluation[1].save(LocalStore(tmp_path))
    index = write_report(tmp_path, ReportConfig())
    assert "CelebA-Test" in index.read_text("utf-8")
    assert not (index.parent / "pages").exists()


# ---------------------------------------------------------------------------- comparison


def test_compare_shows_differences_of_the_same_protocol_only(evaluation, tmp_path):
    results = evaluation[1]
    moved = {"psnr": 5.0, "ssim": 0.0001}
    cells = [
        cell.model_copy(update={"value": cell.value - moved[cell.metric],
                                "low": cell.low - moved[cell.metric],
                                "high": cell.high - moved[cell.metric]})
        if cell.metric in moved else cell
        for cell in results.cells
    ]  # fmt: skip
    changed = {"niqe-small": {"protocol": "other:protocol"}}
    infos = [info.model_copy(update=changed.get(info.name)) for info in results.metrics]
    other = results.model_copy(update={"cells": tuple(cells), "metrics": tuple(infos)})
    other.save(LocalStore(tmp_path / "other"))
    config = ReportConfig(images=False, compare=tmp_path / "other", to=tmp_path / "report")
    page = write_report(evaluation[0], config).read_text("utf-8")
    changes = re.search(r'<section id="changes">.*?</section>', page, re.DOTALL)[0]
    assert changes.count('<td class="better">better</td>') == 8  # PSNR, of each method and data set
    assert ">5.00</td>" in changes
    assert "protocol niqe-like:y:32:fitted here, other:protocol there" in changes
    matched = re.search(r"<table.*?</table>", changes, re.DOTALL)[0]
    assert "niqe-small" not in matched


# -------------------------------------------------------------------- Markdown, terminal


def test_markdown_tables_are_whole_and_escaped(evaluation):
    text = markdown(evaluation[1])
    assert "<img" not in text
    assert "</script" not in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("| ")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1
    psnr = [c for c in evaluation[1].cells if (c.metric, c.group) == ("psnr", "")]
    best = max(psnr[:4], key=lambda cell: cell.value)
    assert f"**{best.value:.2f}** [{best.low:.2f}, {best.high:.2f}]" in text
    assert "psnr = psnr:rgb8:cap100" in text
    assert "psnr (dB) \u2020 \u2191" in text


def test_terminal_table_is_narrow_aligned_and_obeys_no_name(evaluation):
    results = evaluation[1]
    nasty = "red\x1b[31m\u9854\nline"
    renamed = results.model_dump_json().replace("VSPBFR", json.dumps(nasty)[1:-1])
    lines = table_lines(Results.model_validate_json(renamed))
    tables = [line for line in lines if not line.startswith(("missing", "note", "*"))]
    assert max(map(len, tables)) <= WIDTH
    assert not any(ord(sign) < 32 for line in lines for sign in line)
    assert any(line.startswith("red?[31m\u9854 line") for line in lines)
    psnr = [c.value for c in results.cells if (c.metric, c.group) == ("psnr", "")]
    assert sum(f"{max(psnr[:4]):.2f}*" in line for line in lines) == 1
    assert lines[-1].startswith("not computed: lmd")


def test_slug_of_hostile_names_is_what_the_fixture_relies_on():
    assert all(re.fullmatch(r"[\w.-]+", slug(name)) for name in HOSTILE)


def test_a_mean_over_fewer_images_is_not_the_best():
    from pipeline.report.grid import grids
    from pipeline.results import Cell, DatasetInfo, MethodInfo, MetricInfo, Results

    def cell(method, value, num_ok):
        return Cell(
            dataset="d", method=method, metric="nme", value=value, num_ok=num_ok, num_total=4
        )

    info = MetricInfo(name="nme", protocol="nme", better="lower", kind="reference", source="")
    results = Results(
        metrics=(info,),
        datasets=(DatasetInfo(name="d", rev="", num_images=4, has_truth=True),),
        methods=tuple(MethodInfo(name=name) for name in "abc"),
        cells=(cell("a", 1.0, 3), cell("b", 2.0, 4), cell("c", 3.0, 4)),
    )  # fmt: skip
    (grid,) = grids(results)
    (column,) = grid.columns
    assert column.places == {"b": 1, "c": 2}


def test_ranks_are_printed_as_the_paper_prints_them():
    from pipeline.results import Rank, Results

    rank = Rank(dataset="d", method="a", mean=5.625, mean_average=5.625)
    results = Results(metrics=(), datasets=(), methods=(), cells=(), ranks=(rank,))
    assert "| 5.63 |" in markdown(results)
