"""What is left of a forgotten image: enough to know it again, too little to know it by.

A tombstone is HMAC-SHA256 of the image's sha256 under a random key of this output folder. Who has
the picture can see that it was forgotten here; nobody can compare the tombstones of two folders, or
look one up in a list of known hashes. Key and tombstones stand in one file, and nothing else does.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipeline.cleaning.tables import TOMBSTONES
from pipeline.errors import UserError
from pipeline.storage import Store

FORMAT = 1
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Tombstones:
    """The forgotten images of an output folder.

    Attributes:
        secret: The folder's key.
        hashes: Keyed hashes, in hex.
    """

    secret: bytes
    hashes: frozenset[str] = frozenset()

    @classmethod
    def load(cls, store: Store) -> "Tombstones":
        """Read those of a cleaning run's OUT; none, and a new key, where nothing was forgotten.

        Raises:
            UserError: If the file is damaged: what was forgotten would come back unseen.
        """
        try:
            value = json.loads(store.read(TOMBSTONES))
            secret, hashes = bytes.fromhex(value["key"]), frozenset(value["hashes"])
        except FileNotFoundError:
            return cls(secrets.token_bytes(SECRET_BYTES))
        except (ValueError, KeyError, TypeError):
            where = f"{store.url}/{TOMBSTONES}"
            raise UserError(f"{where}: damaged; restore it from a backup") from None
        return cls(secret, hashes)

    def save(self, store: Store) -> None:
        """Write the file, sorted: its order tells nothing."""
        value = {"format": FORMAT, "key": self.secret.hex(), "hashes": sorted(self.hashes)}
        store.write(TOMBSTONES, json.dumps(value, indent=1).encode())

    def keyed(self, text: str) -> str:
        """The keyed hash of a text, in hex."""
        return hmac.digest(self.secret, text.encode(), "sha256").hex()

    def covers(self, sha256: str) -> bool:
        """Whether the image of this sha256 was forgotten."""
        return bool(self.hashes) and self.keyed(sha256) in self.hashes

    def with_images(self, hashes: Iterable[str]) -> "Tombstones":
        """These and more; `hashes` are keyed already."""
        return replace(self, hashes=self.hashes | frozenset(hashes))

    def __len__(self) -> int:
        return len(self.hashes)


def digest_of(shard: str, key: str, sha256: str | None) -> str:
    """What a record is known by: its image's sha256, or that of its place where it has no image.

    Args:
        shard: Its shard's name.
        key: Its name there.
        sha256: Of its image, in hex.
    """
    return sha256 or hashlib.sha256(f"{shard}/{key}".encode()).hexdigest()


def digest_of_face(photo_sha256: str, number: int) -> str:
    """What a face of a photo is known by, however it is cut out: its place in the photo.

    Args:
        photo_sha256: Of the photo, in hex.
        number: Which face of it, from 0.
    """
    return hashlib.sha256(f"{photo_sha256} {number}".encode()).hexdigest()
