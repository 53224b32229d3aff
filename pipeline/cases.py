"""What has gone wrong with each shard so far, and what its next try is to do about it.

A worker's death is charged to a shard only if the worker had records of it in hand. Those records
then run one by one; only one that was alone in hand at two deaths is condemned. So a kill from
outside, which looks like a crash, condemns nobody, and the neighbours of a deadly record are
restored.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.plan import Unit
from pipeline.stage import Task
from pipeline.tracker import Traces

MAX_CHARGES = 5
DEATHS_ALONE = 2
OUT_OF_MEMORY = ("OutOfMemoryError", "out of memory")


@dataclass(slots=True)
class Case:
    """One shard that is not done yet.

    Attributes:
        unit: The shard.
        charges: Tries that failed by its fault since the last record was condemned.
        suspects: Records that are to run alone.
        deaths: For each record the deaths at which it was alone in hand.
        condemned: Records that are not touched again, and why.
        given_up: Why none of its records is touched again, or "".
        max_batch: Faces in a run of the model at most, 0 for as planned.
        last_error: What its last try failed of.
    """

    unit: Unit
    charges: int = 0
    suspects: set[int] = field(default_factory=set)
    deaths: Counter[int] = field(default_factory=Counter)
    condemned: dict[int, str] = field(default_factory=dict)
    given_up: str = ""
    max_batch: int = 0
    last_error: str = ""

    def task(self, out: str, plan: str) -> Task:
        """The next try."""
        return Task(
            shard=self.unit.shard,
            source=self.unit.source,
            out=out,
            plan=plan,
            files=self.unit.files,
            suspects=frozenset(self.suspects),
            condemned=dict(self.condemned),
            given_up=self.given_up,
            max_batch=self.max_batch,
            limit=self.unit.limit,
            redo=self.unit.redo,
        )

    def after_error(self, error: str) -> None:
        """A try ended with an error of its own."""
        self.last_error = error
        self._charge(error)

    def after_death(self, reason: str, traces: Traces, batch_size: int) -> Mapping[int, str]:
        """The worker died while it held this shard.

        Args:
            reason: What is known of the death.
            traces: What the worker had in hand.
            batch_size: Faces in a run of the model, as planned.

        Returns:
            The records that are condemned by this, and why.
        """
        in_hand = traces.in_hand.get(self.unit.shard, frozenset()) - self.condemned.keys()
        self.last_error = reason
        if any(words in reason for words in OUT_OF_MEMORY) and (self.max_batch or batch_size) > 1:
            self.max_batch = max(1, (self.max_batch or batch_size) // 2)
            return {}
        if not in_hand:
            return {}
        condemned = {}
        if traces.num_in_hand == 1:
            (index,) = in_hand
            self.deaths[index] += 1
            if self.deaths[index] == DEATHS_ALONE:
                condemned[index] = "killed the worker twice"
        self.suspects |= in_hand
        self.suspects -= condemned.keys()
        self.condemned |= condemned
        self.charges = 0 if condemned else self.charges
        if not condemned:
            self._charge(reason)
        return condemned

    def _charge(self, reason: str) -> None:
        self.charges += 1
        if self.charges == MAX_CHARGES:
            self.given_up = f"the shard failed {MAX_CHARGES} times, last of: {reason}"

    @property
    def is_lost(self) -> bool:
        """Not even its rows could be written."""
        return self.charges > MAX_CHARGES
