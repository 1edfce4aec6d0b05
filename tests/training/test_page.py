"""training/page: each report in a real headless Chromium, at a desk and on a phone, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from contract.document import Contract, ImageSpec, Novelty
from tests.gateway.test_page import CHROMIUM, DESK, FLAGS, NO_FINDINGS, PHONE
from tests.programs.photos import encode, photo
from training import page
from training.data.folder import read_split
from training.data.pixels import load_pixels
from training.explore import duplicates, inspection, listing
from training.explore.findings import find_findings
from training.explore.report import write as write_exploration
from training.fit.preset import find_preset
from training.judge import metrics, plots, report
from training.judge.report import Result
from training.judge.selection import Scored
from training.tune.report import Comparison, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.processes

CLASSES = ("dress", "longsleeveofanamewithoutanyplaceatwhichtobreakitonaphone", "<b>skirt")
SPEC = ImageSpec(64, 64)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with explore.html, evaluation.html, run.html and explain.html of the same few photos, and tune.html."""
    work = tmp_path_factory.mktemp("reports")
    for label, name in enumerate(CLASSES):
        folder = work / "photos" / name
        folder.mkdir(parents=True)
        for number in range(6):
            (folder / f"{number}-a-name-without-any-place-to-break-it.jpg").write_bytes(
                encode(photo(300, 240, seed=number * (label > 0) + 10 * label))
            )
        (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    inspected = inspection.inspect(listing.read(work / "photos"), work / "cache")
    found = find_findings(work / "photos", inspected, duplicates.find_groups(inspected), iter(()))
    write_exploration(found, inspected, work / "photos", work)

    classes = inspected.listing.all_classes
    pixels = load_pixels(read_split(work / "photos", classes, complete=False), SPEC, work / "cache")
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), len(pixels.labels)).astype(np.float32)
    figures, unknown = metrics.measure(probabilities, pixels.labels, classes), np.arange(len(pixels.labels)) % 5 == 0
    result, contract = Result("Keras, clothing/1", probabilities, figures, None, unknown), Contract("", classes, SPEC)
    other = Result("gateway, clothing 1", probabilities, result.figures, metrics.compare(probabilities, probabilities))
    scoring = replace(contract, metrics={"train_photos": 120}, novelty=Novelty(0.4, 0.02, 100))
    drawn = report.draw([result, other], pixels, scoring, "18 photos", work)
    page.write(work / "evaluation.html", "evaluation.html", **drawn)

    plots.curves(work / "curves.png", {"head": {"loss": [2, 1], "val_loss": [2, 1.5], "accuracy": [0, 1]}})
    page.write(
        work / "run.html",
        "run.html",
        **report.draw([result], pixels, contract, "18 photos", work),
        name="clothing",
        plan="Plan for 30 minutes: about 31 of at most 40 epochs of efficientnet-lite0 at 224 px, 52 s each",
        steps=[("The first version", 0.88), ("The best after 1.5 minutes, 1 epoch", 0.9), ("This run's model", 0.92)],
        curves=page.picture(work / "curves.png"),
        augmented={classes[0]: [page.thumbnail(image) for image in pixels.images[:5]]},
        class_count=len(classes),
        versions=4,
        facts={"data digest": '{"train": "' + "0" * 64 + '"}'},
        summary="Model: classifier\n" + "─" * 120,
    )
    scored = [Scored(str(path), 2, row) for path, row in zip(pixels.paths, probabilities, strict=True)]
    shown = [SimpleNamespace(photo=each, index=0, pixels=pixels.images[0], overlay=pixels.images[1]) for each in scored]
    values = {"description": "Scored 18 photos", "label": None, "classes": classes, "first": 5}
    page.write(work / "explain.html", "explain.html", title="clothing/1", sections={"At random": shown}, **values)
    write_search(work / "tune.html")
    return work


def write_search(path: Path) -> None:
    """Write the page of a search with many trials."""
    values: dict[str, BaseDistribution] = {
        "architecture": CategoricalDistribution(["efficientnet-lite0", "efficientnet-lite2"]),
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        **{name: FloatDistribution(0, 1) for name in ("weight_decay", "dropout", "unfreeze", "label_smoothing")},
    }
    trials = [
        create_trial(
            params={**dict.fromkeys(values, 1e-3 + number / 1e4), "architecture": "efficientnet-lite2"},
            distributions=values,
            value=0.8 + number % 7 / 100,
            state=(TrialState.COMPLETE, TrialState.PRUNED)[number % 3 == 2],
        )
        for number in range(20)
    ]
    start = find_preset("default")
    write_report(path, start, start.changed(trials[6].params), trials, Comparison(CLASSES[2], [(0.8, 0.9), (0.8, 0.7)]))


@pytest.mark.parametrize("name", ["explore", "evaluation", "run", "explain", "tune"])
@pytest.mark.parametrize("options", [DESK, {**PHONE, "color_scheme": "dark"}], ids=["desk", "phone"])
def test_a_report_is_readable_and_asks_nothing_of_a_network(
    browser: Browser, reports: Path, name: str, options: dict[str, object]
) -> None:
    """Nothing is wider than the screen, every picture is in the file, names are text, and axe has nothing to mend.

    Pictures of photos are small, and each link leads to a place in the page.
    """
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(**options)  # type: ignore[arg-type]
    opened, asked = context.new_page(), list[str]()
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto((reports / f"{name}.html").as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert opened.evaluate("document.documentElement.scrollWidth <= screen.width")  # innerWidth grows with the page
    small = "i.naturalWidth > 0 && (i.naturalWidth <= 128 || i.src.startsWith('data:image/png'))"
    assert opened.evaluate(f"[...document.images].every(i => i.src.startsWith('data:') && {small})")
    assert opened.evaluate("document.images.length > 5")
    links = opened.evaluate("[...document.links].map(a => document.getElementById(a.hash.slice(1)) !== null)")
    assert all(links) and any(links) == (name in ("explore", "evaluation", "run"))
    assert opened.get_by_text("<b>skirt").count() > 0
    assert Axe().run(opened).generate_report() == NO_FINDINGS
    context.close()
