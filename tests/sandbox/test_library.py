"""The library that a sandbox shows where the library is the data: it works, and its text is nowhere."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.isolation import Level, detect
from sandbox.library import EMPTY, compiled, cover, stdlib
from sandbox.limits import Limits
from sandbox.process import Execution, run

needs_bwrap = pytest.mark.skipif(detect().level is not Level.BWRAP, reason=f"needs bubblewrap: {detect().why}")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("bytecode"))


def inside(copy: Path, folder: Path, code: str) -> Execution:
    sandbox = replace(detect(), library=copy).around({})
    env, limits = {"PATH": os.environ["PATH"]}, Limits(180.0)
    return run([sys.executable, "-c", code], cwd=folder, env=env, limits=limits, log=folder / "log", sandbox=sandbox)


def test_it_holds_every_module_and_no_text(copy: Path) -> None:
    modules = {path.relative_to(stdlib()).with_suffix("") for path in stdlib().glob("*.py")}
    assert modules == {path.relative_to(copy).with_suffix("") for path in copy.glob("*.pyc")}
    assert not list(copy.rglob("*.py"))
    assert b"Generic (shallow and deep) copying operations" not in (copy / "copy.pyc").read_bytes()


def test_it_is_made_once_and_can_be_read_by_all(copy: Path) -> None:
    made = copy.stat().st_mtime_ns
    assert compiled(copy.parent) == copy
    assert copy.stat().st_mtime_ns == made
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in copy.rglob("*"))


def test_a_umask_does_not_hide_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        made = compiled(tmp_path)
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o055 == 0o055
    assert (made / "json" / "decoder.pyc").stat().st_mode & 0o044 == 0o044


def test_other_libraries_are_covered_by_nothing(tmp_path: Path) -> None:
    other = tmp_path / "tool" / "lib" / "python3.99"
    other.mkdir(parents=True)
    for name in ("os.py", "abc.py", "dataclasses.py"):
        (other / name).touch()
    covers = dict(reversed(pair) for pair in cover(Path("/copy"), [str(tmp_path)]))
    assert covers[str(other)] == f"/copy/{EMPTY}"
    assert covers[str(stdlib())] == "/copy"


@needs_bwrap
def test_python_and_torch_run_on_it_and_find_no_text(copy: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, sysconfig, json, inspect, dataclasses, asyncio, unittest, torch\n"
        "texts = [path for path in (os.__file__, json.__file__, '/usr/lib/python3.11/json/decoder.py')\n"
        "         if path.endswith('.py') and os.path.exists(path)]\n"
        "print(texts, json.loads('[1]'), json.__doc__, torch.ones(2).sum().item())\n"
    )
    done = inside(copy, tmp_path, code)
    assert done.log_path.read_text() == "[] [1] None 2.0\n"


@needs_bwrap
@pytest.mark.slow
def test_torch_compile_and_dataloader_workers_run_on_it(copy: Path, tmp_path: Path) -> None:
    code = (
        "import torch\nfrom torch.utils.data import DataLoader\n"
        "if __name__ == '__main__':\n"
        "    rows = list(DataLoader(list(range(4)), batch_size=2, num_workers=2))\n"
        "    double = torch.compile(lambda x: torch.relu(x) * 2 + 1)\n"
        "    print([row.tolist() for row in rows], double(torch.ones(3)).tolist())\n"
    )
    done = inside(copy, tmp_path, code)
    assert done.log_path.read_text().strip().endswith("[[0, 1], [2, 3]] [3.0, 3.0, 3.0]")
