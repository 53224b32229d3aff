"""The Parquet tables of an evaluation folder, and where in it they lie.

    OUT/pairs/<dataset>/<method>.parquet    which image belongs to which truth: the current view
    OUT/scores/<unit>.parquet               long: one row per image and metric
    OUT/features/<extractor>/<unit>.parquet features for metrics of sets
    OUT/results.json, OUT/results.parquet   what it all came to

A score belongs to contents, not to names: rows whose sha256s no pair has any more are leftovers of
images that were replaced, and nobody reads them.
"""

import pyarrow as pa

_WORD = pa.dictionary(pa.int32(), pa.string())


def _words(*names: str) -> list[pa.Field]:
    return [pa.field(name, _WORD, nullable=False) for name in names]


PAIRS = "pairs"
SCORES = "scores"
FEATURES = "features"
RESULTS = "results.json"
RESULTS_TABLE = "results.parquet"
TRUTH_METHOD = "truth"
"""The pseudo-method under which truths are scored by themselves."""
REFERENCE_METHOD = "reference"
"""The pseudo-method under which the clean set that FID compares with stands."""

PAIRS_SCHEMA = pa.schema(
    [
        *_words("method", "method_rev", "dataset", "dataset_rev"),
        pa.field("image_id", pa.string(), nullable=False),
        # Where the bytes are: a file as a whole, or a part of a tar. Empty strings: none.
        *(
            field
            for role in ("restored", "gt", "lq")
            for field in (
                pa.field(f"{role}_path", pa.string(), nullable=False),
                pa.field(f"{role}_offset", pa.int64(), nullable=False),
                pa.field(f"{role}_size", pa.int64(), nullable=False),
                pa.field(f"{role}_sha256", pa.string(), nullable=False),
            )
        ),
        *_words("group"),
    ]
)
SCORES_SCHEMA = pa.schema(
    [
        *_words("method", "method_rev", "dataset", "dataset_rev"),
        pa.field("image_id", pa.string(), nullable=False),
        *_words("metric"),  # the protocol id of `metrics.table.Metric`
        pa.field("value", pa.float64(), nullable=False),
        pa.field("higher_is_better", pa.bool_(), nullable=False),
        *_words("status", "error", "lib", "lib_version", "weights_sha256", "dtype"),
        pa.field("restored_sha256", pa.string(), nullable=False),
        pa.field("gt_sha256", pa.string(), nullable=False),
    ]
)


def features_schema(dim: int) -> pa.Schema:
    """Of the features of one extractor; one row per image."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            *_words("role", "method", "dataset", "extractor_id", "weights_sha256"),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("gt_sha256", pa.string(), nullable=False),
            *_words("status"),
            pa.field("feature", pa.list_(pa.float32(), dim)),
        ]
    )
