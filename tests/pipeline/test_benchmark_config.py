from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.benchmark.config import Benchmark, Dataset, FolderMethod

CLASSIC = {"kind": "classic"}


def bench(**more):
    values = {"datasets": {"faces": {"hq": "clean"}}, "methods": {"input": CLASSIC}} | more
    return Benchmark.model_validate(values)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "give one of hq"),
        ({"hq": "a", "lq": "b"}, "give one of hq"),
        ({"hq": "a", "gt": "b"}, "gt belongs to lq"),
        ({"lq": "a", "size": 64}, "size belongs to hq"),
        ({"lq": "a", "preset": "gfpgan"}, "preset belongs to hq"),
        ({"hq": "a", "preset": "gfpgann"}, "no such preset; did you mean gfpgan?"),
    ],
)
def test_a_data_set_has_one_source_and_only_what_belongs_to_it(settings, told):
    with pytest.raises(ValidationError, match=told):
        Dataset.model_validate(settings)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"methods": {}}, "at least 1"),
        ({"datasets": {}}, "no data set"),
        ({"methods": {"truth": CLASSIC}}, "this name is kept"),
        ({"methods": {"A": CLASSIC, "a": CLASSIC}}, "A and a: files of both would have one name"),
        ({"methods": {"a\nb": CLASSIC}}, "printable"),
        ({"methods": {" ": CLASSIC}}, "printable"),
        ({"methods": {"x": {"kind": "callable", "function": "os.system"}}}, "pattern"),
        ({"methods": {"x": {"kind": "callable", "function": "../x:f"}}}, "pattern"),
        (
            {"methods": {"x": {"kind": "spandrel", "arch": "gfpgan", "path": "p", "w": 1}}},
            "w is CodeFormer's",
        ),
        ({"methods": {"x": {"kind": "folder", "path": {"other": "p"}}}}, "no data set 'other'"),
        (
            {
                "datasets": {"one": {"hq": "a"}, "two": {"hq": "b"}},
                "methods": {"x": {"kind": "folder", "path": "p"}},
            },
            "one folder for 2 data sets",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(more, told):
    with pytest.raises(ValidationError, match=told):
        bench(**more)


def test_a_folder_may_differ_by_data_set():
    assert FolderMethod(path="out/{dataset}").of("LFW") == "out/LFW"
    each = FolderMethod(path={"LFW": "a"})
    assert (each.of("LFW"), each.of("WIDER")) == ("a", "")


def test_paths_are_relative_to_root_and_to_the_yaml(tmp_path):
    (tmp_path / "net.safetensors").touch()
    located = bench(
        root="data",
        datasets={"a": {"hq": "clean", "preset": "mine.yaml"}, "b": {"lq": "s3://bucket/lq"}},
        methods={
            "own": {"kind": "folder", "path": {"a": "own", "b": "/elsewhere"}},
            "net": {"kind": "model", "path": "net.safetensors"},
            "known": {"kind": "model", "path": "vspbfr-512"},
            "built in": {"kind": "model"},
            "other": {"kind": "model", "path": "../x.safetensors"},
        },
    ).located(tmp_path)
    assert located.datasets["a"].hq == str(tmp_path / "data" / "clean")
    assert located.datasets["a"].preset == str(tmp_path / "mine.yaml")
    assert located.datasets["b"].lq == "s3://bucket/lq"
    assert located.methods["own"].path == {"a": str(tmp_path / "data/own"), "b": "/elsewhere"}
    assert located.methods["net"].path == str(tmp_path / "net.safetensors")
    assert located.methods["known"].path == "vspbfr-512"
    assert located.methods["built in"].path == ""
    assert located.methods["other"].path == str(Path(tmp_path.parent / "x.safetensors"))


def test_tables_are_named_once():
    tables = bench(
        published=["table-3"],
        datasets={"a": {"hq": "x", "published": ["table-2"]},
                  "b": {"hq": "y", "published": ["table-2", "table-3"]}},
    ).tables  # fmt: skip
    assert tables == ("table-3", "table-2")
