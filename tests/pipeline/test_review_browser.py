"""The review in headless Chromium, by keyboard."""

import shutil
import threading

import pytest
from review_folder import HOSTILE_KEYS, write_review

from pipeline.cleaning import overrule
from pipeline.cleaning.tables import OVERRULE
from pipeline.review.application import Application
from pipeline.review.server import Server

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NUM_FACES = 130


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_review(tmp_path_factory.mktemp("review"), NUM_FACES)


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
def server(store):
    store.remove(OVERRULE)
    with Server(Application(store)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def page(chromium, server):
    """The page, opened; it fails on an error, a dialog, or a request to anywhere else."""
    faults: list[str] = []
    home = f"http://127.0.0.1:{server.gate.port}/"
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(5000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    # The browser itself notes a refused verdict there, which one test is about.
    page.on("console", lambda told: None if "409 (Conflict)" in told.text
            else faults.append(told.text))  # fmt: skip
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda asked: None if asked.url.startswith((home, "data:"))
            else faults.append(asked.url))  # fmt: skip
    page.goto(server.url)
    page.wait_for_url(f"{home}#**")
    yield page
    context.close()
    assert not faults


def at(page) -> int:
    """The row that is shown."""
    return int(page.locator(".item[aria-current]").get_attribute("data-row"))


def key(page) -> str:
    return page.locator("#key").inner_text()


def press(page, name: str) -> str:
    """Press a key that leads to another face; returns that face's key."""
    before = page.url
    page.keyboard.press(name)
    page.wait_for_url(lambda url: url != before)
    return key(page)


def is_told(page, words: str) -> None:
    page.locator("#told", has_text=words).wait_for()


def test_verdicts_by_keyboard_are_on_the_disk_and_stay(page, store, server):
    keys = page.locator(".item .name").all_inner_texts()
    assert key(page) == keys[0]
    assert "token" not in page.url
    place = {k: s for s, k in map(server.application.catalogue.place, range(NUM_FACES))}
    assert press(page, "a") == keys[1]
    assert overrule.load(store) == {(place[keys[0]], keys[0]): "accept"}
    assert press(page, "k") == keys[2]
    assert press(page, "x") == keys[3]
    assert press(page, "ArrowLeft") == keys[2]
    assert press(page, "n") == keys[3]
    assert press(page, "u") == keys[2]  # back to what was undone
    expected = {(place[keys[0]], keys[0]): "accept", (place[keys[1]], keys[1]): "keep"}
    assert overrule.load(store) == expected
    assert page.locator("#decided").inner_text() == "2 verdicts"
    page.reload()
    page.locator(".item[aria-current]").wait_for()
    assert key(page) == keys[2]
    marks = page.locator(".item .side b").all_inner_texts()
    assert marks[:3] == ["✓ accept", "= keep", ""]
    assert press(page, "u") == keys[1]  # even after a reload
    assert overrule.load(store) == {(place[keys[0]], keys[0]): "accept"}
    press(page, "p")
    assert (
        page.get_by_role("button", name="Accept restored").get_attribute("aria-pressed") == "true"
    )
    lines = store.read(OVERRULE).decode().splitlines()
    assert lines == ["shard,key,verdict", f"{place[keys[0]]},{keys[0]},accept"]


def test_filters_pages_and_order(page):
    assert page.locator(".item").count() == 60
    assert page.locator("#page").inner_text() == "1 of 3"
    press(page, "]")
    page.locator("#page", has_text="2 of 3").wait_for()
    page.get_by_label("Not accepted for").select_option("identity")
    page.locator("#page", has_text="1 of 1").wait_for()
    total = int(page.locator("#count").inner_text().split()[0])
    assert 0 < total == page.locator(".item").count()
    assert set(page.locator(".item .why").all_inner_texts()) == {"restored, not accepted: identity"}
    page.reload()
    page.locator(".item[aria-current]").wait_for()
    assert page.get_by_label("Not accepted for").input_value() == "identity"
    page.get_by_role("button", name="Clear").click()
    page.locator("#count", has_text=f"{NUM_FACES} faces").wait_for()
    page.get_by_label("Highest quality", exact=True).fill("0.1")
    page.get_by_label("Highest quality", exact=True).press("Enter")
    page.locator(".item").nth(30).wait_for(state="detached")
    qualities = [float(t.split()[0]) for t in page.locator(".item .side").all_inner_texts()]
    assert max(qualities) <= 0.1
    page.get_by_label("Key contains").fill("nobody")
    page.get_by_label("Key contains").press("Enter")
    page.locator(".empty").wait_for()


def test_hostile_names_are_inert(page):
    page.get_by_label("Order").select_option("set")
    page.locator("#key", has_text=HOSTILE_KEYS[0]).wait_for()
    for name in HOSTILE_KEYS[1:]:
        assert press(page, "ArrowRight") == name
    page.get_by_label("Key contains").fill("<img")
    page.get_by_label("Key contains").press("Enter")
    page.locator("#count", has_text="1 face").wait_for()
    page.locator("#key", has_text=HOSTILE_KEYS[0]).wait_for()
    page.locator("#face").focus()
    page.keyboard.press("x")
    is_told(page, f"{HOSTILE_KEYS[0]}: leave out; written")
    assert page.locator("img[onerror], img[src='x'], #list script, #face script").count() == 0
    page.get_by_role("link", name="Coverage").click()
    page.locator("#field-gender").wait_for()
    assert page.locator("script").count() == 0


def test_flicker_zoom_and_one_over_the_other(page):
    page.get_by_label("Outcome").select_option("restored")
    page.locator("#sentence", has_text="restored: among the worst").wait_for()
    page.locator("#face").focus()
    own, other = page.locator(".stage img.own").first, page.locator(".stage img.other")
    assert (own.is_visible(), other.is_visible()) == (True, False)
    page.keyboard.down("f")
    assert (own.is_visible(), other.is_visible()) == (False, True)
    page.keyboard.up("f")
    assert (own.is_visible(), other.is_visible()) == (True, False)
    boxes = [page.locator(".stage").nth(n).bounding_box() for n in (0, 1)]
    assert boxes[0]["width"] == boxes[1]["width"] > 200
    page.keyboard.press("+")
    moves = page.locator(".stage img").evaluate_all("all => all.map(i => i.style.transform)")
    assert "scale(1.5)" in moves[0]
    assert len(set(moves)) == 1
    smooth = own.evaluate("image => getComputedStyle(image).imageRendering")
    assert smooth == "pixelated"
    page.keyboard.press("0")
    page.keyboard.press("v")
    assert not page.locator('figure[data-side="after"]').is_visible()
    assert page.locator(".stage").first.bounding_box()["width"] > boxes[0]["width"]


def test_what_cannot_be_is_refused_and_another_tab_is_heeded(page, server, chromium):
    before = key(page)
    other = page.context.new_page()
    other.goto(f"http://127.0.0.1:{server.gate.port}/")
    other.locator(".item[aria-current]").wait_for()
    other.keyboard.press("x")
    is_told(other, "leave out; written")
    page.keyboard.press("k")
    is_told(page, "meanwhile this face got another verdict: reject")
    assert key(page) == before
    assert list(server.application.verdicts.current().values()) == ["reject"]
    pressed = page.get_by_role("button", name="Leave out").get_attribute("aria-pressed")
    assert pressed == "true"
    stranger = chromium.new_context().new_page()
    for path in ("", "?token=wrong", "api/rows", "picture/0/before"):
        answer = stranger.goto(f"http://127.0.0.1:{server.gate.port}/{path}")
        assert answer.status == 403
    assert stranger.goto(server.url.replace("127.0.0.1", "localhost")).status == 200
    stranger.context.close()


def test_coverage_shows_the_bias_on_desk_and_phone(page, server):
    page.goto(f"http://127.0.0.1:{server.gate.port}/coverage")
    told = page.locator("main ul").first.inner_text()
    assert "age: 0 to 9 is left out more often than the rest" in told
    row = page.locator("#field-age tr", has_text="0 to 9").first
    assert "100.0 %" in row.inner_text()
    assert page.locator("svg.bars").count() > 20
    widths = page.locator("#field-age rect").evaluate_all(
        "all => all.map(r => r.width.baseVal.value)"
    )
    assert max(widths) == 150
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.goto(f"http://127.0.0.1:{server.gate.port}/")
        page.locator(".item[aria-current]").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.goto(f"http://127.0.0.1:{server.gate.port}/coverage")


def test_help_and_keyboard_alone(page):
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    assert "vsp clean " in page.locator("#command").inner_text()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("o")
    # A letter in a text field is text.
    page.get_by_label("Key contains").focus()
    page.keyboard.type("axku")
    assert page.get_by_label("Key contains").input_value() == "axku"
    assert page.locator("#decided").inner_text() == "0 verdicts"
    names = page.locator("button, select, input").evaluate_all(
        "all => all.filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length"
    )
    assert names == 0
