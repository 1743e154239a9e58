"""What the report says, before it is HTML or Markdown: one chapter a model, scale and horizon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hpcstab.report.claims import answer_claims
from hpcstab.report.compare import compare_pairs
from hpcstab.report.differences import config_differences
from hpcstab.report.facts import Row, section_rows
from hpcstab.report.figures import Picture, Sample, make_figures, samples
from hpcstab.report.measured import definitions, how_measured
from hpcstab.report.metric_table import metric_table
from hpcstab.report.notes import certainty_notes
from hpcstab.report.record import BrokenFolder, LoadedRun
from hpcstab.report.sections import Section, make_sections
from hpcstab.report.single_changes import single_change_table
from hpcstab.report.style import looks
from hpcstab.report.tables import (
    Table,
    claim_table,
    difference_table,
    fix_table,
    judgement_table,
    pairing_table,
    variant_table,
)
from hpcstab.report.verdict import verdict_sentence
from hpcstab.report.words import printable


@dataclass(frozen=True)
class Evidence:
    """The lines that the judgement of one run rests on, by question."""

    run_id: str
    lines: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Chapter:
    """One section, told."""

    section: Section
    verdict: str
    notes: tuple[str, ...]
    variants: Table
    single_changes: Table
    metrics: Table
    pairings: Table
    differences: Table
    fixes: Table
    figures: tuple[Picture, ...]
    samples: tuple[Sample, ...]
    judgements: Table
    evidence: tuple[Evidence, ...]
    claims: Table
    claim_counts: str
    measured: tuple[tuple[str, str], ...]
    definitions: tuple[str, ...]
    colours: dict[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    made: str
    chapters: tuple[Chapter, ...]
    broken: tuple[BrokenFolder, ...]

    @property
    def rows(self) -> list[Row]:
        return [row for chapter in self.chapters for row in chapter.rows]

    @property
    def pictures(self) -> list[Picture]:
        """Every PNG of the report."""
        pictures = [picture for chapter in self.chapters for picture in chapter.figures]
        return pictures + [p for chapter in self.chapters for sample in chapter.samples for p in sample.pictures]


def make_page(runs: Sequence[LoadedRun], broken: Sequence[BrokenFolder], title: str | None, made: datetime) -> Page:
    """The report about loaded runs; ``broken`` folders are named, as they cannot be counted anywhere."""
    chapters = tuple(_chapter(section, len(broken)) for section in make_sections(runs))
    models = ", ".join(dict.fromkeys(chapter.section.model for chapter in chapters))
    return Page(
        title=printable(title) if title else f"{models}: which change keeps the training finite?",
        made=f"{made:%Y-%m-%d %H:%M %Z}",
        chapters=chapters,
        broken=tuple(BrokenFolder(folder.path, printable(folder.reason)) for folder in broken),
    )


def _chapter(section: Section, num_broken: int) -> Chapter:
    pairings, differences = compare_pairs(section), config_differences(section)
    rows = section_rows(section)
    claims = answer_claims(section, rows)
    verdict = verdict_sentence(section, pairings)
    if num_broken:
        verdict += f" {num_broken} folder{'s' * (num_broken > 1)} could not be read and could not be counted."
    answers = [claim.answer for claim in claims]
    return Chapter(
        section=section,
        verdict=verdict,
        notes=tuple(certainty_notes(section, pairings)),
        variants=variant_table(section),
        single_changes=single_change_table(section),
        metrics=metric_table(section, rows),
        pairings=pairing_table(pairings, section),
        differences=difference_table(differences, section),
        fixes=fix_table(differences),
        figures=tuple(make_figures(section)),
        samples=tuple(samples(section)),
        judgements=judgement_table(section),
        evidence=tuple(_evidence(run) for run in section.runs),
        claims=claim_table(claims),
        claim_counts=", ".join(f"{answers.count(a)} {a}" for a in ("held", "refuted", "not testable")),
        measured=tuple(how_measured(section)),
        definitions=tuple(definitions(section)),
        colours={label: look.colour for label, look in looks(section.groups).items()},
        rows=tuple(rows),
    )


def _evidence(run: LoadedRun) -> Evidence:
    questions = ("finite", "learned", "unmasked")
    lines = [
        (question, run.answer(question), "; ".join(printable(line) for line in run.judgement[question]["evidence"]))
        for question in questions
    ]
    error = run.status.get("error")
    if error:
        lines.append(("error", run.state, printable(error)))
    return Evidence(run.run_id, tuple(lines))
