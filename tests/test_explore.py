"Panels: controls, frames, the saved page, the live widgets, and the cleaner."
import asyncio
import copy
import json
import re
import subprocess
import sys
import zlib
from base64 import b64decode
from math import prod
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from tokenscope.show.controls import Choice, Pick, Slider, Switch, Text, as_control, as_controls
from tokenscope.show.explore import SAVED_FRAMES, WIDGET_MIME, clean_notebook, clean_notebooks, clean_outputs, explore, live_panel
from tokenscope.text.names import ScopeError
from tokenscope.show.twin import evenly, shown, thin_sliders


def data_of(page):
    "What the script of a saved page holds, with its frames unpacked."
    data = json.loads(re.search(r"const data = (\{.*\});\n", page)[1])
    return data, json.loads(zlib.decompress(b64decode(data["frames"])))


def said(layer=1, mode="a", on=False):
    return f"layer {layer} mode {mode} on {on}"


@pytest.mark.parametrize("short, kind, values", [((0, 3), "slider", [0, 1, 2, 3]), ((0, 1, 0.5), "slider", [0.0, 0.5, 1.0]), (range(2, 9, 3), "slider", [2, 5, 8]),
                                                 (["x", None], "choice", ["x", None]), (("x", "y"), "choice", ["x", "y"]), ({"left": -1}, "choice", [-1]),
                                                 (True, "switch", [False, True]), ("hi", "text", ["hi"]), (Pick(["a", "b"]), "pick", [0, 1])])
def test_short_forms(short, kind, values):
    control = as_control(short, "some_name")
    assert (control.kind, control.values, control.label) == (kind, values, "some name") and len(control.labels) == len(values)


@pytest.mark.parametrize("broken, message", [(3, "Not a control"), (None, "Not a control"), ([], "An empty choice"), ((5, 1), "empty or endless"), ((0, 1, -1), "empty or endless"),
                                             ((0, 1e9, 1), "empty or endless"), ((0.0, float("nan")), "Not a slider"), (Slider(0, 4, value=9), "Not on the slider"),
                                             (Choice(["a"], value="b"), "Not an option"), (Pick(["a"], 1), "No such token"), (Pick([]), "No such token")])
def test_broken_controls_say_why(broken, message):
    with pytest.raises(ScopeError, match=message):
        explore(lambda x: "", x=broken)


@pytest.mark.parametrize("arguments, message", [(dict(), "No controls"), (dict(depth=(0, 3)), "do not fit"), (dict(layer=(0, 3), max_kb=300), "Not a weight"),
                                                (dict(mode=[str(i) for i in range(65)]), "Too many settings")])
def test_broken_calls_say_why(arguments, message):
    with pytest.raises(ScopeError, match=message):
        explore(said, **arguments)
    with pytest.raises(ScopeError, match="Nothing to explore"):
        explore("said", layer=(0, 3))


@given(st.integers(-50, 50), st.integers(1, 300), st.integers(1, 9))
def test_slider_values_stay_on_their_steps(low, steps, step):
    whole, tenths = Slider(low, low + steps * step, step), Slider(low / 10, (low + steps) / 10, 0.1)
    assert whole.values == list(range(low, low + steps * step + 1, step))
    assert len(tenths.values) == steps + 1 and all(len(label) <= 6 for label in tenths.labels)


@given(st.data())
@settings(max_examples=50)
def test_thinning_keeps_the_opening_value(data):
    sizes = data.draw(st.lists(st.integers(2, 60), min_size=1, max_size=3))
    knobs = [Slider(0, n - 1, value=data.draw(st.integers(0, n - 1))) for n in sizes] + [Switch(True)]
    most = data.draw(st.integers(2, 200))
    kept = thin_sliders([list(range(len(k.values))) for k in knobs], knobs, most)
    assert prod(map(len, kept)) <= most and all(knob.start in places for knob, places in zip(knobs, kept))
    assert all(places == sorted(set(places)) for places in kept) and kept[-1] == [0, 1]
    assert evenly(list(range(30)), 4, 12) == [0, 12, 19, 29]


def test_functions_defaults_open_the_panel():
    assert explore(lambda layer=7, scale=0.5: "", layer=(0, 20), scale=[0.1, 0.5]).values == {"layer": 7, "scale": 0.5}
    assert explore(lambda layer=7: "", layer=Slider(0, 20, value=3)).values == {"layer": 3}
    assert explore(lambda layer=99: "", layer=(0, 20)).values == {"layer": 10}


def test_frames_are_computed_once_and_stored_once():
    calls = []
    panel = explore(lambda n, on: calls.append((n, on)) or f"is {n // 2}", n=(0, 7), on=False)
    assert not calls and panel.twin() == panel.twin() and len(calls) == len(set(calls)) == 16
    data, frames = data_of(panel.twin())
    assert calls[0] == (3, False) and len(frames) == 4 and len(data["order"]) == 16
    assert frames[data["order"][5 * 2 + 1]] == shown("is 2") and frames[data["order"][3 * 2]] is None and panel.twin().count(shown("is 1")) == 1


def test_same_panel_same_page():
    build = lambda title: explore(said, title=title, layer=(0, 4), mode=["a", "b"], on=True).twin()
    assert build("One") == build("One") != build("Two")
    assert "http" not in build("One") and "src=" not in build("One")


@given(st.text(), st.text(min_size=1), st.text())
@settings(max_examples=50)
def test_nothing_escapes(title, token, text):
    evil = "</script><!--" + token
    page = explore(lambda word, text: text, title=title, word=Pick([evil, "b"]), text=Text(text, examples=["</script>"])).twin()
    page.encode()
    assert page.count("<script") == page.count("</script") == 1 and page.count("<!--") == 0


def test_thinned_and_fixed_panels_say_so():
    page = explore(said, layer=(0, 99), mode=["a"], on=False).twin()
    assert "layer: 32 of 100" in page and "<b>mode</b> a." in page and len(data_of(page)[0]["order"]) == 64
    assert "<script" not in explore(said, layer=(0, 99), max_frames=1).twin()
    assert "Run the notebook for any text." in explore(lambda text: text, text="hi").twin()


def test_weight():
    noise = lambda n: Random(n).randbytes(3000).hex()
    assert len(explore(noise, max_kb=60, n=(0, 60)).twin()) <= 60_000
    with pytest.raises(ScopeError, match=r"too heavy: \d+ KB"):
        explore(noise, n=list(range(64))).twin()


class Own:
    def _repr_html_(self):
        return "<b>own</b>"


@pytest.mark.parametrize("value, html", [(Own(), "<b>own</b>"), ("<i>", "&lt;i&gt;"), (0.123456, ">0.1235<"), (3, ">3<"), (True, ">True<"), ([Own(), "x"], "<b>own</b>"),
                                         ({"a": "<"}, "&lt;"), ("\ud800 lone", "lone")])
def test_what_can_be_shown(value, html):
    assert html in explore(lambda n: value, n=(0, 1)).twin()


@pytest.mark.parametrize("value", [None, object()])
def test_what_cannot_be_shown(value):
    with pytest.raises(ScopeError, match="Nothing to show"):
        shown(value)


def test_figures_are_drawn_and_closed():
    plt = pytest.importorskip("matplotlib.pyplot")
    open_before = plt.get_fignums()
    page = explore(lambda n: plt.subplots(figsize=(1, 1))[1], n=(0, 1)).twin()
    assert "data:image/png" in page and plt.get_fignums() == open_before


def test_an_error_is_shown_and_not_lost():
    def fails(n, at):
        if n == at:
            raise KeyError("<n>")
        return "fine"

    with pytest.warns(UserWarning, match="an error for 1 of its settings"):
        page = explore(fails, n=(0, 4), at=[4]).twin()
    assert "KeyError" in data_of(page)[1][-1] and "&lt;n&gt;" in data_of(page)[1][-1]
    with pytest.raises(KeyError):
        explore(fails, n=(0, 4), at=[2]).twin()


def test_live_panel(monkeypatch):
    def no_loop():
        raise RuntimeError("no running event loop")

    monkeypatch.setattr(asyncio, "get_running_loop", no_loop)  # the browser tests leave theirs running
    panel = explore(lambda layer, mode, on, text, word: 1 / (layer - 3) and [said(layer, mode, on), text, word],
                    layer=(0, 4), mode=["a", "b"], on=False, text="hi", word=Pick(["x", "y"]))
    panel.max_frames = 1
    picture, live = live_panel(panel).children[-1], panel._live
    for name, value in dict(layer=4, mode=1, on=True, text="<new>", word=1).items():
        live[name].value = value
    assert "layer 4 mode b on True" in picture.value and "&lt;new&gt;" in picture.value and panel.values["word"] == 1
    live["layer"].value = 3
    assert "ZeroDivisionError" in picture.value and 'role="alert"' in picture.value and isinstance(panel.error, ZeroDivisionError)
    live["layer"].value = 2
    assert "layer 2" in picture.value and panel.error is None


def test_live_text_keeps_its_lines_and_may_not_be_empty():
    panel = explore(lambda text: repr(text), text=Text("one", examples=["a\nb"]))
    picture, box = live_panel(panel).children[-1], panel._live["text"]
    box.value = "two\nlines"
    assert type(box).__name__ == "Textarea" and "two\\nlines" in picture.value and panel.values == {"text": "two\nlines"}
    box.value = ""
    assert "Nothing typed" in picture.value and 'role="alert"' in picture.value
    box.value = "again"
    assert "again" in picture.value and panel.error is None


def shown_outputs(panel, monkeypatch) -> list:
    "The outputs of a cell that ends in a panel."
    import IPython.display
    outputs = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: outputs.append({"output_type": "display_data", "metadata": {}, "data": data}))
    panel._ipython_display_()
    return outputs


def test_frames_are_computed_when_asked(monkeypatch):
    calls = []
    monkeypatch.delenv(SAVED_FRAMES, raising=False)
    panel = explore(lambda n: calls.append(n) or f"is {n}", n=(0, 7))
    saved, live = shown_outputs(panel, monkeypatch)
    assert set(calls) == {3} and "is 3" in saved["data"]["text/html"] and "<script" not in saved["data"]["text/html"]
    assert WIDGET_MIME in live["data"] and WIDGET_MIME not in saved["data"] and "Trust" in live["data"]["text/plain"]
    monkeypatch.setenv(SAVED_FRAMES, "all")
    page = shown_outputs(panel, monkeypatch)[0]["data"]["text/html"]
    assert page == panel.twin() and "trust" in page.lower() and set(calls) == set(range(8))


def test_an_exported_notebook_shows_the_saved_page(monkeypatch):
    nbconvert, nbformat = pytest.importorskip("nbconvert"), pytest.importorskip("nbformat")
    outputs = shown_outputs(explore(lambda n: f"picture {n}", n=(0, 3)), monkeypatch)
    cell = nbformat.v4.new_code_cell("panel", outputs=[nbformat.from_dict(one) for one in outputs])
    page, _ = nbconvert.HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "picture 1</div>" in page


def test_import_is_light():
    code = ("import sys, tokenscope.show.explore, tokenscope.measure.claims\n"
            "print([m for m in ('torch', 'transformers', 'numpy', 'matplotlib', 'ipywidgets', 'anywidget') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_cleaner(tmp_path):
    live, page = {WIDGET_MIME: {"model_id": "1"}, "text/plain": "VBox()"}, {"text/html": ["<p>twin"]}
    outputs = [{"output_type": "display_data", "metadata": {}, "data": data} for data in (live, {**live, **page}, {"image/png": "aa"})]
    outputs += [{"output_type": "stream", "name": name, "text": "é"} for name in ("stdout", "stderr")]
    cell = {"cell_type": "code", "id": "a", "source": "x", "outputs": outputs, "execution_count": 4, "metadata": {"execution": {"iopub.status": 1}, "tags": ["t"]}}
    notebook = {"cells": [{"cell_type": "markdown", "id": "b", "source": "# x", "metadata": {}}, cell], "metadata": {"widgets": {}}, "nbformat": 4, "nbformat_minor": 5}
    before, clean = copy.deepcopy(notebook), clean_notebook(notebook)
    assert notebook == before and "widgets" not in clean["metadata"] and clean["cells"][1]["metadata"] == {"tags": ["t"]}
    assert [list(o.get("data", o.get("name"))) for o in clean["cells"][1]["outputs"]] == [["text/plain", "text/html"], ["image/png"], list("stdout")]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    assert clean_notebooks(tmp_path) == [str(tmp_path / "sub/a.ipynb")] and clean_notebooks(tmp_path) == []
    (tmp_path / "b.ipynb").write_text("[]", encoding="utf-8")
    with pytest.raises(ScopeError, match="Cannot clean b.ipynb"):
        clean_outputs(tmp_path / "b.ipynb")
