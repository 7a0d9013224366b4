"A live panel in JupyterLab: run a notebook, turn its controls with the keyboard, see the result change."
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import tokenscope
from tokenscope.show.explore import clean_outputs, explore

pytestmark = pytest.mark.browser
CELL = '''
from tokenscope.show.controls import Pick
from tokenscope.show.explore import explore

def answer(layer, token=0, loud=False, text="none"):
    if layer == 7:
        raise ValueError("layer seven is closed")
    said = f"live layer {layer} token {token} text {text}"
    return said.upper() if loud else said

explore(answer, title="Lab", layer=(0, 8), token=Pick(["How", " are", " you"]), loud=False, text="none")
'''


def save(path, source, shown=None):
    "A notebook of one cell."
    outputs = [{"output_type": "display_data", "metadata": {}, "data": shown}] if shown else []
    cell = {"cell_type": "code", "id": "a1", "source": source, "metadata": {}, "outputs": outputs, "execution_count": None}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab on an empty folder; stopped afterwards."
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    save(folder / "panel.ipynb", CELL)
    panel = explore(lambda layer: f"saved layer {layer}", layer=(0, 8))
    live = {"application/vnd.jupyter.widget-view+json": {"model_id": "gone", "version_major": 2, "version_minor": 0}}
    save(folder / "saved.ipynb", "panel", {**live, "text/html": panel.twin(), "text/plain": repr(panel)})
    assert clean_outputs(folder / "saved.ipynb")
    quiet = folder / ".home/JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {name: str(folder / ".home" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
                                                             "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=", 
               f"--ServerApp.root_dir={folder}"]
    log = open(folder / "server.log", "w")
    environment = {**os.environ, **home, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tokenscope.__file__).parents[1])}
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", server, folder / "server.log")
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}", lambda name: subprocess.run(
            [sys.executable, "-m", "jupyter", "trust", folder / name], env=environment, check=True, capture_output=True)
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def wait_for(url, server, log, seconds=150):
    "Ask until the server answers."
    for _ in range(seconds * 5):
        try:
            return urllib.request.urlopen(url, timeout=2)
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    raise TimeoutError(log.read_text()[-2000:])


def test_live_panel_answers(lab, page, outside):
    address, _ = lab
    page.set_default_timeout(60_000)
    page.goto(address("panel.ipynb"))
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    page.get_by_text("Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    output = page.locator(".jp-OutputArea-output:has(.widget-vbox)")  # the live panel, not the saved page
    output.get_by_text("live layer 4 token 0 text none").wait_for()
    assert not page.locator("[data-ts]").first.is_visible()  # the saved page beside it hides
    handle = output.get_by_role("slider", name="layer")
    handle.focus()
    page.keyboard.press("ArrowRight")
    output.get_by_text("live layer 5 token 0").wait_for()
    assert handle.get_attribute("aria-valuetext") == "5"
    output.get_by_role("radio", name="How").focus()
    page.keyboard.press("ArrowRight")
    output.get_by_text("live layer 5 token 1").wait_for()
    box = output.get_by_label("text")
    box.fill("")
    output.get_by_role("alert").wait_for()
    box.focus()
    page.keyboard.type("hello\nyou")
    output.get_by_text("live layer 5 token 1 text hello\nyou").wait_for()
    assert box.input_value() == "hello\nyou"
    box.fill("hello")
    output.get_by_text("live layer 5 token 1 text hello").wait_for()
    output.get_by_text("loud").click()
    output.get_by_text("LIVE LAYER 5 TOKEN 1 TEXT HELLO").wait_for()
    handle.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    alert = output.get_by_role("alert")
    alert.wait_for()
    assert "ValueError: layer seven is closed" in re.sub(r"\s+", " ", alert.inner_text())
    page.keyboard.press("ArrowRight")
    output.get_by_text("LIVE LAYER 8").wait_for()
    assert page.locator(".jp-Cell").count() <= 2 and not outside()


def test_saved_panel_before_and_after_trust(lab, page, outside):
    address, trust = lab
    page.set_default_timeout(60_000)
    page.goto(address("saved.ipynb"))
    output = page.locator(".jp-OutputArea-output")
    output.get_by_text("saved layer 4").wait_for()  # a notebook from elsewhere: no script runs, the picture is there
    assert "Trust Notebook" in output.inner_text()
    assert "layer 4" in output.inner_text() and output.get_by_role("slider").count() == 0
    trust("saved.ipynb")
    page.goto("about:blank")
    page.goto(address("saved.ipynb"))
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    output.get_by_role("slider", name="layer").press("ArrowRight")
    output.get_by_text("saved layer 5").wait_for()
    assert not outside()
