"""Looks at photos: lists and decodes them, finds what is wrong, and reports it."""

from __future__ import annotations

import logging
from pathlib import Path

from training.explore import duplicates, inspection, labels, listing, report
from training.explore.findings import Finding, find_findings
from training.words import counted

_log = logging.getLogger(__name__)


def explore(source: Path, out: Path, cache: Path) -> list[Finding]:
    """Find what is wrong with photos, log it, and write a report.

    Args:
        source: Class folders, split folders with class folders inside, or a CSV of path and label.
        out: A folder for explore.html and explore.json.
        cache: Where decoded pixels and features go.

    Returns:
        The findings, the worst first.

    Raises:
        DataError: There is no photo that decodes.
    """
    inspected = inspection.inspect(listing.read(source), cache)
    _log.info(f"Comparing {counted(len(inspected.photos), 'photo')} with each other")
    groups = duplicates.find_groups(inspected)
    suspects = labels.find_suspects(inspected, labels.features(inspected.pixels))
    found = find_findings(source, inspected, groups, suspects)
    report.log_findings(found, inspected)
    if (before := report.source_of(out)) not in ("", str(source)):
        _log.info(f"\nNote: this replaces the report of {before} in {out}. To keep both, name another folder: --out")
    page = report.write(found, inspected, source, out)
    _log.info(f"\nWrote {page}, and explore.json beside it")
    return found
