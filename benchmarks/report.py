"""How large a report is, and how fast it opens: 10 methods, 3,000 images, in headless Chromium.

    python benchmarks/report.py [--datasets 1] [--methods 10] [--images 3000] [--with-images]

The scores are invented, the faces drawn. Pages are opened from the disk three times, each in a new
context; the median is printed. Needs Chromium on the path and the package playwright.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "doubles"))

from report_folder import write_evaluation  # noqa: E402

from pipeline.report.build import ReportConfig, write_report  # noqa: E402

REPEATS = 3
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Milliseconds since the page was asked for.
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
SORT = """() => {
  const start = performance.now();
  document.querySelector('#results th:nth-child(2) button').click();
  document.body.offsetHeight;
  return performance.now() - start;
}"""
ARRANGE = """() => {
  const start = performance.now();
  const control = document.querySelector('[data-control="metric"]');
  control.value = '0';
  control.dispatchEvent(new Event('change'));
  document.body.offsetHeight;
  return performance.now() - start;
}"""
SCROLL = """() => new Promise((done) => {
  const start = performance.now();
  let steps = 0;
  const next = () => {
    if (steps === 60) return done((performance.now() - start) / steps);
    steps += 1;
    scrollTo({ top: steps * document.body.scrollHeight / 60, behavior: 'instant' });
    requestAnimationFrame(next);
  };
  next();
})"""


def measure(browser: Any, page_file: Path, scripts: dict[str, str], ready: str) -> dict[str, float]:
    """Open a page several times and take the median of what each script gives."""
    found: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(REPEATS):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(page_file.as_uri(), wait_until="load")
        page.locator(ready).first.wait_for()
        page.wait_for_timeout(200)
        for name, script in scripts.items():
            found[name].append(page.evaluate(script))
        context.close()
    return {name: statistics.median(values) for name, values in found.items()}


def size_mb(path: Path) -> float:
    """Of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files) / 1e6


def main() -> None:
    """Generate, report, open, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--datasets", type=int, default=1)
    parser.add_argument("--methods", type=int, default=10)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--with-images", action="store_true", help="draw faces of 256 pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        methods = [f"Method {number}" for number in range(options.methods)]
        datasets = [f"Set {number}" for number in range(options.datasets)]
        write_evaluation(
            folder, methods, datasets, options.images, pictures=options.with_images,
            image_px=256, ids=(),
        )  # fmt: skip
        start = time.perf_counter()
        index = write_report(folder, ReportConfig(images=options.with_images))
        print(f"written in {time.perf_counter() - start:.1f} s")
        largest = max((index.parent / "data").iterdir(), key=lambda path: path.stat().st_size)
        print(f"index.html {size_mb(index):.2f} MB, all {size_mb(index.parent):.1f} MB, "
              f"largest data file {size_mb(largest):.2f} MB")  # fmt: skip
        single = None
        if options.with_images:
            single = write_report(folder, ReportConfig(single_file=True, to=folder / "single"))
            print(f"single file {size_mb(single):.1f} MB")
        open_pages(index, single)


def open_pages(index: Path, single: Path | None) -> None:
    """Time the pages in a browser."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        if single:
            told = measure(browser, single, {"first paint": PAINTED, "loaded": LOADED}, "h1")
            print("single file:", ", ".join(f"{name} {told[name]:.0f} ms" for name in told))
        first = {"first paint": PAINTED, "loaded": LOADED, "sorting a table": SORT}
        told = measure(browser, index, first, "h1")
        print("index:", ", ".join(f"{name} {value:.0f} ms" for name, value in told.items()))
        gallery = {"first paint": PAINTED, "loaded": LOADED, "sorting all images": ARRANGE,
                   "a step of scrolling": SCROLL}  # fmt: skip
        told = measure(browser, index.parent / "pages" / "d0-m0.html", gallery, ".tile")
        print("gallery:", ", ".join(f"{name} {value:.0f} ms" for name, value in told.items()))
        browser.close()


if __name__ == "__main__":
    main()
