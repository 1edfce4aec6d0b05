"""python -m gateway.release watch and report: what gateways count decides."""

from __future__ import annotations

import _thread
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import urllib3
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from contract.document import Contract, ImageSpec
from gateway.release import __main__ as command
from gateway.release import ledger, observation, watch
from gateway.release.evidence import Finding
from gateway.release.gateways import Address
from gateway.release.ledger import Ledger, Passing, State
from gateway.release.watch import Watch
from tests.gateway.release.conftest import Serve, Store

IDENTITY = "0123456789abcdef"
METRICS = {"disagreement": 0.1, "surer": 0.1, "less_sure": 0.1, "class_change": 0.05,
           "compared_photos": 300, "compared_version": 1}  # fmt: skip
CONTRACT = Contract("clothing", ("shirt", "dress"), ImageSpec(8, 8), metrics=METRICS, identity=IDENTITY)


class Counted:
    """The counters of a gateway, as it shows them."""

    def __init__(self) -> None:
        self.registry, export = CollectorRegistry(), ["version", "identity", "trial"]
        self.photos = Counter("gateway_comparisons", ".", export, registry=self.registry)
        self.signs = Counter("gateway_comparison_signs", ".", [*export, "sign"], registry=self.registry)
        self.classes = Counter("gateway_comparison_classes", ".", [*export, "class", "change"], registry=self.registry)
        self.requests = Counter("gateway_trial_requests", ".", [*export, "outcome"], registry=self.registry)
        self.stopped = Gauge("gateway_trial_stopped", ".", registry=self.registry)
        self.answers = Counter("gateway_answers", ".", ["path", "status"], registry=self.registry)
        Counter("gateway_other", ".", export, registry=self.registry).labels("2", IDENTITY, "2").inc(1000)

    def add(self, photos: int, *, trial: int = 2, answered: int = 0, missed: int = 0, **signs: int) -> None:
        export = "2", IDENTITY, str(trial)
        self.photos.labels(*export).inc(photos)
        self.requests.labels(*export, "answered").inc(answered)
        self.requests.labels(*export, "failed").inc(missed)
        for name, number in signs.items():
            self.signs.labels(*export, name).inc(number)
        if "disagrees" in signs:
            self.classes.labels(*export, "shirt", "gained").inc(signs["disagrees"])
            self.classes.labels(*export, "dress", "lost").inc(signs["disagrees"])


@dataclass
class Gateway:
    """A gateway that follows the document at once; what it does at each look is the test's.

    Attributes:
        home: The model's folder in the store.
        at_look: Called before each look at the counters.
        refuses: Why it does not try the version.
        model: What it serves.
    """

    home: Path
    at_look: Callable[[Gateway], object] = lambda _: None
    refuses: str = ""
    model: str = "clothing"
    counted: Counted = field(default_factory=Counted)
    url: str = ""

    def answer(self, path: str) -> object:
        release = json.loads((self.home / "release.json").read_text())
        if path == "/metrics":
            self.at_look(self)
            return generate_latest(self.counted.registry)
        if path == "/readyz":
            return {
                "model": {"name": self.model, "error": None},
                "release": release,
                "release_error": self.refuses or None,
            }
        trial = release["trial"] if not self.refuses else None
        contract = {name: value for name, value in CONTRACT.to_dict().items() if name != "golden"}
        described = {"version": trial["version"], "contract": contract} if trial else None
        return {"name": self.model, "version": 1, "trial": described}


@pytest.fixture
def gateways(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gateway]:
    """A function that starts a gateway; version 1 is stable."""
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    store.do("promote", "1")

    def start(at_look: Callable[[Gateway], object] = lambda _: None, refuses: str = "") -> Gateway:
        gateway = Gateway(store.home, at_look, refuses)

        gateway.url = f"http://127.0.0.1:{serve(gateway.answer)}"
        return gateway

    return start


def steadily(photos: int = 20, **counts: int) -> Callable[[Gateway], object]:
    return lambda gateway: gateway.counted.add(photos, **counts)


def trial_of(gateway: Gateway) -> tuple[str, ...]:
    return "--gateway", gateway.url, "--within", "60s"


def test_a_good_version_is_promoted(store: Store, gateways: Callable[..., Gateway]) -> None:
    """After as many photos as were asked for, over two gateways; the history has the reason."""
    first, second = gateways(steadily(disagrees=2, surer=1)), gateways(steadily(disagrees=2, slower=5))
    asked = "--watch", "--promote-after", "390", *trial_of(first), "--gateway", second.url
    assert "Version 2 was promoted: 400 photos compared.\n" in store.do("try", "2", "--shadow", *asked)
    assert (store.document["stable"], store.document["previous"]) == (2, 1)
    assert store.lines[-1]["why"] == "Promoted by watch after 400 photos compared"


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"disagrees": 16}, "it disagrees with version 1 on {} photos; at most 26% was expected from its export"),
        ({"disagrees": 16}, "it answers 'shirt' on {} photos where version 1 does not; at most 15% was expected"),
        ({"disagrees": 16}, "it does not answer 'dress' on {} photos where version 1 does; at most 15% was expected"),
        ({"failed": 2}, "it failed on {} photos that version 1 answered; at most 1% may be"),
        ({"slower": 19}, "it was far slower than version 1 on {} photos; at most 50% may be"),
        ({"surer": 12}, "it is much surer than version 1 on {} photos; at most 26% was expected"),
        ({"less_sure": 12}, "it is much less sure than version 1 on {} photos; at most 26% was expected"),
        ({"answered": 18, "missed": 2}, "version 1 had to answer {} requests; at most 1% may be"),
    ],
)
def test_a_bad_version_is_rolled_back(
    store: Store, gateways: Callable[..., Gateway], counts: dict[str, int], reason: str
) -> None:
    """With status 4, within 300 photos, and with its reason in the history."""
    gateway = gateways(steadily(**counts))
    store.do("try", "2", "--share", "10%")
    status, out, err = store.run("watch", "--promote-after", "2000", *trial_of(gateway))
    assert (status, err) == (4, "") and "Version 2 was rolled back: " in out
    assert (store.document["stable"], store.document["trial"]) == (1, None)
    found = re.search(
        re.escape(reason).replace(re.escape("{}"), r"(?:its )?\d+ of (?:its )?(\d+)"), store.lines[-1]["why"]
    )
    assert found and int(found[1]) <= 300, store.lines[-1]["why"]


def test_a_process_that_stopped_the_trial_ends_it(store: Store, gateways: Callable[..., Gateway]) -> None:
    """It has seen plain errors; a process that stopped an earlier trial does not matter."""
    looks: list[int] = []

    def stop_at_third(gateway: Gateway) -> None:
        looks.append(1)
        gateway.counted.stopped.set(len(looks) > 2)

    stopped, stops = gateways(steadily()), gateways(stop_at_third)
    stopped.counted.stopped.set(1)
    store.do("try", "2", "--share", "10%")
    status, out, _ = store.run("watch", *trial_of(stopped), "--gateway", stops.url)
    assert status == 4 and len(looks) > 2
    assert f"{stopped.url} has a process that stopped this trial, or an earlier one" in out
    assert f"a process of {stops.url} stopped the trial" in out and f"process of {stopped.url}" not in out


def test_a_trial_that_stopped_before_the_first_look(store: Store, gateways: Callable[..., Gateway]) -> None:
    """Its five failures say so."""
    gateway = gateways()
    gateway.counted.add(0, answered=40, missed=5)
    gateway.counted.stopped.set(1)
    store.do("try", "2", "--share", "10%")
    status, out, _ = store.run("watch", *trial_of(gateway))
    assert status == 4 and f"a process of {gateway.url} stopped the trial" in out


@pytest.mark.parametrize(("mode", "needed"), [(["--shadow"], 1000), (["--share", "10%"], 300)])
def test_too_little_traffic_leaves_the_trial_as_it_is(
    store: Store, gateways: Callable[..., Gateway], mode: list[str], needed: int
) -> None:
    """With status 5, and what is needed; in a share, requests without comparisons are not enough."""
    gateway = gateways(steadily(0, answered=1000))
    store.do("try", "2", *mode)
    before = store.document
    status, out, _ = store.run("watch", "--promote-after", "1000", "--gateway", gateway.url, "--within", "0.1s")
    assert status == 5 and "Version 2 cannot be judged yet: 0 photos compared" in out
    assert f"it needs {needed} photos compared" in out
    assert store.document == before


@pytest.mark.parametrize(("path", "lines"), [("predict", 0), ("show_model", 1)])
def test_a_gateway_without_requests_is_named_once(
    store: Store, gateways: Callable[..., Gateway], path: str, lines: int
) -> None:
    """Those of the watch itself do not count."""
    gateway = gateways(lambda gateway: gateway.counted.answers.labels(path, "200").inc())
    store.do("try", "2", "--shadow")
    out = store.run("watch", "--gateway", gateway.url, "--within", "2s")[1]
    assert out.count("No request has reached the gateway for") == lines


def test_a_watch_that_is_stopped_says_that_the_trial_goes_on(store: Store, gateways: Callable[..., Gateway]) -> None:
    """By Ctrl-C, with how to continue, and how to end it; nothing has changed."""

    def press_ctrl_c(_: Gateway) -> None:
        _thread.interrupt_main()

    store.do("try", "2", "--shadow")
    before = store.document
    status, _, err = store.run("watch", *trial_of(gateways(press_ctrl_c)))
    assert status == 130 and store.document == before
    assert err.startswith("Stopped. The trial of version 2 goes on, and nobody watches it. `watch` does; ")


def test_a_watch_whose_promotion_is_refused_says_that_the_trial_goes_on(
    store: Store, gateways: Callable[..., Gateway]
) -> None:
    """As the files are others than those that were tried; the version still gets its share."""
    store.do("try", "2", "--share", "50%")
    before = store.document
    (store.home / "2" / ".DS_Store").touch()
    status, _, err = store.run("watch", "--promote-after", "9", *trial_of(gateways(steadily(answered=20))))
    assert status == 1 and store.document == before
    assert err.startswith("The files of version 2 have changed since its trial began. Release it anew. The trial of")
    assert "goes on, and nobody watches it. `watch` does; " in err


def test_a_watch_that_is_stopped_while_the_store_is_away(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says the same: nobody knows that the trial has ended."""

    def take_away_and_press_ctrl_c(_: Gateway) -> None:
        monkeypatch.setattr(Ledger, "read", lambda _: (_ for _ in ()).throw(Passing("The store is away.")))
        _thread.interrupt_main()

    store.do("try", "2", "--shadow")
    status, _, err = store.run("watch", *trial_of(gateways(take_away_and_press_ctrl_c)))
    assert status == 130 and err.startswith("Stopped. The trial of version 2 goes on, and nobody watches it.")


@pytest.mark.parametrize("is_full", [False, True])
def test_an_output_that_is_gone_or_full_ends_no_watch(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """It may be the only one: as of `watch | head`, or on a full disk. A bad version is rolled back all the same."""
    looks: list[int] = []
    gateway = gateways(lambda gateway: (looks.append(1), gateway.counted.add(100, disagrees=100 * (len(looks) > 2))))
    store.do("try", "2", "--shadow")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone, Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full if is_full else gone)
        status, _, err = store.run("watch", *trial_of(gateway))
    assert (status, store.document["trial"]) == (4, None)
    assert err == ("Not all lines could be written: No space left on device.\n" if is_full else "")


@pytest.mark.parametrize(("photos", "is_reached", "status"), [(300, True, 0), (1, True, 5), (300, False, 5)])
def test_without_promotion_it_says_how_it_went(
    store: Store, gateways: Callable[..., Gateway], photos: int, is_reached: bool, status: int
) -> None:
    """Good so far, if every gateway was asked and enough photos were compared; nothing is changed."""
    looks: list[int] = []
    gateway = gateways(lambda gateway: (looks.append(1), gateway.counted.add(photos if len(looks) == 1 else 0)))
    store.do("try", "2", "--shadow")
    before = store.document
    others = [] if is_reached else ["--gateway", "http://127.0.0.1:9"]
    found, out, _ = store.run("watch", "--gateway", gateway.url, *others, "--within", "0.2s")
    assert found == status and store.document == before
    assert f"Version 2 {'cannot be judged yet' if status else 'is good so far'}: {photos} photo" in out
    assert ("it needs 300 photos compared" in out) == (photos < 300)


def test_a_gateway_that_does_not_try_it_keeps_it_from_promotion(store: Store, gateways: Callable[..., Gateway]) -> None:
    """It is named, with its reason, as is one that does not answer."""
    good, other = gateways(steadily()), gateways(refuses="version 2 was refused")
    store.do("try", "2", "--shadow")
    asked = "--gateway", good.url, "--gateway", other.url, "--gateway", "http://127.0.0.1:9", "--within", "0.3s"
    status, out, _ = store.run("watch", "--promote-after", "100", *asked)
    assert status == 5 and store.document["stable"] == 1
    assert f"{other.url} does not try version 2: version 2 was refused" in out
    assert "http://127.0.0.1:9 does not listen" in out


@pytest.mark.parametrize("promote_after", [(), ("--promote-after", "300")])
def test_a_class_that_is_not_counted_by_itself_keeps_it_from_promotion(
    store: Store, gateways: Callable[..., Gateway], promote_after: tuple[str, ...]
) -> None:
    """It may be the one that goes wrong; what to do is said."""

    def look(gateway: Gateway) -> None:
        gateway.counted.add(300)
        gateway.counted.classes.labels("2", IDENTITY, "2", "(others)", "lost").inc(300)

    gateway = gateways(look)
    store.do("try", "2", "--shadow")
    status, out, _ = store.run("watch", "--gateway", gateway.url, "--within", "0.2s", *promote_after)
    assert status == 5 and store.document["stable"] == 1
    assert "some classes are no longer counted one by one; restart the gateways, and watch again" in out


def test_a_trial_is_watched_though_a_gateway_is_late(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may find that it is worse."""
    monkeypatch.setattr(command, "FOLLOW_S", 0.1)
    bad, late = gateways(steadily(100, disagrees=100)), gateways(refuses="version 2 is not loaded")
    status, out, err = store.run("try", "2", "--shadow", "--watch", *trial_of(bad), "--gateway", late.url)
    assert status == 4 and f"{late.url} does not follow release 2" in err and "was rolled back" in out


def test_a_trial_that_nobody_watches_has_begun(store: Store, gateways: Callable[..., Gateway]) -> None:
    """Which the status says, and the message how to watch it."""
    asked = "--gateway", gateways().url, "--gateway", "http://no-such-name.invalid"
    status, _, err = store.run("try", "2", "--shadow", "--watch", *asked)
    assert status == 3 and store.document["trial"]["version"] == 2
    assert "The trial of version 2 goes on, and nobody watches it. `watch` does; " in err


def test_a_trial_whose_store_is_away_has_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status must not say that nothing has changed."""

    def look_away(*_: Any) -> int:
        monkeypatch.setattr(Ledger, "read", lambda _: (_ for _ in ()).throw(Passing("The store is away.")))
        return 0

    store.do("promote", "1")
    monkeypatch.setattr(command, "_finish", look_away)
    status, _, err = store.run("try", "2", "--shadow", "--watch", "--gateway", "http://127.0.0.1:9")
    assert status == 3 and err.startswith("The store is away. The trial of version 2 goes on, and nobody watches it.")


def test_a_trial_that_others_ended_before_it_was_watched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to roll it back, which would take back the stable version."""
    finish = command._finish

    def end(ledger: Ledger, *rest: Any) -> int:
        status = finish(ledger, *rest)
        ledger.promote()
        return status

    store.do("promote", "1")
    monkeypatch.setattr(command, "_finish", end)
    monkeypatch.setattr(command, "FOLLOW_S", 0.1)
    status, _, err = store.run("try", "2", "--shadow", "--watch", "--gateway", "http://127.0.0.1:9")
    assert (status, store.document["stable"]) == (1, 2)
    assert "Nothing is being tried" in err and "nobody watches" not in err


def test_a_trial_that_models_config_does_not_name_shows_in_the_status(
    store: Store, gateways: Callable[..., Gateway]
) -> None:
    """Also where the version is good so far."""
    (store.home / "models.config").write_text("}")
    asked = "--gateway", gateways(steadily(300)).url, "--within", "0.1s"
    status, out, _ = store.run("try", "2", "--shadow", "--watch", *asked)
    assert status == 3 and "Version 2 is good so far: " in out


def test_a_gateway_of_another_model_promotes_nothing(store: Store, gateways: Callable[..., Gateway]) -> None:
    """Though it tries a version of the same number, and counts its own requests."""
    other = gateways(steadily())
    other.model = "waste"
    store.do("try", "2", "--shadow")
    status, out, _ = store.run("watch", "--promote-after", "100", "--gateway", other.url, "--within", "0.3s")
    assert status == 5 and store.document["stable"] == 1
    assert f"{other.url} serves another model, 'waste'" in out


def test_a_gateway_that_restarts_counts_on(store: Store, gateways: Callable[..., Gateway]) -> None:
    """However often: what it counted before is not lost, and not counted twice."""

    def restart_at_times(gateway: Gateway) -> None:
        looks.append(1)
        if len(looks) % 12 == 3:
            gateway.counted = Counted()
        gateway.counted.add(100)

    looks: list[int] = []
    gateway = gateways(restart_at_times)
    store.do("try", "2", "--shadow")
    out = store.do("watch", "--promote-after", "4500", *trial_of(gateway))
    assert "4500 photos compared" in out and len(looks) == 45


def test_a_gateway_that_is_replaced_counts_on(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it counted stays, though its name has another address now, as that of Pods."""

    def find(urls: Sequence[str]) -> list[Address]:
        looks.append(1)
        return [Address(name, "127.0.0.1") for name in ([first] if len(looks) <= 2 else [second])]

    looks: list[int] = []
    first, second = gateways(steadily(100)).url, gateways(steadily(100)).url
    monkeypatch.setattr(observation, "find_addresses", find)
    store.do("try", "2", "--shadow")
    asked = "--promote-after", "300", "--gateway", first, "--within", "60s"
    assert "Version 2 was promoted: 300 photos" in store.do("watch", *asked)
    assert len(looks) == 4  # at the start, and at each look


def test_several_gateways_at_one_address_are_noticed(store: Store, gateways: Callable[..., Gateway]) -> None:
    """Their counters, in turn, are nothing that can be added."""
    behind = [Counted(), Counted()]
    behind[0].add(5)
    behind[1].add(10)

    def take_turns(gateway: Gateway) -> None:
        behind.reverse()
        gateway.counted = behind[0]

    gateway = gateways(take_turns)
    store.do("try", "2", "--shadow")
    status, _, err = store.run("watch", *trial_of(gateway))
    assert status == 1 and f"{gateway.url} fell and came back 3 times, as if several gateways answered there" in err
    assert "The trial of version 2 goes on, and nobody watches it." in err


@pytest.mark.parametrize("is_first_late", [False, True])
def test_a_gateway_of_two_families_counts_once(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch, is_first_late: bool
) -> None:
    """`localhost` may have an address of each, and the gateway behind them is one, though it is late at times."""
    gateway, get, late = gateways(steadily(100)), Address.get, cycle([is_first_late, not is_first_late])

    def get_in_time(self: Address, path: str) -> urllib3.BaseHTTPResponse:
        assert ":" not in self.ip
        if path == "/metrics" and next(late):
            raise urllib3.exceptions.HTTPError("too late")
        return get(Address(gateway.url, "127.0.0.1"), path)

    monkeypatch.setattr(Address, "get", get_in_time)
    monkeypatch.setattr(observation, "find_addresses", lambda urls: [Address(urls[0], ip) for ip in ("::1", "1.2.3.4")])
    store.do("try", "2", "--shadow")
    assert "promoted: 300 photos compared" in store.do("watch", "--promote-after", "300", *trial_of(gateway))


def test_a_store_that_is_away_for_a_moment_ends_no_watch(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch goes on, and says so once."""
    gateway, read = gateways(steadily(100, disagrees=61)), Ledger.read
    store.do("try", "2", "--shadow")
    fails = iter([False, True, True])

    def read_or_fail(self: Ledger) -> State:
        if next(fails, False):
            raise Passing("model-store/clothing: Stale file handle.")
        return read(self)

    monkeypatch.setattr(Ledger, "read", read_or_fail)
    status, out, _ = store.run("watch", *trial_of(gateway))
    assert status == 4 and out.count("Stale file handle. The watch goes on.") == 1


def test_a_store_that_is_read_only(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused at the start; later the watch names the alarm, and tries again until its time is over."""
    looks: list[int] = []

    def look_and_lock(gateway: Gateway) -> None:
        looks.append(1)
        gateway.counted.add(100, disagrees=100)
        is_writable = len(looks) == 5
        monkeypatch.setattr(ledger, "locked", locked if is_writable else read_only)

    @contextmanager
    def read_only(path: Path, *_: object) -> Iterator[None]:
        raise OSError(errno.EROFS, "Read-only file system", str(path))
        yield

    gateway, locked = gateways(look_and_lock), ledger.locked
    store.do("try", "2", "--shadow")
    status, out, _ = store.run("watch", *trial_of(gateway))
    assert status == 4 and len(looks) == 5
    (said,) = [line for line in out.splitlines() if line.startswith("Version 2 must be rolled back: ")]
    assert "it disagrees with version 1 on 100 of 100 photos" in said and said.endswith("may. The watch goes on.")
    store.do("try", "2", "--shadow")
    monkeypatch.setattr(ledger, "locked", read_only)
    assert "Read-only file system. Changes need a store that can be written" in store.refuse(
        "watch", *trial_of(gateway)
    )
    assert len(looks) == 5


def test_an_earlier_trial_of_the_version_does_not_count(store: Store, gateways: Callable[..., Gateway]) -> None:
    """Each trial has its own counts, also those from before a report or a watch."""
    gateway = gateways()
    store.do("try", "2", "--shadow")
    gateway.counted.add(100, failed=3)
    assert "it failed on 3 of 100 photos" in store.do("report", "--gateway", gateway.url)
    store.do("rollback")
    store.do("try", "2", "--shadow")
    gateway.counted.add(100, trial=4)
    assert "it failed on 0 of 100 photos" in store.do("report", "--gateway", gateway.url)
    gateway.at_look = steadily(100, trial=4)
    assert "Version 2 was promoted: 300 photos" in store.do("watch", "--promote-after", "300", *trial_of(gateway))


def test_somebody_else_may_end_the_trial(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a rollback, or a promotion, or by hand, which has no name. Without a document, the newest version answers."""

    def edit(book: Ledger) -> None:
        (book.home / "release.json").write_text('{"stable": 1, "serial": 9}')

    def remove(_: Ledger) -> None:
        store.remove_document()

    monkeypatch.setattr(ledger, "REMOVED_S", 0.1)
    gateway, user = gateways(), f"{store.lines[-1]['who']}."
    for tried, end, status, said, who in (
        ("2", edit, 4, "was rolled back", "hand."),
        ("2", Ledger.rollback, 4, "was rolled back", user),
        ("2", Ledger.promote, 0, "is good so far", user),
        ("3", remove, 4, "was rolled back", "hand."),
        ("4", remove, 0, "is good so far", "hand."),
    ):
        store.run("promote", "1")
        store.do("try", tried, "--shadow")
        gateway.at_look = lambda _, end=end: end(Ledger(store.home))
        found, out, _ = store.run("watch", *trial_of(gateway))
        assert found == status and f"Version {tried} {said}: the trial was ended meanwhile by {who}\n" in out


@pytest.mark.parametrize("instead", ["", "{"])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_document_that_is_missing_for_a_moment_ends_no_trial(
    store: Store, gateways: Callable[..., Gateway], is_known: bool, instead: str
) -> None:
    """Somebody may replace it in two steps, or have only half written it; the history may not know it."""
    looks: list[int] = []

    def look_and_remove(gateway: Gateway) -> None:
        looks.append(1)
        gateway.counted.add(150)
        if len(looks) == 1:
            store.remove_document_for_a_moment(instead)

    gateway = gateways(look_and_remove)
    store.do("try", "2", "--shadow")
    if not is_known:
        (store.home / "history.jsonl").unlink()
    assert "Version 2 was promoted" in store.do("watch", "--promote-after", "300", *trial_of(gateway))


def test_somebody_else_may_end_the_trial_as_the_watch_decides(
    store: Store, gateways: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statuses are the same: 4 for a version that was rolled back, 0 for one that was promoted."""
    gateway, look = gateways(steadily(100, disagrees=100)), Watch.look
    for end, status in ((Ledger.rollback, 4), (Ledger.promote, 0)):

        def look_and_end(self: Watch, end: Callable[[Ledger], object] = end) -> list[Finding]:
            findings = look(self)
            end(Ledger(store.home))
            return findings

        monkeypatch.setattr(Watch, "look", look_and_end)
        store.do("try", "2", "--shadow")
        found, out, _ = store.run("watch", *trial_of(gateway))
        assert found == status and "the trial was ended meanwhile by " in out


def test_a_report_shows_each_criterion(store: Store, gateways: Callable[..., Gateway]) -> None:
    """As it stands, with the probability of a false alarm; nothing is decided."""
    gateway = gateways(steadily(80, disagrees=61, slower=41))
    store.do("try", "2", "--shadow")
    before = store.document
    out = store.do("report", "--gateway", gateway.url)
    assert "Version 2 on trial: 80 photos compared." in out and store.document == before
    assert "  ABOVE          it disagrees with version 1 on 61 of 80 photos; at most 26% was expected" in out
    assert "  perhaps above  it was far slower than version 1 on 41 of 80 photos; at most 50% may be" in out
    assert "  within         it failed on 0 of 80 photos" in out
    assert "rolled back with a probability of 1% at most, however often one looks: 0.14% for each line" in out


def test_a_report_before_the_first_photo(store: Store, gateways: Callable[..., Gateway]) -> None:
    """It says that there is nothing to see yet."""
    gateway = gateways()
    store.do("try", "2", "--share", "10%")
    for answered, lines in ((0, 2), (5, 3)):
        gateway.counted.add(0, answered=answered)
        out = store.do("report", "--gateway", gateway.url)
        assert "No photo was compared yet." in out and "classes, with less" not in out
        assert len(out.splitlines()) == 1 + lines


def test_nothing_is_watched_without_a_trial(store: Store, gateways: Callable[..., Gateway]) -> None:
    """The message says how to begin one."""
    assert "Nothing is being tried. Begin with try VERSION." in store.refuse("watch", "--gateway", gateways().url)


@pytest.mark.parametrize(
    "arguments",
    ["try 2 --shadow --watch", "try 2 --shadow --promote-after 5", "try 2 --shadow --within 1h", "watch", "report"],
)
def test_a_watch_needs_gateways(store: Store, arguments: str) -> None:
    """With status 2, before anything is changed."""
    with pytest.raises(SystemExit, match="2"):
        store.run(*arguments.split())
    assert not store.home.joinpath("release.json").exists()
