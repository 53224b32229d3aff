"""Check an output folder against its plan: every input record accounted for exactly once.

Nothing that the run said of itself is believed: files are hashed again, sidecars are held against
the input's records, and the tars' members against the sidecars.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipeline.chunks import photo_key
from pipeline.cleaning.check import check_cleaned
from pipeline.ledger import Ledger
from pipeline.plan import Plan, Unit
from pipeline.shards import read_shard
from pipeline.sidecar import Row, read_rows
from pipeline.storage import stat_input

NUM_THREADS = 4
WITH_IMAGE = ("restored", "degraded")
# A folder of scores also holds tables and pages that are made anew from what was committed.
COMMITTED_OF_SCORES = ("scores/", "features/")


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        num_shards: Shards of the plan.
        num_done: Those that are decided.
        counts: Records by status.
        problems: One line each; empty when all is well.
        notes: What does not break a promise but should be known.
    """

    num_shards: int
    num_done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        """Records of the input; the lost end of a shard is none, though it has a row."""
        return self.counts.total() - self.counts["truncated"]

    @property
    def num_pending(self) -> int:
        """Shards that are not done."""
        return self.num_shards - self.num_done


def verify(ledger: Ledger, plan: Plan) -> Verdict:
    """Check every shard that is done; those that are not are counted, not judged."""
    ledger.recover(plan, discard=False)
    verdict = Verdict(len(plan.units))
    commits = {record["shard"]: record for record in ledger.commits(plan)}
    units = [unit for unit in plan.units if unit.shard in commits]
    verdict.num_done = len(units)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        checks = pool.map(lambda unit: list(_check(ledger, plan, unit, commits[unit.shard])), units)
        for unit, problems in zip(units, checks, strict=True):
            verdict.problems += problems
            verdict.counts.update(commits[unit.shard]["counts"])
            verdict.notes += _halved(commits[unit.shard])
    verdict.problems += _foreign(ledger, plan, commits)
    return verdict


def _halved(record: dict[str, Any]) -> list[str]:
    batch = record.get("batch", {})
    if batch.get("smallest") == batch.get("planned"):
        return []
    return [f"{record['shard']}: memory ran out; made in batches of {batch['smallest']}, "
            f"not {batch['planned']}: its last bits may differ"]  # fmt: skip


def _foreign(ledger: Ledger, plan: Plan, commits: dict[str, Any]) -> Iterator[str]:
    """Files that no commit has put there: an output without its decision, or somebody else's."""
    known = {file["name"] for record in commits.values() for file in record["files"]}
    reserved = {name for unit in plan.units for name in unit.outputs}
    for name in ledger.store.list():
        if plan.job == "score" and not name.startswith(COMMITTED_OF_SCORES):
            continue
        if name not in known:
            what = "has no commit" if name in reserved else "foreign file"
            yield f"{name}: {what}"


def _check(ledger: Ledger, plan: Plan, unit: Unit, record: dict[str, Any]) -> Iterator[str]:
    files = list(_check_files(ledger, record))
    yield from files
    if files:
        return
    sidecar = _sidecar(unit, record)
    with ledger.store.open(sidecar) as file:
        rows = read_rows(file)
    if [row.index for row in rows] != list(range(len(rows))):
        yield f"{sidecar}: its rows are not numbered from 0"
    counts = dict(Counter(row.status for row in rows))
    if counts != record["counts"]:
        yield f"{sidecar}: holds {counts}, the commit says {record['counts']}"
    if plan.job == "score":
        return  # what it read may have been replaced since: scores outlive images
    if plan.job == "clean":
        yield from check_cleaned(ledger.store, unit, rows)
        return
    yield from _check_input(unit, rows)
    yield from _check_photos(unit, record, rows) if unit.files else _check_tar(ledger, unit, rows)


def _sidecar(unit: Unit, record: dict[str, Any]) -> str:
    """The file with the unit's rows; other tables may be committed beside it."""
    names = [f["name"] for f in record["files"] if f["name"].endswith(".parquet")]
    own = f"{unit.shard}.parquet"
    return own if own in names else names[-1]


def _check_files(ledger: Ledger, record: dict[str, Any]) -> Iterator[str]:
    """Size and sha256 of every file that was committed."""
    for file in record["files"]:
        name = file["name"]
        try:
            with ledger.store.open(name) as stream:
                digest = hashlib.sha256()
                size_bytes = 0
                while chunk := stream.read(2**20):
                    digest.update(chunk)
                    size_bytes += len(chunk)
        except FileNotFoundError:
            yield f"{name}: missing"
            continue
        if size_bytes != file["size_bytes"]:
            yield f"{name}: {size_bytes} bytes, committed were {file['size_bytes']}"
        elif digest.hexdigest() != file["sha256"]:
            yield f"{name}: changed since it was committed"


def _check_input(unit: Unit, rows: Sequence[Row]) -> Iterator[str]:
    """One row for each record of the input, in its order."""
    wanted: list[str]
    if unit.files:
        wanted = [photo_key(name) for name in unit.files]
    else:
        if stat_input(unit.source) is None:
            yield f"{unit.source}: the input is gone, so it was not compared"
            return
        wanted = [sample.key for sample in islice(read_shard(unit.source), unit.limit or None)]
    found = [row.key for row in rows]
    if found != wanted:
        at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), -1)
        where = f", first at record {at}" if at >= 0 else ""
        yield f"{unit.shard}: {len(found)} rows for {len(wanted)} input records{where}"


def _check_tar(ledger: Ledger, unit: Unit, rows: Sequence[Row]) -> Iterator[str]:
    """Every restored image is in the tar as its row says, and no record twice."""
    wanted = {row.member: row.sha256_out for row in rows if row.status in WITH_IMAGE}
    source = f"{ledger.store.url.rstrip('/')}/{unit.shard}.tar"
    known = {row.key for row in rows}
    for sample in read_shard(source):
        if sample.fault:
            yield f"{unit.shard}.tar: {sample.key}: {sample.fault}"
        elif sample.key not in known:
            yield f"{unit.shard}.tar: {sample.key}: no row"
        for member in sample.members:
            digest = wanted.pop(member.name, None)
            if digest not in (None, hashlib.sha256(member.data).hexdigest()):
                yield f"{unit.shard}.tar: {member.name}: not what its row says"
    for name in wanted:
        yield f"{unit.shard}.tar: {name}: missing"


def _check_photos(unit: Unit, record: dict[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    """Every photo with a picture was committed with the digest of its row."""
    files = {file["name"]: file["sha256"] for file in record["files"]}
    for row, name in zip(rows, unit.files, strict=False):
        if row.sha256_out != files.get(name):
            yield f"{row.key}: not what its row says"
