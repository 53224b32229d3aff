"""A whole cleaning run from and to a bucket, on a real S3 server on loopback."""

import pytest
from constructed_pictures import drawn_faces
from constructed_set import build

from jobs.cleaning import CleanRequest, run_clean
from jobs.running import RunFlags
from pipeline.ledger import Ledger
from pipeline.storage import open_store
from pipeline.verify import verify

EXIT_BAD_RECORDS = 3


@pytest.mark.slow
def test_a_set_in_a_bucket_is_cleaned_as_one_on_a_disk(object_store, tmp_path):
    build(tmp_path / "made", drawn_faces(50, seed=0), size=40)
    (tmp_path / "none").mkdir()
    store = open_store(f"{object_store.url}/in")
    store.write("000000.tar", (tmp_path / "made" / "set" / "000000.tar").read_bytes())
    outs = {f"{object_store.url}/in": f"{object_store.url}/out"}
    outs[str(tmp_path / "made" / "set")] = str(tmp_path / "out")
    found = []
    for source, out in outs.items():
        request = CleanRequest(source, out, weights=tmp_path / "none", threads=1)
        assert run_clean(request, RunFlags()).exit_code == EXIT_BAD_RECORDS
        written = open_store(out)
        found.append({name: written.read(name) for name in written.list()})
    assert found[0] == found[1]
    assert any(name.startswith("manifest/") for name in found[0])
    ledger = Ledger(open_store(f"{object_store.url}/out"))
    assert not verify(ledger, ledger.plan()).problems
