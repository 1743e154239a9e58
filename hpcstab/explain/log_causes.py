"""What a log says about the end of its training, whoever wrote it.

A word of an end is certain only where the log ends: programs also report what they got over.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcstab.explain.causes import Cause, Confidence, Line
from hpcstab.explain.log_scan import LogScan, Sighting
from hpcstab.explain.tracebacks import Traceback, cause_of_message, first_of_chain

END_LINES = 500
"""Ranks that go down together say so at length."""
_MAX_TEXT = 240


def causes_in_log(scan: LogScan, name: str) -> Iterator[Cause]:
    """All that its lines speak for; ``name`` is how the log is called in evidence."""
    if scan.nonfinite is not None:
        yield _nonfinite(scan, name)
    if scan.tracebacks:
        yield _raised(first_of_chain(scan.tracebacks), name, scan)
    for seen in scan.sightings.values():
        sure = _sure(seen.pattern.confidence, seen.last.line, scan)
        yield Cause(seen.pattern.cause, sure, _reason(seen), tuple(_lines(seen, name)))


def cause_of_error(error: str, source: str) -> Cause | None:
    """What an error text alone tells; None where it is of no known kind."""
    found = cause_of_message(error)
    return Cause(found, "certain", shortened(error), (Line(source, shortened(error)),)) if found else None


def shortened(text: str) -> str:
    """A line that fits a terminal twice."""
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 4] + " ..."


def _nonfinite(scan: LogScan, name: str) -> Cause:
    found = scan.nonfinite
    assert found is not None
    at = f" at step {found.step}" if found.step is not None else ""
    reason = f"{found.name} was {found.value} for the first time{at}, in line {found.hit.line} of the log"
    confidence: Confidence = "certain" if found.is_trained else "guess"
    return Cause("nonfinite_operation", confidence, reason, (_line(name, found.hit.line, found.hit.text),))


def _raised(traceback: Traceback, name: str, scan: LogScan) -> Cause:
    own = traceback.own
    where = f" at {own.file}:{own.line} in {own.function}" if own else ""
    lines = [_line(name, traceback.line, str(traceback))]
    if own and own.text:
        lines.append(Line(f"{own.file}:{own.line}", own.text))
    sure = _sure("certain", traceback.line, scan)
    return Cause(traceback.cause, sure, shortened(f"{traceback}{where}"), tuple(lines))


def _sure(confidence: Confidence, line: int, scan: LogScan) -> Confidence:
    return "likely" if confidence == "certain" and scan.num_lines - line > END_LINES else confidence


def _reason(seen: Sighting) -> str:
    often = f" ({seen.count} lines of this kind)" if seen.count > 1 else ""
    return f"{seen.pattern.says}{often}"


def _lines(seen: Sighting, name: str) -> Iterator[Line]:
    yield _line(name, seen.first.line, seen.first.text)
    if seen.last.line != seen.first.line:
        yield _line(name, seen.last.line, seen.last.text)


def _line(name: str, number: int, text: str) -> Line:
    return Line(f"{name}:{number}", shortened(text))
