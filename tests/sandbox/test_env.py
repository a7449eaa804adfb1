from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from sandbox.env import child_env, looks_secret
from sandbox.limits import Limits
from sandbox.process import MARK, run

SECRETS = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "APIKEY",
    "MY_PASSWORD",
    "MYSQL_PASSWD",
    "SOME_CREDENTIALS",
    "WANDB_API_KEY",
    "openai_api_key",
    "TORCH_API_KEY",
    "OMP_TOKEN",
    "PYTORCH_SECRET",
    "LC_PASSWORD",
    "TRITON_KEY",
    "MKL_ACCESS_TOKENS",
    "BASIC_AUTH",
    "SSH_KEYS",
)
HARMLESS = (
    "PATH",
    "LC_ALL",
    "OMP_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "AUTHOR",
    "KEYBOARD",
    "TORCH_LOGS",
)
CACHES = ("HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
HERE = Path("/trials/1/work")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name not in ("PATH", "HOME"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OVERNIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_reaches_a_child(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "sk-123456")
    assert looks_secret(name)
    assert "sk-123456" not in child_env(HERE).values()
    with pytest.raises(ValueError, match=f"found the name {name};"):
        child_env(HERE, {name: "x"})


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_names_are_no_secrets(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    "name", ["LANG", "LC_ALL", "TZ", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_LOGS", "VIRTUAL_ENV"]
)
def test_what_computing_needs_is_inherited(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name not in child_env(HERE)
    monkeypatch.setenv(name, "here")
    assert child_env(HERE)[name] == "here"


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD", "EDITOR", "SSH_AUTH_SOCK", "GIT_DIR"])
def test_everything_else_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "here")
    assert name not in child_env(HERE)


def test_extra_comes_on_top_without_changing_what_it_came_from() -> None:
    extra = {"CUDA_VISIBLE_DEVICES": "1", "OVERNIGHT_TRIAL": "/x/trial.json", "HOME": "/elsewhere"}
    assert child_env(HERE, extra).items() >= extra.items()
    assert "OVERNIGHT_TRIAL" not in child_env(HERE)


def test_home_is_not_ours_and_what_tools_keep_is_in_the_folder(tmp_path: Path) -> None:
    env = child_env(HERE)
    assert env["OVERNIGHT_CACHE"] == str(tmp_path / "cache")
    for name in CACHES:
        assert Path(env[name]).is_relative_to(HERE)
    assert (env["PYTHONDONTWRITEBYTECODE"], env["PYTHONUNBUFFERED"]) == ("1", "1")


@pytest.mark.parametrize("name", [*CACHES, "TRITON_HOME", "TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TRITON_OVERRIDE_DIR"])
def test_no_two_children_share_a_cache_whatever_our_own_environment_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "/big/disk")
    first, second = child_env(HERE), child_env(Path("/trials/2/work"))
    assert "/big/disk" not in first.values()
    assert name not in first or first[name] != second[name]


def test_threads_that_wait_do_not_spin_for_long_unless_we_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert child_env(HERE)["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert child_env(HERE)["GOMP_SPINCOUNT"] == "7"


def test_a_relative_or_missing_cache_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_CACHE", "here")
    assert child_env(HERE)["OVERNIGHT_CACHE"] == str(Path.cwd() / "here")
    monkeypatch.delenv("OVERNIGHT_CACHE")
    assert child_env(HERE)["OVERNIGHT_CACHE"] == str(Path.home() / ".cache" / "overnight")


def test_a_real_child_sees_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "sk-123456")
    log = tmp_path / "run.log"
    code = "import os; print(*(f'{k}={v}' for k, v in os.environ.items()), sep='\\n')"
    assert run([sys.executable, "-c", code], cwd=tmp_path, env=child_env(HERE), limits=Limits(20), log=log).ok
    seen = set(re.findall(r"^(\w+)=", log.read_text(), re.MULTILINE))
    assert "sk-123456" not in log.read_text()
    assert seen - {"LC_CTYPE"} == {*child_env(HERE), MARK}  # Python itself adds LC_CTYPE in the C locale
