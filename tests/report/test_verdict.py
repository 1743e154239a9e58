"""The sentence that a reader takes away, for the patterns that occur."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcstab.judgement import judge
from hpcstab.metrics import EventLog
from hpcstab.report.compare import compare_pairs
from hpcstab.report.facts import section_rows
from hpcstab.report.notes import certainty_notes
from hpcstab.report.sections import Section
from hpcstab.report.tables import judgement_table, variant_table
from hpcstab.report.verdict import verdict_sentence
from hpcstab.rundir import RunDir, read_json, write_json
from tests.report.synthetic import campaign_of, make_run
from tests.report.test_compare import section_of


def verdict_of(runs: list[RunDir]) -> str:
    section = section_of(runs)
    return verdict_sentence(section, compare_pairs(section))


def notes_of(section: Section) -> str:
    return " ".join(certainty_notes(section, compare_pairs(section)))


def test_the_expected_picture(tmp_path: Path) -> None:
    assert verdict_of(campaign_of(tmp_path)) == (
        "swae3d at scale quick, 40 steps: before went non-finite in 3 of 3 seeds (first at steps 8, 19, 31); "
        "after stayed finite in 3 of 3 seeds but did not learn "
        "(\N{MINUS SIGN}0.20 dB against the mean predictor, still rising); "
        "cured stayed finite and learned in 3 of 3 seeds (+1.20 dB against the mean predictor, still rising); "
        "with n=3 paired seeds p < 0.05 cannot be reached."
    )


def test_with_six_seeds_p_is_stated(tmp_path: Path) -> None:
    text = verdict_of(campaign_of(tmp_path, seeds=6))
    assert "after beats before in 6 of 6, p = 0.031" in text and "cannot be reached" not in text


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"masked": 2}, "after stayed finite only with a mask or a refused step in 1 of 1 seeds"),
        ({"state": "running", "steps": 20}, "after 1 of 1 still running, finite so far (after 20 steps)"),
        ({"state": "failed", "steps": 0}, "after 1 of 1 crashed (after 0 steps; a crash is no answer about stability)"),
        ({"state": "lost", "steps": 20}, "after 1 of 1 lost before the horizon, finite so far (after 20 steps)"),
        ({"state": "queued"}, "after 1 of 1 not started"),
        ({"fails_at": 0}, "after went non-finite in 1 of 1 seeds (at step 0)"),
    ],
)
def test_what_became_of_one_run(tmp_path: Path, kind: dict[str, object], expected: str) -> None:
    assert expected in verdict_of([make_run(tmp_path, "after", **kind)])  # type: ignore[arg-type]


def test_every_run_of_a_mixed_variant_is_in_the_sentence(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "after", 0, fails_at=8),
        make_run(tmp_path, "after", 1, gain=1.0),
        make_run(tmp_path, "after", 2, gain=-1.0),
        make_run(tmp_path, "after", 3, state="failed", steps=0),
    ]
    text = verdict_of(runs)
    for part in (
        "went non-finite in 1 of 4 seeds (at step 8)",
        "stayed finite and learned in 1 of 4",
        "stayed finite in 1 of 4 seeds but did not learn",
        "1 of 4 crashed",
        "nothing was run to compare with",
    ):
        assert part in text


def test_a_dead_run_has_no_final_score_and_is_counted(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "before", 0, fails_at=25, gain=9.0), make_run(tmp_path, "before", 1, gain=1.0)]
    (row, *_) = variant_table(section_of(runs)).rows
    assert row[:5] == ("before", "2", "1 of 2", "25, none", "died, 15.00")
    assert row[5].startswith("18.00†")


def test_many_runs_rank_the_dead_last_in_the_median(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "before", seed, fails_at=8) for seed in range(2)]
    runs += [make_run(tmp_path, "before", seed, gain=float(seed)) for seed in range(2, 6)]
    (row, *_) = variant_table(section_of(runs)).rows
    assert row[4] == "16.50 [16.00, 19.00], 2 of 6 without"  # median of (dead, dead, 16, 17, 18, 19)


def test_notes_say_what_the_sentence_cannot(tmp_path: Path) -> None:
    notes = notes_of(section_of(campaign_of(tmp_path)))
    assert "No failure in 3 runs (after, cured) still allows a failure rate of up to 63 %" in notes
    assert "batch sizes differ (32 in before, cured; 16 in after)" in notes
    assert "Several keys differ from before at once (after 5" in notes
    assert "losses are different quantities" in notes


def test_notes_name_declared_flaws_and_edited_records(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "before+repeated"), make_run(tmp_path, "before")]
    section = section_of(runs)
    section.runs[0].identity["claims"].clear()  # type: ignore[index]
    section.runs[1].identity["code_digest"] = "other"  # type: ignore[index]
    notes = notes_of(section)
    assert "On purpose, before+repeated carries the flaw repeated" in notes
    assert "differ in data.functions: their figures are not measured on the same data" in notes
    assert "different states of the code" in notes and "claims were edited" in notes


def test_baselines_that_are_the_same_on_other_data_stand_there_once(tmp_path: Path) -> None:
    """A page had twelve rows of baselines, since variants differ in what they train on and not in what is held out."""
    runs = [make_run(tmp_path, "before+repeated"), make_run(tmp_path, "before")]
    labels = [row[0] for row in variant_table(section_of(runs)).rows if ":" in row[0]]
    assert len(labels) == len(set(labels)) > 0
    assert not [label for label in labels if "on the data of" in label]
    task = read_json(runs[1].path / "task.json")
    assert task is not None
    next(b for b in task["baselines"]["validation"] if b["role"] == "floor")["scores"]["psnr"] += 1.0
    write_json(runs[1].path / "task.json", task)
    labels = [row[0] for row in variant_table(section_of(runs)).rows if ":" in row[0]]
    assert [label for label in labels if "on the data of" in label] == [
        "floor: mean predictor on the data of before+repeated"
    ]


def test_many_variants_keep_the_sentence_short(tmp_path: Path) -> None:
    variants = ["before", "before+clip", "before+lower_lr", "before+batchnorm", "after"]
    runs = [make_run(tmp_path, variant, fails_at=8 if "+" in variant[:12] else None) for variant in variants]
    text = verdict_of(runs)
    assert "before+batchnorm, before+clip, before+lower_lr failed in every run" in text


def test_a_death_beyond_the_horizon_is_told(tmp_path: Path) -> None:
    late, short = make_run(tmp_path, "after", fails_at=30), make_run(tmp_path, "before")
    short.config_yaml.write_text(short.config_yaml.read_text().replace("max_steps: 40", "max_steps: 20"))
    assert "1 failed beyond it, at step 30" in verdict_of([late, short])


def test_a_crash_is_told_with_its_error(tmp_path: Path) -> None:
    section = section_of([make_run(tmp_path, "after", state="failed", steps=0)])
    assert "RuntimeError: out of paper" in notes_of(section)


def test_what_the_gate_had_to_refuse_stands_beside_the_verdict(tmp_path: Path) -> None:
    """A hardened run that lives on refusals: the sentence, the tables and runs.csv say how many."""
    run = make_run(tmp_path, "before+hardened", state="halted", steps=30)
    log = EventLog(run.events_jsonl, 1)
    for step in (7, 8, 8, 12):
        log.write("step_refused", step, step, reason="nonfinite_loss")
    log.write("step_refused", 9, 9, reason="spike")
    log.write("backoff", 13, 13, number=1)
    log.write("first_nonfinite", 7, 7, what="step")
    log.write("halted", 29, 29, reason="no rung is left")
    log.close()
    others = [make_run(tmp_path, variant) for variant in ("before", "after", "before+clip", "before+lower_lr")]
    section = section_of([run, *others])  # so many that most are told in short
    text = verdict_sentence(section, compare_pairs(section))
    assert (
        "before+hardened met non-finite values in 1 of 1 seeds (at step 7; the gate refused 3 steps for a non-finite"
        " value, the state stayed finite in 1 of 1, the guards halted 1 of 1)"
    ) in text
    row = next(row for row in judgement_table(section).rows if row[0].startswith("before+hardened"))
    assert row[-1] == "3 steps refused for a non-finite value, 1 spike refused, 1 learning-rate back-off"
    assert next(row for row in variant_table(section).rows if row[0] == "before+hardened")[7] == "4"
    facts = next(row for row in section_rows(section) if row["label"] == "before+hardened")
    assert (facts["refused_nonfinite"], facts["spikes"], facts["backoffs"], facts["stable"]) == (3, 1, 1, 0)


def test_a_run_that_needed_the_gate_is_not_stable(tmp_path: Path) -> None:
    run = make_run(tmp_path, "before+hardened", state="completed")
    log = EventLog(run.events_jsonl, 1)
    log.write("not_reproduced", 12, 12, reason="nonfinite_gradient")
    log.close()
    status = read_json(run.status_json) or {}
    write_json(run.status_json, {**status, "judgement": judge(run).as_json()})
    text = verdict_of([run])
    assert "stayed finite only with a mask or a refused step in 1 of 1 seeds" in text
    assert "the gate refused 1 step for a non-finite value" in text


def with_declared_fault(root: Path, variant: str, seed: int, refused_at: int, **kind: object) -> RunDir:
    """A run whose config declares a fault at step 8, and that refused a step and trained to its end."""
    faults = "data.faults=[{step: 8, kind: inf_pixel}]"
    run = make_run(root, variant, seed, settings=(faults,), state="completed", **kind)  # type: ignore[arg-type]
    log = EventLog(run.events_jsonl, 1)
    log.write("first_nonfinite", refused_at, refused_at, what="step")
    log.write("step_refused", refused_at, refused_at, reason="nonfinite_loss")
    log.close()
    seen = {"first_nonfinite_step": refused_at, "first_failure_step": refused_at}
    status = {**(read_json(run.status_json) or {}), **seen}
    write_json(run.status_json, status)
    write_json(run.status_json, {**status, "judgement": judge(run).as_json()})
    return run


def test_a_declared_fault_is_called_one(tmp_path: Path) -> None:
    """A stable run whose base declares its trigger was told like one that met a failure of its own."""
    faults = "data.faults=[{step: 8, kind: inf_pixel}]"
    runs = [make_run(tmp_path, "before", seed, fails_at=8, settings=(faults,)) for seed in range(2)]
    runs += [with_declared_fault(tmp_path, "cured", seed, refused_at=8) for seed in range(2)]
    text = verdict_of(runs)
    assert "went non-finite in 2 of 2 seeds (first at steps 8, 8, the declared faults)" in text
    assert (
        "stayed finite and learned in 2 of 2 seeds (+1.00 dB against the mean predictor, still rising, the gate refused"
        " the declared fault at step 8 in 2)"
    ) in text
    section = section_of(runs)
    (pairing,) = compare_pairs(section)
    assert (pairing.wins, dict(pairing.levels)) == (2, {"finite": 2}), "it was a tie: both had met the fault"
    notes = notes_of(section)
    assert "Declared in data.faults of every variant: inf_pixel in the batch of step 8" in notes


def test_a_failure_beside_the_declared_fault_is_told_apart(tmp_path: Path) -> None:
    text = verdict_of(
        [with_declared_fault(tmp_path, "cured", seed, refused_at=step) for seed, step in ((0, 8), (1, 9))]
    )
    assert "met non-finite values in 1 of 2 seeds (at step 9; the gate refused 1 step for a non-finite value" in text
    assert "stayed finite and learned in 1 of 2 seeds" in text
