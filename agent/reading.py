"""Commands that only read: what a session did, what a candidate would break, what this machine has."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from agent import preflight
from agent.clients import key_present
from agent.config import load, load_task
from agent.errors import OvernightError, UsageError
from agent.folder import RUN_LOG, SessionFolder, sessions
from agent.ledger import Ledger, incumbent, read
from agent.machine import probe
from agent.proposers.evolve import archive as evolution
from agent.proposers.evolve.lineage import as_text as as_page
from agent.proposers.evolve.operators import operators
from agent.proposers.evolve.wins import wins
from agent.pruning import tally
from agent.recording import line
from agent.replay import as_json, as_text
from agent.replay import replay as replay_records
from agent.repo import Repo
from agent.session import latest_tag
from agent.stops import experiments, spent
from agent.text import plain
from agent.values import Record
from corpus.errors import DataError
from corpus.home import data_folder
from sandbox import cgroup
from sandbox.isolation import detect
from sandbox.process import tail

app = typer.Typer()

Tag = Annotated[str | None, typer.Option(help="Session; the one used last where it is left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LOG_LINES = 30
SCOPE = "for the kernel's own limit try `systemd-run --user --scope overnight run`, or root"


@app.command()
def history(tag: Tag = None, as_json_: AsJson = False) -> None:
    """Every trial of a session, one line each."""
    records = Ledger(_folder(tag).ledger).records()
    _print([asdict(record) for record in records] if as_json_ else "\n".join(map(line, records)))


@app.command()
def status(tag: Tag = None, as_json_: AsJson = False) -> None:
    """Where a session stands."""
    folder = _folder(tag)
    facts = _status(folder)
    _print(facts if as_json_ else "\n".join(f"{key:<12} {value}" for key, value in facts.items()))


@app.command()
def show(trial: int, tag: Tag = None, as_json_: AsJson = False) -> None:
    """One trial: what was proposed, what came of it, its diff and the end of its log."""
    folder = _folder(tag)
    record = next((one for one in Ledger(folder.ledger).records() if one.trial == trial), None)
    if record is None:
        raise UsageError(f"show: expected a trial of session {folder.tag}, found no trial {trial}")
    facts = _trial(folder, record)
    _print(facts if as_json_ else _as_page(record, facts))


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="A whole train.py.")] = None,
    tag: Tag = None,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules instead.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Preflight of one file against the incumbent (or HEAD): exit 1 if it breaks a rule."""
    if rules:
        _print(preflight.RULES if as_json_ else "\n".join(f"{rule:<20} {why}" for rule, why in preflight.RULES.items()))
        return
    repo = Repo(Path.cwd())
    task = load(repo.root, {}).task
    if file is None or not file.is_file():
        raise UsageError(f"check: expected a file, found {file or 'none named'}")
    parent = _incumbent_source(repo, tag, task.targets[0])
    findings = preflight.check(file.read_text(encoding="utf-8", errors="surrogateescape"), parent, task.profile)
    text = "\n".join(f"{file}:{one.line} [{one.rule}] {one.message}" for one in findings) or f"{file}: ok"
    _print([asdict(one) for one in findings] if as_json_ else text)
    raise SystemExit(1 if findings else 0)


@app.command()
def replay(
    ledger: Annotated[str | None, typer.Argument(help="A results.tsv, or a tag; else the session used last.")] = None,
    as_json_: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Write a progress plot (PNG).")] = None,
) -> None:
    """Read a ledger, anybody's, and say what the session achieved."""
    path = Path(ledger) if ledger and Path(ledger).is_file() else _ledger_of(ledger)
    records = read(path)
    direction = _direction(path)
    result = replay_records(records, direction)
    _print(as_json(result) if as_json_ else as_text(result))
    if plot is not None:
        from agent.report.plot import plot as draw  # matplotlib takes a second to import

        draw(records, plot, path.parent.name if path.name == "results.tsv" else path.name, direction)


@app.command()
def lineage(tag: Tag = None, as_json_: AsJson = False) -> None:
    """What `--proposer evolve` has bred: who comes from whom, with scores; the operators; what can be claimed."""
    folder = _folder(tag)
    archive = evolution.load(folder.path / "proposers" / "evolve")
    if archive is None:
        raise UsageError(f"lineage: expected a session of --proposer evolve, found none of it in {folder.tag}")
    facts = wins(archive, lambda trial: folder.trial(trial).curve())
    told = {"operators": [asdict(one) for one in operators(archive)], "wins": facts}
    _print(archive.facts() | told if as_json_ else as_page(archive, facts))


@app.command()
def doctor(as_json_: AsJson = False) -> None:
    """What a session would find here: torch, device, data, keys, git, disk, sandbox. Exit 1 if one is missing."""
    facts = _doctor()
    _print(facts if as_json_ else "\n".join(f"{key:<14} {value}" for key, value in facts.items()))
    raise SystemExit(1 if any(str(value).startswith("missing") for value in facts.values()) else 0)


def _folder(tag: str | None) -> SessionFolder:
    root = Repo(Path.cwd()).root
    folder = SessionFolder(root, tag or latest_tag(root))
    if folder.session() is None:
        raise UsageError(f"session: expected one of {', '.join(sessions(root)) or 'none yet'}, found {tag!r}")
    return folder


def _ledger_of(name: str | None) -> Path:
    if name is not None and ("/" in name or name.endswith(".tsv")):
        raise UsageError(f"replay: expected a results.tsv or a tag, found no file {name}")
    return _folder(name).ledger


def _direction(ledger: Path) -> str:
    """Which way is better: of our own sessions we know, and others' ledgers are of losses."""
    folders = ledger.resolve().parents
    facts = SessionFolder(folders[2], folders[0].name).session() if len(folders) > 2 else None
    return load_task(facts["task"]).direction if facts else "min"


def _status(folder: SessionFolder) -> dict[str, Any]:
    records, session = Ledger(folder.ledger).records(), folder.session() or {}
    best = incumbent(records)
    return {
        "session": folder.tag,
        "experiments": experiments(records),
        **{name: sum(record.status == name for record in records) for name in ("keep", "discard", "crash", "reject")},
        "baseline": records[0].val_bpb if records else None,
        "best": best.val_bpb if best else None,
        "best_commit": best.commit if best else None,
        **tally(folder),
        "spent_usd": round(spent(records), 6),
        **{name: session.get(name) for name in ("budget", "hardware", "torch", "data_id", "sandbox")},
        "ledger": str(folder.ledger),
    }


def _trial(folder: SessionFolder, record: Record) -> dict[str, Any]:
    trial = folder.trial(record.trial or 0)
    proposal, found = trial.proposal(), trial.candidate()
    log = next((run / RUN_LOG for run in reversed(trial.runs()) if (run / RUN_LOG).is_file()), None)
    return {
        "record": asdict(record),
        "hypothesis": proposal.hypothesis if proposal else "",
        "commit": found[1] if found else None,
        "diff": found[0].diff if found else "",
        "log": tail(log, LOG_LINES) if log else "",
        "folder": str(trial.path),
    }


def _as_page(record: Record, facts: dict[str, Any]) -> str:
    parts = [line(record), facts["hypothesis"], facts["diff"], facts["log"], facts["folder"]]
    return "\n\n".join(part.rstrip() for part in parts if part)


def _incumbent_source(repo: Repo, tag: str | None, target: str) -> str:
    known = sessions(repo.root)
    if tag is not None or known:
        best = incumbent(Ledger(_folder(tag).ledger).records())
        found = _folder(tag).trial(best.trial).candidate() if best and best.trial is not None else None
        if found is not None:
            return found[0].sources[target]
    return repo.read(repo.resolve("HEAD"), [target])[target]


def _doctor() -> dict[str, Any]:
    facts: dict[str, Any] = {}
    try:
        facts |= {key: value if key != "memory_gb" else round(value, 1) for key, value in probe().facts().items()}
    except OvernightError as error:
        facts["torch"] = f"missing: {error}"
    try:
        facts["data"] = str(data_folder())
    except DataError as error:
        facts["data"] = f"missing: {error}"
    facts |= {name: "set" if there else "not set" for name, there in key_present().items()}
    git = shutil.which("git")
    version = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    facts["git"] = version if git else "missing: install git"
    try:
        facts["repository"] = str(Repo(Path.cwd()).root)
    except OvernightError as error:
        facts["repository"] = f"missing: {error}"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    facts["disk_free_gb"] = round(free, 1) if free >= 1 else f"missing: expected 1 GiB free, found {free:.2f}"
    found = detect()
    facts["sandbox"] = f"{found.level}{f' only: {found.why}' if found.why else ''}"
    facts["memory_limit"] = "by control group" if cgroup.available() else f"by watchdog, each 0.2 s; {SCOPE}"
    return facts


def _print(what: Any) -> None:
    typer.echo(plain(what) if isinstance(what, str) else json.dumps(what, indent=1))
