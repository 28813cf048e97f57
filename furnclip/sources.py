"""The images of a shop, wherever they lie: a folder, a prefix of a bucket, or brought there by `fetch`.

In: the names or web addresses in a product's image cell. Out: `FoundImage`, which another process can read.

A name is relative to `paths.images`. Where there is no such file, the one that is nearly it is taken and
counted: without a leading slash, `?v=1` or `%20`, below or without a folder that is named twice, in another
letter case, or with another image ending. Names that lead out of the folder are refused; links in it that
lead out are the user's own, unless the folder belongs to somebody else.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag

from furnclip import console
from furnclip.catalogue import content_hash, image_table
from furnclip.errors import FurnclipError, JournalError, MissingStageError
from furnclip.images import MAX_BYTES, BrokenImage, read_bytes
from furnclip.journal import Event, read_journal, replacing, sweep, write_bytes

if TYPE_CHECKING:
    from furnclip.config import Config, StorageConfig
    from furnclip.shards import ProductImages
    from furnclip.storage.bucket import Bucket, S3File

FETCHED_FOLDER = "fetched"  # below `paths.images`
_ENDING = re.compile(
    r"(?<=.)\.(jpe?g|jfif|png|webp|gif|bmp|tiff?|avif|hei[cf]|img)\Z", re.IGNORECASE | re.DOTALL
)
_AFTER_NAME = re.compile(r"[?#].*")
_ADDRESS = re.compile(r"(https?:)?//[^/\s]+\.[^/\s]+/|https?://", re.IGNORECASE)


def web_address(name: str) -> str:
    """The address of the web that an image cell holds, without its fragment; empty for other names."""
    if not _ADDRESS.match(name):
        return ""
    return urldefrag(f"https:{name}" if name.startswith("//") else name).url


@dataclass(frozen=True)
class FoundImage:
    """An image that is there, not yet read. `status` changes when its content does."""

    name: str  # below `paths.images`, with slashes
    status: str
    place: Place
    is_as_named: bool = True

    def read(self) -> bytes:
        """Its bytes, at most `MAX_BYTES`. Raises `BrokenImage`."""
        if not (content := self.place.read(self.name)):
            raise BrokenImage("empty", f"{self.short_name} is empty")
        return content

    @property
    def short_name(self) -> str:
        """Without its folder, in quotes, for messages."""
        return f"`{PurePosixPath(self.name).name}`"


class ShopImages:
    """Finds the images that a catalogue names; made once a command, because it remembers what is where."""

    def __init__(self, config: Config) -> None:
        self._config, self.place = config, image_place(config)
        self._journal, self._copies = config.paths.fetched, config.paths.cache / "images"
        table = config.paths.image_table
        self._by_id = image_table(Path(table)) if table else {}
        self._near: set[int] = set()  # hashes of the names
        self._has_shards = True
        self._example = ("", "")

    def find(self, names: Iterable[str]) -> list[FoundImage]:
        """Every image of the names that is there, as listed. Raises `BrokenImage` when there is none."""
        problem = BrokenImage("missing", "the row names no image", hint="fill the image column")
        found = []
        for name in reversed(tuple(names)):
            try:
                found.append(self._find(name))
            except BrokenImage as error:
                problem = error  # of several, the first one is what the user will look at
        if not found:
            raise problem
        return found[::-1]

    def read(self, name: str, product_id: str = "") -> bytes:
        """The bytes of one of the few that are shown; a bucket is not listed. Raises `BrokenImage`."""
        if isinstance(self.place, Prefix):
            for candidate in self._candidates(name):
                with suppress(BrokenImage):
                    return self.place.read(candidate)
        try:
            return self._find(name).read()
        except BrokenImage:
            if product_id and (square := self._square(product_id)):
                return square
            raise

    def local(self, name: str, product_id: str) -> Path:
        """A file of this machine with one of the few images that are shown; no file where there is none."""
        place, copy = self.place, self._copies / content_hash(str(self.place), name)
        if isinstance(place, Folder):
            with suppress(BrokenImage):
                return place.path(self._find(name).name)
        with suppress(BrokenImage):
            if not copy.is_file():
                write_bytes(copy, self.read(name, product_id))
        return copy

    def _square(self, product_id: str) -> bytes:
        """The product's square in the shards; empty where there is none. Damaged shards are told once."""
        try:
            return self._shards.image_bytes(product_id) if self._has_shards else b""
        except (BrokenImage, MissingStageError):
            return b""
        except FurnclipError as error:
            self._has_shards = False
            console.warn(f"images that are only in the shards are not shown: {error.message}")
            return b""

    @cached_property
    def _shards(self) -> ProductImages:
        from furnclip.shards import ProductImages, open_shards  # pyarrow, which few need

        return ProductImages(open_shards(self._config))

    def tell_near_matches(self) -> None:
        """Say how many images were found under nearly the name that the catalogue gives them."""
        if self._near:
            name, path = self._example
            console.warn(
                f"{len(self._near):,} image names are not quite those of the files in `{self.place}`, "
                f"the nearest are taken: `{path}` for `{name}`"
            )

    def _find(self, name: str) -> FoundImage:
        candidates = self._candidates(name)
        try:
            with_status = ((each, self.place.status(each)) for each in candidates)
            path, status = next((pair for pair in with_status if pair[1]), ("", ""))
            if not status:
                path = next(filter(None, map(self._respelt, candidates)), "")
                status = self.place.status(path) if path else ""
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a loop of links
            raise BrokenImage("missing", f"`{name}` is not the name of an image ({error})") from None
        if not status and web_address(name):
            raise _not_fetched(name)
        if not status and name.startswith("/"):
            raise BrokenImage("outside", f"`{name}` is not in the image folder `{self.place}`")
        if not status:
            raise BrokenImage("missing", f"there is no image `{name}` in `{self.place}`")
        if path != candidates[0]:
            self._near.add(hash(name))
            self._example = self._example if self._example[0] else (name, path)
        return FoundImage(path, status, self.place, path == candidates[0])

    def _candidates(self, name: str) -> list[str]:
        """The names that this one may stand for, as it is first, then the likeliest; or raises."""
        name = self._by_id.get(name, name)
        if address := web_address(name):
            if (fetched := self._fetched.get(int(content_hash(address), 16))) is None:
                raise _not_fetched(address)
            return [fetched]
        if "://" in name:
            hint = "only http and https addresses can be fetched"
            raise BrokenImage("outside", f"`{name}` is the address of no image", hint=hint)
        relative = self.place.relative(name.replace("\\", "/")).lstrip("/")
        whole = [relative, _AFTER_NAME.sub("", relative)]
        whole += [unquote(text) for text in whole]
        moved = []
        for text in whole:
            first, _, rest = text.partition("/")
            is_doubled = rest and first.casefold() == self.place.name.casefold()
            moved.append(rest if is_doubled else f"{self.place.name}/{text}")
        candidates = list(dict.fromkeys(whole + moved))
        if any(".." in candidate.split("/") for candidate in candidates):
            raise BrokenImage("outside", f"`{name}` leads out of the image folder")
        return candidates

    @cached_property
    def _fetched(self) -> dict[int, str]:
        """Where the image of each address is, by the address's hash: a million take 200 MB."""
        return {key: event["name"] for key, event in fetched_images(self._journal)}

    def _respelt(self, name: str) -> str:
        """The one file whose name differs from this one in case, accents' spelling or image ending."""
        found: list[str] = []
        for part in name.split("/"):
            names, folded = self.place.listing("/".join(found)), _folded(part)
            alike = names.get(folded) or names.get(_ENDING.sub("", folded)) or []
            if len(alike) != 1:
                return ""
            found.append(alike[0])
        return "/".join(found)


def _not_fetched(address: str) -> BrokenImage:
    detail = f"`{console.redact(address)}` has not been fetched: run `furnclip fetch`"
    return BrokenImage("not-fetched", detail, hint="run `furnclip fetch`")


def fetched_images(journal: Path) -> Iterator[tuple[int, Event]]:
    """(hash of the address, what `fetch` wrote of its image), the last one counts. Raises `JournalError`."""
    for number, event in enumerate(read_journal(journal), start=1):
        key, name, size_bytes = (event.get(field) for field in ("key", "name", "size_bytes"))
        is_named = isinstance(name, str) and name.startswith(FETCHED_FOLDER) and ".." not in name
        if not is_named or type(size_bytes) is not int or not re.fullmatch("[0-9a-f]{16}", str(key)):
            raise JournalError(
                f"line {number} of `{journal}` is damaged",
                hint="remove the line, or the file: `furnclip fetch` brings what is missing",
            )
        yield int(str(key), 16), event


class Folder:
    """Files of this machine by their names below `paths.images`, with slashes.

    `name`: of the folder itself, which shops repeat in their cells; `str` names it for people.
    """

    def __init__(self, given: Path) -> None:
        self._given, self._root = given, given.resolve()
        self.name = self._root.name
        # Links in it are the user's own; for the administrator, those in all folders are.
        self.links_may_lead_out = (
            os.name == "nt"
            or os.getuid() == 0
            or not self._root.exists()
            or self._root.stat().st_uid in (os.getuid(), 0)
        )
        self._listing = lru_cache(maxsize=256)(_folder_listing)

    def __reduce__(self) -> tuple[type[Folder], tuple[Path]]:
        return Folder, (self._given,)

    def __str__(self) -> str:
        return str(self._given)

    def relative(self, name: str) -> str:
        """`name` without the path of the folder in front of it."""
        for root in (self._root, self._given.absolute()):
            name = name.removeprefix(f"{root.as_posix()}/")
        return name

    def path(self, name: str) -> Path:
        return self._root / name

    def status(self, name: str) -> str:
        """Changes when the file's content does; empty where there is no such file."""
        try:
            status = self.path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        if not self.links_may_lead_out and not self.path(name).resolve().is_relative_to(self._root):
            place = f"the image folder `{self._given}`, which is another user's"
            raise BrokenImage("outside", f"`{name}` leads out of {place}")
        if not stat.S_ISREG(status.st_mode):
            raise BrokenImage("not-a-file", f"`{name}` is not a file")
        return f"{status.st_size} {status.st_mtime_ns}"

    def listing(self, folder: str) -> Mapping[str, list[str]]:
        """The names in a folder by themselves in one case, and images without their ending as well."""
        return self._listing(self._root / folder)

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `BrokenImage`."""
        return read_bytes(self._root / name)

    def write(self, name: str, content: bytes, announce: Callable[[], None]) -> None:
        """Put a file there, whole or not at all, after `announce` and before anybody can see it."""
        with replacing(self._root / name, durable=False) as file:
            file.write(content)
            announce()

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def tidy(self, folder: str) -> None:
        """Remove what killed processes were writing one level below a folder; nobody may be writing now."""
        for inner in (self._root / folder).glob("*"):
            sweep(inner, exclusively=True)


class Prefix:
    """A prefix of a bucket, `s3://bucket/prefix`, listed once; with the methods of `Folder`."""

    def __init__(self, address: str, storage: StorageConfig) -> None:
        self._address, self._storage = address, storage
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/")
        self._bucket_name, self.name = bucket, PurePosixPath(f"{bucket}/{self._prefix}").name

    def __reduce__(self) -> tuple[type[Prefix], tuple[str, StorageConfig]]:
        return Prefix, (self._address, self._storage)

    def __str__(self) -> str:
        return self._address

    def relative(self, name: str) -> str:
        return name

    def status(self, name: str) -> str:
        file = self._files.get(name)
        return f"{file.size_bytes} {file.etag}" if file else ""

    def listing(self, folder: str) -> Mapping[str, list[str]]:
        return self._folders.get(folder, {})

    def read(self, name: str) -> bytes:
        short = f"`{PurePosixPath(name).name}`"
        content = self._bucket.find(self._key(name), most_bytes=MAX_BYTES)
        if content is None:
            raise BrokenImage("missing", f"{short} is not in `{self}`")
        if len(content) > MAX_BYTES:
            raise BrokenImage("too-many-bytes", f"{short} has more than {MAX_BYTES:,} bytes")
        return content

    def write(self, name: str, content: bytes, announce: Callable[[], None]) -> None:
        announce()
        self._bucket.write(self._key(name), content)

    def remove(self, name: str) -> None:
        self._bucket.remove(self._key(name))

    def tidy(self, folder: str) -> None:
        pass  # an object is there as a whole or not at all

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}".lstrip("/")

    @property
    def _bucket(self) -> Bucket:
        return _bucket(self._bucket_name, self._storage)

    @cached_property
    def _files(self) -> dict[str, S3File]:
        return self._bucket.listing(self._prefix)

    @cached_property
    def _folders(self) -> dict[str, dict[str, list[str]]]:
        inside: dict[str, set[str]] = {}
        for name in self._files:
            while name:
                folder, _, last = name.rpartition("/")
                inside.setdefault(folder, set()).add(last)
                name = folder
        return {folder: _by_folded_name(sorted(names)) for folder, names in inside.items()}


Place = Folder | Prefix


def image_place(config: Config) -> Place:
    """The folder or the prefix of a bucket that `paths.images` names."""
    address = config.paths.images
    return Prefix(address, config.storage) if isinstance(address, str) else Folder(address)


@lru_cache(maxsize=8)  # one a process and bucket
def _bucket(name: str, storage: StorageConfig) -> Bucket:
    from furnclip.storage import S3Manager  # boto3 is slow to import, and most shops have a folder

    return S3Manager.from_config(storage.model_copy(update={"bucket": name}))


def _folder_listing(folder: Path) -> dict[str, list[str]]:
    names: list[str] = []
    with suppress(OSError):
        names = [entry.name for entry in folder.iterdir()]
    return _by_folded_name(names)


def _by_folded_name(names: Iterable[str]) -> dict[str, list[str]]:
    listed: dict[str, list[str]] = {}
    for name in names:
        folded = _folded(name)
        for key in {folded, _ENDING.sub("", folded)}:
            listed.setdefault(key, []).append(name)
    return listed


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
