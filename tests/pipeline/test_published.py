from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.scoring.published import load_published

PUBLISHED = Path(__file__).resolve().parents[2] / "configs/benchmark/published"


def test_all_tables_are_there_as_printed():
    cells = load_published(PUBLISHED, [f"table-{number}" for number in range(1, 6)])
    texts = {(c.table, c.method, c.column): c.text for c in cells}
    assert texts["table-1", "PSFRGAN", "CelebA-Test LPIPS"] == ".4199"
    assert texts["table-2", "Ours", "WebPhoto-Test FID"] == "74.25"
    assert texts["table-3", "VQFR", "FLOPs [G]"] == "1070"
    assert texts["table-4", "full", "LFW-Test NIQE"] == "3.96"
    assert texts["table-5", "Ours", "emotion accuracy [%]"] == "86.03"
    assert all("VSPBFR" in cell.source and "Table" in cell.source for cell in cells)
    counts = {n: sum(c.table == f"table-{n}" for c in cells) for n in range(1, 6)}
    assert counts == {1: 15 * 9, 2: 15 * 7, 3: 14 * 3, 4: 5 * 6, 5: 2 * 3}


def test_an_empty_cell_is_no_number(tmp_path):
    (tmp_path / "mine.csv").write_text("# somewhere\nmethod,FID,PSNR\nA,1.0,\n")
    (cell,) = load_published(tmp_path, ["mine"])
    assert (cell.table, cell.method, cell.column, cell.text) == ("mine", "A", "FID", "1.0")
    assert cell.source == "somewhere"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "mine.csv: empty"),
        ("method,FID\nA,1\n", "mine.csv:1: expected a line '# source'"),
        ("# x\nmethod,FID\nA,1\nB\n", "mine.csv:4: as many columns"),
        ("# x\nmethod,FID\nA,1,2\n", "mine.csv:3: as many columns"),
    ],
)
def test_damaged_tables_are_refused_by_line(text, fault, tmp_path):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=fault.replace("(", r"\(")):
        load_published(tmp_path, ["mine"])


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(UserError, match=r"no such published table; there are: table-1, "):
        load_published(PUBLISHED, ["table-9"])
