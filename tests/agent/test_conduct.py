"""What the rules find and what they let pass, in a small script with all the contract asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import preflight

MINI = (Path(__file__).parent / "mini_train.py").read_text(encoding="utf-8")


def rules_broken(source: str) -> list[str]:
    return [finding.rule for finding in preflight.check(source, MINI)]


def in_loop(code: str) -> str:
    return MINI.replace("        # here\n", "".join(f"        {line}\n" for line in code.split("\n")))


def at_top(code: str) -> str:
    return MINI.replace("DEPTH = 4\n", f"DEPTH = 4\n{code}\n")


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
        ("import dataclasses\ndataclasses.sys.modules", "introspection"),
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
        ("print(prepare.SHAPES)", "prepare-private"),
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
        ("rng = np.random.Generator(np.random.Philox(1234))", "seed"),
        ("torch.set_rng_state(state)", "seed"),
        ("import random\nrandom.setstate(state)", "seed"),
        ("generator.set_state(state)", "seed"),
        ("from torch import manual_seed as reset\nreset(3)", "seed"),
        ("global SEED\nSEED = 3", "seed-rebound"),
        ("import tqdm", "import"),
        ("from . import other", "import"),
        ("import yaml", "import"),
        ("print('---')", "summary"),
        ("print(f'val_bpb: {step}')", "summary"),
        ("sys.stdout.write('x')", "summary"),
        ("line = 'a\\nval_bpb:  0.5'", "summary"),
        ("x = 1  # \u202e", "encoding"),
        ("x = '\u200b'", "encoding"),
        ("x = 1\rx = 2", "encoding"),
        ("x = (", "syntax"),
        ("nonlocal y", "syntax"),
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
