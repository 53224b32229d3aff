"""The real pages in headless Chromium."""

import shutil

import pytest
from report_folder import HOSTILE, write_evaluation

from pipeline.report.build import ReportConfig, write_report

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NUM_IMAGES = 30


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The first pages of a report and of a single file."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_evaluation(folder, ("Bicubic", "VSPBFR", HOSTILE[0]), (HOSTILE[2],), NUM_IMAGES)
    single = ReportConfig(single_file=True, shown=3, to=folder / "single")
    return write_report(folder, ReportConfig()), write_report(folder, single)


@pytest.fixture(scope="module")
def chromium():
    """A running browser."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no {', '.join(BROWSERS)} on the path")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A tab that fails the test on an error, a dialog, or a request that leaves the disk."""
    faults: list[str] = []
    context = chromium.new_context(viewport={"width": 900, "height": 560})
    page = context.new_page()
    page.set_default_timeout(5000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda told: faults.append(told.text) if told.type != "log" else None)
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:"))
            else faults.append(asked.url))  # fmt: skip
    yield page
    context.close()
    assert not faults


def column(page, number: int) -> list[float]:
    """A column of the first table as it stands, top to bottom."""
    cells = page.locator("#results table").first.locator(f"tbody tr td:nth-child({number})")
    return [float(value) for value in cells.evaluate_all("all => all.map(c => c.dataset.value)")]


def tiles(page) -> list[float]:
    """The values under the tiles in view, in order."""
    page.locator(".tile").first.wait_for()
    texts = page.locator(".tile").evaluate_all(
        "all => all.sort((a, b) => a.dataset.place - b.dataset.place)"
        ".map(tile => tile.lastChild.textContent)"
    )
    return [float(text.split()[-1].replace("\u2212", "-")) for text in texts]


def widths(pictures) -> list[int]:
    """Their own widths in pixels, when they are loaded."""
    pictures.evaluate_all("all => Promise.all(all.map(image => image.decode()))")
    return pictures.evaluate_all("all => all.map(image => image.naturalWidth)")


def split(page) -> float:
    return float(page.locator(".viewer input[type=range]").input_value())


def test_tables_sort_and_names_are_text(page, reports):
    page.goto(reports[0].as_uri())
    heading = page.locator("#results th", has_text="psnr").first
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, 2) == sorted(column(page, 2), reverse=True)
    heading.locator("button").press("Enter")
    assert column(page, 2) == sorted(column(page, 2))
    assert HOSTILE[0] in page.locator("h1").inner_text()
    assert page.locator("h3", has_text=HOSTILE[2]).count()
    assert page.locator("svg.plot").count() > 5
    # Nothing is wider than the window, on a desk and on a phone.
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_gallery_sorts_filters_and_holds_only_what_is_in_view(page, reports):
    page.goto(reports[0].as_uri())
    page.get_by_role("link", name="VSPBFR").first.click()
    page.locator(".tile").first.wait_for()
    assert 0 < page.locator(".tile").count() < NUM_IMAGES
    assert tiles(page) == sorted(tiles(page), reverse=True)  # LPIPS: the worst first
    page.get_by_label("Order").select_option("best")
    assert tiles(page) == sorted(tiles(page))
    page.get_by_label("Sorted by").select_option(label="psnr")
    assert tiles(page) == sorted(tiles(page), reverse=True)
    page.locator('[data-control="status"]').select_option("=no_face")
    assert 0 < page.locator(".tile.has-trouble").count() == page.locator(".tile").count()
    page.locator('[data-control="status"]').select_option("")
    page.get_by_label("Name contains").fill("<IMG")
    assert page.locator(".tile").count() == 1
    assert page.locator(".tile .id").inner_text() == HOSTILE[0]
    page.get_by_label("Name contains").fill("")
    page.evaluate("scrollTo({top: 1e6, behavior: 'instant'})")
    page.locator(f'.tile[data-place="{NUM_IMAGES - 1}"]').wait_for()
    assert set(widths(page.locator(".tile img"))) == {64}


def test_the_viewer_by_keyboard_and_mouse(page, reports):
    page.goto((reports[0].parent / "pages" / "d0-m1.html").as_uri())
    page.locator(".tile").first.press("ArrowRight")
    page.keyboard.press("Enter")
    assert split(page) == 50
    page.keyboard.press("ArrowRight")
    assert split(page) == 51
    stage = page.locator(".stage").bounding_box()
    middle = stage["y"] + stage["height"] / 2
    page.mouse.move(stage["x"] + stage["width"] * 0.51, middle)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.25, middle)
    page.mouse.up()
    assert split(page) == pytest.approx(25, abs=1)
    assert "inset(0" in page.locator(".layer.is-right").evaluate("layer => layer.style.clipPath")
    before = page.url
    page.keyboard.press("n")
    assert page.url != before
    page.keyboard.press("+")
    page.keyboard.press("a")
    places = page.locator(".layer img").evaluate_all("all => all.map(i => i.style.transform)")
    assert "scale(1.5)" in places[0]
    assert places[0] == places[1]
    assert page.locator(".scores td").count() == 8
    page.locator('[data-side="1"]').select_option(label=HOSTILE[0])
    page.locator(".scores td").nth(15).wait_for()
    assert widths(page.locator(".layer img")) == [64, 64]
    page.keyboard.press("Escape")
    assert not page.locator(".viewer").is_visible()
    page.wait_for_url(lambda url: "#" not in url)


def test_an_address_leads_to_one_image_whatever_its_name(page, reports):
    address = (reports[0].parent / "pages" / "d0-m2.html").as_uri()
    page.goto(f"{address}#%3C%2Fscript%3E%3Cscript%3Ealert(2)%3C%2Fscript%3E")
    assert page.locator("#viewer-title").inner_text() == HOSTILE[2]
    page.goto(f"{address}#%E0%A4%A")  # no text at all
    assert page.locator(".tile").first.is_visible()


def test_a_single_file_has_tables_galleries_and_pictures(page, reports):
    page.goto(reports[1].as_uri())
    page.get_by_role("link", name="VSPBFR").first.click()
    page.locator(".gallery-title", has_text="VSPBFR").wait_for()
    page.locator(".tile").first.click()
    assert page.locator(".tile").count() == 6
    assert widths(page.locator(".layer img")) == [64, 64]
    assert page.url.count("#gallery-d0-m1/") == 1


def test_a_finger_moves_the_line_on_a_phone(chromium, reports):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto((reports[0].parent / "pages" / "d0-m0.html").as_uri())
    page.locator(".tile").first.tap()
    stage = page.locator(".stage").bounding_box()
    assert stage["width"] > 300
    page.touchscreen.tap(stage["x"] + stage["width"] * 0.75, stage["y"] + 40)
    assert split(page) == pytest.approx(75, abs=1)
    context.close()
