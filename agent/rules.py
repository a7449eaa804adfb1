"""What a candidate may not do, and which names that concerns. Facts only: `agent.preflight` looks for them.

These rules catch honest mistakes and obvious short cuts before any budget is spent, and say what to do instead. They
are no security boundary: what holds against malice is the sandbox around the run and the harness's own scoring.
"""

from __future__ import annotations

MAX_LINES = 1500
MAX_BYTES = 120_000
MAX_STRING = 2_000  # characters of one string
MAX_TEXT = 40_000  # characters of all strings
MAX_NUMBERS = 2_000  # written out in the file
MAX_BITS = 256  # of one whole number
MAX_DEPTH = 80  # nesting of syntax; far above what people write, far below what exhausts the stack

RULES = {
    "syntax": "the file must be Python that compiles: send the edit again with the error mended.",
    "encoding": "the file must be plain UTF-8 text without control, invisible or direction-changing characters: "
    "remove them, or write them as escapes.",
    "size": f"the file may have at most {MAX_LINES} lines and {MAX_BYTES // 1000} kB: make room by simplifying.",
    "payload": "the file is code, not data: it may hold no long texts, tables of numbers or weights; what the model "
    "knows it learns from the feed.",
    "contract-name": "the harness imports `GPTConfig`, `build_model` and `main` by name: keep one definition of each "
    "at top level and do not assign to it.",
    "contract-signature": "the harness calls `build_model(config)` and `main()`: keep them plain functions with just "
    "these required parameters.",
    "main-guard": 'training starts only by hand: keep `if __name__ == "__main__":` with `main()` under it.',
    "import-effect": "importing the file must have no effect: move what trains, seeds, loops or prints into a function "
    "that `main()` calls.",
    "feed-missing": "training data comes from the harness: call `prepare.open_feed()`.",
    "log-missing": "progress goes to the harness: call `prepare.log(step=…, loss=…)` at log steps.",
    "finish-missing": "the model is handed over at the end: call `prepare.finish(model, config)`.",
    "prepare-rebound": "`prepare` and what it gives are fixed: call them as they are, do not assign to, shadow, "
    "delete, wrap or pass them on.",
    "prepare-private": "only the public part of `prepare` may be used: `open_feed`, `log`, `finish`, `device`, "
    "`machine`, `peak_flops`, `stopwatch`, its upper-case constants, and of the feed what its docstring names.",
    "seed": "seeds are the harness's business: seed generators with `SEED` from `prepare` and nothing else.",
    "seed-rebound": "`SEED` comes from `prepare` and stays what it is: do not assign to it.",
    "import": "only torch, numpy, `prepare` and harmless parts of the standard library may be imported: write what "
    "you need in this file.",
    "file": "training reads and writes no files: data comes from `prepare.open_feed()`, and `prepare.finish` saves "
    "the model.",
    "weights": "weights must come from this run: train from scratch, do not load or pickle any.",
    "process": "training is one process and leaves signals alone: do the work here, without children or workers.",
    "thread": "training starts no threads or event loops of its own: leave parallelism to torch.",
    "network": "training uses no network and downloads nothing: everything needed is in this file and in the feed.",
    "environment": "training reads and changes no environment variables: use a constant or a torch setting instead.",
    "introspection": "training does not look into the interpreter, its frames, modules or hidden attributes: write "
    "the access out as plain code.",
    "dynamic-code": "code is not made or imported at run time: write it out in this file.",
    "native-code": "no native code is compiled or loaded: use torch operations and `torch.compile`.",
    "patching": "imported modules stay as they are: define your own function instead of assigning to their attributes.",
    "summary": "the result block is the harness's to print: report progress by `prepare.log` and leave out `---` and "
    "`val_bpb`.",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a profile checks. "train" is the contract of a training script; "claimed" asks only for a sound file.
PROFILES = {"train": frozenset(RULES), "claimed": frozenset({"syntax", "encoding", "size"})}

CONTRACT = ("GPTConfig", "build_model", "main")
REQUIRED_CALLS = {"open_feed": "feed-missing", "log": "log-missing", "finish": "finish-missing"}
# Public by name; upper-case constants are public too, except these: paths and settings of the harness.
PREPARE_PUBLIC = frozenset(
    {"open_feed", "log", "finish", "device", "machine", "peak_flops", "stopwatch", "Batch", "Feed"}
)
FEED_HIDDEN = frozenset({"note", "seal"})  # how prepare itself talks to the harness
PREPARE_HIDDEN = frozenset({"CACHE", "TRIAL", "BORN", "SHAPES", "STARTUP"})

ALLOWED_IMPORTS = _words(
    """
    torch numpy prepare __future__ abc bisect collections contextlib copy dataclasses enum functools gc heapq
    itertools json math numbers operator os random re statistics string sys textwrap time typing typing_extensions
    warnings
    """
)

# Dotted names by rule; the longest entry that is a prefix decides, "" allows. Unlisted parts of allowed modules
# are fine.
_NAMES = {
    "": "os.cpu_count os.sched_getaffinity os.process_cpu_count sys.exit sys.maxsize sys.float_info sys.platform "
    "sys.version_info sys.stdout.flush sys.stderr torch.types torch.signal.windows",
    "file": "os pathlib io shutil tempfile glob fileinput mmap sqlite3 dbm zipfile tarfile gzip bz2 lzma csv codecs "
    "linecache posix torch.save torch.from_file torch.UntypedStorage.from_file torch.utils.tensorboard numpy.load "
    "numpy.save numpy.savez numpy.savez_compressed numpy.savetxt numpy.loadtxt numpy.genfromtxt numpy.fromfile "
    "numpy.memmap numpy.DataSource numpy.lib.format numpy.lib.npyio safetensors pyarrow pandas",
    "weights": "torch.load torch.serialization torch.jit.load torch.jit.save torch.package torch.export.load "
    "torch.export.save pickle marshal shelve dill cloudpickle joblib transformers timm",
    "process": "os.system os.popen os.fork os.forkpty os.kill os.killpg os.abort os._exit os.execv os.execve os.execl "
    "os.execlp os.execvp os.posix_spawn os.spawnv os.spawnl os.spawnvp os.nice os.setsid os.wait os.waitpid "
    "os.sched_setaffinity subprocess multiprocessing signal pty resource atexit faulthandler torch.multiprocessing "
    "torch.distributed sched",
    "thread": "threading _thread concurrent asyncio queue select selectors os.register_at_fork trio anyio",
    "network": "socket socketserver ssl http urllib ftplib smtplib xmlrpc requests httpx aiohttp urllib3 websockets "
    "huggingface_hub datasets wandb torch.hub torch.utils.model_zoo openai anthropic",
    "environment": "os.environ os.environb os.getenv os.putenv os.unsetenv os.getenvb",
    "introspection": "sys inspect types traceback trace pdb bdb dis symtable tracemalloc gc.get_objects "
    "gc.get_referrers gc.get_referents operator.attrgetter operator.methodcaller pkgutil sysconfig",
    "dynamic-code": "importlib builtins code codeop runpy imp zipimport ast typing.get_type_hints typing.ForwardRef "
    "dataclasses.make_dataclass torch.jit.CompilationUnit timeit",
    "native-code": "ctypes _ctypes cffi cython numba cupy torch.utils.cpp_extension torch.ops.load_library "
    "torch.classes.load_library torch._C numpy.ctypeslib numpy.f2py numpy.distutils",
    "summary": "sys.stdout",
}
NAMES = {name: rule for rule, names in _NAMES.items() for name in names.split()}

# Modules that others drag along, as in `dataclasses.sys` or `torch.os`: reached so, they count as what they are.
REACHABLE = _words(
    """
    os sys builtins inspect importlib subprocess ctypes socket threading io pickle shutil tempfile pathlib
    multiprocessing signal posix marshal codecs types
    """
)

BUILTINS = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__"), "dynamic-code"),
    **dict.fromkeys(("globals", "locals", "vars", "__builtins__", "__loader__", "__spec__"), "introspection"),
    "open": "file",
    "breakpoint": "process",
}

# Attributes by their last name, whatever object they are asked of.
ATTRIBUTES = {
    **dict.fromkeys(("write_text", "read_text", "write_bytes", "read_bytes", "tofile"), "file"),
    **dict.fromkeys(("from_pretrained", "load_state_dict_from_url"), "weights"),
    **dict.fromkeys(
        _words("f_back f_globals f_locals f_builtins f_code tb_frame tb_next gi_frame cr_frame"),
        "introspection",
    ),
}
# Double-underscore attributes that are part of ordinary code; all others count as introspection.
PLAIN_DUNDERS = _words(
    """
    __init__ __post_init__ __new__ __class__ __name__ __qualname__ __version__ __call__ __repr__ __str__
    __len__ __getitem__ __setitem__ __iter__ __next__ __enter__ __exit__ __eq__ __hash__ __lt__ __add__ __mul__
    """
)

# Functions that set a random state, by their full name; and methods of generators that do.
SEEDERS = _words(
    """
    torch.manual_seed torch.seed torch.random.manual_seed torch.random.seed torch.cuda.manual_seed
    torch.cuda.manual_seed_all torch.mps.manual_seed random.seed random.Random random.SystemRandom
    numpy.random.seed numpy.random.default_rng numpy.random.RandomState numpy.random.SeedSequence
    numpy.random.PCG64 numpy.random.PCG64DXSM numpy.random.Philox numpy.random.MT19937 numpy.random.SFC64
    numpy.random.Generator numpy.random.BitGenerator numpy.random.set_state random.setstate
    torch.set_rng_state torch.random.set_rng_state torch.cuda.set_rng_state torch.cuda.set_rng_state_all
    torch.mps.set_rng_state torch.cuda.seed torch.cuda.seed_all torch.mps.seed
    """
)
SEED_METHODS = frozenset({"manual_seed", "seed", "manual_seed_all", "set_state", "setstate", "set_rng_state"})
# Settings that torch itself asks its users to assign.
SETTINGS = ("torch.backends.", "torch._dynamo.config.", "torch._inductor.config.", "torch._functorch.config.")


def rule_of(name: str) -> str:
    """The rule a dotted name breaks, as `numpy.load` breaks "file"; "" if it breaks none of the tables here."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        rule = NAMES.get(".".join(parts[:end]))
        if rule is not None and end > 1:
            return rule
        if rule is not None:
            return _through(parts) or rule
    return _through(parts)


def _through(parts: list[str]) -> str:
    """The rule of a module reached through another one; the first part is the module it hangs on."""
    for index, part in enumerate(parts[1:], 1):
        if part.lstrip("_") in REACHABLE:
            return rule_of(".".join([part.lstrip("_"), *parts[index + 1 :]]))
    return ""


def import_rule(name: str, extra: frozenset[str]) -> str:
    """The rule that importing a dotted name breaks, "" if it may be imported. extra: top-level modules a task adds."""
    top = name.split(".")[0]
    if top in extra or name in {"os", "sys"}:
        return ""
    return rule_of(name) or ("" if top in ALLOWED_IMPORTS else "import")
