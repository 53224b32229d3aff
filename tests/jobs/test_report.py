from report_folder import write_evaluation


def test_report_says_where_it_is_and_how_large(vsp, tmp_path):
    write_evaluation(tmp_path / "out", ["one", "two"], ["set"], 2)
    code, out, err = vsp("report", str(tmp_path / "out"), "--no-images")
    index = tmp_path / "out" / "report" / "index.html"
    assert (code, err) == (0, "")
    assert out == f"{index} ({index.stat().st_size / 1e6:.2f} MB)\n"


def test_a_folder_without_results_is_one_line(vsp, tmp_path):
    for arguments in ((str(tmp_path),), (str(tmp_path / "none"),)):
        code, out, err = vsp("report", *arguments)
        assert (code, out) == (2, "")
        assert "no results; make them with `vsp score`" in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_comparing_with_nothing_is_one_line_before_anything_is_written(vsp, tmp_path):
    write_evaluation(tmp_path / "out", ["one"], ["set"], 1)
    code, _, err = vsp("report", str(tmp_path / "out"), "--compare", str(tmp_path / "none"))
    assert code == 2
    assert err.startswith(f"vsp: {tmp_path / 'none'}")
    assert not (tmp_path / "out" / "report").exists()
