"""Say which version of a model answers, try another beside it, and go back. It needs no TensorFlow and no gateway."""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract.arguments import Arguments
from contract.client import gateway_url
from contract.release import Mode, Release, ReleaseError, Trial
from contract.settings import number
from gateway.release.gateways import find_addresses, wait_until_followed
from gateway.release.history import Entry
from gateway.release.ledger import Change, Ledger, Refused, State, open_ledger
from gateway.release.output import close, say, warn

DONE, REFUSED, USAGE, NOT_FOLLOWED, ROLLED_BACK, NOT_ENOUGH, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
FOLLOW_S = 30.0  # a version that nobody tried must load first
WITHIN_S = 3600.0  # `_WITHIN` says so

_EXAMPLES = """
examples, for a model called clothing:
  python -m gateway.release clothing status                which version answers, and which is tried
  python -m gateway.release clothing promote 3             version 3 answers everything from now on
  python -m gateway.release clothing try 4 --shadow        version 4 is asked too, but 3 answers
  python -m gateway.release clothing try 4 --share 10%     version 4 answers a tenth of the users
  python -m gateway.release clothing try 4 --share 50%     half of them; nobody moves back
  python -m gateway.release clothing promote               version 4, which is tried, answers everything
  python -m gateway.release clothing watch --gateway http://localhost:9696 --promote-after 1000
                                                           go back if it is worse, else promote it after 1,000 requests
  python -m gateway.release clothing rollback              end the trial; without one, back to the version before
  python -m gateway.release clothing history               who changed what, when and why
  python -m gateway.release clothing at 2026-05-03T14:05   what answered then

if answers are bad and you must act now:
  1. status     shows what answers, and what is tried
  2. rollback   ends the trial; if nothing is tried, the version before answers again, which is still loaded
  3. status --gateway http://HOST:9696   shows whether that gateway follows
  If rollback is refused, or the version before is bad too, promote the number of a good one.
  No command removes a version.
"""
_WATCH = """
watch the trial, and roll it back on evidence that it is worse: it fails, it is slower, it disagrees too often, or its
confidence or a class has changed. A version within its limits is rolled back with a probability of 0.01 at most. While
the stable version fails too, the limits of failures are estimates
"""
_VERSION = number(int, 0, what="the number of a version")
_PROMOTE_AFTER = "promote it after N answers of it, in shadow after N compared photos, if there is no such evidence"
_WITHIN = "end after this time, such as 30m or 2h; the trial goes on (default: 1h)"
_STATUSES = """
exit status:
  0   done, or nothing had to change
  1   refused, and nothing has changed but what an earlier command left undone; the message says both.
      Of `history` and `at`: the history was edited
  2   the command line is wrong
  3   the change is made, but a gateway of --gateway, or models.config, does not follow; the message says which
  4   of `watch` and `try --watch`: the version was rolled back; the message says why
  5   of these: too little traffic to decide, or a gateway took no part; the trial goes on
  130 stopped by Ctrl-C; what was written stays
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.watch and not options.gateway:
        parser.error("--watch needs --gateway URL, because gateways count what it watches")
    for name, value in (("--promote-after", options.promote_after), ("--within", options.within)):
        if value is not None and not options.watch:
            parser.error(f"{name} needs --watch")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    run: Callable[[Ledger, argparse.Namespace], int] = options.run
    try:
        status = run(open_ledger(options.store, options.model), options)
    except (Refused, ReleaseError) as exc:
        warn(str(exc))
        status = REFUSED
    except KeyboardInterrupt:
        warn("Stopped. What was written stays; `status` shows it.")
        status = INTERRUPTED
    if loss := close():
        warn(f"Not all lines could be written: {loss}.")
        if run in (_status, _report, _history, _at):  # the others did more than that
            return status or REFUSED
    return status


def _status(ledger: Ledger, options: argparse.Namespace) -> int:
    state = ledger.read()
    warn(*state.notes)
    release, last = state.release, state.history.last
    stable = release.stable if release else max(state.on_disk, default=-1)
    newer = [number for number in state.on_disk if release and number > stable and number not in release.versions]
    trial, previous = (release.trial, release.previous) if release else (None, None)
    rows = {
        "answers": _version(stable, state) if release else "the newest version that gateways accept; no release yet",
        "on trial": _trial(trial) + _missing(trial.version, state) if trial else "",
        "stays loaded": _version(previous, state) if previous is not None else "",
        "on disk": ", ".join(map(str, sorted(state.on_disk))) or "nothing",
        "waiting": f"{', '.join(map(str, sorted(newer)))}: newer than what answers; try or promote it" if newer else "",
        "last change": _when_and_why(last) if last else "",
    }
    say(f"{ledger.home.name}: release {release.serial}" if release else ledger.home.name)
    for name, text in rows.items():
        if text:
            say(f"  {name:<12} {text}")
    if options.gateway and not release:
        warn("There is no release.json that a gateway could follow, so none was asked.")
    return _follow(ledger, options.gateway, release.serial) if release else DONE


def _try(ledger: Ledger, options: argparse.Namespace) -> int:
    mode: Mode = "shadow" if options.shadow else "share"
    change = ledger.try_version(options.version, mode, options.share or 1.0, reason=options.reason)
    status = _finish(ledger, change, options.gateway, "End it with `promote` or `rollback`.")
    return _watch(ledger, options, change) if options.watch else status


def _promote(ledger: Ledger, options: argparse.Namespace) -> int:
    change = ledger.promote(options.version, reason=options.reason)
    hint = "Newer versions wait now until you try or promote them."
    if (previous := change.after.previous) is not None:
        hint = f"Version {previous} stays loaded, and `rollback` goes back to it."
    return _finish(ledger, change, options.gateway, hint)


def _rollback(ledger: Ledger, options: argparse.Namespace) -> int:
    change = ledger.rollback(options.reason)
    trial = change.before.trial if change.before else None
    hint = (
        f"The trial of version {trial.version} has ended." if trial else f"Before, version {change.after.previous} did."
    )
    return _finish(ledger, change, options.gateway, hint)


def _watch(ledger: Ledger, options: argparse.Namespace, begun: Change | None = None) -> int:
    """Watch a trial, which this command has begun or an earlier one."""
    from gateway.release.watch import Watch  # with NumPy, 0.3 of 0.5 s for which a rollback would wait too

    try:
        watch = Watch(ledger, options.gateway)
    except Refused as exc:
        if not begun or _is_over(ledger, begun.after.trial):
            raise
        _warn_unwatched(str(exc), options.version)
        return NOT_FOLLOWED
    try:
        outcome = watch.run(options.promote_after, WITHIN_S if options.within is None else options.within)
    except (KeyboardInterrupt, Refused) as exc:
        if _is_over(ledger, watch.trial):
            raise
        _warn_unwatched(str(exc) or "Stopped.", watch.trial.version)
        return REFUSED if isinstance(exc, Refused) else INTERRUPTED
    status = {True: DONE, False: ROLLED_BACK, None: NOT_ENOUGH}[outcome.is_good]
    version = {DONE: "is good so far", ROLLED_BACK: "was rolled back", NOT_ENOUGH: "cannot be judged yet"}[status]
    if outcome.change and outcome.is_good:
        version = "was promoted"
    say(f"Version {watch.trial.version} {version}: {'; '.join(outcome.reasons)}.")
    if not outcome.change:
        return status or (NOT_FOLLOWED if begun and begun.lag else DONE)
    followed = _finish(ledger, outcome.change, options.gateway, "`history` has the reasons.")
    return followed if outcome.is_good else status


def _warn_unwatched(why: str, version: int) -> None:
    goes_on = f"The trial of version {version} goes on, and nobody watches it."
    warn(f"{why} {goes_on} `watch` does; `rollback` or `promote` ends it.")


def _is_over(ledger: Ledger, trial: Trial | None) -> bool:
    """Tell whether others have ended a trial; it goes on while the store is away."""
    try:
        release = ledger.read().release
    except Refused:
        return False
    now = release.trial if release else None
    return not (now and trial and now.serial == trial.serial)


def _report(ledger: Ledger, options: argparse.Namespace) -> int:
    from gateway.release.watch import Watch, table

    watch = Watch(ledger, options.gateway)
    findings = watch.look()
    warn(*(f"{each}." for each in watch.observed.problems))
    say(f"Version {watch.trial.version} on trial: {watch.progress}.")
    if findings:
        say(table(findings, watch.release.stable))
    return DONE


def _finish(ledger: Ledger, change: Change, gateways: Sequence[str], hint: str) -> int:
    """Say what a change did, and wait for the gateways."""
    warn(*change.notes, *filter(None, [change.lag]))
    if change.before == change.after and not change.notes:
        say(f"Nothing to change: release {change.after.serial} says so already.")
    say(f"Release {change.after.serial}: {_describe(change.after)}. {hint}")
    if not gateways:
        say("Gateways follow within a second once the version is loaded; --gateway URL waits for them.")
    followed = _follow(ledger, gateways, change.after.serial)
    return NOT_FOLLOWED if change.lag else followed


def _follow(ledger: Ledger, gateways: Sequence[str], serial: int) -> int:
    """Wait for gateways, and name those that do not follow."""
    try:
        addresses = find_addresses(gateways)
    except Refused as exc:
        warn(str(exc))
        return NOT_FOLLOWED
    late = wait_until_followed(addresses, ledger.home.name, serial, FOLLOW_S, warn)
    warn(*(f"{each} does not follow release {serial}: it {each.lag}." for each in late))
    if addresses and not late:
        say(f"Release {serial} is followed by {', '.join(map(str, addresses))}.")
    return NOT_FOLLOWED if late else DONE


def _history(ledger: Ledger, options: argparse.Namespace) -> int:
    state = ledger.read()
    for entry in state.history.entries:
        say(f"release {entry.serial}  {_when_and_why(entry)}: {_describe(entry.document)}")
    warn(*state.notes, *state.history.clock_notes)
    if state.history.problems:
        return REFUSED
    say(f"{len(state.history.entries)} changes; each line continues the one before it.")
    return DONE


def _at(ledger: Ledger, options: argparse.Namespace) -> int:
    text = " ".join(options.time)
    try:
        time = datetime.fromisoformat(text).astimezone()  # without a zone, it is this machine's
    except (ValueError, OverflowError, OSError) as exc:
        raise Refused(f"Expected a time such as 2026-05-03T14:05 or 2026-05-03T12:05Z. Received: {text!r}") from exc
    if time > datetime.now(UTC):
        raise Refused(f"Expected a time that has passed. Received: {time.isoformat(' ', 'seconds')}")
    state = ledger.read()
    warn(*state.notes, *state.history.clock_notes)
    entry = state.history.at(time, is_owed=state.is_owed)
    if state.by_hand and state.by_hand.time <= time:
        entry = state.by_hand
    document = entry.document if entry else None
    utc = f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    say(f"{time.isoformat(' ', 'seconds') + f' ({utc})' if time.utcoffset() else utc}: {_describe(document)}.")
    if entry:
        say(f"Since release {entry.serial}, {_when_and_why(entry)}.")
    return REFUSED if state.history.problems else DONE


def _describe(release: Release | None) -> str:
    """Return what answers and what is tried."""
    if not release:
        return "the newest accepted version answers"
    return f"version {release.stable} answers" + (f", and {_trial(release.trial)}" if release.trial else "")


def _trial(trial: Trial) -> str:
    requests = "all requests" if trial.share == 1 else f"{trial.share * 100:g} % of the requests"
    part = "" if trial.share == 1 else f", with {requests}"  # the shadow asks about a few of them
    return f"version {trial.version} {f'answers {requests}' if trial.mode == 'share' else f'is tried in shadow{part}'}"


def _when_and_why(entry: Entry) -> str:
    """Return what a line of the history says of a change, without what could steer a terminal."""
    by, why = f" by {entry.who}" if entry.who else "", f" ({entry.why})" if entry.why else ""
    text = f"{entry.time:%Y-%m-%d %H:%M:%S} UTC, {entry.what}{by}{why}"
    return "".join(each if each.isprintable() else "?" for each in text)


def _version(number: int, state: State) -> str:
    return f"version {number}{_missing(number, state)}"


def _missing(number: int, state: State) -> str:
    return "" if number in state.on_disk else ", which is NOT on disk"


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Arguments(
        prog="python -m gateway.release", description=__doc__, epilog=_EXAMPLES + _STATUSES, formatter_class=layout
    )
    parser.add_argument("model", metavar="NAME", help="the model: a folder of the store")
    store: dict[str, Any] = {"type": Path, "help": "folder of the models (default: model-store)"}
    parser.add_argument("--store", default=Path("model-store"), **store)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[Ledger, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, epilog=_STATUSES, formatter_class=layout)
        command.set_defaults(run=run, watch=run is _watch, promote_after=None, within=None)
        command.add_argument("--store", default=argparse.SUPPRESS, **store)
        return command

    _add_gateway(add("status", _status, "show what answers, what is tried, and what is on disk"))
    trial = add("try", _try, "try a version beside the stable one, or go on with a larger share")
    trial.add_argument("version", type=_VERSION, metavar="VERSION", help="its number")
    how = trial.add_mutually_exclusive_group(required=True)
    how.add_argument("--shadow", action="store_true", help="ask it too, off the path; the stable version answers")
    how.add_argument("--share", type=_share, metavar="PART", help="let it answer a part, such as 10%% or 0.1")
    promote = add("promote", _promote, "make a version the one that answers; what answered stays loaded")
    promote.add_argument("version", type=_VERSION, nargs="?", metavar="VERSION", help="default: the one that is tried")
    rollback = add("rollback", _rollback, "end the trial; if nothing is tried, let the version before answer again")
    trial.add_argument("--watch", action="store_true", help="then watch it, see `watch --help`; needs --gateway")
    watch = add("watch", _watch, _WATCH)
    for command in (trial, watch):
        command.add_argument("--promote-after", type=number(int, 1), metavar="N", help=_PROMOTE_AFTER)
        command.add_argument("--within", type=_duration, metavar="TIME", help=_WITHIN)
    for command in (watch, add("report", _report, "show once what a watch looks at, and decide nothing")):
        _add_gateway(command, required=True)
    for command in (trial, promote, rollback):
        _add_gateway(command)
        command.add_argument("--reason", default="", metavar="TEXT", help="why; it goes into the history")
    add("history", _history, "show every change: who, when, what and why; check that no line was edited")
    at = add("at", _at, "show what answered at a time")
    at.add_argument("time", nargs="+", metavar="TIME", help="such as 2026-05-03T14:05 (of this machine) or …T12:05Z")
    return parser


def _add_gateway(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    text = "wait until this gateway follows, at each address of its name; repeatable. GATEWAY_KEY is its API key"
    if required:
        text = "the gateway to ask, at each address of its name; repeatable. GATEWAY_KEY is its API key"
    options: dict[str, Any] = {"type": gateway_url, "action": "append", "default": [], "metavar": "URL", "help": text}
    parser.add_argument("--gateway", required=required, **options)


def _duration(text: str) -> float:
    """Read a time such as 90s, 30m or 2h in seconds."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"Expected a time such as 90s, 30m or 2h. Received: {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"Expected a part of the requests, such as 10% or 0.1. Received: {text!r}")
    return share


if __name__ == "__main__":
    sys.exit(main())
