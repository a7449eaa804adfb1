"""The command line: parse, build the parts, print. `overnight COMMAND --help` says the rest."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from agent import reading
from agent.config import Settings, load
from agent.errors import OvernightError, StateError, UsageError, because
from agent.folder import sessions
from agent.ledger import incumbent
from agent.lineup import describe, make_proposers
from agent.loop import Loop
from agent.measuring import as_text, measure, report, seeds_of
from agent.proposers.given import Given
from agent.reading import AsJson, Tag
from agent.recheck import recheck
from agent.repo import Repo
from agent.session import (
    SLOTS,
    allow_foreign,
    build_parts,
    first_code,
    latest_tag,
    make_bench,
    open_session,
    write,
)
from agent.text import plain
from agent.values import Outcome, Status
from sandbox.pool import LocalPool

Sandboxing = Annotated[str | None, typer.Option(help="bwrap, or process: no wall around the code that is tried.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(reading.app)


def main() -> None:
    """Run the command; an error meant for a person is one line and an exit code, anything else a traceback."""
    try:
        app()
    except OvernightError as error:
        print(f"overnight: {plain(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        found = f"{error.filename or 'disk'}: expected to read and write here, found {because(error)}"
        print(f"overnight: {found}; nothing recorded is lost", file=sys.stderr)
        raise SystemExit(1) from None


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def prepare(context: typer.Context) -> None:
    """Make the data, once. Options go to prepare.py: `overnight prepare --help`."""
    script = Repo(Path.cwd()).root / "prepare.py"
    raise SystemExit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)


@app.command()
def run(
    tag: Annotated[str | None, typer.Option(help="Name of the session; an existing one goes on.")] = None,
    experiments: Annotated[int | None, typer.Option(help="Stop after so many trials, rejects not counted.")] = None,
    until: Annotated[str | None, typer.Option(help="Begin no trial after this time, HH:MM.")] = None,
    max_usd: Annotated[float | None, typer.Option(help="Make no request after so many dollars.")] = None,
    budget: Annotated[str | None, typer.Option(help="Of one run: 300s, 2e13flop, 50Mtok, 1000steps.")] = None,
    proposer: Annotated[
        str | None, typer.Option(help="portfolio (default), llm, knobs, centaur, evolve, command; llm,knobs: in order.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="anthropic:NAME, openai:NAME, scripted:FILE; or a,b.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Address of an OpenAI-compatible server.")] = None,
    price: Annotated[str | None, typer.Option(help="IN,OUT[,CACHED] in USD per million tokens.")] = None,
    command: Annotated[str | None, typer.Option(help="Program of the command proposer, e.g. 'claude -p'.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="confirm: keep what fresh seeds bear out; greedy: any gain.")
    ] = None,
    pruner: Annotated[
        str | None, typer.Option(help="conformal: end a run early that has no hope; none: let all run on.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Of the knobs proposer: surface, tpe, cmaes, random.")] = None,
    conservative: Annotated[
        bool | None,
        typer.Option("--conservative/--aggressive", help="Of evolve: 5 generations x 8 (default), or 10 x 16."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every first run (42).")] = None,
    from_rev: Annotated[str | None, typer.Option("--from", help="Revision a new session starts from (HEAD).")] = None,
    data: Annotated[str | None, typer.Option(help="Folder of prepared data (the one prepared last).")] = None,
    sandbox: Sandboxing = None,
) -> None:
    """Run the loop until a stop condition or Ctrl-C: once finishes the trial, twice abandons it."""
    flags = dict(locals()) | {"model": model or None}
    flags["preset"] = {True: "conservative", False: "aggressive", None: None}[flags.pop("conservative")]
    repo = Repo(Path.cwd())
    settings = load(repo.root, flags)
    session = open_session(settings, repo)
    typer.echo(
        f"session {session.folder.tag}: {describe(settings)}, {session.budget} a run on {session.machine.hardware}, "
        f"sandbox {session.isolation.level}"
    )
    with session.folder.lock(), LocalPool[Outcome](SLOTS) as pool:
        proposers = make_proposers(session, settings, repo, typer.echo)
        loop = Loop(build_parts(session, settings, repo, pool, typer.echo, proposers))
        with _interruptible(loop, pool):
            reason = loop.run()
    best = incumbent(loop.records)
    value = f"{best.val_bpb:.6f} (trial {best.trial})" if best and best.val_bpb is not None else "none"
    typer.echo(f"stopped: {reason}. Best {value}. Ledger: {session.folder.ledger}")


@app.command(name="try")
def try_(
    file: Annotated[Path, typer.Argument(help="A whole target file, or a unified diff against the incumbent.")],
    tag: Tag = None,
    description: Annotated[str, typer.Option(help="What it changes, for the ledger.")] = "",
    budget: Annotated[str | None, typer.Option(help="Budget of a session that this command begins.")] = None,
    sandbox: Sandboxing = None,
    as_json_: AsJson = False,
) -> None:
    """Put one candidate through the loop's own gates, run, judge and ledger. Exit 0 only for a keep."""
    repo = Repo(Path.cwd())
    settings = _latest_or_new(repo, tag, budget, sandbox)
    session = open_session(settings, repo)
    allow_foreign(session, settings)
    given = Given(file, session.task.targets[0], description)
    with session.folder.lock(), LocalPool[Outcome](SLOTS) as pool:
        say = _to_stderr if as_json_ else typer.echo
        loop = Loop(build_parts(session, settings, repo, pool, say, [given]))
        with _interruptible(loop, pool):
            record = loop.once()
    if as_json_:
        typer.echo(json.dumps(asdict(record)))
    raise SystemExit(0 if record.status == Status.KEEP else 1)


@app.command()
def audit(
    tag: Annotated[str | None, typer.Argument(help="Of which session; of the latest if not given.")] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train again where a checkpoint is gone.")] = False,
    sandbox: Sandboxing = None,
    as_json_: AsJson = False,
) -> None:
    """Measure every kept row again, from its commit and checkpoint. Exit 1 if one of them no longer holds."""
    repo = Repo(Path.cwd())
    settings = load(repo.root, {"tag": tag or latest_tag(repo.root), "sandbox": sandbox})
    session = open_session(settings, repo)
    allow_foreign(session, settings)
    if session.folder.session() is None:
        raise UsageError(f"session: expected one named {settings.tag}, found none")
    checks = []
    with session.folder.lock():
        for check in recheck(make_bench(session, repo), session.folder, repo, retrain):
            checks.append(check)
            value = "        " if check.found is None else f"{check.found:.6f}"
            says = f"{check.trial:>4}  {value}  {check.description}  ({check.problem or 'holds'})"
            (_to_stderr if as_json_ else typer.echo)(says)
    if as_json_:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
    raise SystemExit(1 if any(check.problem for check in checks) else 0)


@app.command()
def noise(
    tag: Annotated[str | None, typer.Argument(help="Of which session; of the latest if not given.")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="How many runs, those of earlier calls included.")] = 5,
    budget: Annotated[str | None, typer.Option(help="Budget of a session that this command begins.")] = None,
    sandbox: Sandboxing = None,
    as_json_: AsJson = False,
) -> None:
    """How much scores move when only the seed changes: train a session's first code again, pool all re-runs."""
    repo = Repo(Path.cwd())
    session = open_session(_latest_or_new(repo, tag, budget, sandbox), repo)
    say = _to_stderr if as_json_ else typer.echo
    found: dict[int, float | None] = {}
    with session.folder.lock():
        write(session)
        bench, wanted = make_bench(session, repo), seeds_of(session.seed, seeds)
        for seed, score in measure(bench, session.folder, first_code(session, repo), wanted, session.budget):
            found[seed] = score
            say(f"seed {seed:>10}  {'no number' if score is None else f'{score:.6f}'}")
    facts = report(session.folder, session.facts, session.machine.device, found)
    typer.echo(json.dumps(facts, indent=1) if as_json_ else as_text(facts))
    raise SystemExit(1 if None in found.values() else 0)


def _latest_or_new(repo: Repo, tag: str | None, budget: str | None, sandbox: str | None) -> Settings:
    """Of the session named, else of the one used last, else of one that begins now."""
    known = sessions(repo.root)
    return load(repo.root, {"tag": tag or (known[0] if known else None), "budget": budget, "sandbox": sandbox})


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)


@contextmanager
def _interruptible(loop: Loop, pool: LocalPool[Outcome]) -> Iterator[None]:
    """Ctrl-C once: finish what runs, begin nothing. Twice: abandon it, or the wait for a proposal."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        loop.interrupts += 1
        if loop.interrupts == 1:
            typer.echo("\ninterrupted: finishing what runs; once more abandons it", err=True)
            return
        for job in loop.flights:
            pool.cancel(job)
        if not loop.flights:
            raise KeyboardInterrupt  # no ordinary exception: libraries catch those, and ask again

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        raise StateError(f"interrupted; `overnight run --tag {loop.parts.folder.tag}` goes on") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
