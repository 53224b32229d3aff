"""What a run keeps in its output folder: the plan, the decisions, the journal.

    OUT/_vsp/plan.json                     settings, their hash, the input shards
    OUT/_vsp/commits/<plan>/<shard>.json   what was decided: counts, files with sha256, timings
    OUT/_vsp/journal.jsonl                 tries begun, deaths, records condemned
    OUT/_vsp/attempts/, workers/           work in progress, and what each worker has in hand
    OUT/_vsp/run.lock, actors.lock

The commits are the truth; a run needs no memory beside them and the plan.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, cast

from pipeline.commit import commit_name, roll_forward
from pipeline.plan import Plan
from pipeline.storage import OWN_FOLDER, LocalStore, Store, load_json, read_log

PLAN = f"{OWN_FOLDER}/plan.json"
JOURNAL = f"{OWN_FOLDER}/journal.jsonl"
NUM_READERS = 16


class Ledger:
    """The records of runs on one output folder."""

    def __init__(self, store: Store) -> None:
        """Look at a folder, which need not exist."""
        self.store = store

    @property
    def folder(self) -> Path | None:
        """Where this machine's processes may keep files beside the output; None if it is remote."""
        return self.store.path(OWN_FOLDER) if isinstance(self.store, LocalStore) else None

    def plan(self) -> Plan | None:
        """The plan that the folder was begun with, None where there is none.

        Raises:
            UserError: If it is damaged.
        """
        try:
            return Plan.from_json(load_json(self.store, PLAN))
        except FileNotFoundError:
            return None

    def save(self, plan: Plan) -> None:
        """Begin the folder with a plan."""
        self.store.write(PLAN, json.dumps(plan.to_json(), indent=1).encode())

    def committed(self, plan: Plan) -> set[str]:
        """Names of the shards that are decided."""
        names = self.store.list(f"{OWN_FOLDER}/commits/{plan.id}")
        return {
            PurePosixPath(name).name.removesuffix(".json")
            for name in names
            if name.endswith(".json") and not PurePosixPath(name).name.startswith(".")
        }

    def commit(self, plan: Plan, shard: str) -> dict[str, Any] | None:
        """What was decided about a shard, None if nothing was."""
        try:
            return cast(dict[str, Any], json.loads(self.store.read(commit_name(plan.id, shard))))
        except FileNotFoundError:
            return None

    def commits(self, plan: Plan, shards: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """The decisions about some shards, or all that are decided, in sorted order."""
        wanted = sorted(self.committed(plan)) if shards is None else shards
        with ThreadPoolExecutor(NUM_READERS) as readers:
            found = readers.map(lambda shard: self.commit(plan, shard), wanted)
            yield from (record for record in found if record is not None)

    def recover(self, plan: Plan | None, *, discard: bool) -> None:
        """Finish what was decided and not finished; with `discard` remove every other attempt.

        Only who holds the run's lock, with no worker left alive, may discard.
        """
        for attempt in self.store.attempts():
            shard = attempt.rpartition(".")[0]
            record = self.commit(plan, shard) if plan else None
            if record and f"{shard}.{record['attempt']}" == attempt:
                roll_forward(self.store, record)
            elif discard:
                self.store.discard(attempt)

    def forget(self, plan: Plan, shards: Sequence[str], *, outputs: bool) -> None:
        """Take decisions back, so that the shards are done again.

        Args:
            plan: The plan they belong to.
            shards: Which ones.
            outputs: Also remove the files, the last published first.
        """
        for record in self.commits(plan, shards):
            if outputs:
                for file in reversed(record["files"]):
                    self.store.remove(file["name"])
            self.store.remove(commit_name(plan.id, record["shard"]))

    def note(self, event: str, **facts: Any) -> None:
        """Add an event to the journal; it is on the disk when this returns."""
        line = {"time": round(time.time(), 3), "event": event, **facts}
        self.store.append(JOURNAL, json.dumps(line))

    def events(self, plan: Plan) -> Iterator[dict[str, Any]]:
        """The journal's events of a plan, in order; a torn line is skipped."""
        for line in read_log(self.store, JOURNAL):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("plan") == plan.id:
                yield event

    def redone(self, plan: Plan) -> set[str]:
        """Shards whose decision was taken back while their files stayed."""
        return {event["shard"] for event in self.events(plan) if event["event"] == "redo"}

    def condemned(self, plan: Plan) -> Mapping[str, dict[int, str]]:
        """Records that earlier runs condemned, by shard; a shard done again is absolved."""
        found: dict[str, dict[int, str]] = {}
        for event in self.events(plan):
            if event["event"] == "condemned":
                found.setdefault(event["shard"], {})[event["index"]] = event["reason"]
            elif event["event"] == "redo":
                found.pop(event["shard"], None)
        return found
