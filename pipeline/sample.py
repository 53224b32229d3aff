"""A record of a shard: a key and its members in stored order. A key is never lost."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.tar import Entry

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp")
TRUTH_SUFFIX = "hq"  # of the clean face that `vsp degrade --keep-hq` leaves: KEY.hq.png
# webdataset's rule: the key ends at the first dot after the last slash, what follows is the suffix.
_KEY_AND_SUFFIX = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a record, under its name in the tar."""

    name: str
    data: bytes

    @property
    def is_image(self) -> bool:
        """Whether the name ends in one of `IMAGE_SUFFIXES`, in any case."""
        return self.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES

    @property
    def is_truth(self) -> bool:
        """Whether it is the clean face that stands beside a degraded one."""
        return f".{TRUTH_SUFFIX}." in self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Sample:
    """One record; (shard, index) identifies it, the key stands beside.

    Attributes:
        index: Place among the shard's records, from 0.
        key: What webdataset calls the key; the whole name where there is no key to be had, "" for
            the loss at the end of a broken shard.
        members: The files in stored order; empty where `fault` is set.
        fault: Why nothing of the record may be used, or "".
        truncated: The record stands for whatever followed the point where the shard broke.
        unusable: What was read of a record with a fault, for the quarantine alone: the names may
            be unsafe.
    """

    index: int
    key: str
    members: tuple[Member, ...]
    fault: str = ""
    truncated: bool = False
    unusable: tuple[Member, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Size of its files."""
        return sum(len(member.data) for member in self.members + self.unusable)

    @property
    def image(self) -> Member | None:
        """The first image member: the one that is worked on."""
        return next((member for member in self.members if member.is_image), None)


@dataclass(frozen=True, slots=True)
class Placed:
    """A sample with the name of its shard; to the engine a record like the sample itself."""

    sample: Sample
    shard: str

    @property
    def index(self) -> int:
        """Place among the shard's records."""
        return self.sample.index

    @property
    def key(self) -> str:
        """The record's name."""
        return self.sample.key

    @property
    def num_bytes(self) -> int:
        """What it holds until it is written."""
        return self.sample.num_bytes


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and suffix as webdataset does; None where it sees no key."""
    match = _KEY_AND_SUFFIX.fullmatch(name)
    return (match[1], match[2]) if match else None


def group(entries: Iterable[Entry]) -> Iterator[Sample]:
    """Group neighbouring entries of one key into samples.

    Every entry ends up in exactly one sample. An entry that may not be used is a sample of its own,
    with the reason. The first group of a key wins; a later one, or a second member of the same
    suffix, is refused, because webdataset would raise or split the record in silence.
    """
    seen: set[str] = set()
    index, key = 0, ""
    members: list[Member] = []
    suffixes: set[str] = set()
    for entry in entries:
        split = split_name(entry.name)
        fault = entry.fault or ("" if split else "name without a suffix has no key")
        if fault or split is None:
            unusable = (Member(entry.name, entry.data),) if entry.data else ()
            yield Sample(index, entry.name, (), fault, unusable=unusable)
            index += 1
            continue
        suffix = split[1].lower()
        if members and (split[0] != key or suffix in suffixes):
            yield _close(index, key, members, seen)
            index, members, suffixes = index + 1, [], set()
        key = split[0]
        members.append(Member(entry.name, entry.data))
        suffixes.add(suffix)
    if members:
        yield _close(index, key, members, seen)


def _close(index: int, key: str, members: list[Member], seen: set[str]) -> Sample:
    if key in seen:
        names = ", ".join(member.name for member in members)
        fault = f"key appears again; the first one counts ({names})"
        return Sample(index, key, (), fault, unusable=tuple(members))
    seen.add(key)
    return Sample(index, key, tuple(members))
