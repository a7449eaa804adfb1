"""What is known of noise: the arithmetic by hand, the folders it is read from, and the command that measures it."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from agent.folder import SessionFolder
from agent.measuring import as_text, seeds_of
from agent.noise import PRIORS, Spread, measured, prior, without_luck
from agent.reruns import noise_of, scores
from tests.agent.test_cli import overnight
from tests.conftest import commit_all

LIKE = {"data_id": "d", "budget": "10steps", "hardware": "cpu x2", "torch": "2"}


def test_a_variance_is_pooled_with_the_prior() -> None:
    found = Spread(0.01, 4.0).pooled([[1.0, 1.02], [5.0, 5.01, 5.03], [9.0], []])
    squares = 0.0002 + sum((x - statistics.fmean((0.0, 0.01, 0.03))) ** 2 for x in (0.0, 0.01, 0.03))
    assert found.dof == 4 + 1 + 2
    assert found.sd == pytest.approx(((4 * 0.01**2 + squares) / 7) ** 0.5)


def test_quantiles_are_students_and_of_chi_square() -> None:
    assert Spread(1.0, 2.0).error(1, 0.975) == pytest.approx(4.3027, abs=1e-4)
    assert Spread(2.0, 8.0).error(4, 0.8) == pytest.approx(0.8889, abs=1e-4)
    low, high = Spread(1.0, 10.0).interval(0.9)  # tables: 3.940 and 18.307
    assert (low, high) == (pytest.approx((10 / 18.307) ** 0.5, abs=1e-4), pytest.approx((10 / 3.940) ** 0.5, abs=1e-4))


@pytest.mark.parametrize("device", PRIORS)
def test_a_prior_is_a_share_of_the_score_and_gives_way_to_measurements(device: str) -> None:
    before = prior(device, 1.5)
    assert before.over_seeds.sd == pytest.approx(1.5 * PRIORS[device][0])
    after = measured(before, [[0.0, 0.2]] * 500, [[0.0, 0.1]] * 500)
    assert after.over_seeds.sd == pytest.approx(0.1414, rel=0.02)
    assert after.paired.sd == pytest.approx(0.0707, rel=0.05)
    only_seeds = measured(before, [[0.0, 0.2]] * 500, []).paired
    assert only_seeds.sd == pytest.approx(after.over_seeds.sd * before.paired.sd / before.over_seeds.sd)
    assert only_seeds.dof == before.paired.dof


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.0, 4.0])
def test_believed_gains_are_worth_less_by_the_luck_that_got_them_believed(truth: float) -> None:
    rng = random.Random(1)
    believed = [gain for _ in range(4000) if (gain := rng.gauss(truth, 1.0)) > 1.5]
    naive, fair = statistics.fmean(believed), statistics.fmean(without_luck(gain, 1.5, 1.0) for gain in believed)
    assert abs(fair - truth) < max(0.1, 0.62 * abs(naive - truth))
    assert without_luck(9.0, 1.5, 1.0) == pytest.approx(9.0)
    assert without_luck(-1.0, 1.5, 1.0) <= 0.0


def test_one_candidate_that_falls_apart_hides_no_later_gain() -> None:
    before = prior("cpu", 1.385)
    after = measured(before, [], [[0.002, 2.1], [0.001, -0.001]])
    assert before.paired.sd < after.paired.sd < 5 * before.paired.sd


def run(folder: Path, seed: int, score: float | None, ended: bool = True, ending: str = "exited") -> None:
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps({"seed": seed}))
    if ended:
        (folder / "execution.json").write_text(json.dumps({"ending": ending}))
    if score is not None:
        (folder / "metrics.json").write_text(json.dumps({"val_bpb": score}))


def begun(root: Path, tag: str, **facts: str) -> SessionFolder:
    folder = SessionFolder(root, tag)
    folder.create()
    folder.write_session(LIKE | facts)
    return folder


def test_every_rerun_of_a_session_that_is_alike_counts(tmp_path: Path) -> None:
    one, other = begun(tmp_path, "one"), begun(tmp_path, "other", hardware="cpu x64")
    for folder in (one, other):
        run(folder.trial(0).run(0), 42, 9.0)  # first runs got a candidate on, perhaps by luck
        for seed, score in ((7, 1.0), (8, 1.2)):
            run(folder.trial(0).defender(seed), seed, score)
        run(folder.trial(1).run(0), 42, 0.1)
        for number, seed, score in ((1, 7, 0.9), (2, 8, 1.3)):
            run(folder.trial(1).run(number), seed, score)
        run(folder.noise_run(3), 3, 2.0)
        run(folder.noise_run(4), 4, 2.4)
        run(folder.noise_run(5), 5, None)
        run(folder.noise_run(6), 6, 7.0, ended=False)
    run(one.noise_run(7), 7, None, ending="cancelled")
    (begun(tmp_path, "broken").path / "session.json").write_text("{")
    begun(tmp_path, "another", task="other")
    before, found = prior("cpu", 1.0), noise_of(tmp_path, LIKE, "cpu", 1.0)
    wanted = measured(before, [[1.0, 1.2], [2.0, 2.4]], [[-0.1, 0.1]])
    for mine, theirs in ((found.over_seeds, wanted.over_seeds), (found.paired, wanted.paired)):
        assert (mine.sd, mine.dof) == (pytest.approx(theirs.sd), theirs.dof)
    assert scores(one.noise()) == {3: 2.0, 4: 2.4, 5: None}


NOISY = """\
import json, os, random
LR = 0.5
seed = json.load(open(os.environ["OVERNIGHT_TRIAL"]))["seed"]
loss = 1.0 + (LR - 0.1) ** 2 + random.Random(seed).gauss(0, 0.003)
print("---", f"val_bpb: {loss:.6f}", "training_seconds: 0.1", "total_seconds: 0.2", "peak_vram_mb: 10.0", sep="\\n")
print("mfu_percent: 1.0", "total_tokens_M: 0.1", "num_steps: 10", "num_params_M: 0.1", "depth: 1", sep="\\n")
"""


def test_the_command_measures_pools_and_makes_no_run_twice(project: Path) -> None:
    (project / "train.py").write_text(NOISY)
    commit_all(project)
    first = overnight(project, "noise", "--seeds", "3", "--budget", "10steps", "--json")
    assert first.returncode == 0, first.stderr
    facts = json.loads(first.stdout)
    assert [int(seed) for seed in facts["scores"]] == seeds_of(42, 3)
    assert facts["over_seeds"]["measured_dof"] == 2
    values = list(facts["scores"].values())
    hand = Spread(facts["over_seeds"]["prior_sd"], 8.0).pooled([values])
    assert facts["over_seeds"]["sd"] == pytest.approx(hand.sd)
    assert facts["paired"]["measured_dof"] == 0
    runs = sorted((project / ".overnight").glob("*/noise/*/execution.json"))
    stamps = [path.stat().st_mtime_ns for path in runs]
    second = overnight(project, "noise", "--seeds", "4", "--json")
    again = json.loads(second.stdout)
    assert [path.stat().st_mtime_ns for path in runs] == stamps
    assert list(again["scores"].items())[:3] == list(facts["scores"].items())
    assert (len(again["scores"]), again["over_seeds"]["measured_dof"]) == (4, 3)
    assert "degrees of freedom and a prior of" in as_text(again)


def test_without_a_run_there_is_nothing_to_say(project: Path) -> None:
    (project / "train.py").write_text("raise SystemExit(3)\n")
    commit_all(project)
    done = overnight(project, "noise", "--seeds", "2", "--budget", "10steps")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "expected a run with a score" in done.stderr
    assert done.stdout.count("no number") == 2
