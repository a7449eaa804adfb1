"""What is inside a sandbox, what is bounded, and that training works there; tests/attacks tries to get out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from agent.cell import ADDRESSES
from sandbox import process
from sandbox.bwrap import Box, Sandbox, find
from sandbox.cgroup import make
from sandbox.isolation import Level, detect
from sandbox.limits import Limits
from sandbox.process import Ending, Execution, run, tail
from sandbox.seccomp import MACHINES, program

pytestmark = pytest.mark.skipif(detect().level is not Level.BWRAP, reason=f"needs bubblewrap: {detect().why}")


def inside(
    tmp_path: Path,
    code: str,
    *,
    box: Box | None = None,
    seconds: float = 60.0,
    cancel: Event | None = None,
    **bounds: int,
) -> Execution:
    sandbox = Sandbox(detect().program or Path(), box or Box())
    command = [sys.executable, "-c", code]
    env, limits = {"PATH": os.environ["PATH"], "WORD": "here"}, Limits(seconds, **bounds)
    return run(command, cwd=tmp_path, env=env, limits=limits, log=tmp_path / "log", cancel=cancel, sandbox=sandbox)


def test_it_holds_what_was_put_there_and_little_else(tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("given")
    code = (
        "import os; print(os.getcwd(), os.listdir('.'), open('given.txt').read(), os.environ['WORD'], os.getuid())\n"
        "print(sorted(os.listdir('/')), len([name for name in os.listdir('/proc') if name.isdigit()]))"
    )
    done = inside(tmp_path, code, box=Box({"given.txt": tmp_path / "given.txt"}))
    first, second = done.log_path.read_text().splitlines()
    assert done.ok
    assert first == "/trial ['given.txt'] given here 1000"
    assert "home" not in second
    assert second.endswith(" 2")  # bwrap's init and the command


def test_what_was_given_cannot_be_changed_and_the_rest_is_gone_afterwards(tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("given")
    code = "open('left.txt', 'w').write('x'); print(open('left.txt').read())\nopen('given.txt', 'a').write('more')"
    done = inside(tmp_path, code, box=Box({"given.txt": tmp_path / "given.txt"}))
    assert done.log_path.read_text().splitlines()[-2].endswith(": 'given.txt'")  # EROFS, or EACCES if we are root
    assert {path.name for path in tmp_path.iterdir()} == {"given.txt", "log"}
    assert (tmp_path / "given.txt").read_text() == "given"


def test_the_end_is_told_as_it_was(tmp_path: Path) -> None:
    assert inside(tmp_path, "raise SystemExit(7)").returncode == 7
    killed = inside(tmp_path, "import os; os.kill(os.getpid(), 11)")
    assert (killed.ending, killed.signal, killed.returncode) == (Ending.SIGNALLED, 11, None)
    assert inside(tmp_path, "import time; time.sleep(60)", seconds=0.5).ending is Ending.TIMED_OUT


def test_memory_of_the_whole_tree_is_bounded(tmp_path: Path) -> None:
    done = inside(tmp_path, "import time; x = bytearray(b'x') * (400 << 20); time.sleep(5)", resident_bytes=200 << 20)
    assert done.ending is Ending.OUT_OF_MEMORY
    assert done.wall_seconds < 5


def test_the_number_of_processes_is_bounded(tmp_path: Path) -> None:
    code = "import subprocess, time\nfor _ in range(60): subprocess.Popen(['sleep', '9'])\ntime.sleep(9)"
    done = inside(tmp_path, code, tasks=20)
    assert done.ending is not Ending.EXITED or done.returncode != 0
    assert done.wall_seconds < 5


@pytest.fixture
def no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner, where it may make no control group."""
    refused = "import sys; sys.path.append(sys.argv[1]); import sandbox.runner as it; it.make_group = lambda *_: None; "
    monkeypatch.setattr(process, "_START", refused + "it.main()")


FILL = """
import time
for place in ('/trial', '/tmp', '/dev/shm'):
    with open(place + '/big', 'wb') as file:
        for _ in range({megabytes}): file.write(bytes(1 << 20))
time.sleep({seconds})
"""


@pytest.mark.usefixtures("no_group")
def test_without_a_group_what_lies_in_files_is_memory_too(tmp_path: Path) -> None:
    done = inside(tmp_path, FILL.format(megabytes=90, seconds=20), resident_bytes=200 << 20)
    assert done.ending is Ending.OUT_OF_MEMORY
    assert done.wall_seconds < 10
    assert 200 < done.peak_rss_mb < 320
    assert inside(tmp_path, FILL.format(megabytes=30, seconds=0.5), resident_bytes=200 << 20).ok


@pytest.mark.usefixtures("no_group")
def test_without_a_group_files_that_are_gone_by_name_count_while_somebody_holds_them(tmp_path: Path) -> None:
    code = "import os, time\nfile = open('/tmp/x', 'wb'); os.unlink('/tmp/x')\n"
    code += "for _ in range(250): file.write(bytes(1 << 20))\ntime.sleep(20)"
    assert inside(tmp_path, code, resident_bytes=200 << 20).ending is Ending.OUT_OF_MEMORY


@pytest.mark.usefixtures("no_group")
def test_without_a_group_the_number_of_empty_files_is_bounded(tmp_path: Path) -> None:
    code = "import os\nfor n in range(1_500_000): os.mknod(f'file-{n}')\nprint('ALL')"
    done = inside(tmp_path, code, resident_bytes=200 << 20)
    assert done.ending is Ending.OUT_OF_MEMORY
    assert "ALL" not in done.log_path.read_text()


@pytest.mark.usefixtures("no_group")
def test_without_a_group_processes_are_bounded(tmp_path: Path) -> None:
    code = "import os, time\nfor _ in range(60): os.fork() or time.sleep(20)\ntime.sleep(20)"
    done = inside(tmp_path, code, tasks=20)
    assert done.ending is Ending.SIGNALLED
    assert done.wall_seconds < 10


def test_what_one_sandbox_has_started_is_not_counted_in_another(tmp_path: Path) -> None:
    """The kernel counts a user's threads, wherever they run."""
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    for folder in (outer, inner):
        folder.mkdir()
    code = "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(60,)).start()\n"
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        crowd = pool.submit(inside, outer, code + "print('ALL', flush=True)\n", cancel=stop, tasks=100)
        while not crowd.done() and not ((outer / "log").exists() and "ALL" in tail(outer / "log")):
            time.sleep(0.05)
        alone = inside(inner, "print('started')", tasks=20)
        stop.set()
    assert crowd.result().ending is Ending.CANCELLED
    assert alone.ok


@pytest.mark.usefixtures("no_group")
def test_without_a_group_threads_are_bounded(tmp_path: Path) -> None:
    """Not as another user, whose number of threads the kernel bounds."""
    code = "import threading, time\nfor _ in range({}): threading.Thread(target=time.sleep, args=({},)).start()"

    def start(number: int, seconds: float) -> Execution:
        command, limits = [sys.executable, "-c", code.format(number, seconds)], Limits(20.0, tasks=20)
        return run(command, cwd=tmp_path, env={}, limits=limits, log=tmp_path / "log")

    assert start(400, 20).ending is Ending.SIGNALLED
    assert start(100, 0.5).ok


@pytest.mark.parametrize(
    "call", ["os.memfd_create('x')", "libc('shmget', 0, 9999, 0o1600)", "libc('msgget', 0, 0o1600)"]
)
def test_memory_that_no_process_and_no_file_holds_cannot_be_had(tmp_path: Path, call: str) -> None:
    """The watchdog would not see it."""
    code = f"""
import ctypes, os
def libc(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
{call}
"""
    done = inside(tmp_path, code)
    assert done.returncode == 1
    assert tail(done.log_path, 1).startswith("OSError: [Errno 38]")


def test_a_control_group_bounds_its_processes_and_goes_away() -> None:
    name = f"test-{os.getpid()}"
    group = make(name, 64 << 20, 50)
    if group is None:
        pytest.skip("no control group may be made here")
    code = "x = bytearray(b'x') * (128 << 20)"
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=group.enter, check=False)
    assert done.returncode == -9
    group.close()
    assert not [folder for folder in group.folders if Path(folder).exists()]


@pytest.mark.slow
def test_dataloader_workers_and_torch_compile_work(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom torch.utils.data import DataLoader\n"
        "def main():\n"
        "    rows = list(DataLoader(list(range(8)), batch_size=4, num_workers=2))\n"
        "    double = torch.compile(lambda x: torch.relu(x) * 2 + 1)\n"
        "    print([row.tolist() for row in rows], double(torch.ones(3)).tolist())\n"
        "if __name__ == '__main__': main()\n"
    )
    done = inside(tmp_path, code, seconds=180.0, memory_bytes=ADDRESSES)  # a machine without any memory would give this
    assert done.ok, done.log_path.read_text()
    assert done.log_path.read_text().strip().endswith("[[0, 1, 2, 3], [4, 5, 6, 7]] [3.0, 3.0, 3.0]")


def test_what_went_wrong_with_bwrap_itself_is_in_the_log(tmp_path: Path) -> None:
    done = inside(tmp_path, "pass", box=Box({"x": tmp_path / "nowhere"}))
    assert not done.ok
    assert "nowhere" in done.log_path.read_text()


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_is_whole_instructions_and_every_jump_lands_inside(machine: str) -> None:
    made = program(machine)
    assert len(made) % 8 == 0
    count = len(made) // 8
    for at in range(count):
        if_true, if_false = made[8 * at + 2], made[8 * at + 3]
        assert at + 1 + max(if_true, if_false) < count or (if_true, if_false) == (0, 0)


def test_the_binary_is_found() -> None:
    found = find()
    assert found is not None
    assert os.access(found, os.X_OK)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="takes rights away from root")
def test_root_that_may_not_mount_is_told_what_to_do(tmp_path: Path) -> None:
    command = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-m", "agent"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, "doctor"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("sandbox"))
    assert "process only" in line
    assert "CAP_SYS_ADMIN" in line
