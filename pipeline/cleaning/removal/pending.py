"""What is being forgotten, as far as it has to survive a crash: places and keyed hashes only.

The file is written before anything is removed and goes away last, so whoever finds it finishes the
removal. It names nobody: who reads it learns which rows of which shards are going.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.cleaning.removal.tombstones import Tombstones
from pipeline.storage import OWN_FOLDER, Store, load_json

PENDING = f"{OWN_FOLDER}/forgetting.json"
PLACEHOLDER = "_vsp_forgotten/"  # begins the key of what keeps a forgotten crop's place

Places = Mapping[str, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to go.

    Attributes:
        rows: Indices of records, by shard.
        photos: Indices of photos that no crop is left of, by shard; only where crops were cut.
        faces: [photo, number] of single faces of photos that stay, by shard.
        names: Keyed hashes of shard/key.
        keys: Of keys that no other record has.
        persons: Of persons of whom no image is left.
        sources: Of sources that no image is left of.
        images: Of the images' sha256, of those of photos, and of the places of faces in photos.
        made: Of the sha256 of what was made of them.
        current: Shards whose last step was planned by the decisions as they were before.
    """

    rows: Places
    photos: Places = field(default_factory=dict)
    faces: Mapping[str, list[list[int]]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    persons: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    made: frozenset[str] = frozenset()
    current: frozenset[str] = frozenset()

    def save(self, store: Store) -> None:
        """Write it down."""
        value = asdict(self)
        for name, item in value.items():
            value[name] = _plain(item)
        store.write(PENDING, json.dumps(value, indent=1, sort_keys=True).encode())

    @classmethod
    def load(cls, store: Store) -> "Removal | None":
        """One that was begun and did not end; None where there is none.

        Raises:
            UserError: If the file is damaged.
        """
        try:
            value = load_json(store, PENDING)
        except FileNotFoundError:
            return None
        typed: dict[str, Any] = {name: _typed(name, item) for name, item in value.items()}
        return cls(**typed)

    def has_name(self, stones: Tombstones, name: str | None) -> bool:
        """Whether a shard/key is one of those that go."""
        return name is not None and stones.keyed(name) in self.names

    def has_key(self, stones: Tombstones, key: str) -> bool:
        """Whether a key goes from the whole set."""
        return stones.keyed(key) in self.keys

    def has_person(self, stones: Tombstones, person: str | None) -> bool:
        """Whether nothing is left of a person."""
        return person is not None and stones.keyed(person) in self.persons


def keyed(stones: Tombstones, texts: Iterable[str]) -> frozenset[str]:
    """Keyed hashes of texts."""
    return frozenset(stones.keyed(text) for text in texts)


def _plain(item: object) -> object:
    if isinstance(item, frozenset):
        return sorted(item)
    if isinstance(item, Mapping):
        return {name: _plain(value) for name, value in item.items()}
    return item


def _typed(name: str, item: object) -> object:
    if name == "faces":
        return item
    if isinstance(item, dict):
        return {shard: frozenset(indices) for shard, indices in item.items()}
    assert isinstance(item, list), "as it was written"
    return frozenset(item)
