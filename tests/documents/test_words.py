"""Documents are plain: short sentences, a README that is read in a sitting, and links that lead somewhere."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.conftest import ROOT
from tests.documents.pages import PAGES, sentences

MOST_WORDS = 30
MOST_LINES_OF_THE_README = 220
OF_A_RUN = ("runs/", "reports/", "photos/", "model-store/", "tuned.toml")  # what commands write


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_is_long(page: str) -> None:
    """A reader keeps the beginning of a sentence in mind until its end."""
    long = [sentence for sentence in sentences(PAGES[page]) if len(sentence.split()) > MOST_WORDS]
    assert long == []


def test_long_sentences_are_found() -> None:
    """In paragraphs, lists and cells; code is one word, and neither blocks nor addresses of links count."""
    words = " ".join(["word"] * 20)
    text = f"{words}\n{words}.\n\n- {words}\n- {words}\n\n| {words} | {words} |\n\n```\n{words} {words}\n```\n"
    text += f"`{words} {words}` and [{words}](a b c).\n"
    assert [len(sentence.split()) for sentence in sentences(text)] == [40, 20, 20, 20, 20, 22]


def test_the_readme_stays_short() -> None:
    """A person reads it in a sitting."""
    assert len(PAGES["README.md"].splitlines()) < MOST_LINES_OF_THE_README


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_said_twice_in_a_page(page: str) -> None:
    """No paragraph, list or table of some length; commands may be."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    parts = Counter(part.strip() for part in re.split(r"\n{2,}", text) if len(part) > 60)
    assert [part for part, count in parts.items() if count > 1] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    """Each link to a file or to a heading, and each path of this repository in code."""
    home = (ROOT / page).parent
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", PAGES[page]):
        target = home / path if path else ROOT / page
        assert target.exists(), path
        assert not anchor or anchor in headings(target.read_text()), anchor
    named = re.findall(r"`((?:[\w-]+/)+[\w.-]*|image-\w+\.dockerfile)`", PAGES[page])
    top = {path.name for path in ROOT.iterdir() if path.is_dir()}
    paths = [path for path in named if path.split("/")[0] in top or "/" not in path]
    assert [path for path in paths if not path.startswith(OF_A_RUN) and not (ROOT / path).exists()] == []


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_python_is_called_in_one_way() -> None:
    """In the environment that a page names once: `. .venv/bin/activate`."""
    assert [page for page, text in PAGES.items() if ".venv/bin/python" in text or "python3 -m" in text] == []
    calls = [page for page, text in PAGES.items() if re.search(r"^python -m", text, re.MULTILINE)]
    assert len(calls) >= 3 and all(". .venv/bin/activate" in PAGES[page] for page in calls)
