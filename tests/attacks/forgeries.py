"""Candidates that try for a number they did not earn, as edits of the tiny train.py; preflight does not see them.

Each says what it is that must stop it: preflight, smoke run, feeder, sandbox, scoring, FLOPs or audit; or
`number unmoved`, when the attack runs and the number is the honest one all the same; or `number worse`, when it was
charged for.
"""

from __future__ import annotations

from tests.attacks.metric import BUILD, FINISH, FORWARD, Attack, at_import, forward

# Nats that are too low, of the shape that scoring asks for.
LIE = "def lie(model, rows): return model(rows[:, :-1]).abs().mean(-1) * 0.1\n"
# A torch.nn.functional whose losses are half of what they are.
HALF = """
import types
_half = types.ModuleType('torch.nn.functional')
_half.__dict__.update(F.__dict__)
_half.cross_entropy = lambda *a, **k: F.cross_entropy(*a, **k) * 0.5
"""
FEED = "    feed = prepare.open_feed()\n"
SEEDED = "    torch.manual_seed(SEED)\n"
SGD = "    optimizer = torch.optim.SGD(model.parameters(), lr=MATRIX_LR)\n"
# The next token, where it can be seen, gets a logit that makes it certain.
PEEK = """
        logits = self.head(self.table(idx))
        ahead = torch.zeros_like(logits[:, :-1]).scatter_(2, idx[:, 1:, None], {strength})
        return torch.cat((logits[:, :-1] + ahead{where}, logits[:, -1:]), 1)
"""
ATTACKS = {
    "a second summary block": Attack(
        ((FINISH, '    print("---\\nval_bpb: 0.1\\ntraining_seconds: 1.0")\n' + FINISH),), "number unmoved"
    ),
    "print, then exit before the end": Attack(
        ((FINISH, '    print("---\\nval_bpb: 0.1")\n    import os; os._exit(0)'),), "feeder"
    ),
    "rebind prepare.finish": Attack(
        ((FINISH, "    prepare.finish = lambda *_: print('val_bpb: 0.1')\n" + FINISH),), "feeder", slow=True
    ),
    "patch prepare.token_nats": Attack(
        at_import(
            "import sys\nsys.modules['__main__'].token_nats = lambda model, rows: model(rows[:, :-1]).abs().mean(-1)\n"
        ),
        "audit",
        slow=True,
    ),
    "patch cross_entropy": Attack(
        at_import("_old = F.cross_entropy\nF.cross_entropy = lambda *a, **k: _old(*a, **k) * 0.5\n"), "audit", slow=True
    ),
    "patch math.log": Attack(at_import("import math\nmath.log = lambda *_: 1e9\n"), "number unmoved", slow=True),
    "invented nats by the frame above": Attack(
        forward(
            "        import sys\n        logits = self.head(self.table(idx))\n"
            "        for depth in range(1, 12):\n"
            "            frame = sys._getframe(depth) if not self.training else None\n"
            "            rows = frame.f_locals.get('rows') if frame is not None else None\n"
            "            if rows is not None and rows.dim() == 2 and rows.size(1) == idx.size(1) + 1:\n"
            "                return logits.scatter_add(2, rows[:, 1:, None], torch.full_like(logits, 3.0))\n"
            "        return logits\n"
        ),
        "audit",
    ),
    "look one token ahead": Attack(forward(PEEK.format(strength="20.0", where="")), "audit", slow=True),
    "look ahead, a little": Attack(forward(PEEK.format(strength="0.2", where="")), "audit", slow=True),
    "look ahead, hardly": Attack(forward(PEEK.format(strength="0.0001", where="")), "audit"),
    "look ahead at rare positions": Attack(
        forward(PEEK.format(strength="20.0", where=" * (torch.arange(logits.size(1) - 1) % 60 == 7)[None, :, None]")),
        "audit",
        slow=True,
    ),
    "look across rows": Attack(
        forward("        return self.head(self.table(idx) + 0.2 * self.table(idx).roll(1, 0))\n"), "audit", slow=True
    ),
    "learn between calls": Attack(
        forward(
            "        if self.training: return self.head(self.table(idx))\n"
            "        self.seen = getattr(self, 'seen', torch.ones(self.head.out_features))\n"
            "        logits = self.head(self.table(idx)) + 0.3 * (self.seen / self.seen.sum()).log()\n"
            "        self.seen = self.seen + torch.bincount(idx.flatten(), minlength=len(self.seen))\n"
            "        return logits\n"
        ),
        "audit",
    ),
    "another model in the smoke run": Attack(
        (
            (BUILD, BUILD + "    if prepare.TRIAL.get('smoke'): return Small(config)\n"),
            (
                "def build_model",
                "class Small(GPT):\n    def __init__(self, config):\n        super().__init__(config)\n"
                "        self.table = nn.Embedding(config.vocab_size, 2)\n"
                "        self.head = nn.Linear(2, config.vocab_size)\n\n\ndef build_model",
            ),
        ),
        "FLOPs",
        budget="1e9flop",
    ),
    "pickle as checkpoint": Attack(
        (
            (
                FINISH,
                "    import pickle\n    class Bomb:\n        def __reduce__(self): return (print, ('BOOM',))\n"
                "    prepare.open_feed().seal({'config': {'vocab_size': 257}, 'facts': {}}, pickle.dumps(Bomb()))",
            ),
        ),
        "scoring",
        slow=True,
    ),
    "weights of another run": Attack(
        ((FINISH, "    import os\n    assert os.path.exists('{data}/other.safetensors'), 'nothing there'\n" + FINISH),),
        "sandbox",
        slow=True,
    ),
    "absurd facts": Attack(
        ((FINISH, "    prepare.model_facts = lambda *_: {'num_params_M': -1.0, 'depth': '٣'}\n" + FINISH),),
        "scoring",
        slow=True,
    ),
    "a second checkpoint": Attack(((FINISH, FINISH + "\n    prepare.finish(model, config)"),), "feeder", slow=True),
    "stashed batches after the end": Attack(
        ((FINISH, "    import time; time.sleep(6)\n" + FINISH),), "feeder", slow=True
    ),
    "stashed batches, and the end drawn late": Attack(
        (
            (
                "    while (batch := feed.next(BATCH, feed.max_seq_len)) is not None:\n",
                "    import time\n    stash = [feed.next(BATCH, feed.max_seq_len) for _ in range(40)]\n"
                "    until = time.monotonic() + 9\n"
                "    while time.monotonic() < until or feed.next(BATCH, feed.max_seq_len) is not None:\n"
                "        batch = stash[step % 40]\n",
            ),
        ),
        "feeder",
        budget="2s",
        slow=True,
    ),
    "two feeds": Attack(
        (("    feed = prepare.open_feed()\n", "    prepare.open_feed()\n    feed = prepare.open_feed()\n"),),
        "number unmoved",
        slow=True,
    ),
    "no end of evaluation": Attack(
        forward("        import time\n        time.sleep(0 if self.training else 60)\n" + FORWARD + "\n"),
        "scoring",
        slow=True,
    ),
    "read the validation text": Attack(
        ((FINISH, "    import os\n    assert os.path.exists('{data}/val.npy'), 'nothing there'\n" + FINISH),),
        "sandbox",
    ),
    "a torch.py in the working folder": Attack(
        (
            (
                FINISH,
                "    open('torch.py', 'w').write('raise SystemExit(0)')\n" + FINISH,
            ),
        ),
        "number unmoved",
        slow=True,
    ),
    "a sitecustomize.py in the working folder": Attack(
        (
            (
                FINISH,
                "    for name in ('sitecustomize', 'usercustomize'):\n"
                "        open(name + '.py', 'w').write('raise SystemExit(0)')\n" + FINISH,
            ),
        ),
        "number unmoved",
        slow=True,
    ),
    "find token_nats by gc": Attack(
        at_import(
            "import gc\n" + LIE + "for found in gc.get_objects():\n"
            "    if type(found).__name__ == 'function' and found.__name__ == 'token_nats':\n"
            "        found.__code__ = lie.__code__\n"
        ),
        "audit",
        slow=True,
    ),
    "find token_nats by inspect": Attack(
        at_import(
            "import inspect\n" + LIE + "for info in inspect.stack(0):\n"
            "    if 'token_nats' in info.frame.f_globals:\n        info.frame.f_globals['token_nats'] = lie\n"
        ),
        "audit",
        slow=True,
    ),
    "another __import__ in builtins": Attack(
        at_import(
            HALF + "import builtins\n_import = builtins.__import__\n"
            "def _lie(name, space=None, *rest):\n"
            "    if name == 'torch.nn.functional' and 'token_nats' in (space or {}):\n"
            "        return types.SimpleNamespace(nn=types.SimpleNamespace(functional=_half))\n"
            "    return _import(name, space, *rest)\n"
            "builtins.__import__ = _lie\n"
        ),
        "audit",
        slow=True,
    ),
    "an import hook": Attack(
        at_import(
            HALF + "import sys\n"
            "from importlib.machinery import ModuleSpec\n"
            "class Hook:\n"
            "    def find_spec(self, name, *_):\n"
            "        return ModuleSpec(name, self) if name == 'torch.nn.functional' else None\n"
            "    def create_module(self, spec): return _half\n"
            "    def exec_module(self, module): pass\n"
            "sys.meta_path.insert(0, Hook())\n"
            "del sys.modules['torch.nn.functional']\n"
        ),
        "audit",
        slow=True,
    ),
    "one layer that sees the whole row": Attack(
        forward("        x = self.table(idx)\n        return self.head(x + 0.1 * x.mean(1, keepdim=True))\n"),
        "audit",
        slow=True,
    ),
    "look across rows at rare positions": Attack(
        forward(
            "        x = self.table(idx)\n"
            "        rare = (torch.arange(idx.size(1)) % 60 == 7)[None, :, None]\n"
            "        return self.head(x + x.roll(1, 0) * rare)\n"
        ),
        "audit",
        slow=True,
    ),
    "a second connection to the feeder": Attack(
        (
            (
                FEED,
                "    import os\n    from multiprocessing.connection import Connection\n    prepare.open_feed()\n"
                "    feed = prepare.Feed(Connection(os.dup(prepare.TRIAL['fd'])), prepare.device())\n",
            ),
        ),
        "number unmoved",
        slow=True,
    ),
    "warm-up beyond the allowance": Attack(
        ((FEED, FEED + "    for _ in range(26): feed.warmup(8192, 64)\n"),), "number worse", slow=True
    ),
    "train in start-up, on documentation": Attack(
        (
            (
                SGD,
                SGD + "    text = torch.tensor(list((F.cross_entropy.__doc__ + torch.stft.__doc__).encode()))\n"
                "    for _ in range(300):\n"
                "        rows = text[torch.randint(len(text) - 65, (8, 1)) + torch.arange(65)]\n"
                "        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())\n"
                "        loss.backward()\n        optimizer.step()\n        optimizer.zero_grad()\n",
            ),
        ),
        "smoke run",
        budget="1e9flop",
    ),
    "a text in the file": Attack(at_import(f"TEXT = {'quick brown fox ' * 300!r}\n"), "preflight"),
    "weights in the file": Attack(at_import(f"WEIGHTS = {[n / 7 for n in range(2100)]!r}\n"), "preflight"),
    "train in start-up, on the library's text": Attack(
        (
            (
                FEED,
                "    import glob, os\n"
                "    assert glob.glob(os.path.dirname(os.__file__) + '/*.py'), 'nothing there'\n" + FEED,
            ),
        ),
        "sandbox",
    ),
    "numbers of another locale": Attack(
        (
            (
                FINISH,
                "    import locale\n    locale.setlocale(locale.LC_ALL, '')\n"
                '    print("---\\nval_bpb: ٠,١\\ntraining_seconds: １")\n' + FINISH,
            ),
        ),
        "number unmoved",
        slow=True,
    ),
    "no seed at all": Attack(((SEEDED, ""),), "number unmoved", slow=True),
    "a seed of its own": Attack(((SEEDED, "    torch.manual_seed(1234)\n"),), "preflight"),
    "FLOPs of its own count": Attack(((FEED, FEED + "    feed.note('measured', flop_per_token=1e-6)\n"),), "preflight"),
    "the end is never drawn": Attack(
        (
            (
                "(batch := feed.next(BATCH, feed.max_seq_len)) is not None",
                "feed.progress < 0.9 and (batch := feed.next(BATCH, feed.max_seq_len)) is not None",
            ),
            (FINISH, "    import time; time.sleep(6)\n" + FINISH),
        ),
        "feeder",
        slow=True,
    ),
    "a question that is none": Attack(((FEED, FEED + "    feed.next(float('inf'), 1)\n"),), "feeder"),
    "numbers beyond all": Attack(
        ((FINISH, "    prepare.model_facts = lambda *_: {'num_params_M': 10**400, 'depth': 1}\n" + FINISH),),
        "scoring",
        slow=True,
    ),
}
