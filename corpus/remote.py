"""Files of a data set on the Hugging Face hub, and their verified copies here.

Two processes share this: the one that prepares (`corpus/hub.py`), and the one that downloads (`corpus/fetch.py`).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from corpus.store import read_json


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: `size` in bytes, and the hash that the hub keeps for it."""

    path: str
    size: int
    hash: str  # SHA-256 of large files, git's blob SHA-1 of small ones

    def local(self, folder: Path) -> Path:
        """Where the whole, verified file lies: named after its content, whatever revision it came from."""
        return folder / f"{self.hash[:16]}-{Path(self.path).name}"

    def part(self, folder: Path) -> Path:
        """Where it grows before that."""
        return folder / f"{self.hash[:16]}.part"

    def is_here(self, folder: Path) -> bool:
        """Whether it has been downloaded; only verified files ever get their name."""
        path = self.local(folder)
        return path.is_file() and path.stat().st_size == self.size

    def matches(self, path: Path) -> bool:
        """Whether the file at `path` has this size and content."""
        is_blob = len(self.hash) == 40
        hasher = hashlib.sha1(usedforsecurity=False) if is_blob else hashlib.sha256()
        if is_blob:  # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
            hasher.update(f"blob {self.size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                hasher.update(block)
        return path.stat().st_size == self.size and hasher.hexdigest() == self.hash


@dataclass(frozen=True)
class Listing:
    """The files that belong to a data set at one revision (a commit of its repository), sorted by path."""

    revision: str
    files: tuple[RemoteFile, ...]

    def to_json(self) -> str:
        """For `Order.known` to read."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def bytes_here(self, folder: Path) -> int:
        """How much of the files has arrived, unfinished ones included."""
        places = [file.local(folder) if file.is_here(folder) else file.part(folder) for file in self.files]
        return sum(place.stat().st_size for place in places if place.exists())


@dataclass(frozen=True)
class Order:
    """What to get: the named `paths` of `repo`, or every file ending in one of `suffixes` when none are named.

    Files and listing go to `folder`. The listing pins the revision, so that an interrupted download continues with the
    same files even if the repository has moved on.
    """

    repo: str
    paths: tuple[str, ...]
    suffixes: tuple[str, ...]
    folder: Path
    workers: int
    patience: float  # seconds before the first retry; each further one waits twice as long

    @property
    def listing(self) -> Path:
        """Named after what is asked for."""
        asked = json.dumps([self.repo, self.paths, self.suffixes])
        return self.folder / f"listing-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"

    def known(self) -> Listing | None:
        """The listing, once there is one."""
        content = read_json(self.listing)
        if content is None:
            return None
        return Listing(content["revision"], tuple(RemoteFile(**file) for file in content["files"]))

    def to_json(self) -> str:
        """For the command line of the downloading process."""
        return json.dumps(asdict(self) | {"folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> "Order":
        """The order that `to_json` wrote."""
        fields = json.loads(text)
        paths, suffixes = tuple(fields["paths"]), tuple(fields["suffixes"])
        return cls(fields["repo"], paths, suffixes, Path(fields["folder"]), fields["workers"], fields["patience"])
