"""The main path of a session: propose, check, commit, train, judge, record, repeat.

Ledger first, branch second: a record is written to its trial's folder, then to results.tsv, then the branch moves.
What a crash interrupts in between, `begin` does again from what lies on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial

from agent import candidate as candidates
from agent.bandit import turn
from agent.beginning import baseline, crash_left, taken_up
from agent.cell import end_of
from agent.desk import REPAIRS, Desk, Draft, Gate, Ready
from agent.errors import SmokeError, StateError, SteeringError, Waiting
from agent.flight import Flight, auditing, training
from agent.folder import SessionFolder, drop_weights
from agent.forecast import forecast
from agent.judge import Confirm, Judge, Standing, after_audit
from agent.kinds import kind_of
from agent.ledger import incumbent
from agent.memory import Memory
from agent.pruning import Looked, Watched, watched
from agent.recording import Origin, record_of, rejected
from agent.repo import Repo, trial_ref
from agent.smoke import Smoke
from agent.standing import standing_of
from agent.steering import near_misses, plateau, refused
from agent.stops import Stop, experiments, spent
from agent.trial import Bench
from agent.turns import turned
from agent.values import (
    Audit,
    Candidate,
    History,
    Outcome,
    Proposal,
    Proposer,
    Record,
    Run,
    RunAgain,
    Status,
    Trial,
    Verdict,
)
from sandbox.pool import Pool, Slot
from sandbox.process import Ending

BASELINE = "baseline"
SMOKE_SLOT = Slot(0, "smoke")
NO_BASELINE = "baseline: expected the unchanged code to train"


@dataclass(frozen=True)
class Parts:
    """What a session is built of. base: commit it starts from, 40 hex. seed: of every first run.

    portfolio: proposers take turns by what they earn; else the first one is asked while it answers.
    """

    repo: Repo
    folder: SessionFolder
    bench: Bench
    judge: Judge
    proposers: Sequence[Proposer]
    pool: Pool[Outcome]
    stop: Stop
    origin: Origin
    base: str
    seed: int
    say: Callable[[str], None]
    portfolio: bool = False
    sleep: Callable[[float], None] = time.sleep


class Loop:
    def __init__(self, parts: Parts) -> None:
        self.parts, self.bench = parts, parts.bench
        self.memory = Memory(parts.folder, parts.say, parts.bench.machine.device)
        pick = partial(turn, seed=parts.seed) if parts.portfolio else None
        self.desk = Desk(parts.proposers, parts.say, self._rest, pick and (lambda names, now: pick(names, now.records)))
        self.commit, self.sources = parts.base, parts.repo.read(parts.base, parts.bench.task.targets)
        unchanged = Proposal((), BASELINE, proposer=BASELINE)
        self.holder = Candidate(unchanged, self.sources, self.commit, candidates.digest_of(self.sources), "")
        self.kept = {parts.base}  # commits that the branch may be at
        self.flights: dict[int, Flight] = {}
        self.crashed: Draft | None = None
        self.failure = ""
        self.said = ""
        self.interrupts = 0

    @property
    def records(self) -> list[Record]:
        return self.memory.records

    # ── the main path ────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> str:
        """Until a stop condition or an interrupt; the reason why it ended."""
        self.begin()
        while True:
            with suppress(Waiting):  # whoever could be asked does, for a run to land
                while (reason := self.stopping()) is None and len(self.flights) < self.parts.pool.slots:
                    self.propose()
            if not self.flights:
                return reason or "nothing is left to do"
            self.settle()

    def once(self) -> Record:
        """One proposal through everything: recovery, baseline, checks, runs, judge, ledger. Its row."""
        self.begin()
        self._land()
        if self.interrupts:
            raise StateError("interrupted before the candidate was tried; the same command tries it")
        self.crashed = None  # the one proposer there is does not repair what others proposed
        number = self.propose()
        self._land()
        record = next((record for record in self.records if record.trial == number), None)
        if record is None:
            raise StateError("interrupted before the candidate was trained; `overnight run` on this tag trains it")
        return record

    def stopping(self) -> str | None:
        if self.interrupts:
            return "interrupted"
        if any(flight.trial.number == 0 for flight in self.flights.values()):
            return "the baseline runs alone: every limit comes from it"
        return self.parts.stop.reason(self.records, len(self.flights), datetime.now(), self.memory.earlier)

    def propose(self) -> int:
        """One proposal: it takes off, or is recorded as rejected, under the number returned."""
        number = self._next_number()
        crashed, self.crashed = self.crashed, None
        in_flight = [flight.trial.candidate.proposal for flight in self.flights.values()]
        gate = Gate(
            check=lambda proposal: self._check(proposal, number),
            affords=lambda cost: not self.interrupts and self.parts.stop.affords(spent(self.records) + cost),
            paid=lambda draft: self._paid(number, draft),
        )
        got = self.desk.get(self.history(), in_flight, gate, crashed)
        if isinstance(got, Ready):
            trial = self._commit(number, got.candidate)
            if self.interrupts:
                self.parts.say(
                    f"trial {number} is ready, not begun; `overnight run --tag {self.parts.folder.tag}` runs it"
                )
                return number
            self.launch(Flight(trial, got.smoke, got.draft))
        elif got is not None:
            self._reject(number, got)
        if self.desk.refusal is not None:
            raise self.desk.refusal
        return number

    def launch(self, flight: Flight) -> None:
        """Train it: once more, or the incumbent in its place, where the judge wants that."""
        trial, again = flight.trial, flight.again
        candidate, proposal, smoke = trial.candidate, trial.candidate.proposal, flight.smoke
        folder, now = self.parts.folder.trial(trial.number).run(len(trial.runs)), incumbent(self.records)
        if flight.defends and again is not None and now is not None:
            candidate, number = self.holder, now.trial or 0
            folder, smoke = self.parts.folder.trial(number).defender(again.seed), self._smoke(candidate, number)
        first = self.parts.seed if proposal.seed is None else proposal.seed
        budget = proposal.budget or self.parts.origin.budget
        watched = None if again or trial.runs else self._watched(trial)
        job = training(self.bench, candidate, folder, again.seed if again else first, budget, smoke, watched)
        self.flights[self.parts.pool.submit(job)] = flight

    def settle(self) -> None:
        """Wait for one run and do what the judge says."""
        job, future = self.parts.pool.wait()
        flight = self.flights.pop(job)
        done = future.result()
        called_off = isinstance(done, Run) and done.execution.ending is Ending.CANCELLED and not done.stopped
        if done is None or called_off:
            again = f"`overnight run --tag {self.parts.folder.tag}` runs it again"
            raise StateError(f"interrupted: trial {flight.trial.number} was abandoned; {again}")
        if isinstance(done, Audit):
            self._audited(flight, done)
        elif isinstance(done, Run):
            self._trained(flight, done)

    def _trained(self, flight: Flight, run: Run) -> None:
        if flight.defends:
            drop_weights(run.execution.log_path.parent)
        else:
            flight = replace(flight, trial=replace(flight.trial, runs=(*flight.trial.runs, run)))
        self._judge(flight)

    def _judge(self, flight: Flight) -> None:
        decision = self.parts.judge.decide(flight.trial, self._standing(flight.trial.candidate))
        number, tag = flight.trial.number, self.parts.folder.tag
        if isinstance(decision, RunAgain) and self.interrupts:
            self.parts.say(f"trial {number} is undecided; `overnight run --tag {tag}` goes on with it")
        elif isinstance(decision, RunAgain):
            self.parts.say(f"      trial {number}: {decision.reason}; next, seed {decision.seed}")
            self.launch(replace(flight, again=decision))
        elif decision.status is Status.KEEP and self.bench.task.profile == "train":
            self.audit(replace(flight, keep=decision))
        else:
            self.conclude(flight, decision)

    def audit(self, flight: Flight) -> None:
        """Before it is kept, all its runs are asked again, blindly, one after the other."""
        folder = self.parts.folder.trial(flight.trial.number).run(flight.audited)
        self.flights[self.parts.pool.submit(auditing(self.bench, flight, folder))] = flight

    def _audited(self, flight: Flight, done: Audit) -> None:
        """On to the next. Of the first the score on the held-back split is compared: the incumbent ran on that seed.

        Nobody was chosen by that score; and what lies between the two splits is different with every seed.
        """
        keep, first, flight = flight.keep, flight.audited == 0, replace(flight, audited=flight.audited + 1)
        assert keep is not None, "only keeps are audited"
        before = self.parts.folder.audit_of(incumbent(self.records)) if first else None
        verdict = after_audit(keep, done, before, self.bench.machine.device, self.bench.task)
        if verdict.status is Status.KEEP and not flight.held:
            self.audit(replace(flight, keep=verdict))
        else:
            self.conclude(flight, verdict)

    def conclude(self, flight: Flight, verdict: Verdict) -> None:
        """The verdict is final: record it, let the branch follow, tell the proposer."""
        trial, draft = flight.trial, flight.draft
        if draft is None:
            self._calibrate(flight)
        cost = draft.cost if draft else 0.0
        if verdict.finding is not None:
            self.parts.folder.trial(trial.number).write_finding(verdict.finding)
        row = record_of(trial, verdict, incumbent(self.records), cost, self.parts.origin)
        self.memory.record(row, trial.candidate, trial.commit)
        if verdict.status is Status.KEEP:
            self._follow(trial.candidate, trial.commit)
        else:
            for run in self.parts.folder.trial(trial.number).runs():
                drop_weights(run)
        self.failure = end_of(trial.runs[-1].execution.log_path) if verdict.status is Status.CRASH else ""
        if draft is not None:
            draft.proposer.tell(trial.candidate.proposal, self.records[-1])
            if verdict.status is Status.CRASH and draft.crashes < REPAIRS:
                problem = self.failure or verdict.reason
                self.crashed = replace(draft, problem=problem, cost=0.0, crashes=draft.crashes + 1)
        elif verdict.status is not Status.KEEP:
            raise StateError(f"{NO_BASELINE}, found: {verdict.reason}; see {trial.runs[-1].execution.log_path}")

    # ── how it begins ────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Where the session was left, or its baseline. Says what to expect before anything is spent."""
        cut_off = self.memory.recall()
        self.parts.folder.tidy()
        self._follow_ledger()
        self._expect()
        if not cut_off:
            self.crashed, self.failure = crash_left(self.memory, self.desk)
        for left in cut_off:
            trial, draft = taken_up(left, self.memory, self.desk, self.bench)
            if trial is None:
                self._reject(left.number, draft)
            else:
                self._run_committed(trial, draft if trial.number else None)
        if not self.records and not self.flights:
            self._run_committed(baseline(self.parts.repo, self.parts.folder, self.holder), None)
        elif self.records and incumbent(self.records) is None:
            raise StateError(f"{NO_BASELINE}, found a crash; mend train.py, commit it and use another --tag")

    def _run_committed(self, trial: Trial, draft: Draft | None) -> None:
        """Smoke and launch what has its commit already: the baseline, or a trial that was cut off."""
        try:
            flight = Flight(trial, self._smoke(trial.candidate, trial.number), draft)
        except SmokeError as error:
            if draft is None:
                raise StateError(f"{NO_BASELINE}, found: {error}") from None
            self._reject(trial.number, replace(draft, problem=str(error)))
            return
        (self._judge if trial.runs else self.launch)(flight)

    def _follow_ledger(self) -> None:
        """The incumbent is the last kept row, and the branch is where it says."""
        if keeps := self.memory.keeps():
            self.kept |= {commit for _, commit in keeps}
            self._follow(*keeps[-1])

    def _follow(self, candidate: Candidate, commit: str) -> None:
        self.commit, self.sources, self.holder = commit, dict(candidate.sources), candidate
        if waits := self.parts.repo.advance(self.parts.folder.tag, commit, self.kept):
            self.parts.say(waits)
        self.kept.add(commit)

    def _calibrate(self, flight: Flight) -> None:
        """The baseline's times bound all later runs; they are on disk before its row is."""
        self.bench = self.bench.paced(flight.smoke, flight.trial.runs[-1])
        self.parts.folder.write_session((self.parts.folder.session() or {}) | {"pace": self.bench.pace.facts()})
        self._expect()

    def _expect(self) -> None:
        """Say what the session will take, again when that has changed."""
        parts = self.parts
        done = experiments(self.records)
        said = forecast(parts.origin, self.bench, parts.stop, done, parts.proposers, self.history())
        said += "; what looks like a gain is run again, 2 to 6 times in all" if isinstance(parts.judge, Confirm) else ""
        if said != self.said:
            self.parts.say(said)
        self.said = said

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _standing(self, candidate: Candidate) -> Standing:
        facts, now = self.parts.folder.session() or {}, incumbent(self.records)
        return standing_of(self.parts.folder, facts, now, self.bench.machine.device, candidate.sources, self.sources)

    def _watched(self, trial: Trial) -> Watched | None:
        """What a first run is watched by, where it can be compared with the incumbent's at all."""
        now, task, candidate = incumbent(self.records), self.bench.task, trial.candidate
        proposal = candidate.proposal
        facts = self.parts.folder.session() or {}
        seed = self.parts.seed if proposal.seed is None else proposal.seed
        alike = (proposal.budget or self.parts.origin.budget, seed)
        if now is None or task.profile != "train" or task.direction != "min" or alike != (now.budget, now.seed):
            return None
        if facts.get("pruner") != "conformal":
            return None
        kind = kind_of(self.sources, candidate.sources, proposal.category, self.bench.machine.device)
        looked = Looked(kind, now.trial or 0)
        looked.write(self.parts.folder.trial(trial.number).run(0))
        standing = self._standing(candidate)
        bounds = {"sigma": standing.noise.paired.sd, "wanted": self.parts.judge.wanted(standing)}
        return watched(self.parts.folder, facts, trial.number, looked, **bounds)

    def history(self) -> History:
        now = incumbent(self.records)
        guidance = self.parts.folder.guidance()
        device, direction = self.bench.machine.device, self.bench.task.direction
        near = near_misses(self.records, now, direction)[:2] if plateau(self.records) else []
        diffs, insights = self.parts.folder.diffs(near), self.parts.folder.insights()
        told = self.failure, guidance, self.bench.fixed, device, direction, diffs, insights
        return History(tuple(self.records), now, self.sources, *told)

    def _land(self) -> None:
        while self.flights:
            self.settle()

    def _check(self, proposal: Proposal, number: int) -> tuple[Candidate, Smoke | None]:
        candidate = candidates.build(proposal, self.sources, self.commit, self.bench.task, self.memory.tried)
        turn = turned(self.sources, candidate.sources, self.bench.machine.device)
        if why := refused(proposal, turn, self.records):
            raise SteeringError(why)
        return candidate, self._smoke(candidate, number)

    def _smoke(self, candidate: Candidate, number: int) -> Smoke | None:
        folder, budget = self.parts.folder.trial(number), candidate.proposal.budget or self.parts.origin.budget
        if (known := folder.smoke(candidate.digest)) is not None:
            return Smoke(**known)
        smoke = self.bench.smoke(candidate, folder.path / "smoke", budget, SMOKE_SLOT)
        if smoke is not None:
            folder.write_smoke(candidate.digest, asdict(smoke))
        return smoke

    def _commit(self, number: int, candidate: Candidate) -> Trial:
        tag, proposal = self.parts.folder.tag, candidate.proposal
        origin = f"Trial: {tag}/{number}\nProposer: {proposal.proposer}\nCategory: {proposal.category}"
        message = f"{proposal.description}\n\n{proposal.hypothesis}\n\n{origin}\n"
        commit = self.parts.repo.commit(self.commit, candidate.sources, message, trial_ref(tag, number))
        self.parts.folder.trial(number).write_candidate(candidate, commit)
        return Trial(number, commit, candidate)

    def _paid(self, number: int, draft: Draft) -> None:
        if draft.proposal is not None:
            self.parts.folder.trial(number).write_proposal(draft.proposal, draft.cost)
            if draft.proposal.insights:
                self.parts.folder.write_insights(draft.proposal.insights)

    def _reject(self, number: int, draft: Draft) -> None:
        self.memory.record(rejected(number, draft.proposal, draft.problem, draft.cost, self.parts.origin))
        if draft.proposal is not None:
            draft.proposer.tell(draft.proposal, self.records[-1])

    def _next_number(self) -> int:
        """One that no row, folder, ref or flight has: a crash may have left any of them without the others."""
        flying = [flight.trial.number for flight in self.flights.values()]
        return max([self.memory.highest(), *self.parts.repo.numbers(self.parts.folder.tag), *flying]) + 1

    def _rest(self, seconds: float) -> None:
        """Sleep, but not through an interrupt."""
        end = time.monotonic() + seconds
        while not self.interrupts and (left := end - time.monotonic()) > 0:
            self.parts.sleep(min(1.0, left))
