import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cleaning.calibration.thresholds import CalibrateConfig, Level, Thresholds
from pipeline.cleaning.copies.groups import Copy
from pipeline.cleaning.gate import GateConfig, decide
from pipeline.cleaning.persons.identities import Persons
from pipeline.cleaning.tables import Decision, Inspected, schema_of

CONFIG = GateConfig()
MODEL = 128
MEDIANS = (0.9, 0.7, 0.5, 0.3, 0.1)


def thresholds(
    refusals: tuple[str, ...] = ("no_profit", "", "", "", "identity_unmeasurable"),
    keep: float | None = 0.8,
) -> Thresholds:
    levels = tuple(
        Level(level=place + 1, count=128, quality=median, classic=median, identity_threshold=0.5,
              refusal=refusal)
        for place, (median, refusal) in enumerate(zip(MEDIANS, refusals, strict=True))
    )  # fmt: skip
    refusal = "" if "" in refusals else refusals[1]
    return Thresholds(levels=levels, keep_quality=None if refusal else keep, refusal=refusal,
                      conclusion="so it is", config=CalibrateConfig(), facts={})  # fmt: skip


def table(*rows: dict[str, object], others: int = 60) -> pa.Table:
    """The given images, in shard 0, and then good ones that fill the set."""
    usual: dict[str, object] = {
        "status": "inspected", "width_px": 128, "height_px": 128, "num_faces": 1, "quality": 0.95,
        "native_side_px": 100.0, "sha256": "0",
    }  # fmt: skip
    given = [usual | {"quality": 0.4} | row for row in rows]
    given += [usual | {"quality": 0.9 + n / 1000} for n in range(others)]
    made = [
        Inspected(index=n, key=f"k{n}", **row)  # type: ignore[arg-type]
        for n, row in enumerate(given)
    ]
    columns = {name: [getattr(row, name) for row in made] for name in schema_of(Inspected).names}
    seen = pa.table(columns, schema=schema_of(Inspected))
    return seen.append_column("shard", pa.array(["000000"] * len(made)))


def run(seen: pa.Table, **changes: object) -> list[Decision]:
    arguments: dict[str, object] = {
        "copies": [None] * len(seen), "persons": None, "thresholds": thresholds(), "overrules": {},
        "model_size": MODEL, "has_identity": True, "config": CONFIG,
    }  # fmt: skip
    return decide(seen, **(arguments | changes))  # type: ignore[arg-type]


def word(decision: Decision) -> str:
    return f"{decision.decision} {decision.reason}"


# ------------------------------------------------------------------------- what one image is


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "restore worst"),
        ({"quality": 0.95}, "keep good"),
        ({"quality": 0.8}, "keep good"),
        ({"quality": None}, "keep not_worst"),
        ({"quality": 0.1}, "keep identity_unmeasurable"),
        ({"quality": -1.0}, "keep identity_unmeasurable"),
        ({"native_side_px": 161.0}, "keep model_too_small"),
        ({"native_side_px": 159.0}, "restore worst"),
        ({"native_side_px": None}, "restore worst"),
        ({"num_faces": 0}, "reject no_face"),
        ({"num_faces": None}, "reject no_face"),
        ({"num_faces": 2}, "reject several_faces"),
        ({"width_px": 47}, "reject too_small"),
        ({"height_px": 48}, "restore worst"),
        ({"status": "refused", "num_faces": None}, "reject unusable"),
        ({"status": "failed", "num_faces": None}, "keep not_inspected"),
        ({"status": "truncated", "num_faces": None}, "reject unusable"),
        ({"status": "forgotten", "num_faces": None}, "reject forgotten"),
        ({"status": "copied", "num_faces": None}, "keep no_image"),
        # The first rule that applies decides.
        ({"num_faces": 0, "width_px": 10}, "reject no_face"),
        ({"quality": 0.85, "native_side_px": 500.0}, "keep good"),
        ({"quality": 0.1, "native_side_px": 500.0}, "keep model_too_small"),
    ],
)
def test_one_image(row, expected):
    assert word(run(table(row))[0]) == expected


def test_details_say_what_the_reason_does_not():
    rows = (
        {"status": "refused", "reason": "damaged JPEG", "num_faces": None},
        {"num_faces": 3}, {"width_px": 40}, {"native_side_px": 300.0}, {},
    )  # fmt: skip
    found = [decision.detail for decision in run(table(*rows))]
    assert found[:5] == [
        "damaged JPEG", "3 faces", "40 x 128 px", "carries 300 px, the model gives 128", "",
    ]  # fmt: skip


def test_rows_carry_place_key_and_level():
    first, second, *_ = run(table({}, {"quality": 0.68}))
    assert (first.index, first.key, first.level) == (0, "k0", 3)
    assert (second.index, second.key, second.level) == (1, "k1", 2)
    assert run(table({"quality": 1.2}))[0].level is None


# ------------------------------------------------------------------------------- the worst


def test_only_below_the_sets_own_quantile_anything_is_restored():
    rows = [{"quality": 0.3 + n / 1000} for n in range(100)]
    found = run(table(*rows, others=0))
    assert Counter(map(word, found)) == {"restore worst": 25, "keep not_worst": 75}
    assert {decision.index for decision in found if decision.decision == "restore"} == set(
        range(25)
    )
    few = run(table(*rows, others=0), config=GateConfig(worst_share=0.1))
    assert sum(decision.decision == "restore" for decision in few) == 10


def test_the_quantile_counts_usable_images_that_are_nobodys_copy():
    # 30 that cannot be used and 30 copies, all worse: they must not use up the worst quarter.
    worse = [{"quality": 0.2, "num_faces": 2}] * 30 + [{"quality": 0.2}] * 31
    rows = [*worse, *({"quality": 0.3 + n / 1000} for n in range(39))]
    copies = [None] * 30 + [Copy(0, None, 30, 1.0)] + [Copy(0, "near", 30, 0.99)] * 30
    found = run(table(*rows, others=0), copies=[*copies, *[None] * 39])
    assert Counter(map(word, found)) == {
        "reject several_faces": 30, "reject duplicate_near": 30, "restore worst": 10,
        "keep not_worst": 30,
    }  # fmt: skip


def test_a_set_of_equal_images_has_no_worst():
    found = run(table(*[{}] * 50, others=0))
    assert set(map(word, found)) == {"keep not_worst"}


def test_a_tiny_set_has_no_worst_and_says_so():
    rows = [{"quality": n / 19} for n in range(19)]
    found = run(table(*rows, others=0))
    assert not any(decision.decision == "restore" for decision in found)
    told = [d.detail for d in found if d.reason == "not_worst"]
    assert told
    assert set(told) == {"too few usable images to call one the worst"}
    enough = run(table(*rows, {"quality": 1.0}, others=0))
    assert any(decision.decision == "restore" for decision in enough)
    assert run(table(others=0)) == []


# ------------------------------------------------------------------------ what is calibrated


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"has_identity": False, "thresholds": None}, "keep no_identity_net"),
        ({"thresholds": None}, "keep uncalibrated"),
        ({"thresholds": thresholds(("no_profit",) * 5)}, "keep no_profit"),
        ({"thresholds": thresholds(("identity_unmeasurable",) * 5)}, "keep identity_unmeasurable"),
        ({"thresholds": thresholds(("uncalibrated",) * 5)}, "keep uncalibrated"),
        (
            {"thresholds": thresholds(("no_profit", "", "no_profit", "", ""))},
            "keep no_profit",
        ),
    ],
)
def test_nothing_is_restored_without_evidence(changes, expected):
    found = run(table({}), **changes)
    assert word(found[0]) == expected
    assert not any(decision.decision == "restore" for decision in found)


def test_a_set_that_is_not_cleaned_says_why():
    found = run(table({}), thresholds=thresholds(("no_profit",) * 5))
    assert found[0].detail == "so it is"


def test_what_is_left_out_does_not_need_a_calibration():
    rows = ({"num_faces": 0}, {"status": "refused", "num_faces": None})
    found = run(table(*rows), thresholds=None, has_identity=False)
    assert [word(decision) for decision in found[:2]] == ["reject no_face", "reject unusable"]


# ------------------------------------------------------------------------------------ copies


def test_copies_go_and_the_best_is_judged_for_itself():
    copies = [
        Copy(0, None, 0, 1.0), Copy(0, "exact", 0, 1.0), Copy(0, "near", 0, 0.98),
        Copy(0, "flip", 0, 0.97),
    ]  # fmt: skip
    seen = table(*[{}] * 4)
    found = run(seen, copies=copies + [None] * 60)
    assert [word(decision) for decision in found[:4]] == [
        "restore worst", "reject duplicate_exact", "reject duplicate_near", "reject duplicate_flip",
    ]  # fmt: skip
    assert [decision.copy_of for decision in found[:4]] == [None, *["000000/k0"] * 3]
    assert found[2].copy_likeness == 0.98
    assert found[0].copy_likeness is None
    assert {decision.group for decision in found[:4]} == {0}
    kept = run(seen, copies=copies + [None] * 60, config=GateConfig(flips="keep"))
    assert word(kept[3]) == "restore worst"
    assert kept[3].copy_kind == "flip"


def test_a_picture_is_not_lost_because_its_best_copy_was():
    rows = ({"num_faces": 2}, {"num_faces": 2}, {}, {}, {})
    copies = [
        Copy(4, None, 0, 1.0), Copy(4, "exact", 0, 1.0), Copy(4, "flip", 0, 0.98),
        Copy(4, "near", 0, 0.97), Copy(4, "flip", 0, 0.96),
    ]  # fmt: skip
    found = run(table(*rows), copies=copies + [None] * 60)
    assert [word(decision) for decision in found[:5]] == [
        "reject several_faces", "reject several_faces", "restore worst", "reject duplicate_flip",
        "reject duplicate_near",
    ]  # fmt: skip
    assert found[2].copy_of is None
    assert [decision.copy_of for decision in found[3:5]] == ["000000/k2"] * 2


# ----------------------------------------------------------------------------------- persons


def persons(outliers: list[bool]) -> Persons:
    likeness = np.where(outliers, 0.05, 0.7)
    likeness[-1] = np.nan
    group = np.where(np.isnan(likeness), -1, 3)
    return Persons(group, likeness, np.array(outliers), [])


def test_who_is_somebody_else_goes():
    seen = table({"person": "ann"}, {"person": "ann"})
    outliers = persons([True] + [False] * 61)
    found = run(seen, persons=outliers)
    assert word(found[0]) == "reject identity_outlier"
    assert found[0].detail == "not like the others of ann"
    assert (found[0].identity_group, found[0].identity_likeness) == (3, 0.05)
    assert word(found[1]) == "restore worst"
    assert (found[-1].identity_group, found[-1].identity_likeness) == (None, None)
    kept = run(seen, persons=outliers, config=GateConfig(outliers="keep"))
    assert word(kept[0]) == "restore worst"


def test_an_intruder_does_not_lead_a_group_of_copies():
    copies = [Copy(0, None, 0, 1.0), Copy(0, "near", 0, 0.97), *[None] * 60]
    found = run(table({}, {}), copies=copies, persons=persons([True] + [False] * 61))
    assert [word(decision) for decision in found[:2]] == [
        "reject identity_outlier", "restore worst",
    ]  # fmt: skip


# -------------------------------------------------------------------------------- overruling


@pytest.mark.parametrize(
    ("row", "said", "expected"),
    [
        ({"quality": 0.95}, "accept", "restore overruled"),
        ({}, "keep", "keep overruled"),
        ({}, "reject", "reject overruled"),
        ({"num_faces": 0}, "keep", "keep overruled"),
        ({"num_faces": 2}, "accept", "restore overruled"),
        ({"status": "copied", "num_faces": None}, "reject", "reject overruled"),
        ({"status": "copied", "num_faces": None}, "accept", "keep no_image"),
        ({"status": "refused", "num_faces": None}, "accept", "reject unusable"),
        ({"status": "forgotten", "num_faces": None}, "keep", "reject forgotten"),
    ],
)
def test_a_persons_word_comes_last(row, said, expected):
    assert word(run(table(row), overrules={("", "k0"): said})[0]) == expected
    assert word(run(table(row), overrules={("000000", "k0"): said})[0]) == expected


def test_what_was_overruled_is_told_and_touches_nobody_else():
    usual = run(table({}, {}))
    found = run(table({}, {}), overrules={("000000", "k0"): "keep"})
    assert found[0].detail == "keep; the program: restore, worst"
    assert found[1:] == usual[1:]
    assert run(table({}, {}), overrules={("000001", "k0"): "keep"}) == usual


# -------------------------------------------------------------------------------------- size


def test_large_sets_take_seconds():
    count = 200_000
    rng = np.random.default_rng(0)
    seen = table(others=1).take([0] * count)
    seen = seen.set_column(
        seen.schema.get_field_index("quality"), "quality", pa.array(rng.uniform(0, 1, count))
    )
    copies = [Copy(n // 50, "near", n - n % 50, 0.9) if n % 50 == 1 else None for n in range(count)]
    start = time.process_time()
    found = run(seen, copies=copies)
    assert time.process_time() - start < 8  # a million in about ten times what this took: 1 s
    assert Counter(decision.decision for decision in found)["reject"] == count // 50


def test_who_is_left_out_by_a_person_leads_no_copies():
    seen = table(*[{}] * 2)
    copies = [Copy(0, None, 0, 1.0), Copy(0, "near", 0, 0.98), *[None] * (len(seen) - 2)]
    first, second, *_ = run(seen, copies=copies, overrules={("", "k0"): "reject"})
    assert (first.decision, first.reason) == ("reject", "overruled")
    assert second.reason != "duplicate_near"
    assert second.copy_of is None
