"""Programs that try to get out of the sandbox: what runs inside. `escape` starts each one and judges how it ended.

    python programs.py NAME '{"home": …}'     what they are told is what a real one would have to find out

A program says REACHED right before the call that must not succeed; and then SURVIVED, or REFUSED and what the system
answered, or DONE where only from outside can be seen what came of it. One that ends otherwise has failed by itself, and
shows nothing. Standard library only, this file alone: there is nothing else inside.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import stat
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

At = SimpleNamespace  # addresses, paths and process numbers; filled in by `escape.outside`
CLONE_NEWNS, CLONE_NEWUSER, PTRACE_SEIZE, IO_URING_SETUP = 0x20000, 0x10000000, 0x4206, 425
SYSRQ, CORE_PATTERN, YAMA = "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/yama/ptrace_scope"
MIB, MEBIBYTES, FILES = 1 << 20, 1100, 1_500_000
libc = ctypes.CDLL(None, use_errno=True)


def anywhere() -> str:
    return ""


def harm() -> str:
    return "harm"


def others() -> str:
    return "not our machine"


def root() -> str:
    return "" if os.geteuid() == 0 else "needs root"


def traced() -> str:
    """Some systems let a user trace its own children only."""
    return root() if Path(YAMA).exists() and Path(YAMA).read_text() != "0\n" else ""


def packages() -> str:
    return "" if os.access(sysconfig.get_paths()["purelib"], os.W_OK) else "needs root"


def room_in_shm() -> str:
    seen = os.statvfs("/dev/shm")
    return "" if seen.f_bavail * seen.f_frsize > 2 * MEBIBYTES * MIB else "no room"


def sysrq() -> str:
    return "" if Path(SYSRQ).exists() else "not in this kernel"


def vsock() -> str:
    with suppress(OSError), socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        return ""
    return "not in this kernel"


@dataclass(frozen=True)
class Program:
    """stopped: every answer that shows the wall: names of errors, endings of runs, or DONE. needs: why this machine
    cannot have it. bare: why it is not tried at level process, "" where it is. limited: its end is the same there.
    """

    attack: Callable[[At], str | None]
    stopped: tuple[str, ...]
    bare: Callable[[], str] = anywhere
    needs: Callable[[], str] = anywhere
    limited: bool = False


PROGRAMS: dict[str, Program] = {}
Attack = Callable[[At], str | None]


def program(
    name: str,
    stopped: str,
    bare: Callable[[], str] = anywhere,
    needs: Callable[[], str] = anywhere,
    limited: bool = False,
) -> Callable[[Attack], Attack]:
    def add(attack: Attack) -> Attack:
        PROGRAMS[name] = Program(attack, tuple(stopped.split()), bare, needs, limited)
        return attack

    return add


def reached() -> None:
    print("REACHED", flush=True)


def answered(value: int) -> int:
    """What a function of the C library says, an error raised."""
    if value < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return value


def append(path: str, text: str) -> None:
    """The file's folder is there, outside; the text may make a line of its own."""
    reached()
    with Path(path).open("a") as file:
        file.write(text)


@program("read ~/.ssh", "ENOENT")
def read_ssh(at: At) -> None:
    reached()
    assert "KEY" in Path(f"{at.home}/.ssh/id_ed25519").read_text()


@program("read ~/.config", "ENOENT")
def read_config(at: At) -> None:
    reached()
    assert "KEY" in Path(f"{at.home}/.config/token").read_text()


@program("key in any environ", "ENOENT")
def read_environs(at: At) -> None:
    looked = 0
    reached()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            text = path.read_text(errors="replace")
            looked += bool(text)
            if at.secret in text:
                return
    assert looked, "not even our own could be read"
    raise FileNotFoundError(errno.ENOENT, "nobody has it")


@program("TCP to this machine", "EAFNOSUPPORT")
def tcp(at: At) -> None:
    reached()
    socket.create_connection(("127.0.0.1", at.tcp), 3)


@program("UDP to this machine", "EAFNOSUPPORT")
def udp(at: At) -> str:
    reached()
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", at.udp))
    return "DONE"


@program("TCP to the internet", "EAFNOSUPPORT", bare=others)
def internet(at: At) -> None:
    reached()
    socket.create_connection(("1.1.1.1", 53), 3)


@program("abstract unix socket", "ECONNREFUSED")
def abstract_socket(at: At) -> None:
    ours = socket.socket(socket.AF_UNIX)
    reached()
    ours.connect(f"\0{at.abstract}")


@program("unix socket by path", "ENOENT")
def unix_socket(at: At) -> None:
    ours = socket.socket(socket.AF_UNIX)
    reached()
    ours.connect(at.path)


@program("vsock", "EAFNOSUPPORT", bare=vsock)
def host_socket(at: At) -> None:
    reached()
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)


@program("netlink", "EAFNOSUPPORT")
def netlink(at: At) -> None:
    reached()
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


@program("signal another process", "ESRCH")
def signal_another(at: At) -> None:
    reached()
    os.kill(at.pid, 0)


@program("ptrace another process", "EPERM", bare=traced)
def trace_another(at: At) -> None:
    reached()
    answered(libc.ptrace(PTRACE_SEIZE, at.pid, 0, 0))


@program("ptrace a child", "EPERM")
def trace_child(at: At) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        reached()
        answered(libc.ptrace(PTRACE_SEIZE, child, 0, 0))
    finally:
        os.kill(child, signal.SIGKILL)


@program("list processes", "ENOENT")
def list_processes(at: At) -> None:
    reached()
    assert "attack-victim" in Path(f"/proc/{at.pid}/cmdline").read_text()


@program("mount", "EPERM")
def mount(at: At) -> None:
    """In a namespace of its own where it may have one: over /tmp, but for nobody else."""
    apart = libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0
    assert apart or os.getuid() != 0, "it would be everybody's"
    reached()
    answered(libc.mount(b"x", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None))


@program("user namespace", "EPERM")
def user_namespace(at: At) -> None:
    reached()
    answered(libc.unshare(CLONE_NEWUSER))


@program("write /proc/sys", "EROFS EACCES", bare=root)
def open_core_pattern(at: At) -> None:
    reached()
    os.open(CORE_PATTERN, os.O_WRONLY)


@program("write sysrq-trigger", "EROFS EACCES", bare=root, needs=sysrq)
def open_sysrq(at: At) -> None:
    reached()
    os.open(SYSRQ, os.O_WRONLY)


@program("raw disk", "ENOENT", bare=root)
def raw_disk(at: At) -> None:
    nodes = list(Path("/dev").iterdir())
    assert Path("/dev/null") in nodes
    reached()
    for node in nodes:
        if stat.S_ISBLK(node.lstat().st_mode):
            os.open(node, os.O_RDONLY)
            return
    raise FileNotFoundError(errno.ENOENT, "there is none")


@program("node of a raw disk", "EPERM", bare=root)
def make_disk(at: At) -> None:
    major, minor = Path("/proc/partitions").read_text().split()[4:6]  # below the four words of the head
    reached()
    os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
    Path("disk").unlink()


@program("io_uring", "EPERM")
def io_uring(at: At) -> None:
    reached()
    answered(libc.syscall(IO_URING_SETUP, 8, ctypes.create_string_buffer(256)))


@program("memory that nobody holds", "ENOSYS")
def hidden_memory(at: At) -> None:
    reached()
    os.memfd_create("x")


@program("write the ledger", "ENOENT")
def write_ledger(at: At) -> None:
    append(at.ledger, "forged")


@program("write into another trial", "ENOENT")
def write_trial(at: At) -> None:
    append(f"{at.trial}/metrics.json", "forged")


@program("write .git/config", "ENOENT")
def write_git_config(at: At) -> None:
    append(f"{at.git}/config", "[core]\n\tfsmonitor = touch x\n\tsshCommand = touch x\n")


@program("write a git object", "ENOENT")
def write_git_object(at: At) -> None:
    append(f"{at.git}/objects/ab/{'c' * 38}", "forged")


@program("write a git hook", "ENOENT")
def write_git_hook(at: At) -> None:
    append(f"{at.git}/hooks/post-checkout", "#!/bin/sh")


@program("hard link out", "ENOENT")
def hard_link(at: At) -> None:
    reached()
    os.link(at.ledger, "model.safetensors")


@program("symbolic link out", "ENOENT")
def symbolic_link(at: At) -> None:
    Path("run.log").symlink_to(at.ledger)
    append("run.log", "forged")


def create(path: str) -> None:
    """A new file that says nothing, gone at once."""
    reached()
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    Path(path).unlink()


@program("a .pth among the packages", "EROFS EACCES", bare=packages)
def write_pth(at: At) -> None:
    create(f"{sysconfig.get_paths()['purelib']}/{at.mark}.pth")


@program("write /dev", "EROFS EACCES", bare=root)
def write_dev(at: At) -> None:
    create(f"/dev/{at.mark}")


@program("write the root", "EROFS EACCES", bare=root)
def write_root(at: At) -> None:
    create(f"/{at.mark}")


@program("a file for the next trial", "DONE")
def leave_file(at: At) -> str:
    reached()
    left = 0
    for folder in ("/tmp", "/dev/shm", "/var/tmp"):
        with suppress(OSError), Path(folder, at.mark).open("w") as file:
            file.write("x")
            left += 1
    assert left
    return "DONE"


def fill(path: str, mebibytes: int) -> None:
    """A file that nobody finds by name any more: it is gone with us."""
    with Path(path).open("wb") as file:
        Path(path).unlink()
        for _ in range(mebibytes):
            file.write(bytes(MIB))
        file.flush()


@program("huge file", "ENOSPC")
def huge_file(at: At) -> None:
    reached()
    fill("big", MEBIBYTES)


@program("fill /dev/shm", "ENOSPC", bare=room_in_shm)
def fill_shm(at: At) -> None:
    reached()
    fill("/dev/shm/big", MEBIBYTES)


@program("memory bomb", "out_of_memory", bare=harm)
def memory_bomb(at: At) -> None:
    reached()
    held = []
    while True:
        held.append(bytearray(b"x") * (64 * MIB))


@program("memory bomb of files", "out_of_memory", bare=harm)
def file_bomb(at: At) -> None:
    """None of them is too large, all of them together are."""
    reached()
    for path in ("big", "/tmp/big", "/dev/shm/big"):
        with Path(path).open("wb") as file:
            for _ in range(MEBIBYTES * 3 // 4):
                file.write(bytes(MIB))
    time.sleep(5)


@program("many small files", "out_of_memory ENOSPC", bare=harm)
def many_files(at: At) -> None:
    reached()
    for number in range(FILES):
        os.mknod(f"file-{number}")


@program("fork bomb", "signalled out_of_memory", bare=harm)
def fork_bomb(at: At) -> None:
    reached()
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)


@program("thread bomb", "signalled EAGAIN", bare=harm)
def thread_bomb(at: At) -> None:
    reached()
    for _ in range(20_000):
        try:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        except RuntimeError as error:  # "can't start new thread": what the kernel said is lost
            raise BlockingIOError(errno.EAGAIN, str(error)) from None


@program("log flood", "DONE", limited=True)
def log_flood(at: At) -> str:
    reached()
    for _ in range(4000):
        sys.stdout.write("x" * 100_000)
    return "DONE"


@program("daemon for the next trial", "DONE", limited=True)
def daemon(at: At) -> str:
    """One that no parent, session or process group leads to, and that ignores TERM; `mark` is in its arguments."""
    theirs, ours = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            reached()
            os.write(ours, b"x")
            time.sleep(600)
        os._exit(0)
    os.read(theirs, 1)
    return "DONE"


def main(name: str, told: str) -> None:
    try:
        word = PROGRAMS[name].attack(SimpleNamespace(**json.loads(told))) or "SURVIVED"
    except OSError as error:
        word = f"REFUSED {errno.errorcode.get(error.errno or 0, str(error))}"
    print(f"\n{word}", flush=True)
    os._exit(0)  # threads may be left


if __name__ == "__main__":
    main(*sys.argv[1:])
