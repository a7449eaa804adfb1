from __future__ import annotations

import json
import re
import string
from pathlib import Path

import libcst
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libcst.metadata import MetadataWrapper, PositionProvider

from agent import facts, patch, preflight, reply
from agent.errors import UsageError
from agent.preflight import PROFILES, RULES

ROOT = Path(__file__).parents[2]
TRAIN = (ROOT / "train.py").read_text(encoding="utf-8")
EDITS = Path(__file__).parent / "edits"
GOOD, BAD = sorted((EDITS / "good").glob("*.json")), sorted((EDITS / "bad").glob("*.json"))

MINI = '''\
"""A small training script with all the contract asks for."""

from __future__ import annotations

import gc
import math
import os
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import prepare

DEVICE = prepare.device()
DEPTH = 4
if DEVICE.type != "cuda":
    DEPTH = 2


@dataclass(frozen=True)
class GPTConfig:
    depth: int = DEPTH


def build_model(config: GPTConfig) -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(config.depth)))


def main() -> None:
    feed = prepare.open_feed()
    torch.manual_seed(prepare.SEED)
    config = GPTConfig()
    model = build_model(config).to(DEVICE)
    step, batch = 0, feed.next(2, 8)
    while batch is not None:
        prepare.log(step=step, loss=math.log(8))
        # here
        step, batch = step + 1, feed.next(2, 8)
    prepare.finish(model, config)


if __name__ == "__main__":
    main()
'''


def rules_broken(source: str, parent: str = MINI, **settings: str) -> list[str]:
    return [finding.rule for finding in preflight.check(source, parent, **settings)]


def in_loop(code: str) -> str:
    return MINI.replace("        # here\n", "".join(f"        {line}\n" for line in code.split("\n")))


def at_top(code: str) -> str:
    return MINI.replace("DEPTH = 4\n", f"DEPTH = 4\n{code}\n")


def candidate(file: Path) -> tuple[str, str | None]:
    """train.py after the edits in a file, and the rule they shall break."""
    call = json.loads(file.read_text(encoding="utf-8"))
    rule = call.pop("rule", None)
    return patch.apply({"train.py": TRAIN}, reply.parse_tool_call(call).edits, ["train.py"])["train.py"], rule


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_good_edits_of_train_pass(file: Path) -> None:
    source, rule = candidate(file)
    assert rule is None
    assert preflight.check(source, TRAIN) == ()


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_bad_edits_of_train_break_their_rule(file: Path) -> None:
    source, rule = candidate(file)
    findings = preflight.check(source, TRAIN)
    assert {finding.rule for finding in findings} == {rule}
    assert all(RULES[finding.rule] in finding.message for finding in findings)


def test_there_are_twenty_of_each_and_one_for_every_rule() -> None:
    assert len(GOOD) >= 20
    assert len(BAD) >= 20
    assert sorted(json.loads(file.read_text(encoding="utf-8"))["rule"] for file in BAD) == sorted(RULES)
    assert {json.loads(file.read_text(encoding="utf-8"))["category"] for file in GOOD} == set(reply.CATEGORIES)


def test_train_and_mini_keep_the_contract() -> None:
    assert rules_broken(TRAIN, "") in ([], ["introspection"])  # train.py picks its dtype by getattr(torch, name)
    assert rules_broken(MINI, "") == []


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("os.system('true')", "process"),
        ("from os import system as s\ns('true')", "process"),
        ("o = os\no.fork()", "process"),
        ("import subprocess as sp", "process"),
        ("torch.multiprocessing.spawn(print)", "process"),
        ("import torch.distributed as dist", "process"),
        ("import signal\nsignal.alarm(3)", "process"),
        ("import asyncio", "thread"),
        ("from concurrent.futures import ThreadPoolExecutor", "thread"),
        ("import urllib.request", "network"),
        ("from torch.hub import load", "network"),
        ("e = eval\ne('1')", "dynamic-code"),
        ("ｅｖａｌ('1')", "dynamic-code"),
        ("map(exec, ['1'])", "dynamic-code"),
        ("compile('1', '', 'eval')", "dynamic-code"),
        ("__import__('math')", "dynamic-code"),
        ("from importlib import import_module", "dynamic-code"),
        ("np.load('x.npy')", "file"),
        ("np.arange(3).tofile('x')", "file"),
        ("torch.save(model, 'x')", "file"),
        ("save = torch.save\nsave(model, 'x')", "file"),
        ("from pathlib import Path\nPath('x').write_text('')", "file"),
        ("os.listdir('.')", "file"),
        ("getattr(torch, 'save')(model, 'x')", "file"),
        ("torch.os.listdir('.')", "file"),
        ("with open('x') as f:\n    pass", "file"),
        ("torch.serialization.load('x')", "weights"),
        ("import pickle", "weights"),
        ("os.environ.get('HOME')", "environment"),
        ("from os import environ\nenviron['A'] = '1'", "environment"),
        ("os.getenv('OVERNIGHT_TRIAL')", "environment"),
        ("sys.modules['prepare']", "introspection"),
        ("math.sys = 3" if False else "import dataclasses\ndataclasses.sys.modules", "introspection"),
        ("sys._getframe()", "introspection"),
        ("import inspect", "introspection"),
        ("gc.get_referrers(model)", "introspection"),
        ("main.__globals__", "introspection"),
        ("getattr(main, '__globals__')", "introspection"),
        ("().__class__.__base__.__subclasses__()", "introspection"),
        ("globals()['step'] = 3", "introspection"),
        ("name = 'x'\ngetattr(model, name)", "introspection"),
        ("print(torch.__dict__)", "introspection"),
        ("for module in (torch, np):\n    pass", "introspection"),
        ("import ctypes", "native-code"),
        ("from torch.utils.cpp_extension import load", "native-code"),
        ("torch.ops.load_library('x.so')", "native-code"),
        ("F.relu = F.gelu", "patching"),
        ("nn.Linear.forward = None", "patching"),
        ("setattr(nn.Linear, 'forward', None)", "patching"),
        ("prepare.log = print", "prepare-rebound"),
        ("setattr(prepare, 'log', print)", "prepare-rebound"),
        ("del prepare.finish", "prepare-rebound"),
        ("prepare = None", "prepare-rebound"),
        ("for prepare.SEED in range(3):\n    pass", "prepare-rebound"),
        ("p = prepare\np.TIME_BUDGET = '1h'", "prepare-rebound"),
        ("print(prepare)", "prepare-rebound"),
        ("feed.progress = 0.0", "prepare-rebound"),
        ("prepare._serve()", "prepare-private"),
        ("from prepare import evaluate_bpb", "prepare-private"),
        ("feed._link", "prepare-private"),
        ("prepare.os.listdir('.')", "prepare-private"),
        ("np.random.seed(0)", "seed"),
        ("import random\nrandom.seed(1)", "seed"),
        ("g = torch.Generator()\ng.manual_seed(7)", "seed"),
        ("torch.Generator().manual_seed(step)", "seed"),
        ("np.random.default_rng()", "seed"),
        ("torch.manual_seed(prepare.SEED + 1)", "seed"),
        ("from torch import manual_seed as reset\nreset(3)", "seed"),
        ("global SEED\nSEED = 3", "seed-rebound"),
        ("import tqdm", "import"),
        ("from . import other", "import"),
        ("from torch.nn import *" if False else "import pandas.io" if False else "import yaml", "import"),
        ("print('---')", "summary"),
        ("print(f'val_bpb: {step}')", "summary"),
        ("sys.stdout.write('x')", "summary"),
        ("line = 'a\\nval_bpb:  0.5'", "summary"),
        ("x = 1  # \u202e", "encoding"),
        ("x = '\u200b'", "encoding"),
        ("x = 1\rx = 2", "encoding"),
        ("x = (", "syntax"),
        ("return", "syntax") if False else ("nonlocal y", "syntax"),
        ("x = " + "-" * 200 + "1", "syntax"),
        ("x = " + "(" * 5000 + ")" * 5000, "syntax"),
        ("x = 1 \x00", "encoding"),
    ],
)
def test_in_a_function(code: str, rule: str) -> None:
    assert rule in rules_broken(in_loop(code))


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("print('hello')", "import-effect"),
        ("for _ in range(3):\n    pass", "import-effect"),
        ("if DEPTH:\n    print('hello')", "import-effect"),
        ("feed = prepare.open_feed()", "import-effect"),
        ("class Early:\n    feed = prepare.open_feed()", "import-effect"),
        ("try:\n    import math\nfinally:\n    print()", "import-effect"),
        ("main = print", "contract-name"),
        ("def main():\n    pass", "contract-name"),
        ("from torch.nn import *", "import"),
        ("import torch as prepare", "prepare-rebound"),
        ("def log():\n    pass\n\n\nfrom prepare import log\nlog = None", "prepare-rebound"),
        ("SEED: int = 3", "seed-rebound"),
    ],
)
def test_at_top_level(code: str, rule: str) -> None:
    assert rule in rules_broken(at_top(code))


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("class GPTConfig:", "class Config:", "contract-name"),
        ("def build_model(config: GPTConfig)", "def build_model(cfg: GPTConfig)", "contract-signature"),
        ("def build_model(config: GPTConfig)", "async def build_model(config: GPTConfig)", "contract-signature"),
        ("def build_model(config: GPTConfig)", "def build_model(config: GPTConfig, *, size)", "contract-signature"),
        ("def main() -> None:", "def main(steps) -> None:", "contract-signature"),
        ("    main()\n", "    pass\n", "main-guard"),
        ('__name__ == "__main__"', '__name__ != "x"', "main-guard"),
        ("        prepare.log(step=step, loss=math.log(8))\n", "", "log-missing"),
        ('"""A small', "# coding: utf-7\n'''A small'''\n\"\"\"", "encoding"),
        ("DEPTH = 4\n", "DEPTH = 4\n" + "X = 0\n" * 1500, "size"),
        ("DEPTH = 4\n", "DEPTH = 4\nX = '" + "x" * 120_000 + "'\n", "size"),
    ],
)
def test_changed_text(old: str, new: str, rule: str) -> None:
    assert old in MINI
    assert rule in rules_broken(MINI.replace(old, new))


@pytest.mark.parametrize(
    "source",
    [
        in_loop("model = torch.compile(model)"),
        in_loop("torch.backends.cuda.matmul.allow_tf32 = True\ntorch._dynamo.config.cache_size_limit = 64"),
        in_loop("if hasattr(F, 'rms_norm'):\n    pass"),
        in_loop("x = getattr(torch, 'bfloat16')\nx = x.itemsize\nos.cpu_count()"),
        in_loop("print('-----', step)\nprint(model.__class__.__name__)"),
        in_loop("model.train()\nmodel.eval()\nself = model\nself.code = 1"),
        in_loop("g = torch.Generator()\ng.manual_seed(prepare.SEED)"),
        in_loop("queue, code = [1], 2\nlines = queue\nlines.append(code)"),
        in_loop("x, y = [1], [2]\nx = y\ny = x\nz = x.a\nx = z.b\ny = z.c\nz = y.d\nprint(x.e.f)"),
        in_loop("log = prepare.log\nlog(step=step)"),
        in_loop("sys.stdout.flush()\nif step < 0:\n    sys.exit('FAIL: loss is nan')"),
        at_top("from prepare import SEED, MAX_SEQ_LEN\nimport random, heapq\nfrom itertools import chain as c"),
        at_top(
            "try:\n    from torch.nn.attention import flex_attention\nexcept ImportError:\n    flex_attention = None"
        ),
        at_top("def helper(input, vars_=None):\n    '''val_bpb: and --- are fine in words\n---\n'''\n    return input"),
        MINI.replace("def main() -> None:", "def main(steps: int = 3) -> None:"),
        MINI.replace("    main()\n", "    sys.exit(main())\n"),
        MINI.replace("\n", "\r\n"),
        MINI.replace("import prepare", "import prepare as p").replace("prepare.", "p."),
    ],
)
def test_allowed(source: str) -> None:
    assert preflight.check(source, MINI) == ()


def test_only_what_is_new_counts() -> None:
    parent = in_loop("trace = open('a.txt')")
    moved = parent.replace("DEPTH = 4\n", "DEPTH = 8\nWIDTH = 3\n").replace("open('a.txt')", "open(\n'a.txt')")
    assert rules_broken(parent) == ["file"]
    assert rules_broken(moved, parent) == []
    twice = parent.replace("        trace =", "        other = open('a.txt')\n        trace =")
    assert [(one.rule, one.line) for one in preflight.check(twice, parent)] == []  # same code, a name apart
    assert rules_broken(parent.replace("a.txt", "b.txt"), parent) == []


def test_profiles_and_extra_imports() -> None:
    script = "import os, sys\nprint('---')\nos.remove('x')\n"
    assert rules_broken(script, "", profile="claimed") == []
    assert rules_broken("x = (\n", script, profile="claimed") == ["syntax"]
    assert rules_broken("lr: 0.2\n- x", "lr: 0.1\n- y", profile="claimed") == []
    assert preflight.check(at_top("import triton"), MINI, imports=["triton"]) == ()
    with pytest.raises(UsageError, match="train, claimed"):
        preflight.check(MINI, MINI, "strict")


def test_findings_have_lines_and_advice() -> None:
    (finding,) = preflight.check(in_loop("x = 1\nopen('secret.txt')"), MINI)
    line = in_loop("x = 1\nopen('secret.txt')").split("\n").index("        open('secret.txt')") + 1
    assert (finding.rule, finding.line) == ("file", line)
    assert finding.message == f"`open`: {RULES['file']}"


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_documented(rule: str) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule)
    assert RULES[rule].endswith(".")
    assert all(rule in PROFILES["train"] for rule in PROFILES["claimed"])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a = 1e-3\n", "a = 0.001  # small\n", True),
        ("a = 1_000\n", "a = (\n    1000\n)\n", True),
        ("a = 'x'\n", 'a = u"x"\n', True),
        ("def f():\n    '''Doc.'''\n    return 1\n", "def f(): return 1\n", True),
        ("a = 1\r\nb = 2\r\n", "a = 1\nb = 2\n", True),
        ("a = 1\n", "a = 1.0\n", False),
        ("a = 1\n", "a = True\n", False),
        ("a = 0.1\n", "a = 0.10000000000000002\n", False),
        ("f(a, b)\n", "f(b, a)\n", False),
        ("x = [1]\n", "x = (1,)\n", False),
        ("lr: 0.1  \n", "lr: 0.1\n -", False),
        ("- 1: a  \n", "- 1: a\n", True),
    ],
)
def test_digest(one: str, other: str, same: bool) -> None:
    assert (preflight.digest(one) == preflight.digest(other)) is same
    assert re.fullmatch("[0-9a-f]{64}", preflight.digest(one))


def test_lines_are_those_of_libcst() -> None:
    """Counted on the way, they agree with libcst's own positions, over files with every kind of layout."""
    compared = 0
    for file in (ROOT / "train.py", ROOT / "prepare.py", Path(string.__file__), Path(json.__file__), Path(re.__file__)):
        module = libcst.parse_module(file.read_text(encoding="utf-8"))
        positions = MetadataWrapper(module, unsafe_skip_copy=True).resolve(PositionProvider)
        found = facts.Facts()
        found.gather(module)
        for place in (*found.calls, *found.reads, *found.strings, *found.body):
            if not getattr(place.node, "lpar", ()) and not getattr(place.node, "decorators", ()):
                assert place.line == positions[place.node].start.line
                compared += 1
    assert compared > 2000


def test_statements_are_put_together_again() -> None:
    source = "# a\n\nx = 1; y = 2\n@d\ndef f():\n    return open('x')\n\n\n# c\nz = [\n    open,\n]\n# end\n"
    findings = preflight.check(source, "", "train")
    assert [(one.rule, one.line) for one in findings if one.rule == "file"] == [("file", 6), ("file", 11)]


@given(st.text(alphabet="ab(): \n=.'\"\\\t\r\x00\ud800@#é", max_size=60))
def test_any_text_is_checked(text: str) -> None:
    assert all(finding.line >= 1 for finding in preflight.check(text, MINI))
    assert preflight.digest(text)


@pytest.mark.parametrize("shape", ["f({})", "[{}]", "-{}", "{}.a", "{}[0]", "(lambda: {})", "{} + 1", "not {}"])
@pytest.mark.parametrize("depth", [30, 1000])
def test_deep_nesting_never_overflows(shape: str, depth: int) -> None:
    text = "x"
    for _ in range(depth):
        text = shape.replace("{}", text)
    found = rules_broken(in_loop(f"y = {text}"))
    assert found == (["syntax"] if depth > 100 else [])
