"""What was found: as lines in the terminal, as JSON, and as one HTML page."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from training import page
from training.data.pixels import spread
from training.explore.findings import NOTE, PROBLEM, SUSPICION, Finding
from training.explore.inspection import Inspection

_log = logging.getLogger(__name__)

TERMINAL_ITEMS, PAGE_ITEMS = 3, 24  # at first sight
# With a picture: of all findings, of a class's sheet, and of all sheets. At 4 kB each, the page stays near 5 MB up to
# 125 classes. Each shows four at least, so a thousand take 16 MB.
FOUND_PHOTOS, SHEET_PHOTOS, SHEETS_PHOTOS = 700, 24, 500
BARS = 24  # of a histogram

Picture = dict[str, str]  # the name and the data: URL of a photo


def log_findings(findings: Sequence[Finding], inspection: Inspection) -> None:
    """Log what each finding is, where it was seen, and what to do."""
    for finding in findings:
        _log.info(f"\n{finding.severity.upper()}: {finding.title}")
        for item in finding.items[:TERMINAL_ITEMS]:
            names = [inspection.listing.name(path) for path in item.paths[:2]]
            names += [f"and {len(item.paths) - 2} more"] if len(item.paths) > 2 else []
            shown = "" if finding.kind == "folder" else ", ".join(names)  # the note names the folder
            _log.info("  " + ": ".join(filter(None, (shown, item.note))))
        if len(finding.items) > TERMINAL_ITEMS:
            _log.info(f"  and {len(finding.items) - TERMINAL_ITEMS} more in the report")
        _log.info(f"  → {finding.advice}")
    if not findings:
        _log.info("Nothing was found that needs your attention.")


def source_of(out: Path) -> str:
    """Return the source of the report in a folder, as it was named then; empty if there is none."""
    try:
        return str(json.loads((out / "explore.json").read_bytes())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def write(findings: Sequence[Finding], inspection: Inspection, source: Path, out: Path) -> Path:
    """Write explore.json and explore.html into a folder, and return the page."""
    out.mkdir(parents=True, exist_ok=True)
    summary, name = _summary(findings, inspection, source), inspection.listing.name
    document = {**summary, "findings": list(map(asdict, findings)), "photos": list(map(vars, inspection.photos))}
    text = json.dumps(document, indent=1, ensure_ascii=False, default=name)  # paths as people see them
    (out / "explore.json").write_text(text, encoding="utf-8", errors="backslashreplace")
    position = {photo.path: i for i, photo in enumerate(inspection.photos)}
    left = iter(range(FOUND_PHOTOS))

    def show(path: Path) -> Picture:
        return {"name": name(path), "url": page.thumbnail(inspection.pixels.images[position[path]])}

    def show_found(path: Path) -> Picture:
        pictured = path in position and next(left, None) is not None
        return show(path) if pictured else {"name": name(path), "url": ""}

    return page.write(
        out / "explore.html",
        "explore.html",
        summary=summary,
        findings=[_shown(finding, show_found) for finding in findings],
        histograms={
            "short side in pixels": _histogram([min(photo.width, photo.height) for photo in inspection.photos]),
            "brightness, 0 to 255": _histogram([photo.brightness for photo in inspection.photos]),
        },
        sheets=_sheets(inspection, show),
    )


def _shown(finding: Finding, show: Callable[[Path], Picture]) -> dict[str, Any]:
    items: list[dict[str, Any]] = [
        {"note": item.note, "photos": [show(path) for path in item.paths]} for item in finding.items
    ]
    compact = all(len(item["photos"]) == 1 for item in items) and bool(items[0]["photos"][0]["url"])
    return {**vars(finding), "shown": items[:PAGE_ITEMS], "more": items[PAGE_ITEMS:], "compact": compact}


def _histogram(values: Sequence[float]) -> dict[str, Any]:
    """Return the count of each bar, and the values at the ends; the largest hundredth is in the last bar."""
    low, high = min(values), max(float(np.percentile(values, 99)), min(values) + BARS)
    counts, _ = np.histogram(np.minimum(values, high), BARS, (low, high))
    end = f"{high:.0f}{' and more' if max(values) > high else ''}"
    return {"counts": counts.tolist(), "most": int(counts.max()), "low": round(low), "high": end}


def _sheets(inspection: Inspection, show: Callable[[Path], Picture]) -> dict[str, list[Picture]]:
    """Return for each class photos evenly spread over its files."""
    names = inspection.listing.all_classes
    most = max(4, min(SHEET_PHOTOS, SHEETS_PHOTOS // len(names)))
    by_class: dict[str, list[Path]] = {name: [] for name in names}
    for photo in inspection.photos:
        by_class[photo.label].append(photo.path)
    return {name: [show(paths[i]) for i in spread(len(paths), most)] for name, paths in by_class.items()}


def _summary(findings: Sequence[Finding], inspection: Inspection, source: Path) -> dict[str, Any]:
    listing, photos = inspection.listing, inspection.photos
    counts = {split: {name: listing.counts[split, name] for name in listing.all_classes} for split in listing.classes}
    totals = {name: sum(each[name] for each in counts.values()) for name in listing.all_classes}
    severities = Counter(finding.severity for finding in findings)
    return {
        "name": source.resolve().name,
        "source": str(source),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_digest": inspection.pixels.digest,
        "photos": len(listing.photos),
        "classes": list(listing.all_classes),
        "splits": list(listing.classes),
        "counts": counts,
        "totals": totals,
        "largest": max(totals.values()),
        "affected": {
            severity: len(
                {path for each in findings if each.severity == severity for i in each.items for path in i.paths}
            )
            for severity in (PROBLEM, SUSPICION, NOTE)
        },
        "severities": {severity: severities[severity] for severity in (PROBLEM, SUSPICION, NOTE)},
        "kinds": {
            "formats": dict(Counter(photo.format for photo in photos).most_common()),
            "modes": dict(Counter(photo.mode for photo in photos).most_common()),
            "orientation": dict(Counter("turned by EXIF" if p.turned else "as stored" for p in photos).most_common()),
        },
        "ranges": {
            "width in pixels": _range([photo.width for photo in photos]),
            "height in pixels": _range([photo.height for photo in photos]),
            "size in kB": _range([round(photo.size_bytes / 1000) for photo in photos]),
            "brightness, 0 to 255": _range([round(photo.brightness) for photo in photos]),
        },
    }


def _range(values: Sequence[int]) -> dict[str, int]:
    return {"least": min(values), "median": round(float(np.median(values))), "most": max(values)}
