"""Control groups of version 2, on a kernel of its own: whether a group can be made, and what it stops.

    python -m benchmarks.cgroup_v2 --kernel FOLDER

As root: boots Debian's kernel in emulation on this machine's root, read-only; half a minute. A machine has groups of
one version, so the other needs a kernel of its own. Needs qemu-system-x86_64, busybox (static), depmod, a Python
that everybody may run, and in FOLDER an unpacked linux-image package (boot/, lib/modules/).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sandbox.cgroup import make
from sandbox.limits import Limits
from sandbox.process import run, tail

MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
USER = 1001
BOMB = "x = bytearray(b'x') * (256 << 20)"
FORKS = """
import os, time
n = 0
while n < 200:
    try:
        if os.fork() == 0:
            time.sleep(9)
            os._exit(0)
    except OSError:
        break
    n += 1
print(n, flush=True)
os.kill(0, 9)
"""
# Where a session may find itself: group, the user it runs as, who owns the group around it.
PLACES = (
    ("root, in the root group", "", 0, 0),
    ("root, in a terminal's scope", "user.slice/session.scope", 0, 0),
    ("a user, in a scope of a slice that is theirs", "own.slice/session.scope", USER, USER),
    ("a user, in a scope of root's slice", "user.slice/session.scope", USER, 0),
)
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro host /host
$b mount -t tmpfs none /over; $b mkdir /over/up /over/work
$b mount -t overlay -o lowerdir=/host,upperdir=/over/up,workdir=/over/work none /root
for name in proc sys dev; do $b mount --move /$name /root/$name; done
$b mount -t tmpfs none /root/dev/shm
$b mount -t cgroup2 none /root/sys/fs/cgroup
$b chroot /root /bin/sh -c "cd {here} && exec {python} -m benchmarks.cgroup_v2 --inside"
$b poweroff -f
"""


def inside() -> None:
    """In the machine: every place in turn, one line of JSON each."""
    for what, place, user, owner in PLACES:
        print(json.dumps({"what": what} | _in_a_child(place, user, owner)), flush=True)


def _in_a_child(place: str, user: int, owner: int) -> dict[str, object]:
    group = Path("/sys/fs/cgroup") / place
    group.mkdir(parents=True, exist_ok=True)
    for folder in (group, group.parent) if place else ():
        for path in (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control"):
            os.chown(path, owner, owner)
    reader, writer = os.pipe()
    if os.fork() == 0:
        (group / "cgroup.procs").write_text("0")
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        os.write(writer, json.dumps(_probe()).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    return json.loads(os.read(reader, 1 << 16) or "{}")


def _probe() -> dict[str, object]:
    group = make("probe", 64 << 20, 20)
    if group is None:
        return {"group": None}
    python = [sys.executable, "-S", "-c"]
    bomb = subprocess.run([*python, BOMB], preexec_fn=group.enter, check=False)
    forks = subprocess.run(
        [*python, FORKS], preexec_fn=group.enter, check=False, stdout=subprocess.PIPE, start_new_session=True
    )
    group.close()
    left = [folder for folder in group.folders if Path(folder).exists()]
    return {
        "group": group.folders,
        "memory bomb": bomb.returncode,
        "forks": int(forks.stdout),
        "left": left,
        "of a run": _of_a_run(),
    }


def _of_a_run() -> str:
    """The group that a command of the sandbox's runner finds itself in."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.log"
        limits = Limits(wall_seconds=60, resident_bytes=64 << 20, tasks=20)
        run(["cat", "/proc/self/cgroup"], cwd=Path(folder), env={"PATH": "/usr/bin:/bin"}, limits=limits, log=log)
        return tail(log)


def boot(kernel: Path) -> int:
    """Boot `kernel` on this machine's root, read-only under a memory; its lines, from the first JSON on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "4G", "-smp", "2"),
            *("-nographic", "-no-reboot", "-kernel", str(next((kernel / "boot").glob("vmlinuz-*")))),
            *("-initrd", str(_initrd(folder, kernel)), "-append", "console=ttyS0 quiet panic=-1 loglevel=0"),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=600, check=False)
    lines = [line[line.index("{") :] for line in done.stdout.splitlines() if '{"what"' in line]
    print("\n".join(lines) or done.stdout[-2000:] + done.stderr[-2000:])
    return 0 if len(lines) == len(PLACES) else 1


def _initrd(folder: Path, kernel: Path) -> Path:
    """What runs first: busybox, the modules without which there is no root, and INIT."""
    root = folder / "root"
    for name in ("bin", "modules", "host", "over", "root", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", root / "bin" / "busybox")
    for number, module in enumerate(_modules(kernel)):
        shutil.copy(module, root / "modules" / f"{number:02}-{module.name}")
    (root / "init").write_text(INIT.format(here=Path.cwd(), python=sys.executable))
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["busybox", "cpio", "-o", "-H", "newc"], cwd=root, input=names.encode(), capture_output=True, check=True
    )
    (folder / "initrd").write_bytes(packed.stdout)
    return folder / "initrd"


def _modules(kernel: Path) -> list[Path]:
    """MODULES and what they need, in the order to load them."""
    home = next((kernel / "lib" / "modules").iterdir())
    subprocess.run(["depmod", "-b", str(kernel), home.name], check=True)
    needs = dict(line.split(":") for line in (home / "modules.dep").read_text().splitlines())
    wanted: dict[str, None] = {}
    for path in needs:
        if Path(path).stem in MODULES:
            wanted |= dict.fromkeys([*reversed(needs[path].split()), path])
    return [home / path for path in wanted]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", type=Path, help="an unpacked linux-image package")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        inside()
    elif given.kernel is None:
        parser.error("expected --kernel FOLDER: apt-get download linux-image-…-amd64 && dpkg-deb -x *.deb FOLDER")
    else:
        sys.exit(boot(given.kernel))
