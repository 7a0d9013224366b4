"The built site in a real browser: a panel answers, and nothing leaves the machine."
import http.server
import threading
from functools import partial

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_slider_of_a_saved_panel_changes_the_picture(page, outside, address):
    page.goto(f"{address}/steering/zerotuning.html")
    slider = page.locator("input[type=range]").first
    slider.scroll_into_view_if_needed()
    panel = slider.locator("xpath=ancestor::*[self::section or self::div or self::form][last()]")
    text = lambda: page.locator("body").inner_html()
    before = text()
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert text() != before and panel.count() == 1
    assert not page.errors and not outside()


@pytest.mark.parametrize("where", ["index.html", "guides/gallery.html", "claims.html", "show/display.html", "tokenizers/tokenizer_betrayal.html", "show/explore.html"])
def test_no_page_asks_another_host(page, outside, address, where):
    page.goto(f"{address}/{where}")
    page.wait_for_load_state("networkidle")
    assert not outside() and not page.errors
    assert page.locator("h1").first.inner_text().strip()


def test_no_code_block_scrolls_sideways_at_1280_pixels(chromium, site, address):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wide = {}
    for path in sorted(site.rglob("*.html")):
        page.goto(f"{address}/{path.relative_to(site)}")
        # The sheet wraps quoted lines that are longer; without it every line of code must still fit.
        page.add_style_tag(content="main pre { white-space: pre !important; }")
        lines = page.evaluate(
            """() => [...document.querySelectorAll("main pre")]
                .filter(e => !e.closest(".cell-output") && e.scrollWidth > e.clientWidth + 1)
                .map(e => e.innerText.split("\\n").sort((a, b) => b.length - a.length)[0])"""
        )
        if lines:
            wide[str(path.relative_to(site))] = lines
    context.close()
    assert not wide
