"""What lies in a sandbox's own file systems: memory that none of its processes needs to have resident."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

INODE_BYTES = 1024  # of the kernel's own memory, for a file without a byte in it: an inode and a name


class Filled:
    """places: folders inside that are memory and can be written, [] where a command has none."""

    def __init__(self, places: Sequence[str]) -> None:
        self.places = places
        self.held: list[int] = []

    def look(self, pids: Iterable[int]) -> int:
        """Bytes in all of them, 0 until one of `pids` is inside. They stay in sight when it has ended."""
        if self.places and not self.held:
            self.held = next(filter(None, map(self._open, pids)), [])
        return sum(map(_bytes, self.held))

    def _open(self, pid: int) -> list[int]:
        """The places as process `pid` sees them; [] if that is gone, or not inside yet, or nothing to look into."""
        root, found = f"/proc/{pid}/root", []
        try:
            if os.stat(root).st_dev != os.stat("/").st_dev:  # noqa: PTH116 - pathlib takes milliseconds to import
                for place in self.places:
                    found.append(os.open(root + place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW))
        except OSError:
            for fd in found:
                os.close(fd)
            return []
        return found


def _bytes(fd: int) -> int:
    seen = os.statvfs(fd)
    return (seen.f_blocks - seen.f_bfree) * seen.f_frsize + (seen.f_files - seen.f_ffree) * INODE_BYTES
