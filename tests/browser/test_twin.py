"The static twin in a real browser: it answers with no kernel, no network and, for its first picture, no script."
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenscope.show.controls import Pick, Slider
from tokenscope.show.explore import explore

pytestmark = pytest.mark.browser
TOKENS = ["The", " cat", "</script><img/src=x/onerror=alert(1)>", " sat", "\n"]


class Bars:
    "A row of boxes, one for each token; the picked one is dark."
    def __init__(self, token, height, upper, colour):
        self.say = f"token {token} height {height} {'UPPER' if upper else 'lower'} {colour}"
        boxes = "".join(f'<i style="display:inline-block;width:30px;background:{colour};height:{height if i == token else 8}px"></i> ' for i in range(5))
        self.html = f"<p>{self.say}</p>{boxes}"

    def _repr_html_(self):
        return self.html


def bars(token, height, upper=False, colour="teal"):
    return Bars(token, height, upper, colour)


def panel(title="Bars"):
    return explore(bars, title=title, max_frames=160, token=Pick(TOKENS, 1), height=Slider(10, 80, 10, unit="px"), upper=False, colour=["teal", "tan"])


def html_page(*panels):
    return "<!doctype html><meta charset=utf-8><title>twin</title>" + "<hr>".join(p.twin() for p in panels)


def opened(page, tmp_path, html):
    (tmp_path / "twin.html").write_text(html, encoding="utf-8")
    page.goto((tmp_path / "twin.html").as_uri())
    return page.locator(".ts-panel")


def test_every_control_changes_the_picture(page, outside, tmp_path):
    root = opened(page, tmp_path, html_page(panel()))
    said = root.locator(".ts-picture p")
    assert said.inner_text() == "token 1 height 40 lower teal"
    before = root.locator(".ts-picture").screenshot()
    slider = root.get_by_role("slider", name="height")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("token 1 height 50").wait_for()
    assert root.locator(".ts-picture").screenshot() != before
    assert slider.get_attribute("aria-valuetext") == "50 px" and root.locator("output").inner_text() == "50 px"
    slider.fill("7")
    page.get_by_text("token 1 height 80").wait_for()
    root.get_by_role("radio", name="·sat").click()
    page.get_by_text("token 3 height 80").wait_for()
    root.get_by_label("upper").check()
    page.get_by_text("token 3 height 80 UPPER").wait_for()
    root.get_by_label("colour").select_option("tan")
    page.get_by_text("token 3 height 80 UPPER tan").wait_for()
    assert not page.errors and not outside() and len(page.requests) == 1


def test_tokens_are_text_and_turn_with_keys(page, tmp_path):
    root = opened(page, tmp_path, html_page(panel()))
    row = root.get_by_role("radiogroup")
    assert row.locator("button").all_inner_texts() == ["The", "·cat", "</script><img/src=x/onerror=alert(1)>", "·sat", "⏎"]
    assert page.locator("img").count() == 0
    row.locator("[aria-checked=true]").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("token 2 height").wait_for()
    page.keyboard.press("Home")
    page.get_by_text("token 0 height").wait_for()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("token 4 height").wait_for()
    assert row.locator("[aria-checked=true]").count() == row.locator("[tabindex='0']").count() == 1
    row.locator("button").nth(3).focus()
    page.keyboard.press("Enter")
    page.get_by_text("token 3 height").wait_for()


def test_twins_on_one_page_do_not_touch(page, tmp_path):
    twin, other = panel(), explore(lambda n: f"n is {n}", title="Other", n=(0, 9))
    root = opened(page, tmp_path, html_page(twin, other, twin))
    assert root.count() == 3 and page.get_by_role("slider").count() == 3
    page.get_by_role("slider", name="n", exact=True).fill("9")
    page.get_by_text("n is 9").wait_for()
    root.nth(2).get_by_role("slider").fill("0")
    root.nth(2).get_by_text("height 10 ").wait_for()
    assert root.nth(0).get_by_text("height 40 ").count() == 1 and not page.errors


def test_first_picture_needs_no_script(chromium, tmp_path):
    html = html_page(panel())
    bare = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert "<script" not in bare
    for content, scripts in ((html, False), (bare, True)):
        context = chromium.new_context(java_script_enabled=scripts)
        page = context.new_page()
        page.set_content(content)
        assert page.locator(".ts-picture p").inner_text() == "token 1 height 40 lower teal"
        assert "height 40 px" in page.locator(".ts-bar").inner_text() and page.locator("input, button").count() == 0
        context.close()


def test_twin_in_a_site(page, outside, tmp_path):
    nbformat, nbs = pytest.importorskip("nbformat"), tmp_path / "nbs"
    nbs.mkdir()
    cell = nbformat.v4.new_code_cell("panel", outputs=[nbformat.v4.new_output("display_data", {"text/html": panel().twin(), "text/plain": "panel"})])
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Panel"), cell]), nbs / "index.ipynb")
    (nbs / "_quarto.yml").write_text("project: {type: website, output-dir: out}\nwebsite: {title: scratch}\nformat: {html: {theme: bootstrap}}\n", encoding="utf-8")
    tool = Path(sys.executable).with_name("smalldocs")
    if not tool.exists():
        pytest.skip("smalldocs is not installed")
    subprocess.run([tool, "render", "."], cwd=nbs, check=True, capture_output=True)
    page.goto((nbs / "out/index.html").as_uri())
    page.get_by_role("slider", name="height").fill("0")
    page.get_by_text("token 1 height 10 ").wait_for()
    assert not page.errors and not outside()


def test_twin_in_nbconvert(page, outside, tmp_path):
    nbformat, nbconvert = pytest.importorskip("nbformat"), pytest.importorskip("nbconvert")
    cell = nbformat.v4.new_code_cell("panel", outputs=[nbformat.v4.new_output("display_data", {"text/html": panel().twin(), "text/plain": "panel"})])
    html = nbconvert.HTMLExporter(template_name="basic").from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))[0]
    opened(page, tmp_path, "<!doctype html><meta charset=utf-8>" + html)
    page.get_by_role("slider", name="height").fill("0")
    page.get_by_text("token 1 height 10 ").wait_for()
    assert not page.errors and not outside()
