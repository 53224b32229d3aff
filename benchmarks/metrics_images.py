"""Images a second of the metrics of single images, 512 pixels: ours beside the libraries', in turn.

    python benchmarks/metrics_images.py --weights weights/ --threads 1
    python benchmarks/metrics_images.py --weights weights/ --iqa-python iqa/bin/python

Both sides begin with the same uint8 pictures and take turns picture by picture, so that the ratio
survives a busy machine; of each side the median counts. PSNR and SSIM stand beside scikit-image
with the settings that are the restoration field's; torchmetrics' SSIM, which keeps a padded border,
is another number and stands there for its time. LPIPS stands beside the package that defines it.
NIQE stands beside pyiqa, which has an environment of its own (`uv pip install pyiqa
'setuptools<82'`): `--iqa-python` starts its Python as a process that answers picture by picture
(benchmarks/metrics_pyiqa.py) and times itself; its numbers are others by definition: NIQE takes
another luma, SSIM ("ssimc") cuts a negative contrast term, PSNR adds an epsilon. Pictures:
scikit-image's astronaut, turned, as JPEG of several qualities.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline import images
from pipeline.errors import UserError
from pipeline.images import Pixels
from pipeline.metrics.families import NIQE, SQUEEZENET, Need
from pipeline.metrics.judge import Face
from pipeline.metrics.natural import NiqeJudge, load_model
from pipeline.metrics.perceptual import PerceptualJudge
from pipeline.metrics.pixels import psnr, ssim
from vsp_model.losses import LPIPS, LPIPSConfig

Pair = tuple[Pixels, Pixels]
Timed = Callable[[Pair], tuple[float, float]]
"""A pair -> what the metric says, and the seconds it took."""
Row = dict[str, float | str]


@dataclass(slots=True)
class Contest:
    """One metric on both sides.

    Attributes:
        metric: Its name.
        library: Whose the other side is, with its version.
        ours: Ours.
        theirs: Theirs.
        seconds: Of each turn, ours and theirs.
        differences: Between the values.
    """

    metric: str
    library: str
    ours: Timed
    theirs: Timed
    seconds: list[tuple[float, float]] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    def turn(self, pair: Pair, first: bool) -> None:
        """Both sides once; the first pair warms up and is not counted."""
        (value, ours_s), (other, theirs_s) = self.ours(pair), self.theirs(pair)
        if not first:
            self.seconds.append((ours_s, theirs_s))
        self.differences.append(abs(value - other))

    def row(self) -> Row:
        """What is printed."""
        ours_s, theirs_s = (statistics.median(side) for side in zip(*self.seconds, strict=True))
        return {
            "metric": self.metric,
            "library": self.library,
            "ours_images_per_s": 1 / ours_s,
            "library_images_per_s": 1 / theirs_s,
            "ratio": statistics.median(theirs / ours for ours, theirs in self.seconds),
            "max_difference": max(self.differences),
        }


def pictures(count: int) -> list[Pair]:
    """Restored and truth, (512, 512, 3)."""
    found = []
    for number in range(count):
        truth = np.ascontiguousarray(np.rot90(data.astronaut(), number % 4))
        bgr = cv2.cvtColor(truth, cv2.COLOR_RGB2BGR)
        quality = (cv2.IMWRITE_JPEG_QUALITY, 20 + 10 * (number % 7))
        _, encoded = cv2.imencode(".jpg", bgr, quality)
        found.append((images.decode(encoded.tobytes())[1], truth))
    return found


def timed(metric: Callable[[Pixels, Pixels], float]) -> Timed:
    """The metric with its time."""

    def run(pair: Pair) -> tuple[float, float]:
        began_s = time.perf_counter()
        value = float(metric(*pair))
        return value, time.perf_counter() - began_s

    return run


def skimage_ssim(image: Pixels, truth: Pixels) -> float:
    """SSIM as the restoration field has it."""
    value: float = structural_similarity(
        truth, image, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    return value


def skimage_psnr(image: Pixels, truth: Pixels) -> float:
    """PSNR of uint8."""
    value: float = peak_signal_noise_ratio(truth, image, data_range=255)
    return value


def to_tensor(picture: Pixels) -> torch.Tensor:
    """(1, 3, H, W) float32, 0 to 255, as libraries take it."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float().contiguous()


@torch.inference_mode()
def torchmetrics_ssim(image: Pixels, truth: Pixels) -> float:
    """With the border that it pads; the arguments are its defaults, which are Wang's."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(
        to_tensor(image), to_tensor(truth), data_range=255.0
    )
    return float(found)


def package_lpips(trunk: Path) -> Callable[[Pixels, Pixels], float]:
    """The package as its README calls it, on the same trunk."""
    package = LPIPS(LPIPSConfig(net="squeeze")).load_path(trunk).package

    @torch.inference_mode()
    def run(image: Pixels, truth: Pixels) -> float:
        one, other = (to_tensor(picture).div_(127.5).sub_(1) for picture in (image, truth))
        return float(package(one, other))

    return run


@contextmanager
def pyiqa(python: Path, metric: str, weights: Path, threads: int) -> Iterator[tuple[Timed, str]]:
    """A metric of pyiqa in a process of its own, and pyiqa's version."""
    program = Path(__file__).with_name("metrics_pyiqa.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), str(program), metric, str(threads), folder]
        if metric == "niqe":
            model = load_model(find(NIQE, weights))
            path = Path(folder, "niqe.npz")
            np.savez(path, mean=model.mean, covariance=model.covariance)
            command.append(str(path))
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin
            assert process.stdout
            answers, ask = process.stdout, process.stdin

            def run(pair: Pair) -> tuple[float, float]:
                path = Path(folder, "pair.npy")
                np.save(path, np.stack(pair))
                print(path, file=ask, flush=True)
                answer: dict[str, float] = json.loads(answers.readline())
                return answer["value"], answer["seconds"]

            line = answers.readline()
            if not line:
                raise UserError(f"--iqa-python {python}: pyiqa did not start")
            yield run, json.loads(line)["version"]
            ask.close()


def find(need: Need, weights: Path) -> Path:
    """The file in the folder.

    Raises:
        UserError: If it is not there.
    """
    for name in need.names:
        if (weights / name).is_file():
            return weights / name
    raise UserError(f"--weights {weights}: holds no {' or '.join(need.names)}")


def contests(weights: Path) -> list[Contest]:
    """What needs no other environment."""
    trunk = find(SQUEEZENET, weights)
    judge = PerceptualJudge(trunk, "squeeze")

    def our_lpips(image: Pixels, truth: Pixels) -> float:
        return judge.score(Face("", image, truth))["lpips-squeeze"].value

    skimage, torchmetrics = (f"{name} {version(name)}" for name in ("scikit-image", "torchmetrics"))
    return [
        Contest("psnr", skimage, timed(psnr), timed(skimage_psnr)),
        Contest("ssim", skimage, timed(ssim), timed(skimage_ssim)),
        Contest("ssim", f"{torchmetrics} (another border)", timed(ssim), timed(torchmetrics_ssim)),
        Contest("lpips-squeeze", f"lpips {version('lpips')}", timed(our_lpips),
                timed(package_lpips(trunk))),
    ]  # fmt: skip


def measure(
    num_images: int, threads: int, weights: Path, iqa_python: Path | None = None
) -> list[Row]:
    """Every metric beside every library.

    Args:
        num_images: Pictures that count, after one that warms up.
        threads: Of torch, OpenCV and pyiqa.
        weights: Folder with SqueezeNet's trunk and NIQE's model.
        iqa_python: Python of an environment with pyiqa; None leaves its rows out.

    Returns:
        Rows of metric, library, ours_images_per_s, library_images_per_s, ratio (the median of the
        turns' ratios), max_difference.

    Raises:
        UserError: If a file is missing.
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    try:
        with ExitStack() as stack:
            rounds = contests(weights)
            if iqa_python:
                rounds += _iqa_contests(stack, iqa_python, weights, threads)
            for number, pair in enumerate(pictures(num_images + 1)):
                for contest in rounds:
                    contest.turn(pair, first=number == 0)
            return [contest.row() for contest in rounds]
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _iqa_contests(stack: ExitStack, python: Path, weights: Path, threads: int) -> list[Contest]:
    judge = NiqeJudge(find(NIQE, weights))

    def our_niqe(image: Pixels, truth: Pixels) -> float:
        return judge.score(Face("", image))["niqe"].value

    ours: dict[str, Callable[[Pixels, Pixels], float]] = {
        "psnr": psnr, "ssimc": ssim, "niqe": our_niqe,
    }  # fmt: skip
    found = []
    for metric, function in ours.items():
        theirs, number = stack.enter_context(pyiqa(python, metric, weights, threads))
        name = "ssim" if metric == "ssimc" else metric
        found.append(Contest(name, f"pyiqa {number} ({metric})", timed(function), theirs))
    return found


def as_table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| metric | library | ours, images/s | library, images/s | ratio | values differ by |",
             "|---|---|--:|--:|--:|--:|"]  # fmt: skip
    for row in rows:
        cells: list[Any] = list(row.values())
        lines.append("| {} | {} | {:.1f} | {:.1f} | {:.2f} | {:.1e} |".format(*cells))
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iqa-python", type=Path, help="Python of an environment with pyiqa")
    options = parser.parse_args()
    try:
        rows = measure(options.images, options.threads, options.weights, options.iqa_python)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(as_table(rows))


if __name__ == "__main__":
    main()
