"""An evaluation folder as `vsp score` leaves it, of rows that a test makes up."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.metrics.table import BY_NAME
from pipeline.scoring.current import CURRENT
from pipeline.scoring.tables import FEATURES, PAIRS_SCHEMA, SCORES_SCHEMA, features_schema
from pipeline.storage import LocalStore


class EvaluationFolder:
    """Rows are collected, then written into as many files as a test wants."""

    def __init__(self, root) -> None:
        self.store = LocalStore(root)
        self.pairs: list[dict] = []
        self.scores: list[dict] = []
        self.features: dict[str, list[dict]] = {}
        self.weights: dict[str, str] = {}

    def add_pairs(
        self, dataset: str, method: str, ids: Sequence[str], *, groups: Mapping[str, str] = {},
        has_truth: bool = True, **changed: str,
    ) -> None:  # fmt: skip
        for image_id in ids:
            row = dict.fromkeys(PAIRS_SCHEMA.names, "")
            row |= {name: 0 for name in row if name.endswith(("_offset", "_size"))}
            row |= {
                "method": method, "method_rev": f"made by {method}", "dataset": dataset,
                "dataset_rev": f"rev of {dataset}", "image_id": image_id,
                "restored_sha256": f"{image_id} by {method}",
                "gt_sha256": f"{image_id} true" if has_truth else "",
                "lq_sha256": f"{image_id} degraded", "group": groups.get(image_id, ""),
            }  # fmt: skip
            if method == "truth":
                row |= {"restored_sha256": f"{image_id} true", "gt_sha256": ""}
            self.pairs.append(row | changed)

    def _pair(self, dataset: str, method: str, image_id: str) -> dict:
        wanted = dataset, method, image_id
        return next(
            row for row in self.pairs
            if (row["dataset"], row["method"], row["image_id"]) == wanted
        )  # fmt: skip

    def add_scores(
        self, dataset: str, method: str, metric: str, values: Mapping[str, float | str],
        **changed: str,
    ) -> None:  # fmt: skip
        """Values by image id; a word is a status."""
        protocol = BY_NAME[metric].protocol
        self.weights.setdefault(protocol, "")
        for image_id, value in values.items():
            pair = self._pair(dataset, method, image_id)
            row = {name: pair[name] for name in SCORES_SCHEMA.names if name in pair}
            is_status = isinstance(value, str)
            row |= {
                "metric": protocol, "value": np.nan if is_status else float(value),
                "status": value if is_status else "ok", "error": "", "lib": "lib",
                "lib_version": "1.0", "weights_sha256": "", "dtype": "float32",
                "higher_is_better": BY_NAME[metric].better == "higher",
            }  # fmt: skip
            self.scores.append(row | changed)

    def add_features(
        self, family: str, metrics: Sequence[str], dataset: str, method: str,
        features: Mapping[str, np.ndarray | str],
    ) -> None:  # fmt: skip
        """Features by image id; a word is a status."""
        self.weights |= {BY_NAME[metric].protocol: "" for metric in metrics}
        for image_id, feature in features.items():
            pair = self._pair(dataset, method, image_id)
            is_status = isinstance(feature, str)
            self.features.setdefault(family, []).append(
                {
                    "image_id": image_id, "role": "restored", "method": method, "dataset": dataset,
                    "extractor_id": f"toy/{family}", "weights_sha256": "",
                    "sha256": pair["restored_sha256"], "gt_sha256": pair["gt_sha256"],
                    "status": feature if is_status else "ok",
                    "feature": None if is_status else feature.astype(np.float32),
                }
            )  # fmt: skip

    def write(self, num_files: int = 1, order: np.random.Generator | None = None) -> LocalStore:
        """Everything in files of about equal length, in the order given or a random one."""
        by_set: dict[tuple[str, str], list[dict]] = {}
        for row in self.pairs:
            by_set.setdefault((row["dataset"], row["method"]), []).append(row)
        for (dataset, method), rows in by_set.items():
            self._write(f"pairs/{dataset}/{method}.parquet", rows, PAIRS_SCHEMA)
        parts = {"scores": (self.scores, SCORES_SCHEMA)}
        for family, rows in self.features.items():
            dim = next(len(row["feature"]) for row in rows if row["feature"] is not None)
            parts[f"{FEATURES}/{family}"] = rows, features_schema(dim)
        for folder, (rows, schema) in parts.items():
            places = order.permutation(len(rows)) if order else np.arange(len(rows))
            for number, part in enumerate(np.array_split(places, num_files)):
                name = f"{folder}/{number:03}.parquet"
                self._write(name, [rows[place] for place in part], schema)
        facts = {"weights": self.weights, "files": {}, "missing": [], "references": {}}
        self.store.write(CURRENT, json.dumps(facts).encode())
        return self.store

    def _write(self, name: str, rows: Sequence[dict], schema: pa.Schema) -> None:
        columns = [pa.array([row[f.name] for row in rows], f.type) for f in schema]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, schema=schema), sink)
        self.store.write(name, sink.getvalue().to_pybytes())
