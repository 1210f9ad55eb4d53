"""The report in a real browser: `make test-browser` runs these where Chromium is installed."""

import re
import shutil

import pytest
from test_report import HOSTILE, made
from toy import DOCUMENT_TEXTS, HOW, QUERY_TEXTS

from scoring.report import Report, report

sync_api = pytest.importorskip("playwright.sync_api", reason="run `make test-browser`")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to open the page in")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The report of the toy, and one of hostile texts."""
    hostile = {"d08": (HOSTILE, f"{HOSTILE}\n\tcode"), "d01": ("", HOSTILE)}
    changes = {"documents": DOCUMENT_TEXTS | hostile, "queries": QUERY_TEXTS | {"q1": HOSTILE}}
    found = []
    for name, changed in (("plain", {}), ("hostile", changes)):
        run = made(tmp_path_factory.mktemp(name), **changed)
        report(run, Report(), HOW)
        found.append((run.path / "7_report/report.html").as_uri())
    return found


@pytest.fixture
def opened(browser, files):
    """Open a page of `files`; fails if the page says a word, asks for anything or opens a box."""
    said, contexts = [], []

    def open_page(number=0, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: said.append(request.url))
        page.goto(files[number])
        page.wait_for_selector("[data-figure=worth] svg")
        assert said.pop(0) == files[number]
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [one for one in said if not one.startswith("data:")] == []


def names(page, where="#sets"):
    return page.locator(f"{where} tbody tr:not([hidden]) .name > b").all_text_contents()


@pytest.mark.parametrize("number", [0, 1])
def test_the_page_opens_without_a_word_and_fetches_nothing(opened, number):
    page = opened(number)
    assert page.locator(".plot svg.main-svg").count() >= 6
    if number:
        assert page.locator("summary b", has_text=HOSTILE).count() >= 1
        page.locator("[data-toggle]").click()
        assert page.locator(".passage .text", has_text="alert(1)").first.is_visible()


def test_tables_are_sorted_by_mouse_and_by_keyboard(opened):
    page = opened()
    head = page.locator("#sets th", has_text=re.compile(r"^S$"))
    head.click()
    down = names(page)
    assert head.get_attribute("aria-sort") == "descending"
    head.focus()
    page.keyboard.press("Enter")
    assert names(page) == down[::-1] and head.get_attribute("aria-sort") == "ascending"


def test_a_set_is_hidden_in_tables_charts_and_examples(opened):
    page = opened()
    lines = page.locator("[data-figure=curve] .scatterlayer .trace")
    everything, drawn = names(page), lines.count()
    button = page.locator("[data-show=bm25]")
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert names(page) == [name for name in everything if name != "bm25"]
    assert lines.count() == drawn - 1
    assert page.locator("[data-figure=worth] .ytick").all_text_contents() == ["bm25+dense"]
    assert not page.locator("[data-figure=histogram-bm25]").is_visible()
    page.keyboard.press("Space")
    assert names(page) == everything and lines.count() == drawn


def test_examples_are_found_by_their_words(opened):
    page = opened()
    page.locator("[type=search]").fill("BEES TALK")
    shown = page.locator("#examples .example:not([hidden]) summary b").all_text_contents()
    assert QUERY_TEXTS["q2"] in shown and len(shown) < len(QUERY_TEXTS)


@pytest.mark.parametrize("width", [400, 1300])
def test_nothing_reaches_out_of_the_page(opened, width):
    page = opened(viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_print(opened):
    page = opened(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(21, 24, 28)"
    tick = sync_api.expect(page.locator(".ytick text").first)
    tick.to_have_css("fill", "rgb(230, 228, 223)")
    page.emulate_media(color_scheme="light")
    tick.to_have_css("fill", "rgb(29, 33, 38)")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator(".filter").is_visible()
