"""Shows what `benchmarks.compare` stored, as tables and as a chart; `python -m benchmarks.report` prints the tables."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
MAX_LINE = 120
OWN = {"int8": "int8", "tflite": "fp32", "tensorflow": "TensorFlow"}  # this stack's systems, the fastest first
NOTE = (
    "\\* In place of TensorFlow Serving: this project's server with TensorFlow's engine, serving what `model.export`"
    " writes. Its environment counts as installed."
)


def name(results: dict[str, Any]) -> str:
    """Return the name of results: whether the processor has instructions for int8."""
    return "vnni" if any("vnni" in each for each in results["machine"]["instructions"]) else "without-vnni"


def write(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, with each measurement on one line."""
    text = json.dumps(results, indent=1)
    path.write_text(re.sub(r"[\[{][^\[\]{}]*[\]}]", _on_one_line, text) + "\n")


def _on_one_line(innermost: re.Match[str]) -> str:
    line = (
        re.sub(r"\n *", " ", innermost[0]).replace("[ ", "[").replace("{ ", "{").replace(" ]", "]").replace(" }", "}")
    )
    return line if len(line) < MAX_LINE else innermost[0]


def stored() -> dict[str, dict[str, Any]]:
    """Return all stored results, by their name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))}


def medians(several: dict[str, dict[str, Any]]) -> str:
    """Return requests per second of several results side by side, as a table in Markdown; each is of one machine."""
    first, rates = next(iter(several.values())), defaultdict[str, list[str]](list)
    for results in several.values():
        for system in results["systems"].values():
            rates[system["label"]] += [f"{median(each['per_second']):.0f}" for each in system["photos"].values()]
    columns = [f"{name}, {photo}" for name in several for photo in first["photos"]]
    rows = [[system["label"], *rates[system["label"]]] for system in _ordered(first)]
    return _table([["requests/s", *columns], *rows])


def tables(results: dict[str, Any]) -> str:
    """Return everything that was measured, in Markdown."""
    machine, systems = results["machine"], results["systems"]
    head = (
        f"{results['date']}, {results['commit']}: {machine['cores']} cores of {machine['cpu']}"
        f" ({', '.join(machine['instructions'])}), {machine['memory_gb']} GB;"
        f" {results['model']}; {results['rounds']} rounds, windows of {results['window_s']:g} s"
    )
    parts = [head, _table(saturation(results))]
    if any(name not in OWN for name in systems):
        parts.append(_table(ratios(results)))
    parts += [_table(latencies(results)), _table(costs(results)), *_ceiling(results), NOTE]
    return "\n\n".join(parts)


def saturation(results: dict[str, Any]) -> list[list[str]]:
    """Return requests per second: median over the rounds, with the least and the most."""
    rows = [["requests/s", *(f"{photo}, {each['clients']} clients" for photo, each in results["photos"].items())]]
    for system in _ordered(results):
        rows.append([system["label"], *(_spread(system["photos"][p]["per_second"], ".1f") for p in results["photos"])])
    return rows


def ratios(results: dict[str, Any]) -> list[list[str]]:
    """Return how many times as many requests this stack answers, compared round by round."""
    systems = results["systems"]
    own = [name for name in OWN if name in systems and name != "tensorflow"]
    rows = [["times as many requests/s as", *(f"{OWN[name]}, {photo}" for photo in results["photos"] for name in own)]]
    for system in _ordered(results):
        if system["label"] not in [systems[name]["label"] for name in own]:
            row = [system["label"]]
            for photo in results["photos"]:
                theirs = system["photos"][photo]["per_second"]
                for name in own:
                    ours = systems[name]["photos"][photo]["per_second"]
                    row.append(_spread((a / b for a, b in zip(ours, theirs, strict=True)), ".2f"))
            rows.append(row)
    return rows


def latencies(results: dict[str, Any]) -> list[list[str]]:
    """Return p50 of a lone request; p50 and p99 at half of each system's saturation, and at one rate for all."""
    rates = {
        photo: median(each["per_second"] for each in first["photos"][photo]["half_load"])
        for first in [results["systems"].get("tflite")]
        if first
        for photo in results["photos"]
    }
    columns = [f"{photo}, lone (p50)" for photo in results["photos"]]
    columns += [f"{photo}, half of its own load" for photo in results["photos"]]
    rows = [["p50 / p99, ms", *columns, *(f"{photo}, {rate:.1f} requests/s" for photo, rate in rates.items())]]
    for system in _ordered(results):
        own = [_lone(system["photos"][photo]) for photo in results["photos"]]
        own += [_latency(system["photos"][photo]["half_load"]) for photo in results["photos"]]
        rows.append([system["label"], *own, *(_latency(system["photos"][photo]["reference_load"]) for photo in rates)])
    return rows


def costs(results: dict[str, Any]) -> list[list[str]]:
    """Return what an answer and an installation cost."""
    cpu = [f"CPU ms an answer, {photo}" for photo in results["photos"]]
    rows = [["", *cpu, "memory, MB", "first answer, s", "installed, MB", "image to the model server, kB"]]
    for system in _ordered(results):
        wire = f"{system['wire_bytes'] / 1000:.0f}" if system["wire_bytes"] else "–"
        row = [system["label"], *(f"{median(system['photos'][photo]['cpu_ms']):.1f}" for photo in results["photos"])]
        row += [str(max(system["memory_mb"])), f"{median(system['start_s']):.1f}", str(system["install_mb"]), wire]
        rows.append(row)
    return rows


def _ceiling(results: dict[str, Any]) -> list[str]:
    """Return which part of its engine's rate the stack reaches, its lone request, and its rate on fewer cores."""
    lines = []
    for engine, together in results["engines"]["together"].items():
        if engine in results["systems"]:
            system = results["systems"][engine]
            whole = system["photos"]["224 px"]["per_second"]
            share = _spread((100 * a / b for a, b in zip(whole, together, strict=True)), ".0f")
            text = (
                f"{system['label']}, at 224 px: {share} % of the {median(together):.1f} images/s of its engine, as the"
                " model server runs it."
            )
            if lone := results["engines"]["one_at_a_time"].get(engine):
                text += f" A lone request takes {_lone(system['photos']['224 px'])} ms,"
                text += f" and an image by the engine alone {1000 / median(lone):.1f}."
            for cores, rates in results["fewer_cores_per_second"].items():
                if engine in rates:
                    times = _spread((a / b for a, b in zip(whole, rates[engine], strict=True)), ".2f")
                    text += f" It answers {times} times as many as with {cores} core(s) for everything."
            lines.append(text)
    return lines


def _ordered(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the systems, the fastest with small photos first."""
    return sorted(results["systems"].values(), key=lambda system: -median(system["photos"]["224 px"]["per_second"]))


def _spread(values: Iterable[float], form: str) -> str:
    values = list(values)
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _lone(figures: dict[str, list[float]]) -> str:
    """Return p50 of a lone request, which was not measured before November 29, 2026."""
    return _spread(figures["lone_ms"], ".1f") if "lone_ms" in figures else "–"


def _latency(rounds: list[dict[str, float] | None]) -> str:
    """Return medians over the rounds; a system that could not keep up in one of them has none."""
    kept = [each for each in rounds if each]
    if len(kept) < len(rounds):
        return "cannot keep up"
    return f"{median(each['p50_ms'] for each in kept):.0f} / {median(each['p99_ms'] for each in kept):.0f}"


def _table(rows: list[list[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def draw_chart(results: dict[str, Any], path: Path) -> None:
    """Draw requests per second as bars, a panel for each photo; whiskers are the least and most over the rounds."""
    from matplotlib.figure import Figure

    systems = _ordered(results)[::-1]
    own = {results["systems"][name]["label"] for name in OWN if name in results["systems"]}
    figure = Figure(figsize=(10, 0.9 + 0.42 * len(systems)), dpi=160, layout="constrained")
    for axes, photo in zip(figure.subplots(1, len(results["photos"]), sharey=True), results["photos"], strict=True):
        labels = [system["label"].removesuffix("*") for system in systems]
        rates = [system["photos"][photo]["per_second"] for system in systems]
        middle = [median(values) for values in rates]
        whiskers = [[m - min(values) for m, values in zip(middle, rates, strict=True)]]
        whiskers += [[max(values) - m for m, values in zip(middle, rates, strict=True)]]
        colors = ["#d9480f" if system["label"] in own else "#adb5bd" for system in systems]
        bars = axes.barh(labels, middle, xerr=whiskers, color=colors, ecolor="#495057")
        axes.bar_label(bars, [f"{value:.0f}" for value in middle], padding=5)
        axes.set_title(photo)
        axes.set_xlim(0, 1.25 * max(max(values) for values in rates))
        axes.spines[["top", "right"]].set_visible(False)
    machine = results["machine"]
    figure.supxlabel(
        f"requests/s at saturation, {machine['cores']} cores for everything, {name(results)}, {results['date']}",
        size=10,
    )
    figure.savefig(path)


if __name__ == "__main__":
    print("\n\n".join([medians(stored()), *map(tables, stored().values())]))
