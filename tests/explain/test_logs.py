"""A bare log of anybody's training: its cause, the line that says so, in bounded memory however long it is."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from hpcstab.errors import RunError
from hpcstab.explain.log_scan import BLOCK_BYTES, MAX_LINE_BYTES, scan_log
from hpcstab.explain.log_story import story_of_log
from hpcstab.explain.text import story_text
from hpcstab.explain.tracebacks import first_of_chain
from tests.explain.log_excerpts import EXCERPTS


@pytest.mark.parametrize("name", EXCERPTS)
def test_the_cause_and_the_line_that_says_so(tmp_path: Path, name: str) -> None:
    excerpt = EXCERPTS[name]
    log = tmp_path / "train.log"
    log.write_text(excerpt.text)
    scan = scan_log(log)
    story = story_of_log(scan)
    first = story.causes[0]
    assert (first.name, first.confidence) == (excerpt.cause, excerpt.confidence)
    assert first.evidence[0].source == f"train.log:{excerpt.line}"
    assert (scan.nonfinite.step if scan.nonfinite else None) == excerpt.step
    assert story.exit_code == {"unknown": 3, "completed_healthy": 0, "cancelled_by_user": 0}.get(first.name, 1)


def test_the_users_own_line_and_not_the_librarys(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(EXCERPTS["gpu out of memory"].text)
    own = first_of_chain(scan_log(log).tracebacks).own
    assert own is not None
    assert (own.file, own.line, own.text) == ("/home/ada/project/train.py", 88, "loss = step(model, batch)")
    assert "train.py:88" in story_text(story_of_log(scan_log(log)))


def test_a_chain_begins_with_its_first_exception(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(EXCERPTS["a chain"].text)
    assert str(first_of_chain(scan_log(log).tracebacks)) == "KeyError: 'volume'"


def test_labels_of_ranks_hide_no_traceback(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    text = EXCERPTS["a sample is missing"].text
    log.write_text("".join(f"[rank3]: {line}" for line in text.splitlines(keepends=True)))
    (raised,) = scan_log(log).tracebacks
    assert (raised.exception, raised.cause, raised.own and raised.own.line) == ("ValueError", "data_error", 31)


def test_what_a_program_got_over_is_not_certain(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    over = EXCERPTS["missing module"].text
    log.write_text(over + "".join(f"step {step} loss 0.5\n" for step in range(2000)) + EXCERPTS["time limit"].text)
    first, second = story_of_log(scan_log(log)).causes[:2]
    assert (first.name, first.confidence) == ("time_limit", "certain")
    assert (second.name, second.confidence) == ("missing_module_or_environment", "likely")


@pytest.mark.parametrize("shape", ["many lines", "one line without an end"])
def test_a_long_log_is_read_in_little_memory(tmp_path: Path, shape: str) -> None:
    log = tmp_path / "train.log"
    line = b"step 12 loss: 0.25 " + b"." * 60 + (b"\n" if shape == "many lines" else b"")
    num_lines = 20 * BLOCK_BYTES // len(line)
    with log.open("wb") as file:
        for _ in range(num_lines // 1000):
            file.write(line * 1000)
        file.write(b"\nstep 99 loss: nan\n")
    tracemalloc.start()
    scan = scan_log(log)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * BLOCK_BYTES < scan.num_bytes / 3
    assert scan.nonfinite is not None
    assert (scan.nonfinite.step, scan.nonfinite.hit.line) == (99, scan.num_lines)
    assert all(len(text) <= MAX_LINE_BYTES for text in scan.tail)


def test_a_hit_across_two_blocks_is_found(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    for shift in (-20, -10, -1, 0, 1):
        before = b"." * 99 + b"\n"
        log.write_bytes((before * (BLOCK_BYTES // 100 + 1))[: BLOCK_BYTES + shift - 1] + b"\nstep 7 loss: nan\n")
        scan = scan_log(log)
        assert scan.nonfinite is not None, shift
        assert scan.nonfinite.hit.text == "step 7 loss: nan"
        assert scan.nonfinite.hit.line == log.read_bytes().count(b"\n")


def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    binary = tmp_path / "weights.dat"
    binary.write_bytes(b"\0\1\2" * 100)
    with pytest.raises(RunError, match="is no text"):
        scan_log(binary)
    empty = tmp_path / "empty.log"
    empty.touch()
    assert "the log is empty" in story_of_log(scan_log(empty)).causes[0].reason
