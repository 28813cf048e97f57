"""What was fetched: images in `paths.images`, and the journal that says where each of them comes from.

An image lies at `fetched/HA/HASH.jpg` below `paths.images`, under the hash of its bytes: equal ones lie there
once, and one that has changed never takes the place of another. The journal's line is written before the
image gets its name, so an image that is there is known, whenever the process is killed; a line whose image
is not there, or has another size, counts for nothing. So nothing waits for the disk: what a power cut costs,
the next run finds missing or empty and fetches again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from furnclip.catalogue import content_hash
from furnclip.console import redact
from furnclip.errors import Interrupted
from furnclip.journal import Event, Journal, utc_now
from furnclip.sources import FETCHED_FOLDER, fetched_images, image_place

if TYPE_CHECKING:
    from furnclip.config import Config
    from furnclip.fetch.download import Download


class KeptImage(NamedTuple):
    """An image that was fetched."""

    name: str
    size_bytes: int
    etag: str
    modified: str

    def conditions(self) -> dict[str, str]:
        """Headers that ask for the image only if it has changed since."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: text for name, text in headers.items() if text}


def key_of(address: str) -> int:
    """What an address is known by."""
    return int(content_hash(address), 16)


class Shelf:
    """Keeps images; used by several threads at once."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self.place = image_place(config)
        self.place.tidy(FETCHED_FOLDER)
        self._journal, self._lock = journal, Lock()
        known = {key: _kept(event) for key, event in fetched_images(journal.path)}
        self._known = {key: kept for key, kept in known.items() if self._is_there(kept)}
        self._uses = Counter(kept.name for kept in self._known.values())
        self._is_closed = False

    def find(self, key: int) -> KeptImage | None:
        """What was kept of an address before this run or in it."""
        return self._known.get(key)

    def keep(self, key: int, address: str, found: Download) -> bool:
        """Keep an image, and say whether it is another than before. Raises `OSError`, `StorageError`."""
        digest = hashlib.sha256(found.content).hexdigest()
        ending = found.format.lower().replace("jpeg", "jpg")
        name = f"{FETCHED_FOLDER}/{digest[:2]}/{digest[:32]}.{ending}"
        kept, before = KeptImage(name, len(found.content), found.etag, found.modified), self._known.get(key)
        event: Event = {
            "key": f"{key:016x}",
            "address": redact(address),
            "at": utc_now(),
            "type": found.format,
            "sha256": digest,
            **kept._asdict(),
        }
        with self._lock:
            is_new = not self._uses[name]
            self._uses[name] += 1
            self._known[key] = kept
        if not is_new:
            self._announce(event)
        else:
            self.place.write(name, found.content, lambda: self._announce(event))
        if before:
            self._drop(before)
        return before is None or before.name != name

    def _announce(self, event: Event) -> None:
        with self._lock:
            if self._is_closed:  # after Ctrl-C, in a thread that is left over
                raise Interrupted
            self._journal.append(event, durable=False)

    def _drop(self, kept: KeptImage) -> None:
        """One address less has this image; the last one takes it along."""
        with self._lock:
            self._uses[kept.name] -= 1
            is_unused = not self._uses[kept.name]
        if is_unused:
            self.place.remove(kept.name)

    def close(self) -> None:
        """Keep nothing more."""
        with self._lock:
            self._is_closed = True
            self._journal.sync()

    def _is_there(self, kept: KeptImage) -> bool:
        return self.place.status(kept.name).split(" ")[0] == str(kept.size_bytes)


def _kept(event: Event) -> KeptImage:
    return KeptImage(event["name"], event["size_bytes"], event.get("etag", ""), event.get("modified", ""))
