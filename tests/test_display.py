"Token strips: escaped, complete without scripts, readable on light and dark pages, right at the edges."
import math
import re
import struct
import subprocess
import sys
import zlib
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from matplotlib.figure import Figure

from tokenscope.show.colours import STEPS, as_numbers, contrast_ratio, luminance, rgb_over, scale_limits, shade_colour, short_number, tint
from tokenscope.show.display import TokenScores, attention_map, figure_html, patch_grid, shared_limits, strips
from tokenscope.text.names import ScopeError
from tokenscope.show.pictures import palette_png
from tokenscope.show.boxes import SHEET, STRIP_CLASS
from tokenscope.show.strip import directed_html, text_direction
from tokenscope.text.tokens import Tokens

PAGES = {"Jupyter light": ("#ffffff", "#212121"), "Quarto light": ("#ffffff", "#343a40"), "smalldocs light": ("#ffffff", "#333333"), "Jupyter dark": ("#111111", "#e0e0e0"),
         "GitHub dark": ("#0d1117", "#c9d1d9"), "Quarto dark": ("#222222", "#dddddd"), "Bootstrap dark": ("#212529", "#dee2e6"), "plain dark": ("#121212", "#ffffff")}
VOID = {"img", "br", "meta", "th", "td", "tr"}  # th, td and tr may be left open


class Checked(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.open, self.seen, self.titles, self.labels, self.colours = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        found = dict(attrs)
        assert tag in {"div", "style", "b", "i", "s", "u", "p", "span", "details", "summary", "code", "table", "tr", "th", "td", "img", "br", "sub"}, tag
        assert not any(k.startswith("on") or k == "href" for k in found)
        assert found.get("src", "data:").startswith("data:")
        self.titles += [v for k, v in attrs if k == "title"]
        self.labels += [found["aria-label"] for _ in range(found.get("tabindex") == "0")]
        self.colours += re.findall(r"background:([^;\"]*)", found.get("style", ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while tag == "table" and self.open[-1] in VOID:
            self.open.pop()
        assert self.open.pop() == tag


numbers = st.floats(width=64) | st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf])
tokens_and_values = st.lists(st.tuples(st.text(alphabet=st.characters(), max_size=8) | st.sampled_from(["</script><img src=x onerror=alert(1)>", "\0", "\n", " ", "'\"&"]), numbers), max_size=12)


@given(tokens_and_values, st.booleans())
@example([("a", 1.0), ("\u202e", math.nan), ("\ud800", math.inf)], False)
@settings(max_examples=150, deadline=None)
def test_any_token_and_any_value_can_be_shown(pairs, layered):
    tokens, values = [t for t, _ in pairs], np.array([v for _, v in pairs])
    scores = TokenScores(tokens, np.stack([values, values]) if layered else values, name="<b>name</b>", note="</div><script>")
    low, high = scores.limits
    assert low < high and math.isfinite(low) and math.isfinite(high)
    html = scores.html()
    html.encode()
    page = Checked(html)
    assert not page.open and "script" not in page.seen and "\0" not in html and "\u202e" not in html
    assert all(re.fullmatch(r"#[0-9a-f]{8}|linear-gradient\(.*\)", c) for c in page.colours)
    if not layered:
        assert len(page.labels) == len(tokens)
    for text in (scores.to_text(), repr(scores), scores.ansi()):
        text.encode()
        assert not re.search("[\0\x07\x08\x7f\u202e]", text) and re.sub(r"\x1b\[[0-9;]*m", "", text).count("\x1b") == 0
    assert len(scores.to_df()) == values.size * (2 if layered else 1)
    assert html == TokenScores(tokens, scores.values, name="<b>name</b>", note="</div><script>").html()
    assert len(scores.words().tokens) <= len(tokens)


@pytest.mark.parametrize("page", PAGES)
def test_text_contrast_on_light_and_dark_pages(page):
    back, text = PAGES[page]
    for scale in ("sequential", "diverging"):
        for step in range(-STEPS if scale == "diverging" else 0, STEPS + 1):
            assert contrast_ratio(text, shade_colour(step, scale), back) >= 4.5
        lights = [luminance(rgb_over(shade_colour(s, scale), back)) for s in range(0, STEPS + 1, 4)]
        assert lights == sorted(lights, reverse=luminance(rgb_over(back)) > 0.5)  # the scale is monotone in light


def test_colours_tell_signs_apart_without_red_and_green():
    negative, positive = (rgb_over(shade_colour(s, "diverging")) for s in (-STEPS, STEPS))
    assert negative[2] > negative[0] + 40 and positive[0] > positive[2] + 40  # blue and orange differ on the axis that everyone sees
    assert tint(0, (-1, 1), "diverging").endswith("00")
    assert all(re.fullmatch("#[0-9a-f]{8}", tint(np.float64(v), (np.float64(0), np.float64(3)))) for v in np.linspace(-1, 4, 30))


def test_limits():
    norms = np.array([21700.0] + [140.0] * 10)
    assert scale_limits(norms) == (0, 140) and scale_limits(norms, limits="all")[1] == 21700 and scale_limits(norms, limits=(1, 2)) == (1, 2)
    low, high = scale_limits(np.array([1.0, -3, 2]), "diverging")
    assert low == -high == -3
    assert scale_limits([2.4, 2, 1, 2])[1] == 2.4 and scale_limits([np.nan] * 4) == (0, 1) and scale_limits([]) == (0, 1)
    shown = TokenScores(["a", "b", "c", "d"], [21700, 1, 2, 3])
    assert "21700 ▲ above the scale" in shown.html() and "The initial token (21700) lies beyond the scale." in shown.html()
    for bad in ((3, 1), "robust", (0, math.inf)):
        with pytest.raises(ScopeError, match="Colour limits not understood"):
            TokenScores(["a"], [1], limits=bad)


def test_size_of_a_strip():
    rng = np.random.default_rng(0)
    tokens = Tokens([" token", "s", " of", " ordinary", " length", "."] * 50, ids=range(300))
    html = TokenScores(tokens, rng.normal(size=300), name="score").html()
    assert len(html.encode()) / 300 <= 120
    assert len(TokenScores(["a"] * 5000, np.ones(5000)).html()) < 250_000 and "3,000 tokens that are not drawn" in TokenScores(["a"] * 5000, np.ones(5000)).html()
    assert "100 more tokens" in TokenScores(["a"] * 400, np.ones(400)).html()
    assert len(SHEET) < 3500 and strips(*[TokenScores(["a"], [1])] * 3).count("<style>") == 1


def test_marks_for_kept_special_sign_and_missing():
    tokens = Tokens(["<s>", "a", " b\n", "c"], ids=[1, 2, 3, 4], special=[True, False, False, False])
    html = TokenScores(tokens, [0.1, -2, math.nan, 1], kept=[True, False, "merged", True], hatched=True).html()
    assert re.search(r'<i class="o"[^>]*>&lt;s&gt;</i>', html) and re.search(r'<s [^>]*title="-2 id 2"[^>]*>a</s>', html)
    assert 'title="no value id 3"' in html and 'class="m"' in html and "</i>\n" in html and f'"{STRIP_CLASS} d h"' in html
    assert 'title="+1 id 4"' in html and 'aria-label="a, -2"' in html and "1 of 4" in html and "⏎" in html


def test_shared_characters_make_one_box():
    raw = ["😀".encode()[:2], "😀".encode()[2:]]
    html = TokenScores(Tokens(raw, offsets=[(0, 1), (0, 1)], text="😀", raw=raw, ids=[5, 6]), [1, 2]).html()
    assert html.count("😀") == 1 and 'title="1 id 5 bytes F0 9F"' in html and 'title="2 id 6 bytes 98 80"' in html
    assert "\\xFF" in TokenScores(Tokens([b"\xff"], raw=[b"\xff"]), [1]).html()


def test_direction():
    assert "<p dir=rtl" in TokenScores(["مرحبا", " يا"], [1, 2]).html() and "<span dir=rtl>" in TokenScores(["He", " שלום", " עולם"], [1, 2, 3]).html()
    assert text_direction("12 x") == "ltr" and text_direction("12") is None
    assert directed_html(["عام", " 1", "9"], ["A", "B", "C"], "rtl") == "A<span dir=ltr>BC</span>"
    assert "\u0633\u200d" in TokenScores(["س", "لام"], [1, 2]).html() and "\u0627\u200d" not in TokenScores(["ا", "لام"], [1, 2]).html()


def test_words_compare_and_shared_scale():
    cut = TokenScores(["Un", "believ", "able", ",", " 日", "本"], [1, 2, 3, 4, 5, 6], name="s")
    assert list(cut.words().tokens) == ["Unbelievable", ",", " 日", "本"] and cut.words().values.tolist() == [6, 4, 5, 6]
    assert cut.words("mean").values[0] == 2 and cut.words().values.sum() == cut.values.sum()
    other = TokenScores(["Unbeliev", "able,", " 日本"], [1, 1, 1], name="s")
    difference = cut - other
    assert difference.values.tolist() == [2, 6, 10] and difference.scale == "diverging" and list(difference.tokens) == ["Unbeliev", "able,", " 日本"]
    assert (cut - cut).values.tolist() == [0] * 6
    assert shared_limits(cut, other)[1] == 6 and shared_limits(cut, difference) == (-10, 10)
    for bad, words in ((lambda: cut - TokenScores(["x"], [1]), "Texts differ"), (lambda: cut.words("max"), "Unknown way to reduce"), (shared_limits, "No scores to share"),
                       (lambda: TokenScores(["a"], [1, 2]), "Values do not fit the tokens"), (lambda: TokenScores(["a"], [1], scale="rainbow"), "Unknown scale"),
                       (lambda: TokenScores(["a"], [1], kept=[1, 0]), "Labels do not fit"), (lambda: TokenScores(["a"], ["x"]), "Values are not numbers"),
                       (lambda: cut.save("x.pdf"), "Unknown kind of file"), (lambda: attention_map(["a"], [[1, 2]]), "Pattern does not fit"), (lambda: patch_grid([1], (2, 2)), "Patches do not fill")):
        with pytest.raises(ScopeError, match=words):
            bad()


def test_tensors_of_any_kind():
    import torch
    values = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert TokenScores(["a", "b"], values).values.tolist() == [1, 2] and as_numbers(torch.tensor([1, 2])).tolist() == [1, 2]


def test_maps_are_small_palette_pictures():
    rng = np.random.default_rng(0)
    for shape, most in (((1000, 1000), 60_000), ((9, 300, 300), 80_000), ((30, 9, 60, 60), 80_000), ((5, 5), 8_000)):
        pattern = np.tril(rng.random(shape))
        html = attention_map([f" t{i}" for i in range(shape[-1])], pattern)
        Checked(html)
        assert len(html) < most, (shape, len(html))
        assert "initial token" in html and ("A pixel is the largest of" in html) == (shape[-1] > 5)
        png = b64decode(re.search(r"base64,([^\"]+)", html)[1])
        assert png[:4] == b"\x89PNG" and png[24:26] == bytes([8, 3])
    png = palette_png([[0, 1], [1, 0]], ["#00000000", "#ff0000ff"])
    data = png[png.index(b"IDAT") + 4:png.index(b"IEND") - 8]
    assert struct.unpack(">II", png[16:24]) == (2, 2) and zlib.decompress(data) == b"\0\0\1\0\1\0"
    Checked(patch_grid(rng.normal(size=30 * 40), (30, 40)) + patch_grid([1, math.nan, 3, 4], (2, 2)))


def test_files_are_complete_and_repeat(tmp_path):
    scores = TokenScores(["a$", " b\n", "日本", "</title>"], [1, -2, 3, math.nan], name="</title>", kept=[1, 0, 1, 1])
    for end in ("html", "svg", "png", "txt"):
        one, two = (scores.save(tmp_path / f"{n}.{end}").read_bytes() for n in (1, 2))
        assert one == two and len(one) > 50 and b"matplotlib v" not in one.lower() and b"/tmp" not in one
    assert "日本" in (tmp_path / "1.svg").read_text() and "color-scheme" in (tmp_path / "1.html").read_text()
    figure = Figure(figsize=(6, 4))
    figure.subplots().imshow(np.random.default_rng(0).random((300, 300)))
    assert len(figure_html(figure)) < 45_000 and figure_html(TokenScores(["a", "b"], [[1, 2], [3, 4]]).heatmap()).startswith("<img alt=")


def test_numbers():
    assert [short_number(v) for v in (0, -0.0, 3.14159, 21712.4, 1e9, -1e-9, math.nan, -math.inf, 0.5)] == ["0", "0", "3.14", "21700", "1e+09", "-1e-09", "nan", "-inf", "0.5"]


def test_neither_torch_nor_transformers_is_imported():
    code = "import sys, tokenscope.show.display as d; d.TokenScores(['a'], [1]).html(); print('torch' in sys.modules, 'transformers' in sys.modules, 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 3


def test_a_picture_of_a_long_text_shows_its_beginning_and_says_so():
    figure = TokenScores(["word"] * 20000, [1.0] * 20000).figure()
    assert len(figure.axes[0].patches) == 600 and "first 600 of 20,000 tokens" in figure.axes[0].texts[0].get_text()
