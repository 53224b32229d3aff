"""`pytest -n 2`: a file stays in one process, as its tests share what a fixture has made."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {"tests/pipeline/test_tar.py", "tests/jobs/test_config.py"}


def test_a_file_stays_in_one_process():
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-v", *sorted(FILES)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    processes = defaultdict(set)
    for process, file in re.findall(r"\[(gw\d)\].* PASSED (\S+?)::", told):
        processes[file].add(process)
    assert processes.keys() == FILES
    assert sorted(each.pop() for each in processes.values() if len(each) == 1) == ["gw0", "gw1"]
