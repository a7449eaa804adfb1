"""Facts → verdict, or "run again". Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Protocol

from agent.config import Task
from agent.noise import Noise, without_luck
from agent.values import Audit, Finding, Record, Run, RunAgain, Status, Trial, Verdict

# Chosen by simulation (benchmarks/search/judge.py). RERUNS: fresh seeds at most. LEVEL: of the gain's lower bound, and
# EARLY before the last seed. WORTH: of a pair's standard deviation, what a first run must gain to be run again.
RERUNS, LEVEL, EARLY, WORTH = 3, 0.8, 0.98, 0.5
SPARE = 3  # seeds that stand in for those on which the incumbent ended badly
SLACK, CONCESSIONS = 0.5, 1.0  # of σ: what a simpler candidate may lose, and all of them until it is won back

# What a blind answer may differ from the scored one, in nats: the largest difference, and the mean with its sign. On a
# CPU measured, in float32 and bfloat16, at 1e-6 and 1e-8 (docs/bench.md); on GPUs a guess from bfloat16's rounding,
# until somebody measures it.
TOLERANCE = {"cpu": (0.001, 0.000002), "cuda": (0.25, 0.005), "mps": (0.25, 0.005)}


@dataclass(frozen=True)
class Standing:
    """What a trial is up against. incumbent: its row, None for the baseline.

    seeds: fresh ones on which it meets its challengers, RERUNS + SPARE of them. defence: its scores there by seed, None
    where it ended badly. first: its own score on the seed of all first runs, None where that is not known. simpler: the
    candidate has fewer syntax nodes. conceded: what keeps have given away for simplicity and not won back.
    """

    incumbent: Record | None
    noise: Noise
    seeds: Sequence[int] = ()
    first: float | None = None
    defence: Mapping[int, float | None] = field(default_factory=dict)
    simpler: bool = False
    conceded: float = 0.0


class Judge(Protocol):
    def decide(self, trial: Trial, standing: Standing) -> Verdict | RunAgain:
        """`trial` has at least one run."""
        ...

    def wanted(self, standing: Standing) -> float:
        """What a first run has to gain over the incumbent's to be looked at further, in the metric's unit."""
        ...


@dataclass(frozen=True)
class Greedy:
    """Better than the incumbent by any margin is kept. Simple, and fooled by noise: half of small gains are luck."""

    task: Task

    def decide(self, trial: Trial, standing: Standing) -> Verdict | RunAgain:
        """One run is enough."""
        return _unranked(trial, standing.incumbent) or self._against(trial, standing.incumbent)

    def wanted(self, standing: Standing) -> float:  # noqa: ARG002 - it looks at nothing
        """Anything."""
        return 0.0

    def _against(self, trial: Trial, incumbent: Record | None) -> Verdict:
        value, before = _score(trial.runs[-1]), incumbent.val_bpb if incumbent else None
        if before is None:
            return Verdict(Status.KEEP, "the incumbent has no number" if incumbent else "baseline")
        status = Status.KEEP if self.task.better(value, before) else Status.DISCARD
        return Verdict(status, f"{value - before:+.6f} against {before:.6f}")


@dataclass(frozen=True)
class Confirm:
    """What looks like a gain has to show it again, on seeds that neither it nor the incumbent was chosen by.

    The first run only picks what is worth the trouble; it is in no later number, or luck would be (the winner's curse).
    Then both run on the same fresh seeds, RERUNS of them at most. The candidate is kept if the gain's lower bound at
    LEVEL is above zero; if it is simpler, above -SLACK σ, while what was given away and not won back stays within
    CONCESSIONS σ. Looking after each seed would make luck more likely, so before the last one the level is EARLY, much
    stricter (Haybittle 1971, Peto et al. 1976); a mean loss ends it at once, which can lose gains but not invent any.
    The incumbent runs once on each of its seeds, and all its challengers meet it there.
    """

    task: Task

    def decide(self, trial: Trial, standing: Standing) -> Verdict | RunAgain:
        """A verdict, or which run is wanted next."""
        if (verdict := _unranked(trial, standing.incumbent)) is not None:
            return verdict
        if standing.incumbent is None or standing.incumbent.val_bpb is None:
            return Verdict(Status.KEEP, "the incumbent has no number" if standing.incumbent else "baseline")
        seeds = [seed for seed in standing.seeds if standing.defence.get(seed, 0.0) is not None][:RERUNS]
        if not seeds:
            return Verdict(Status.DISCARD, "the incumbent ended badly on all its fresh seeds: nothing to compare with")
        if len(trial.runs) == 1:
            return self._screen(trial.runs[0], standing, seeds[0])
        return self._meet({run.seed: _score(run) for run in trial.runs[1:]}, seeds, standing)

    def wanted(self, standing: Standing) -> float:
        """WORTH of a pair's deviation; what is simpler may lose its slack."""
        return -_slack(standing) if standing.simpler else WORTH * standing.noise.paired.sd

    def _screen(self, run: Run, standing: Standing, seed: int) -> Verdict | RunAgain:
        """Against the incumbent's run on the same seed, where it has one: that seed may be an easy one."""
        before = standing.incumbent.val_bpb if standing.first is None and standing.incumbent else standing.first
        assert before is not None, "the incumbent has a number"
        value = _score(run)
        wanted = self.wanted(standing)
        told = f"{value - before:+.6f} against {before:.6f} in the first run"
        gain = self._gain(value, before)
        if gain <= wanted:
            hint = f"; {wanted:.6f} better would be worth another run" if gain > 0 else ""
            return Verdict(Status.DISCARD, told + hint)
        return RunAgain(seed, told)

    def _meet(self, ours: Mapping[int, float], seeds: Sequence[int], standing: Standing) -> Verdict | RunAgain:
        """Seed by seed, first the candidate, whose crash would end it. ours: its scores on fresh seeds."""
        ran = [seed for seed in seeds if seed in ours]
        alone = next((seed for seed in ran if seed not in standing.defence), None)
        if alone is not None:
            return RunAgain(alone, "the incumbent on the same seed", incumbent=True)
        theirs = {seed: value for seed in ran if (value := standing.defence[seed]) is not None}
        verdict = self._weigh(ours, theirs, standing, last=len(ran) == len(seeds)) if ran else None
        told = f"no verdict after {len(ran)} fresh seeds" if ran else "the incumbent ended badly there"
        return verdict or RunAgain(next(seed for seed in seeds if seed not in ours), told)

    def _weigh(
        self, ours: Mapping[int, float], theirs: Mapping[int, float], standing: Standing, *, last: bool
    ) -> Verdict | None:
        """None while another seed is to be run. theirs: the incumbent's scores on the seeds that count."""
        paired, sigma = standing.noise.paired, standing.noise.over_seeds.sd
        gains = {seed: self._gain(ours[seed], value) for seed, value in theirs.items()}
        gain, least = fmean(gains.values()), -_slack(standing) if standing.simpler else 0.0
        error = paired.error(len(gains), LEVEL if last else EARLY)
        bound = gain - error if any(gains.values()) else 0.0  # the same to the last digit: the same computation
        score, worth = fmean(ours[seed] for seed in gains), without_luck(gain, error, paired.sd / len(gains) ** 0.5)
        value = self._less(standing.incumbent, worth if bound > 0 else gain)
        conceded = max(0.0, standing.conceded - gain)
        finding = Finding(gains, bound, paired.sd, paired.dof, score, value, conceded)
        told = f"gain {gain:+.6f} on {len(gains)} fresh seeds, at least {bound:+.6f}; sigma {sigma:.6f}"
        if bound > 0:
            return Verdict(Status.KEEP, told, finding)
        if standing.simpler and bound >= least and conceded <= CONCESSIONS * sigma and last:
            return Verdict(Status.KEEP, f"simpler: {told}", finding)
        return Verdict(Status.DISCARD, told, finding) if last or gain < least else None

    def _gain(self, value: float, before: float) -> float:
        return before - value if self.task.direction == "min" else value - before

    def _less(self, incumbent: Record | None, gain: float) -> float:
        before = incumbent.val_bpb if incumbent else None
        assert before is not None, "the incumbent has a number"
        return before - gain if self.task.direction == "min" else before + gain


def _slack(standing: Standing) -> float:
    return SLACK * standing.noise.over_seeds.sd


def make_judge(name: str, task: Task) -> Judge:
    """One of JUDGES."""
    return Confirm(task) if name == "confirm" else Greedy(task)


def _score(run: Run) -> float:
    assert run.metrics is not None, "a run without a number is a crash"
    return run.metrics.val_bpb


def _unranked(trial: Trial, incumbent: Record | None) -> Verdict | None:
    """Why the last run's number, if there is one, cannot be compared."""
    run = trial.runs[-1]
    if run.stopped:
        return Verdict(Status.DISCARD, run.failure)
    if run.metrics is None:
        return Verdict(Status.CRASH, run.failure if len(trial.runs) == 1 else f"on a fresh seed: {run.failure}")
    if incumbent is not None and run.budget != incumbent.budget:
        return Verdict(Status.DISCARD, f"budget {run.budget} is not ranked against {incumbent.budget}")
    return None


def after_audit(keep: Verdict, audit: Audit, before: Audit | None, device: str, task: Task) -> Verdict:
    """What an audit leaves of a keep. before: the incumbent's on the same seed, None where there is nothing to compare.

    Answers that differ are a reject, with both numbers. A gain that lives on the split that scores and not on the one
    that was held back is no gain.
    """
    if audit.problem or audit.worst is None or audit.scored is None or audit.blind is None or audit.held_bpb is None:
        return Verdict(Status.REJECT, f"audit: {audit.problem or 'no answer'}")
    worst, mean = TOLERANCE[device]
    if audit.worst > worst or abs(audit.blind - audit.scored) > mean:
        found = f"{audit.scored:.6f} nats a token were scored, {audit.blind:.6f} when it could not look ahead"
        return Verdict(Status.REJECT, f"audit: {found}, {audit.worst:.4f} apart at worst, at {audit.probes} places")
    if before is None:
        return keep
    if before.held_bpb is None:
        return replace(keep, reason=f"{keep.reason}; the incumbent's audit is gone: its held-back score is unknown")
    worse = (audit.held_bpb - before.held_bpb) * (1 if task.direction == "min" else -1)
    if worse < (keep.finding.sd if keep.finding and keep.finding.bound <= 0 else 0.0):  # simpler ones may lose a little
        return keep
    gone = f"{audit.held_bpb - before.held_bpb:+.6f} on the held-back split"
    return replace(keep, status=Status.DISCARD, reason=f"{keep.reason}, but {gone}: no gain")
