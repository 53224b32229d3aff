"""The file that tells what a worker had in hand when it died."""

import subprocess
import sys
import threading

from pipeline.tracker import SLOT_BYTES, Tracker, parse_traces, read_traces


def test_each_thread_has_a_slot_and_only_what_it_holds_now_counts(tmp_path):
    tracker = Tracker(tmp_path / "workers" / "x")
    tracker.hold({"a": range(100)})
    tracker.hold({"a": [1, 2], "b": [0]})
    other = threading.Thread(target=lambda: tracker.hold({"b": [7]}))
    other.start()
    other.join()
    tracker.count({"done": 5})
    traces = read_traces(tmp_path / "workers" / "x")
    assert traces.in_hand == {"a": {1, 2}, "b": {0, 7}}
    assert (traces.num_in_hand, traces.counts) == (4, {"done": 5})
    tracker.let_go()
    assert read_traces(tmp_path / "workers" / "x").in_hand == {"b": {7}}
    tracker.close()


def test_what_was_written_outlives_a_process_that_is_killed(tmp_path):
    code = f"""
import os
from pathlib import Path
from pipeline.tracker import Tracker
tracker = Tracker(Path({str(tmp_path / "x")!r}))
tracker.hold({{"ä b": [3]}})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert read_traces(tmp_path / "x").in_hand == {"ä b": {3}}


def test_no_file_an_empty_one_and_a_torn_counter_are_nothing(tmp_path):
    assert read_traces(tmp_path / "none").num_in_hand == 0
    assert parse_traces(b"").counts == {}
    assert parse_traces(b'{"done": 1' + bytes(SLOT_BYTES)).counts == {}


def test_more_records_than_a_slot_holds_are_cut_not_mixed_up(tmp_path):
    tracker = Tracker(tmp_path / "x")
    tracker.hold({"a": range(10_000, 20_000)})
    tracker.close()
    data = (tmp_path / "x").read_bytes()
    assert len(data) == 2 * SLOT_BYTES
    found = parse_traces(data).in_hand["a"]
    assert 2000 < len(found) < 10_000
