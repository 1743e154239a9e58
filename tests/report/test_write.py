"""The written report: one self-contained page, its pictures and its rows; hostile text stays text."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from hpcstab.errors import RunError
from hpcstab.report import Report, write_report
from hpcstab.report.words import NOTHING
from hpcstab.rundir import RunDir, read_json, write_json
from tests.report.synthetic import campaign_of, edit_identity, make_run

HOSTILE = '<script>alert(1)</script> "quoted" | [link](http://evil.example) $\\frac{1}{0}$ \x1b[31m_é'


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, list[RunDir]]:
    folder = tmp_path_factory.mktemp("expected")
    runs = campaign_of(folder / "runs")
    runs.append(make_run(folder / "runs", "before", 3, state="failed", steps=0))
    broken = make_run(folder / "runs", "before", 4)
    broken.run_json.write_text("{")
    return write_report([*runs, broken], folder / "out"), runs


def test_the_page_is_one_file_that_asks_for_nothing(expected: tuple[Report, list[RunDir]]) -> None:
    page = expected[0].html.read_text()
    found = Tags(page)
    assert "script" not in found.tags and "link" not in found.tags and "iframe" not in found.tags
    assert found.urls and all(url.startswith(("data:image/png;base64,", "#")) for url in found.urls)
    assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page
    assert len(page) < 1_000_000


def test_every_run_is_counted(expected: tuple[Report, list[RunDir]]) -> None:
    report, runs = expected
    rows = pd.read_csv(report.folder / "runs.csv")
    assert len(rows) == len(runs) == 10
    assert rows.groupby("label")["diverged"].sum().to_dict() == {"after": 0, "before": 3, "cured": 0}
    assert report.rows[0][:4] == ("before", "4", "3 of 4", "8, 19, 31, none")
    assert report.bad_news
    (folder,) = report.unreadable
    assert "1 folder could not be read and could not be counted" in report.verdict[0]
    assert folder.split(":")[0] in report.html.read_text()


def test_every_metric_is_in_a_table(expected: tuple[Report, list[RunDir]]) -> None:
    """Not only the one that decides: by seed, beside the baselines, with its unit and what it means."""
    page = (expected[0].folder / "report.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.split("### Every figure at step 40")[1].splitlines()[2:6]]
    died = f"died, died, died, {NOTHING}"  # the last one crashed, and has no figure
    assert rows[0][:4] == ["metric", "before", "after", "cured"]
    assert rows[0][4:] == ["floor: mean predictor", "reference: block pca 16", "better", "what it is"]
    assert rows[2] == [r"psnr \[dB\]", died, "13.8", "15.2", "14", "16", "higher", "of whole volumes"]
    assert rows[3][:6] == ["ratio", died, "32", "32", NOTHING, NOTHING]
    assert "<td>of whole volumes</td>" in expected[0].html.read_text()


def test_a_baseline_that_only_some_variants_have_keeps_its_figure(tmp_path: Path) -> None:
    """Block PCA is fitted at each variant's own code size."""
    runs = [make_run(tmp_path / "runs", variant, 0) for variant in ("before", "after")]
    for run, components in zip(runs, (16, 8), strict=True):
        text = run.task_json.read_text()
        run.task_json.write_text(text.replace("block_pca_16", f"block_pca_{components}"))
    write_report(runs, tmp_path / "out")
    table = (tmp_path / "out" / "report.md").read_text().split("### Every figure at step 40")[1]
    columns, _, values = (line.strip("| ").split(" | ") for line in table.splitlines()[2:5])
    assert columns[4:6] == ["reference: block pca 16", "reference: block pca 8"]
    assert values[4:6] == ["16", "16"]


def test_runs_csv_keeps_nonfinite_and_missing_apart(expected: tuple[Report, list[RunDir]]) -> None:
    with (expected[0].folder / "runs.csv").open() as file:
        rows = {(row["label"], row["seed"]): row for row in csv.DictReader(file)}
    dead, crashed, cured = rows["before", "0"], rows["before", "3"], rows["cured", "0"]
    assert (dead["loss_last"], dead["max_grad_norm"], dead["psnr"], dead["best_psnr"]) == ("nan", "inf", "nan", "13.0")
    assert dead["first_nonfinite_step"] == "8" and dead["steps"] == "18" and dead["samples_seen"] == str(18 * 32)
    assert (crashed["psnr"], crashed["loss_last"], crashed["state"]) == ("", "", "failed")
    assert crashed["error"] == "RuntimeError: out of paper"
    assert float(cured["gain_over_floor"]) == pytest.approx(1.2) and cured["floor_mean_predictor"] == "14.0"
    assert (cured["finite"], cured["learned"], cured["unmasked"], cured["stable"]) == ("yes", "yes", "yes", "1")


def test_markdown_refers_to_pictures_that_exist(expected: tuple[Report, list[RunDir]]) -> None:
    report = expected[0]
    pictures = re.findall(r"\]\((figures/[^)]+)\)", report.markdown.read_text())
    assert len(pictures) >= 5 and all((report.folder / name).is_file() for name in pictures)
    assert {path.name for path in (report.folder / "figures").iterdir()} == {Path(name).name for name in pictures}


def test_both_pages_hold_all_sections(expected: tuple[Report, list[RunDir]]) -> None:
    for page in (expected[0].html.read_text(), expected[0].markdown.read_text()):
        for part in (
            "How sure?", "What differs, and why", "Samples", "Judgement of every run", "What the write-up says",
            "How it was measured", "floor: mean predictor", "refuted", "smallest p",
        ):  # fmt: skip
            assert part in page


def test_nothing_stays_aside_and_other_files_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "report.html").write_text("old")
    report = write_report([make_run(tmp_path / "runs", "after")], out)
    assert (out / "notes.txt").read_text() == "mine" and "old" not in report.html.read_text()[:10]
    assert [path.name for path in tmp_path.iterdir() if "aside" in path.name] == []
    assert not report.bad_news


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    made = make_run(tmp_path / "runs", "after", fails_at=30)
    other = make_run(tmp_path / "runs", "before", state="failed", steps=0)
    edit_identity(made, label=HOSTILE, fixes=[{"name": HOSTILE, "kind": "flaw", "why": HOSTILE, "set": {"a": HOSTILE}}])
    edit_identity(other, scale="quick", packages={HOSTILE: HOSTILE}, campaign=HOSTILE)
    other.config_yaml.write_text("data: {faults: '<script>'}\n")
    report = write_report([made, other], tmp_path / "out", title=HOSTILE)
    page = report.html.read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    Tags(page)
    markdown = report.markdown.read_text()
    assert "<script" not in markdown and not re.search(r"(?<!\\)\]\(http", markdown)
    assert "\x1b" not in "".join(report.verdict) + "".join(cell for row in report.rows for cell in row)


def test_scales_are_never_mixed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", "before", scale=scale, fails_at=8) for scale in ("quick", "tiny")]
    report = write_report(runs, tmp_path / "out")
    assert len(report.verdict) == 2 and report.columns[:3] == ("model", "scale", "variant")


def test_two_comparisons_of_one_model_have_pictures_of_their_own(tmp_path: Path) -> None:
    """Runs that were declared otherwise are two comparisons; the second one's pictures stood in both."""
    runs = [make_run(tmp_path / "runs", "before", fails_at=8), make_run(tmp_path / "runs", "before")]
    identity = read_json(runs[1].run_json)
    assert identity is not None
    write_json(runs[1].run_json, identity | {"failure": [{"column": "loss", "above": 100.0}]})
    report = write_report(runs, tmp_path / "out")
    assert len(report.verdict) == 2
    names = [path.name for path in (tmp_path / "out" / "figures").glob("*_finite.png")]
    assert sorted(names) == ["swae3d_quick_2_finite.png", "swae3d_quick_finite.png"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert all(page.count(f"(figures/{name})") == 1 for name in names)


def test_runs_without_a_single_row_still_make_a_report(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", "before", state="queued"), make_run(tmp_path / "runs", "after", state="queued")]
    assert "1 of 1 not started" in write_report(runs, tmp_path / "out").verdict[0]


def test_nothing_to_report_on(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no runs to report on"):
        write_report([], tmp_path / "out")
    with pytest.raises(RunError, match="none of the 1 run folders can be read"):
        write_report([RunDir(tmp_path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    run = make_run(tmp_path / "runs", "after", steps=0, state="failed")
    with pytest.raises(RunError, match="--out names a folder"):
        write_report([run], tmp_path / "file")
    with pytest.raises(RunError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_overrides_that_all_runs_share_stand_in_the_heading_and_not_in_each_label(tmp_path: Path) -> None:
    shared = ("data.source=real",)
    runs = [make_run(tmp_path / "runs", variant, settings=shared) for variant in ("before", "after")]
    report = write_report(runs, tmp_path / "shared")
    assert report is not None
    text = (tmp_path / "shared" / "report.md").read_text()
    assert "## swae3d at scale quick with data.source=real, 40 steps" in text
    assert "| after | 1 |" in text
    rows = list(csv.DictReader((tmp_path / "shared" / "runs.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["before{data.source=real}", "after{data.source=real}"], "rows stand alone"
    runs.append(make_run(tmp_path / "runs", "cured"))
    assert write_report(runs, tmp_path / "mixed") is not None
    mixed = (tmp_path / "mixed" / "report.md").read_text()
    assert "## swae3d at scale quick, 40 steps" in mixed
    assert "| cured | 1 |" in mixed and r"| after\{data.source=real\} | 1 |" in mixed
