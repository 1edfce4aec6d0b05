"""Explores photos: list, decode, compare, and tell."""

from __future__ import annotations

import logging
from pathlib import Path

from training.explore import duplicates, findings, inspection, labels, listing, report
from training.explore.findings import Finding

_log = logging.getLogger(__name__)

_ORDER = (findings.PROBLEM, findings.SUSPICION, findings.NOTE)


def explore(source: Path, out: Path, cache: Path) -> list[Finding]:
    """Find what is wrong with photos, tell it, and write a report.

    Args:
        source: Class folders, split folders with class folders inside, or a CSV of path and label.
        out: A folder for explore.html and explore.json.
        cache: Where decoded pixels and features go.

    Returns:
        The findings, the worst first.

    Raises:
        DataError: There is no photo that decodes.
    """
    listed = listing.read(source)
    inspected = inspection.inspect(listed, cache)
    _log.info(f"Comparing {len(inspected.photos)} photos with each other")
    found = [
        *findings.of_listing(listed),
        *findings.of_files(inspected),
        *findings.of_duplicates(inspected, duplicates.find_groups(inspected)),
        *findings.of_labels(inspected, labels.find_suspects(inspected, labels.features(inspected, cache))),
    ]
    found.sort(key=lambda finding: _ORDER.index(finding.severity))
    report.say_findings(found, inspected)
    page = report.write(found, inspected, source, out)
    _log.info(f"\nWrote {page}, and explore.json beside it")
    return found
