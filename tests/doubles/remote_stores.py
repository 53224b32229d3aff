"""How patient the tests are with a remote store, and an attempt staged in one."""

from pipeline.objects import Patience

QUICK = Patience(tries=8, first_s=0.01, longest_s=0.05, total_s=10, connect_s=2, read_s=5)
BRIEF = Patience(tries=3, first_s=0.01, longest_s=0.05, total_s=2, connect_s=1, read_s=0.5)


def staged(store, attempt="000000.1", **files):
    folder = store.begin(attempt)
    for name, data in (files or {"tar": b"x" * 1000}).items():
        (folder / name).write_bytes(data)
    store.stage(attempt, list(files or {"tar": b""}))
    return attempt
