"""A made-up evaluation to report on: drawn faces, invented scores, names that mean harm."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import images
from pipeline.metrics.table import BY_NAME
from pipeline.results import (
    Cell,
    Comparison,
    DatasetInfo,
    MethodInfo,
    MetricInfo,
    PublishedCell,
    Rank,
    Results,
)
from pipeline.scoring.current import CURRENT
from pipeline.scoring.pairs import Pair, PairSet, write_pairs
from pipeline.scoring.sources import Place, find_images
from pipeline.scoring.tables import SCORES, SCORES_SCHEMA
from pipeline.storage import LocalStore

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "\"quoted\" 'twice' & more",
    "</script><script>alert(2)</script>",
    "../../outside",
    "`tick` | pipe **bold** [link](javascript:alert(3))",
    "Gesicht-\u9854-\u0648\u062c\u0647-\u202edesrever",
)
# Metric -> mean and spread of its invented values.
CENTERS = {
    "psnr": (22.0, 2.0), "ssim": (0.62, 0.05), "lpips-squeeze": (0.31, 0.05),
    "lpips-alex": (0.38, 0.05), "identity": (0.55, 0.1), "nme-yunet": (2.4, 0.9),
    "niqe-small": (4.6, 0.7), "detail": (0.0, 1.5),
}  # fmt: skip
GROUPS = ("children", "adults")
TROUBLES = {"identity": "no_face", "nme-yunet": "no_face", "niqe-small": "too_small"}
SHA = "0123456789abcdef" * 4


def face(seed: int, size: int) -> np.ndarray:
    """A drawn face, uint8 (S, S, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(70, 190, (3, 3, 3), np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    unit, light, turn = size / 64, rng.uniform(0.4, 1.0), float(rng.uniform(-12, 12))
    skin, lips = (tone(color, light) for color in ((235, 190, 160), (200, 80, 90)))
    hair = tone((90, 60, 40), rng.uniform(0.2, 1.6))

    def oval(color, x, y, a, b):
        box = ((x * unit, y * unit), (2 * a * unit, 2 * b * unit), turn)
        cv2.ellipse(image, box, color, -1, cv2.LINE_AA)

    oval(hair, 32, 27, 21, 25)
    oval(skin, 32, 34, 17, 23)
    for x in (25, 39):
        oval((245, 245, 245), x, 30, 4, 2.5)
        oval(hair, x, 30, 1.8, 2.2)
        oval(hair, x, 25.5, 4.5, 0.9)
    oval(tone(skin, 0.85), 32, 37, 2, 4.5)
    oval(lips, 32, 46, float(rng.uniform(4, 8)), float(rng.uniform(1, 3)))
    return image


def tone(color: Sequence[int], light: float) -> tuple[int, ...]:
    return tuple(int(value * light) for value in color)


def degraded(image: np.ndarray, strength: float, seed: int) -> np.ndarray:
    blurred = cv2.GaussianBlur(image, (0, 0), 0.2 + strength)
    noise = np.random.default_rng(seed).normal(0, 4 * strength, image.shape)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def write_evaluation(
    folder: Path,
    methods: Sequence[str] = ("Bicubic", "VSPBFR", *HOSTILE[:2]),
    datasets: Sequence[str] = ("CelebA-Test", HOSTILE[0]),
    num_images: int = 6,
    *,
    image_px: int = 64,
    pictures: bool = True,
    ids: Sequence[str] = HOSTILE,
) -> Results:
    """Write pairs, scores and results as an evaluation leaves them.

    Args:
        folder: OUT; pictures lie in OUT/pictures.
        methods: Names.
        datasets: Names.
        num_images: Of each data set.
        image_px: Their side.
        pictures: Whether there are any; else pairs name files that are not there.
        ids: The first image ids; others are numbers.
    """
    store = LocalStore(folder)
    values = {}
    keys = [*ids, *(f"{n:05d}" for n in range(len(ids), num_images))][:num_images]
    for d, dataset in enumerate(datasets):
        for m, method in enumerate(methods):
            places = [
                _places(folder / "pictures", d, role, strength, num_images, image_px, pictures)
                for role, strength in ((f"restored{m}", 0.3 + 0.5 * m), ("lq", 4.0), ("gt", 0.0))
            ]
            pairs = (
                Pair(key, restored, gt, lq, GROUPS[n % 2])
                for n, (key, restored, lq, gt) in enumerate(zip(keys, *places, strict=True))
            )
            pair_set = PairSet(method, dataset, tuple(pairs), "rev")
            write_pairs(store, pair_set)
            values[dataset, method] = _write_scores(store, pair_set, (d, m))
    weights = {BY_NAME[name].protocol: "" for name in CENTERS}
    current = {"weights": weights, "files": {}, "missing": [], "references": {}}
    store.write(CURRENT, json.dumps(current).encode())
    results = _results(values, datasets, methods, num_images)
    results.save(store)
    return results


def _places(root, d, role, strength, num, size, pictures):
    if not pictures:
        return [Place(f"absent/{role}{n}", 0, 9, f"{role}.{d}.{n}") for n in range(num)]
    folder = root / str(d) / role
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for n in range(num):
            image = degraded(face(1000 * d + n, size), strength * size / 256, n)
            # Shown as they are but for the last, which browsers do not show.
            kind = ("png", "jpeg", "webp", "bmp")[n % 4] if role == "gt" else "png"
            (folder / f"{n:05d}.{kind}").write_bytes(images.encode(image, kind))
    return list(find_images(str(folder)).values())


def _write_scores(store, pair_set, seed):
    """Invented values; some images fail where a face is needed. Metric -> values, statuses."""
    rng = np.random.default_rng(seed)
    num = len(pair_set.pairs)
    hard = rng.normal(0, 1, num)
    tables, values = [], {}
    for name, (center, width) in CENTERS.items():
        way = -1 if BY_NAME[name].better == "higher" else 1
        trend = way * (0.25 * seed[1] + 0.6 * hard)
        numbers = center + width * (trend + 0.5 * rng.normal(size=num))
        statuses = np.full(num, "ok", object)
        if name in TROUBLES:
            statuses[rng.random(num) < 0.04] = TROUBLES[name]
            statuses[-1] = TROUBLES[name]
            numbers[statuses != "ok"] = np.nan
        values[name] = numbers, statuses
        tables.append(_score_table(pair_set, BY_NAME[name], numbers, statuses))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink)
    unit = pair_set.slug.replace("/", "-")
    store.write(f"{SCORES}/{unit}.parquet", sink.getvalue().to_pybytes())
    return values


def _score_table(pair_set, info, numbers, statuses):
    pairs = pair_set.pairs
    shared = {
        "method": pair_set.method, "method_rev": "r", "dataset": pair_set.dataset,
        "dataset_rev": "rev", "metric": info.protocol, "higher_is_better": info.better == "higher",
        "error": "", "lib": "vsp-restore", "lib_version": "0", "weights_sha256": "",
        "dtype": "float32",
    }  # fmt: skip
    columns = {name: [value] * len(pairs) for name, value in shared.items()} | {
        "image_id": [pair.image_id for pair in pairs],
        "value": numbers,
        "status": list(statuses),
        "restored_sha256": [pair.restored.sha256 for pair in pairs],
        "gt_sha256": [pair.gt.sha256 for pair in pairs],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in SCORES_SCHEMA]
    return pa.table(arrays, schema=SCORES_SCHEMA)


def _results(values, datasets, methods, num_images) -> Results:
    cells = [
        cell
        for (dataset, method), by_metric in values.items()
        for cell in _cells(dataset, method, by_metric, methods.index(method))
    ]
    return Results(
        title=f"Evaluation {HOSTILE[0]}",
        metrics=tuple(_info(name) for name in (*CENTERS, "fid")),
        datasets=tuple(
            DatasetInfo(name=name, rev="0f3a9c1e5b7d2468", num_images=num_images, has_truth=True,
                        groups=GROUPS, note="drawn faces, invented scores")
            for name in datasets
        ),
        methods=tuple(
            MethodInfo(name=name, revs=dict.fromkeys(datasets, "77aa01bc44ef9921"),
                       notice=f"terms of {name}" if i == 1 else "",
                       cost={"params_m": 26.2 + i, "images_per_s": 9.5 / (i + 1)})
            for i, name in enumerate(methods)
        ),
        cells=tuple(cells),
        comparisons=tuple(_comparisons(values, datasets, methods)),
        ranks=tuple(
            Rank(dataset=dataset, method=method, mean=1.2 + i, mean_average=1.3 + i, low=1.0 + i,
                 high=1.6 + i, p_first=0.9 / (1 + 9 * i), columns=("psnr", "fid"))
            for dataset in ("", *datasets)
            for i, method in enumerate(methods)
        ),
        published=tuple(
            PublishedCell(table="Table II", method=method, column=column, text=text,
                          source="a paper that was never written")
            for method, text in (("Another", "46.58"), (HOSTILE[1], "111.37"))
            for column in ("FID", "NIQE")
        ),
        missing=(f"musiq: needs pyiqa; see {HOSTILE[2]}", "lmd: add the file with `vsp weights`"),
        warnings=(f"fid: {num_images} images are few {HOSTILE[0]}",),
        provenance={"command": f"vsp evaluate {HOSTILE[2]}", "commit": "0123abc", "seed": "0",
                    "hardware": "made up"},
    )  # fmt: skip


def _info(name: str) -> MetricInfo:
    metric = BY_NAME[name]
    weights = {"network.safetensors": SHA} if name.startswith("lpips") else {}
    return MetricInfo(
        name=name, protocol=metric.protocol, better=metric.better, unit=metric.unit,
        kind=metric.kind, source=metric.source, is_loss=metric.is_loss, library="vsp-restore",
        weights=weights,
    )  # fmt: skip


def _cells(dataset, method, by_metric, number):
    for metric, (numbers, statuses) in by_metric.items():
        for group in ("", *GROUPS):
            mine = slice(None) if not group else slice(GROUPS.index(group), None, 2)
            yield _cell(dataset, method, metric, group, numbers[mine], statuses[mine])
    is_refused = number == 0
    yield Cell(
        dataset=dataset, method=method, metric="fid", value=None if is_refused else 40.0 + number,
        error=None if is_refused else 0.8, num_ok=0 if is_refused else len(numbers),
        num_total=len(numbers), note="refused: no reference statistics" if is_refused else "",
    )  # fmt: skip


def _cell(dataset, method, metric, group, numbers, statuses):
    ok = numbers[statuses == "ok"]
    names, counts = np.unique(statuses[statuses != "ok"].astype(str), return_counts=True)
    mean = float(ok.mean()) if len(ok) else None
    half = 1.96 * float(ok.std()) / len(ok) ** 0.5 if len(ok) else 0.0
    return Cell(
        dataset=dataset, method=method, metric=metric, group=group, value=mean,
        low=None if mean is None else mean - half, high=None if mean is None else mean + half,
        num_ok=len(ok), num_total=len(numbers),
        statuses=dict(zip(names.tolist(), counts.tolist(), strict=True)),
    )  # fmt: skip


def _comparisons(values, datasets, methods):
    for dataset in datasets:
        for metric in ("psnr", "identity"):
            for i, method in enumerate(methods):
                for other in methods[:i]:
                    pair = [values[dataset, name][metric][0] for name in (method, other)]
                    difference = float(np.nanmean(pair[0] - pair[1]))
                    yield Comparison(
                        dataset=dataset, metric=metric, method=method, other=other,
                        difference=difference, low=difference - 0.1, high=difference + 0.1,
                        p_wilcoxon=0.004, p_holm=0.01 if i % 2 else 0.4, num_images=len(pair[0]),
                    )  # fmt: skip
