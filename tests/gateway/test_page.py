"""gateway/page.py: the page at `/`, driven in a real headless Chromium against a gateway of the documented shape."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, Response, jsonify, request
from flask.testing import FlaskClient

from gateway import errors
from gateway.page import page as blueprint
from tests.programs.photos import encode, photo
from tests.programs.stack import wait_until
from tests.programs.web import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.processes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
NO_FINDINGS = "Found 0 accessibility violations:\n"
LOCAL = re.compile(r"http://127\.0\.0\.1:|blob:|about:")
DESK = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light", "reduced_motion": "reduce"}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
PNG = encode(photo(160, 120), "PNG")
CAT = "https://example.com/photos/cat.jpg"
ANSWER: dict[str, Any] = {
    "model": {"name": "imagenet", "version": 3},
    "predictions": [
        {"class": "Egyptian_cat", "index": 285, "probability": 0.6238},
        {"class": "crane", "index": 134, "probability": 0.2305},
        {"class": "<b>tiger_cat</b>", "index": 282, "probability": 0.1021},
        {"class": "crane", "index": 517, "probability": 0.0043},
        {"class": "paper_towel", "index": 700, "probability": 0.0000012},
    ],
    "image": {"format": "JPEG", "width": 4000, "height": 3000, "bytes": 2512000},
    "timing_ms": {"fetch": 84.6, "decode": 34.0, "predict": 14.9, "total": 133.8},
}


class Gateway:
    """A gateway of the documented shape: answers by the URL's path, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes, str]] = []  # query, media type, body, authorization
        self.key = ""
        self.go = threading.Event()  # what slow requests wait for
        self.problems: list[errors.GatewayError] = []  # what the next requests get
        self.trial: dict[str, Any] | None = None
        app = Flask(__name__)
        app.register_blueprint(blueprint)
        app.json.sort_keys = False  # type: ignore[attr-defined]

        @app.get("/model")
        def show_model() -> Response | tuple[Response, int]:
            if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
                return jsonify(errors.Unauthorized("Expected a key.").problem()), 401
            contract = {"classes": ["a"] * 1000}
            return jsonify({"name": "imagenet", "version": 3, "contract": contract, "trial": self.trial})

        @app.post("/predict")
        def predict() -> Response | tuple[Response, int, dict[str, str]]:
            body, authorization = request.get_data(), request.headers.get("Authorization", "")
            self.requests.append((request.query_string.decode(), request.mimetype, body, authorization))
            if b"slow" in body:
                self.go.wait(5)
            if b"proxy" in body:
                return Response("<html>Bad gateway</html>", 502)
            problem = self.problems.pop(0).problem() if self.problems else None
            if self.key and authorization != f"Bearer {self.key}":
                problem = {"title": "Unauthorized", "status": 401, "code": "unauthorized", "detail": "Expected a key."}
            if problem:
                return jsonify(problem), problem["status"], {"Content-Type": "application/problem+json"}
            is_raw = request.mimetype.startswith("image/")
            unknown = {"unknown": True} if b"unlike" in body else {}
            return jsonify(
                {**ANSWER, **unknown, "timing_ms": {**ANSWER["timing_ms"], **({"fetch": 0} if is_raw else {})}}
            )

        self.app = app
        self._server = ExitStack()
        self.address = self._server.enter_context(serving(app))

    def close(self) -> None:
        self.go.set()
        self._server.close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


class Tabs:
    """Open tabs, one for each way in which a browser presents itself; a new one costs half a second."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._tabs: dict[str, tuple[Page, list[str]]] = {}

    def open(self, options: dict[str, Any]) -> tuple[Page, list[str]]:
        """Return the tab, and what its console says and what it asks of other hosts from now on."""
        if (key := repr(sorted(options.items()))) not in self._tabs:
            page, said = self._browser.new_context(**options).new_page(), list[str]()
            page.set_default_timeout(5000)
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda asked: LOCAL.match(asked.url) or said.append(asked.url))
            self._tabs[key] = page, said
        page, said = self._tabs[key]
        page.unroute_all()  # those of a test that failed
        said.clear()
        return page, said


@pytest.fixture(scope="module")
def tabs() -> Iterator[Tabs]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)  # headless, in a new profile
        yield Tabs(browser)
        browser.close()


@pytest.fixture
def options() -> dict[str, Any]:
    """Return how the browser differs from the default; a test parametrizes it."""
    return {}


@pytest.fixture
def page(tabs: Tabs, gateway: Gateway, options: dict[str, Any]) -> Iterator[Page]:
    """Yield the opened page; at the end its console must be clean, but for the network's notes of failures."""
    page, said = tabs.open({**DESK, **options})
    page.goto(gateway.address)
    page.wait_for_selector("#model:not([hidden])")
    yield page
    page.goto("about:blank")
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


def classify_url(page: Page, url: str) -> None:
    page.fill("#url", url)
    page.click("#link button")


def wait_for_result(page: Page) -> list[str]:
    """Return the lines of the result."""
    page.wait_for_selector("#result:not([hidden])")
    return page.locator("#predictions li").all_text_contents()


def findings(page: Page) -> str:
    """Return axe-core's report, of any impact."""
    from axe_playwright_python.sync_playwright import Axe

    return Axe().run(page).generate_report()


def parse_in_shell(command: str) -> list[str]:
    """Return the arguments that a shell gives to curl."""
    script = "curl() { printf '%s\\0' \"$@\"; }; " + command
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, env={"API_KEY": "from-environment"})
    return done.stdout.decode().split("\0")[:-1]


# ---- where it is


@pytest.fixture(params=["/my/app"])
def address(
    request: pytest.FixtureRequest, gateway_with: Callable[..., FlaskClient], gateway: Gateway
) -> Iterator[str]:
    """Serve a gateway with a key under a prefix that it knows or that is stripped; it answers the other's pages."""
    digests = ",".join(hashlib.sha256(key.encode()).hexdigest() for key in ("key", "clé €"))
    app = gateway_with(path_prefix=request.param, allowed_origins=gateway.address, api_keys=digests).application

    def proxy(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"] if request.param else environ["PATH_INFO"].removeprefix("/my/app")
        return app({**environ, "PATH_INFO": path}, start_response)

    with serving(proxy) as address:
        yield f"{address}/my/app"


def test_the_page_works_under_a_prefix(tabs: Tabs, address: str) -> None:
    """Its files, the model and the answer come from under it, with or without a slash; a key may be any text."""
    page, said = tabs.open(DESK)
    page.goto(address)
    assert page.url == f"{address}/"
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": PNG})
    page.wait_for_selector("#access:not([hidden])")
    page.fill("#key", "clé €")
    page.click("#access button")
    assert len(wait_for_result(page)) == 3
    assert f"curl -s '{address}/predict?top_k=5'" in page.locator("#curl").inner_text()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


@pytest.mark.parametrize("address", ["/my/app", ""], indirect=True, ids=["prefix", "stripped"])
def test_the_api_is_shown_and_can_be_tried(tabs: Tabs, address: str) -> None:
    """On a phone, without another host, an inline script or a complaint of the browser, and under a path."""
    page, said = tabs.open(PHONE)
    page.goto(f"{address}/docs/")
    assert page.url == f"{address}/docs"
    page.click("button.authorize")
    page.fill("#auth-bearer-value", "key")
    page.locator("button.authorize[type=submit]").first.click()
    page.click("button.btn-done")
    page.click("#operations-default-showModel .opblock-summary-control")
    page.click("button.try-out__btn")
    page.click("button.execute")
    assert page.locator(".live-responses-table .response .response-col_status").first.inner_text().startswith("200")
    assert page.locator(".request-url pre").inner_text() == f"{address}/model"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert said == []


@pytest.mark.parametrize(("host", "answer"), [("127.0.0.1", "200 401"), ("localhost", "TypeError TypeError")])
def test_a_page_of_an_allowed_origin_may_ask(
    tabs: Tabs, gateway: Gateway, address: str, host: str, answer: str
) -> None:
    """With a key, after the browser's own question, it reads answers and refusals; another origin reads nothing."""
    page, _ = tabs.open(DESK)
    page.goto(f"{gateway.address.replace('127.0.0.1', host)}/model")
    script = """async ([url, bytes]) => {
      const body = new Uint8Array(bytes), ask = async (key) => (await fetch(url, {method: "POST", body,
        headers: {"Content-Type": "image/png", "Authorization": `Bearer ${key}`}})).status;
      const shown = (key) => ask(key).catch((error) => error.name);
      return `${await shown("key")} ${await shown("wrong")}`;
    }"""
    assert page.evaluate(script, [f"{address}/predict", list(PNG)]) == answer


# ---- what is sent


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/page.css", "/page/icon.svg", "/page/none"])
def test_every_answer_has_a_strict_policy(gateway: Gateway, path: str) -> None:
    """Nothing from elsewhere, nothing inline, no frame, no referrer, no guessed media type."""
    with gateway.app.test_client().get(path) as answer:
        headers = answer.headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;")
    assert "form-action 'none'; frame-ancestors 'none'; base-uri 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_a_browser_keeps_the_files_and_asks_whether_they_changed(gateway: Gateway) -> None:
    """An unchanged file is a 304; none is used without asking, so that a release's files come together."""
    client = gateway.app.test_client()
    for path in ("/", "/page/page.js", "/page/page.css"):
        with client.get(path) as first:
            assert first.headers["Cache-Control"] == "no-cache"
        with client.get(path, headers={"If-None-Match": first.headers["ETag"]}) as second:
            assert second.status_code == 304


def test_every_failure_has_a_title_on_the_page() -> None:
    """Each code in errors.py has a title in page.js."""
    script = (Path(blueprint.static_folder or "") / "page.js").read_text()
    titles = set(re.findall(r"^  (\w+): \"", script.partition("const TITLES = {")[2].partition("};")[0], re.MULTILINE))
    codes = {each.code for each in vars(errors).values() if hasattr(each, "code")}
    assert len(codes) > 10 and codes - titles == set()


# ---- what a person sees and does


def test_a_url_is_answered_at_a_glance(page: Page, gateway: Gateway) -> None:
    """Names, two of one by their index, percentages, the model, the image, the times; and markup stays text."""
    assert page.text_content("#model") == "imagenet, version 3, 1,000 classes"
    classify_url(page, CAT)
    assert wait_for_result(page) == [
        "Egyptian cat 62.4%",
        "crane (134) 23.1%",
        "<b>tiger cat</b> 10.2%",
        "crane (517) 0.4%",
        "paper towel < 0.1%",
    ]
    assert gateway.requests == [("", "application/json", b'{"url":"https://example.com/photos/cat.jpg","top_k":5}', "")]
    assert [text.replace("\u00a0", " ") for text in page.locator("#facts dd").all_text_contents()] == [
        "JPEG, 4000 × 3000 pixels, 2.5 MB",
        "imagenet, version 3",
        "fetch 84.6 ms, decode 34 ms, predict 14.9 ms, total 133.8 ms",
    ]
    full, bar = page.locator(".bar").first.bounding_box(), page.locator(".bar i").first.bounding_box()
    assert full and bar and bar["width"] / full["width"] == pytest.approx(0.6238, abs=0.01)
    assert page.text_content("#status") == "Egyptian cat, 62.4%. 5 predictions are listed."


def test_a_trial_is_shown_until_it_ends(page: Page, gateway: Gateway) -> None:
    """The tried version and its share, or that it only shadows; an answer after its end takes the line away."""
    assert not page.is_visible("#trial")
    trial = {"name": "imagenet", "version": 4, "identity": "0b5c7ca77403d7b2", "mode": "share", "share": 0.1}
    for change, how in (({}, "share 10%"), ({"mode": "shadow", "share": 1.0}, "in shadow")):
        gateway.trial = trial | change
        page.reload()
        page.wait_for_selector(f"text=version 4 (0b5c7ca77403d7b2) is being tried ({how})")
    assert findings(page) == NO_FINDINGS
    gateway.trial = None
    classify_url(page, CAT)
    wait_for_result(page)
    page.wait_for_selector("#trial", state="hidden")


def test_an_image_unlike_all_is_said_to_be_none_of_the_classes(page: Page) -> None:
    """Above the predictions and to a screen reader; the next image's answer takes it away."""
    classify_url(page, "https://example.com/unlike.jpg")
    wait_for_result(page)
    assert "None of these, most likely" in page.locator("#unknown").inner_text()
    assert (page.text_content("#status") or "").startswith("None of these, most likely")
    assert findings(page) == NO_FINDINGS
    classify_url(page, CAT)
    page.wait_for_selector("#status >> text=/^Egyptian cat/", state="attached")
    assert not page.is_visible("#unknown")


@pytest.mark.parametrize("left_out", ["https://", "https:"])
def test_a_url_has_a_link_and_no_thumbnail(page: Page, left_out: str) -> None:
    """The visitor's browser does not ask the image's host unless the visitor does; it may be one of 2022."""
    page.evaluate("delete URL.canParse")
    classify_url(page, CAT.removeprefix(left_out))  # as people write it, or a page's source
    wait_for_result(page)
    assert page.text_content("#name") == "cat.jpg from example.com"
    assert page.get_attribute("#original", "href") == CAT
    assert page.get_attribute("#original", "rel") == "noopener noreferrer"
    assert not page.is_visible("#thumbnail")


def test_a_chosen_file_is_sent_as_it_is(page: Page, gateway: Gateway, tmp_path: Path) -> None:
    """Its bytes, its media type, its thumbnail; the curl command survives a name that a shell would read."""
    path = tmp_path / 'it\'s "my" $(cat) `photo`.png'
    path.write_bytes(PNG)
    page.set_input_files("#file", path)
    wait_for_result(page)
    assert gateway.requests == [("top_k=5", "image/png", PNG, "")]
    page.wait_for_function("document.querySelector('#thumbnail').naturalWidth === 160")
    assert "fetch" not in (page.text_content("#facts") or "")
    assert parse_in_shell(page.text_content("#curl") or "") == [
        "-s",
        f"{gateway.address}/predict?top_k=5",
        "-H",
        "Content-Type: image/png",
        "--data-binary",
        f"@{path.name}",
    ]


def test_a_file_that_is_gone_is_named_as_that(page: Page, gateway: Gateway, tmp_path: Path) -> None:
    """And not taken for a classifier that is gone."""
    path = tmp_path / "gone.png"
    path.write_bytes(PNG)
    gateway.problems = [errors.Overloaded("The gateway is busy.")]
    page.set_input_files("#file", path)
    page.wait_for_selector("text=The classifier is busy")
    path.unlink()
    page.click("text=Try again")
    page.wait_for_selector("text=That file cannot be read")
    assert (page.text_content("#problem-detail") or "").startswith("gone.png is a folder, or was moved")


@pytest.mark.parametrize(("event", "transfer"), [("drop", "dataTransfer"), ("paste", "clipboardData")])
def test_a_file_is_dropped_or_pasted(page: Page, gateway: Gateway, event: str, transfer: str) -> None:
    """Anywhere on the page."""
    page.evaluate(
        """([event, transfer, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
          const kind = event === "drop" ? DragEvent : ClipboardEvent;
          document.body.dispatchEvent(new kind(event, { [transfer]: data, bubbles: true, cancelable: true }));
        }""",
        [event, transfer, list(PNG)],
    )
    wait_for_result(page)
    assert gateway.requests == [("top_k=5", "image/png", PNG, "")]


def test_a_dropped_link_is_a_url(page: Page, gateway: Gateway) -> None:
    """An image that is dragged from another page."""
    page.evaluate(
        """(url) => {
          const data = new DataTransfer();
          data.setData("text/uri-list", "# from there\\r\\n\\r\\n" + url + "\\r\\n");
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        CAT,
    )
    wait_for_result(page)
    assert gateway.requests[0][2] == b'{"url":"https://example.com/photos/cat.jpg","top_k":5}'
    assert page.input_value("#url") == CAT


def test_text_is_dragged_into_the_field(page: Page) -> None:
    """The browser's own way; nothing is asked yet."""
    page.evaluate("document.querySelector('h1').textContent = 'example.com/cat.jpg'")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
    page.drag_and_drop("h1", "#url", source_position={"x": 20, "y": 20})
    assert page.input_value("#url") == "example.com/cat.jpg"
    assert page.locator("#drop.over").count() == 0


def test_a_link_dragged_into_the_field_is_asked(page: Page, gateway: Gateway) -> None:
    """In place of what is there, to which the browser would glue it."""
    page.evaluate("(url) => (document.querySelector('h1').innerHTML = `<a href='${url}'>the cat</a>`)", CAT)
    page.fill("#url", "https://example.com/old.jpg")
    page.drag_and_drop("h1 a", "#url")
    wait_for_result(page)
    assert page.input_value("#url") == CAT and CAT.encode() in gateway.requests[0][2]


def test_a_file_chosen_before_the_script_came_is_sent(page: Page, gateway: Gateway, tmp_path: Path) -> None:
    """On a slow line, the page's buttons work first."""
    (tmp_path / "a.png").write_bytes(PNG)
    held: list[Any] = []
    page.route("**/page.js", lambda route: held.append(route), times=1)
    page.goto(gateway.address, wait_until="commit")
    page.set_input_files("#file", tmp_path / "a.png")
    wait_until(lambda: page.wait_for_timeout(10) or held)  # type: ignore[func-returns-value]
    held[0].continue_()
    wait_for_result(page)
    assert gateway.requests == [("top_k=5", "image/png", PNG, "")]


def test_a_data_url_is_the_image_itself(page: Page, gateway: Gateway) -> None:
    """As search engines give it for "copy image address"; the rest of such URLs goes to the gateway, which says no."""
    classify_url(page, f"data:image/png;base64,{base64.b64encode(PNG).decode()}")
    wait_for_result(page)
    assert gateway.requests == [("top_k=5", "image/png", PNG, "")]
    assert page.text_content("#name") == "image.png"
    with page.expect_response("**/predict*"):
        classify_url(page, "data:image/png;base64,A")
    assert gateway.requests[1][2] == b'{"url":"data:image/png;base64,A","top_k":5}'


def test_the_curl_command_is_the_same_request(page: Page, gateway: Gateway) -> None:
    """Quoted for a shell, with a quote, a dollar and a backslash in the URL."""
    url = 'https://example.com/it\'s/$HOME/\\a b.jpg?x=1&y="2"'
    classify_url(page, url)
    wait_for_result(page)
    arguments = parse_in_shell(page.text_content("#curl") or "")
    assert arguments[:5] == ["-s", f"{gateway.address}/predict", "-H", "Content-Type: application/json", "-d"]
    assert arguments[5].encode() == gateway.requests[0][2]


def test_an_error_is_shown_in_plain_words(page: Page, gateway: Gateway) -> None:
    """A title for people, the problem's detail and code, as an alert; and no retry of what cannot end otherwise."""
    gateway.problems = [errors.UrlNotAllowed("Expected a public address. Received <b>a URL</b>: 'localhost'.")]
    classify_url(page, "http://localhost/a.png")
    alert = page.get_by_role("alert")
    alert.get_by_role("heading", name="The classifier may not open that address").wait_for()
    assert alert.locator("p").all_text_contents() == [
        "Expected a public address. Received <b>a URL</b>: 'localhost'.",
        "403 url_not_allowed",
    ]
    assert not page.is_visible("#again")
    assert page.is_visible("#curl")


def test_a_passing_failure_can_be_tried_again(page: Page, gateway: Gateway) -> None:
    """After a 503; the focus stays in the result, though its button is gone."""
    gateway.problems = [errors.Overloaded("The gateway is busy.")]
    classify_url(page, CAT)
    page.click("text=Try again")
    wait_for_result(page)
    assert page.evaluate("document.activeElement.id") == "stage"
    assert gateway.requests[0] == gateway.requests[1]


def test_a_gateway_that_is_gone_is_shown(page: Page, gateway: Gateway) -> None:
    """What a proxy answers in its place, and no answer at all."""
    classify_url(page, "https://example.com/proxy.jpg")
    page.wait_for_selector("text=The classifier did not answer as expected")
    assert page.text_content("#problem-code") == "502"
    gateway.close()
    page.click("text=Try again")
    page.wait_for_selector("text=No connection to the classifier")


def test_a_new_request_cancels_the_older(page: Page, gateway: Gateway) -> None:
    """The older answer never shows, and the Cancel button ends the newest."""
    classify_url(page, "https://example.com/slow.jpg")
    page.wait_for_selector("#busy:not([hidden])")
    assert page.get_attribute("#stage", "aria-busy") == "true"
    with page.expect_event("requestfailed") as failed:
        classify_url(page, CAT)
    assert failed.value.failure == "net::ERR_ABORTED"
    wait_for_result(page)
    gateway.go.set()
    page.wait_for_timeout(100)
    assert page.text_content("#name") == "cat.jpg from example.com"

    gateway.go.clear()
    classify_url(page, "https://example.com/slow.jpg")
    page.click("text=Cancel")
    assert not page.is_visible("#stage")
    assert page.evaluate("document.activeElement.id") == "url"


def test_an_api_key_is_asked_for_and_kept_in_memory(page: Page, gateway: Gateway) -> None:
    """Sent as a bearer token, in no storage, and not in the command that people share."""
    gateway.key = "secret"
    classify_url(page, CAT)
    page.wait_for_selector("text=This classifier asks for an API key")
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The classifier does not know that key")
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    wait_for_result(page)
    assert gateway.requests[-1][3] == "Bearer secret"
    assert not page.is_visible("#access")
    assert page.evaluate("document.activeElement.id") == "stage"
    assert "Authorization: Bearer from-environment" in parse_in_shell(page.text_content("#curl") or "")
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    for event in ("pagehide", "pageshow"):  # the browser keeps the page, and goes back to it
        page.evaluate("(event) => dispatchEvent(new PageTransitionEvent(event, { persisted: true }))", event)
    page.wait_for_selector("#access:not([hidden])")
    classify_url(page, CAT)
    page.wait_for_selector("#problem:not([hidden])")
    assert (gateway.requests[-1][3], page.input_value("#key")) == ("", "")


def test_an_api_key_is_asked_for_when_the_page_opens(page: Page, gateway: Gateway) -> None:
    """Before a photo is uploaded in vain; the model says whether it is known."""
    gateway.key = "secret"
    page.reload()
    page.wait_for_selector("#access:not([hidden])")
    assert (page.is_visible("#refused"), page.evaluate("document.activeElement.id")) == (False, "")
    for key in ("wrong", "secret"):
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#refused:not([hidden])" if key == "wrong" else "#model:not([hidden])")
        assert page.evaluate("document.activeElement.id") == ("key" if key == "wrong" else "file")
    assert not page.is_visible("#access") and gateway.requests == []
    page.goto("about:blank")
    page.go_back()
    page.wait_for_selector("#access:not([hidden])")


def test_an_api_key_is_taken_while_no_model_is_ready(page: Page, gateway: Gateway) -> None:
    """The gateway knows it; where nobody answers, that is said."""
    gateway.key = "secret"
    page.reload()
    page.fill("#key", "secret")
    fail = lambda route: route.abort()  # noqa: E731
    page.route("**/model", lambda route: fail(route))
    page.keyboard.press("Enter")
    page.wait_for_selector("text=No connection to the classifier")
    fail = lambda route: route.fulfill(status=502, body="of a proxy")  # noqa: E731
    with page.expect_response("**/model"):
        page.keyboard.press("Enter")
    page.wait_for_selector("text=No connection to the classifier")
    fail = lambda route: route.fulfill(status=503, json={"code": "model_unavailable"})  # noqa: E731
    page.keyboard.press("Enter")
    page.wait_for_selector("#access", state="hidden")
    page.unroute("**/model")
    assert not page.is_visible("#model")


def test_a_late_refusal_of_no_key_is_not_one_of_the_key(page: Page, gateway: Gateway) -> None:
    """The page had asked for the model when it opened."""
    gateway.key = "secret"
    held: list[Any] = []
    page.route("**/model", lambda route: held.append(route), times=1)
    page.reload()
    classify_url(page, CAT)
    page.fill("#key", "secret")
    page.keyboard.press("Enter")
    wait_for_result(page)
    with page.expect_response(lambda response: response.status == 401):
        held[0].continue_()
    page.evaluate("fetch('model').then(() => null)")  # until when the page has seen that answer
    assert not page.is_visible("#access")


def test_the_keyboard_is_enough(page: Page) -> None:
    """From the top to the copied command, with a focus that shows at each stop."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])

    def tab() -> str:
        page.keyboard.press("Tab")
        return page.evaluate(
            """() => {
              const at = document.activeElement, seen = at.type === "file" ? at.nextElementSibling : at;
              return at.id + (getComputedStyle(seen).outlineStyle === "solid" ? "" : " without outline");
            }"""
        )

    assert [tab(), tab()] == ["file", "url"]
    page.keyboard.type(CAT)
    page.keyboard.press("Enter")
    wait_for_result(page)
    assert [tab(), tab(), tab()] == ["", "original", "copy"]  # the first is the form's own button
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.text_content("#curl")


# ---- how it looks


@pytest.mark.parametrize("options", [PHONE], ids=["phone"])
def test_a_phone_has_a_camera_and_no_sideways_scroll(page: Page, gateway: Gateway, tmp_path: Path) -> None:
    """Empty, with a result with long names, and with an error."""

    def overflow_px() -> int:
        return page.evaluate("document.documentElement.scrollWidth - 360")

    page.evaluate("document.querySelector('#model').textContent = 'kitchen_appliances_and_tableware_in_our_warehouse'")
    assert overflow_px() == 0
    path = tmp_path / f"{'IMG' * 40}.png"
    path.write_bytes(PNG)
    assert page.get_attribute("#camera", "capture") == "environment"
    assert page.is_visible("text=Take a photo")
    page.set_input_files("#camera", path)
    wait_for_result(page)
    assert overflow_px() == 0
    assert findings(page) == NO_FINDINGS
    gateway.problems = [errors.FetchFailed(f"Expected an image. Received: {'x' * 300}")]
    classify_url(page, f"https://example.com/{'y' * 300}")
    page.wait_for_selector("#problem:not([hidden])")
    assert overflow_px() == 0


@pytest.mark.parametrize("options", [{"reduced_motion": "reduce"}, {"reduced_motion": "no-preference"}])
def test_motion_is_only_for_those_who_want_it(page: Page, options: dict[str, str]) -> None:
    """The busy bar sweeps, or rests."""
    classify_url(page, "https://example.com/slow.jpg")
    page.wait_for_selector("#busy:not([hidden])")
    assert page.evaluate("document.getAnimations().length > 0") is (options["reduced_motion"] == "no-preference")


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["light", "dark"])
def test_axe_finds_nothing(page: Page, gateway: Gateway, options: dict[str, Any], tmp_path: Path) -> None:
    """Contrast, labels, roles and the rest: empty, busy, with a result, with an error and with the key's field."""
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 64) is (options["color_scheme"] == "dark")
    assert findings(page) == NO_FINDINGS
    classify_url(page, "https://example.com/slow.jpg")
    page.wait_for_selector("#busy:not([hidden])")
    assert findings(page) == NO_FINDINGS
    gateway.go.set()
    wait_for_result(page)
    assert findings(page) == NO_FINDINGS
    (tmp_path / "a.png").write_bytes(PNG)
    page.set_input_files("#file", tmp_path / "a.png")
    page.wait_for_selector("#thumbnail:not([hidden])")
    assert findings(page) == NO_FINDINGS
    gateway.key = "secret"
    classify_url(page, CAT)
    page.wait_for_selector("#problem:not([hidden])")
    assert findings(page) == NO_FINDINGS
