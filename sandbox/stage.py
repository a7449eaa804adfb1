"""What root does before it starts a sandbox: show what will be inside, then become a user without rights."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
from collections.abc import Sequence

STAGE = "/mnt"  # exists on every system, and is left alone on all of this one but for the command
# Without an account: systemd makes up users here for its services; a container seldom has any beyond 65535.
USERS = range(61184, 65520)
CLONE_NEWNS, MS_NOSUID, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 2, 4096, 16384, 1 << 18  # linux/sched.h, linux/mount.h


def stage(sources: Sequence[str]) -> None:
    """In a mount namespace of our own, show the i-th source as STAGE/<i>.

    Root can reach them all, and a user without rights, which is what the command is about to be, only some: the
    interpreter may lie below a home that nobody else may enter.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
        if libc.mount(source.encode(), target.encode(), kind, ctypes.c_ulong(flags), options):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), source)

    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    held = [os.open(source, os.O_PATH) for source in sources]  # one of them may lie below STAGE
    mount("tmpfs", STAGE, b"tmpfs", MS_NOSUID, b"mode=755,size=1m")
    for number, fd in enumerate(held):
        target = f"{STAGE}/{number}"
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(target)  # noqa: PTH102 - pathlib takes milliseconds to import
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(f"/proc/self/fd/{fd}", target, None, MS_BIND | MS_REC)
        os.close(fd)


def become_nobody_else(threads: int | None) -> None:
    """A user without rights, of whom nothing else runs: the kernel bounds threads by user, over all its sandboxes."""
    uid = USERS[os.getpid() % len(USERS)]
    os.setgroups([])
    os.setgid(uid)
    if threads is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
    os.setuid(uid)
