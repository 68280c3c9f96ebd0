"""The HTML report in a real browser: quiet, whole and readable on a desk, on a phone, in the dark and on paper."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final

import pytest

from jwt_column.auditing.html import render_html
from tests.support.audit_reports import REPORTS, rotation
from tests.support.browser import browser_required, start_browser
from tests.support.databases import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.browser import Browser

pytestmark = pytest.mark.browser

WIDTHS: Final = {"desk": 1280, "phone": 390}

every_report = pytest.mark.parametrize("name", REPORTS)
every_screen = pytest.mark.parametrize("screen", WIDTHS)
both_schemes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])

#: Wider than the screen: the page, or a box.
OVERFLOW: Final = """
[Math.max(0, document.documentElement.scrollWidth - innerWidth),
 [...document.querySelectorAll("body *:not(svg *):not(.skip):not(.unseen):not(thead, thead *)")]
   .filter(one => one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))]
"""

#: Texts whose computed contrast with what they stand on is below 4.5 (WCAG 2.2, 1.4.3).
PALE: Final = """
(() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = one => {
    for (; one; one = one.parentElement) {
      const [r, g, b, a = 1] = channels(getComputedStyle(one).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const pale = [];
  let seen = 0;
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !one.getClientRects().length || one.closest("title, desc")) continue;
    const style = getComputedStyle(one);
    const ink = channels(one.closest("svg") ? style.fill : style.color);
    const [light, dark] = [luminance(ink), luminance(ground(one))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    seen += 1;
    if (ratio < 4.5) pale.push([ratio.toFixed(2), texts.currentNode.data.slice(0, 40)]);
  }
  return [seen, pale];
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of this file."""
    with contextlib.ExitStack() as running:
        try:
            chromium = running.enter_context(start_browser())
        except Unavailable as reason:
            if browser_required(os.environ):
                pytest.fail(str(reason), pytrace=False)
            pytest.skip(str(reason))
        yield chromium


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[[str], str]:
    """Write the page of a report, by its name, and return its address."""

    def write(name: str) -> str:
        now, then = REPORTS[name]
        path = tmp_path / "report.html"
        path.write_text(render_html(now, baseline=then), encoding="utf-8")
        return path.as_uri()

    return write


@every_report
@every_screen
def test_page_is_quiet_and_fits(
    browser: Browser, page_of: Callable[[str], str], name: str, screen: str
) -> None:
    """It asks for nothing but itself, nothing is refused or complained about, and nothing sticks out."""
    address = page_of(name)
    with browser.page(address, width=WIDTHS[screen]) as page:
        assert page.requests() == [address]
        assert page.complaints() == []
        assert page.run(OVERFLOW) == [0, []]
        assert page.run("document.scripts.length") == 0


@both_schemes
@pytest.mark.parametrize("name", ["not ok", "ok", "hostile"])
def test_every_text_has_contrast(
    browser: Browser, page_of: Callable[[str], str], name: str, dark: bool
) -> None:
    with browser.page(page_of(name), dark=dark) as page:
        ground = page.run("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        seen, pale = page.run(PALE)
        assert seen > 50
        assert pale == []


def test_rows_of_wide_tables_are_cards_on_a_phone(browser: Browser, page_of: Callable[[str], str]) -> None:
    """Each cell is on the screen and says which column it is of; on a desk it does not."""
    labels = """[...document.querySelectorAll("td.number:not(.none)")].map(one => [
        getComputedStyle(one, "::before").content,
        one.dataset.label,
        one.getBoundingClientRect().right <= innerWidth,
    ])"""
    with browser.page(page_of("not ok"), width=WIDTHS["phone"]) as page:
        cells = page.run(labels)
        assert len(cells) > 30
        assert all(content == f'"{label}"' and is_seen for content, label, is_seen in cells)
    with browser.page(page_of("not ok")) as page:
        assert {content for content, _, _ in page.run(labels)} == {"none"}


def test_links_lead_to_findings_and_columns(browser: Browser, page_of: Callable[[str], str]) -> None:
    with browser.page(page_of("not ok")) as page:
        page.run("document.querySelector('.sheet tbody a').click()")
        assert page.run("document.querySelector(':target').innerText").startswith("Critical Plaintext")
        page.run("document.querySelector('.places a').click()")
        assert page.run("document.querySelector(':target th').innerText") == "app.sessions.token"
        top, height = page.run("[document.querySelector(':target').getBoundingClientRect().top, innerHeight]")
        assert 0 <= top < height


def test_paper_is_white_and_has_a_line_to_sign(browser: Browser, page_of: Callable[[str], str]) -> None:
    with browser.page(page_of("not ok"), dark=True) as page:
        assert page.run("document.querySelector('.signature').offsetHeight") == 0
        page.call(
            "Emulation.setEmulatedMedia",
            media="print",
            features=[{"name": "prefers-color-scheme", "value": "dark"}],
        )
        assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.run("document.querySelector('.signature').offsetHeight") > 100
        assert page.run(PALE)[1] == []
        paper = page.pdf()
    assert 2 <= pages_of(paper) <= 4


def pages_of(paper: bytes) -> int:
    """Return the number of pages of a PDF, all of which are A4 in points."""
    assert paper.startswith(b"%PDF-")
    boxes = re.findall(rb"/MediaBox \[0 0 (\d+)[\d.]* (\d+)[\d.]*\]", paper)
    assert set(boxes) <= {(b"594", b"841"), (b"595", b"842"), (b"595", b"841")}
    return len(boxes)


def test_thirty_columns_in_a_rotation_are_five_pages(browser: Browser, tmp_path: Path) -> None:
    """On paper, page 1 is the sheet that is signed: it ends with the signature, and the findings begin page 2."""
    path = tmp_path / "report.html"
    path.write_text(render_html(rotation()), encoding="utf-8")
    with browser.page(path.as_uri()) as page:
        paper = page.pdf()
        page.call("Emulation.setEmulatedMedia", media="print")
        last = page.run("document.querySelector('.sheet > :last-child').className")
        breaks = page.run("getComputedStyle(document.querySelector('.sheet')).breakAfter")
        # A4 between the margins of the style sheet is 265 mm high, and 180 mm wide.
        page.call(
            "Emulation.setDeviceMetricsOverride", width=680, height=1000, deviceScaleFactor=1, mobile=False
        )
        height = page.run("document.querySelector('.sheet').offsetHeight")
    assert 3 <= pages_of(paper) <= 5
    assert (last, breaks) == ("signature", "page")
    assert height < 265 / 25.4 * 96


def test_tests_see_what_a_bad_page_does(browser: Browser, tmp_path: Path) -> None:
    """The control: a page that asks, complains, sticks out and is pale."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        """<!doctype html><meta http-equiv="Content-Security-Policy" content="default-src http://127.0.0.1:9">
        <body style="color: red"><p><img src="http://127.0.0.1:9/x.png"><script>1</script>"""
        "<svg width=3000><text y=20 fill=#999>pale</text></svg>",
        encoding="utf-8",
    )
    with browser.page(bad.as_uri()) as page:
        assert page.requests() == [bad.as_uri(), "http://127.0.0.1:9/x.png"]
        complaints = " ".join(page.complaints())
        assert "ContentSecurityPolicyIssue" in complaints
        assert "ERR_" in complaints
        wider, boxes = page.run(OVERFLOW)
        assert wider > 1000
        assert boxes
        assert [text for _, text in page.run(PALE)[1]] == ["pale"]


@pytest.mark.parametrize(
    ("environ", "required"), [({}, False), ({"CI": "true"}, True), ({"CI": "false"}, False)]
)
def test_browser_is_required_where_everything_is(environ: dict[str, str], required: bool) -> None:
    assert browser_required(environ) is required


def test_without_a_browser_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="chromium"), start_browser():
        pass
