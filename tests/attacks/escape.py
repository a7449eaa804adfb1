"""Programs that try to get out of the sandbox. Each prints SURVIVED when it did what it must not be able to do.

They know everything: the addresses, paths and process numbers that a real one would have to find out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.isolation import Isolation
from sandbox.limits import Limits
from sandbox.process import Execution, run

SECRET = "sk-this-must-not-get-out"
SYSCALL = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"
# name → program; the names in braces are filled in by `Outside.names`
PROGRAMS = {
    "read ~/.ssh": "print('SURVIVED' if 'KEY' in open('{home}/.ssh/id_ed25519').read() else '')",
    "read ~/.config": "print('SURVIVED' if 'KEY' in open('{home}/.config/token').read() else '')",
    "key in any environ": "import glob\n"
    "for path in glob.glob('/proc/[0-9]*/environ'):\n"
    "    try:\n        found = '{secret}' in open(path, errors='replace').read()\n"
    "    except OSError:\n        continue\n"
    "    if found: print('SURVIVED')",
    "TCP to this machine": "import socket; socket.create_connection(('127.0.0.1', {tcp}), 3); print('SURVIVED')",
    "UDP to this machine": "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "s.sendto(b'x', ('127.0.0.1', {udp})); print('SENT')",
    "TCP to the internet": "import socket; socket.create_connection(('1.1.1.1', 53), 3); print('SURVIVED')",
    "abstract unix socket": "import socket; socket.socket(socket.AF_UNIX).connect('\\0{abstract}'); print('SURVIVED')",
    "unix socket by path": "import socket; s = socket.socket(socket.AF_UNIX)\ns.connect('{path}'); print('SURVIVED')",
    "vsock": "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); print('SURVIVED')",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print('SURVIVED')",
    "signal another process": "import os; os.kill({pid}, 0); print('SURVIVED')",
    "ptrace": SYSCALL + "print('SURVIVED' if libc.ptrace(16, {pid}, 0, 0) == 0 else '')",
    "list processes": "import os; print('SURVIVED' if os.path.exists('/proc/{pid}/cmdline') and b'attack-victim' in "
    "open('/proc/{pid}/cmdline', 'rb').read() else '')",
    "mount": SYSCALL + "print('SURVIVED' if libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0 else '')",
    "user namespace": SYSCALL + "print('SURVIVED' if libc.unshare(0x10000000) == 0 else '')",
    "write /proc/sys": "open('/proc/sys/kernel/core_pattern', 'r+'); print('SURVIVED')",
    "write sysrq-trigger": "open('/proc/sysrq-trigger', 'w'); print('SURVIVED')",
    "raw disk": "import os, stat\n"
    "for name in os.listdir('/dev'):\n"
    "    if stat.S_ISBLK(os.stat('/dev/' + name).st_mode): open('/dev/' + name, 'rb'); print('SURVIVED')\n"
    "os.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0)); open('/tmp/disk', 'rb'); print('SURVIVED')",
    "io_uring": SYSCALL + "print('SURVIVED' if libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0 else '')",
    "write the ledger": "open('{ledger}', 'a').write('forged'); print('SURVIVED')",
    "write into another trial": "open('{trial}/metrics.json', 'w').write('forged'); print('SURVIVED')",
    "write .git/config": "with open('{git}/config', 'a') as config:\n"
    "    config.write('[core]\\n\\tfsmonitor = touch x\\n\\tsshCommand = touch x\\n')\nprint('SURVIVED')",
    "write a git object": "open('{git}/objects/ab/' + 'c' * 38, 'wb').write(b'forged'); print('SURVIVED')",
    "write a git hook": "open('{git}/hooks/post-checkout', 'w').write('#!/bin/sh'); print('SURVIVED')",
    "hard link out": "import os; os.link('{ledger}', 'model.safetensors'); print('SURVIVED')",
    "symbolic link out": "import os; os.symlink('{ledger}', 'run.log')\n"
    "open('run.log', 'a').write('forged'); print('SURVIVED')",
    "a .pth among the packages": "import sysconfig\n"
    "open(sysconfig.get_paths()['purelib'] + '/attack.pth', 'w').write('import x'); print('SURVIVED')",
    "a file for the next trial": "for folder in ('/tmp', '/dev/shm', '/var/tmp'):\n"
    "    try:\n        open(f'{{folder}}/{mark}', 'w').write('x')\n    except OSError:\n        pass",
    "huge file": "with open('big', 'wb') as f:\n    for _ in range(1200): f.write(b'x' * (1 << 20))\nprint('SURVIVED')",
    "fill /dev/shm": "with open('/dev/shm/big', 'wb') as f:\n"
    "    for _ in range(1200): f.write(b'x' * (1 << 20))\nprint('SURVIVED')",
    "write /dev": "open('/dev/file', 'w').write('x'); print('SURVIVED')",
    "write the root": "open('/file', 'w').write('x'); print('SURVIVED')",
    "fork bomb": "import os, time\n"
    "while True:\n"
    "    try:\n        os.fork()\n"
    "    except OSError:\n        time.sleep(0.01)",
    "memory bomb": "held = []\nwhile True: held.append(bytearray(b'x') * (64 << 20))",
    "log flood": "import sys\nfor _ in range(4000): sys.stdout.write('x' * 100_000)\nprint('END')",
    "daemon for the next trial": "import os, subprocess, sys, time\n"
    "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    "        os.execv(sys.executable, [sys.executable, '-c', 'import signal, time; "
    "signal.signal(15, signal.SIG_IGN); time.sleep(600)', '{mark}'])\n"
    "time.sleep(0.5)",
    "many small files": "for n in range(20_000): open(f'file-{{n}}', 'w').close()",
}
# At level `process` nothing stops these, and they harm nobody: what shows that the attacks above can succeed at all.
CONTROLS = (
    "read ~/.ssh", "read ~/.config", "key in any environ", "TCP to this machine", "UDP to this machine",
    "abstract unix socket", "unix socket by path", "signal another process", "list processes", "write the ledger",
    "write into another trial", "write .git/config", "write a git object", "write a git hook",
    "hard link out", "symbolic link out", "a file for the next trial", "many small files",
)  # fmt: skip
RESIDENT, TASKS, LOG_BYTES = 1500 << 20, 200, 1 << 20


@dataclass
class Outside:
    """What there is to get at, and what became of it."""

    folder: Path
    names: dict[str, object] = field(default_factory=dict)
    udp: socket.socket | None = None


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """A home with keys, a repository, listeners of every kind, and a process whose environment holds a key.

    Where only the mount namespace hides them: anybody may read them, and no memory lies over the place inside.
    """
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, _outside(Path(name)) as made:
        Path(name).chmod(0o755)
        yield made


@contextlib.contextmanager
def _outside(folder: Path) -> Iterator[Outside]:
    home, git = folder / "home", folder / "repository" / ".git"
    for path, text in (
        (home / ".ssh" / "id_ed25519", "KEY"),
        (home / ".config" / "token", "KEY"),
        (git / "config", ""),
        (git / "hooks" / "sample", ""),
        (git / "objects" / "ab" / ("d" * 38), ""),
        (folder / "trials" / "1" / "metrics.json", "{}"),
        (folder / "results.tsv", "ledger\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.3)
        abstract, path = f"attack-{os.getpid()}", folder / "socket"
        for address in (f"\0{abstract}", str(path)):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
        victim = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)", "attack-victim"], env={"OPENAI_API_KEY": SECRET}
        )
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        names = {
            "home": home,
            "git": git,
            "ledger": folder / "results.tsv",
            "trial": folder / "trials" / "1",
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "abstract": abstract,
            "path": path,
            "pid": victim.pid,
            "secret": SECRET,
        }
        yield Outside(folder, names, udp)


def attempt(name: str, isolation: Isolation, world: Outside, folder: Path) -> str:
    """ "" if the attack came through, else what stopped it."""
    mark = f"attack-{uuid.uuid4().hex}"
    program = PROGRAMS[name].format(**world.names, mark=mark)
    folder.mkdir(parents=True)
    (folder / "attack.py").write_text(program)
    done = run(
        [sys.executable, "attack.py", mark],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        limits=Limits(20.0, grace_seconds=0.2, resident_bytes=RESIDENT, tasks=TASKS, log_bytes=LOG_BYTES),
        log=folder / "log",
        sandbox=isolation.around({"attack.py": folder / "attack.py"}),
    )
    return "" if _survived(name, done, world, mark) else f"sandbox ({isolation.level})"


def _survived(name: str, done: Execution, world: Outside, mark: str) -> bool:
    log = done.log_path.read_text(errors="replace")
    match name:
        case "UDP to this machine":
            assert world.udp is not None
            with contextlib.suppress(TimeoutError):
                return bool(world.udp.recv(1))
            return False
        case "daemon for the next trial" | "fork bomb":
            time.sleep(0.2)
            listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
            return mark in listing
        case "a file for the next trial":
            left = [Path(folder) / mark for folder in ("/tmp", "/dev/shm", "/var/tmp")]
            return bool([path.unlink() for path in left if path.exists()])
        case "memory bomb":
            return done.ending != "out_of_memory" or done.peak_rss_mb > 3 * (RESIDENT >> 20)
        case "log flood":
            return done.log_path.stat().st_size > 2 * LOG_BYTES
        case "many small files":
            return len(list(done.log_path.parent.iterdir())) > 2
    return "SURVIVED" in log.splitlines()
