"""The documents, their commands, and their sentences."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("model-store/*.md")])
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[list[str]]:
    """Return the lines of each ```bash block, with continued lines joined."""
    found = [text for language, text in _FENCE.findall(PAGES[page]) if language == "bash"]
    return [re.sub(r"\\\n *", "", text).splitlines() for text in found]


def commands(page: str) -> list[str]:
    """Return the commands of a page: what its ```bash blocks say, but for comments and blank lines."""
    lines = [line for block in blocks(page) for line in block]
    return [line for line in lines if line and not line.startswith("#")]


def sentences(text: str) -> list[str]:
    """Return each sentence of a Markdown text; an item of a list and a cell of a table end one, code is one word."""
    text = _FENCE.sub("\n\n", text)
    text = re.sub(r"`[^`]+`", "CODE", text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^(#+ .*|\|.*)$", lambda line: line[0].replace("|", "\n\n") + "\n\n", text, flags=re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n|^ *(?:[-*]|\d+\.) ", text, flags=re.MULTILINE)
    return [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.!?])[*)\"]*\s+", " ".join(paragraph.split()))
        if sentence
    ]
