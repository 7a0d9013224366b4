"The console command with bad arguments: a clear line for each, at once, and no model is loaded."
import re
import subprocess
import sys
import time

import pytest

import tokenscope.core.scope
from notebooks import ROOT
from tokenscope.app.commands import main


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    def refuse(name=None):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(tokenscope.core.scope, "load", refuse)


BAD = {
    "tour: nowhere": (["tour", "Hi", "-o", "missing/x.html"], "Nowhere to write: missing/x.html lies in no folder"),
    "tour: a folder": (["tour", "Hi", "-o", "."], "is a folder; give a file in it"),
    "tour: no picture": (["tour", "Hi", "--image", "missing.png"], "missing.png"),
    "tour: no text": (["tour", " "], "Nothing to tour"),
    "corpus: no data": (["corpus", "missing.txt", "out"], "No such corpus file: missing.txt"),
    "corpus: no kind": (["corpus", "data.docx", "out"], "Unknown kind of corpus"),
    "corpus: column": (["corpus", "data.jsonl", "out", "--column", "body"], "--column"),
    "corpus: site": (["corpus", "data.txt", "out", "--site", "resid_pots"], "resid_post"),
    "corpus: empty": (["corpus", "empty.jsonl", "out"], "Nothing in the corpus: empty.jsonl"),
    "corpus: a file": (["corpus", "data.txt", "data.jsonl"], "data.jsonl is a file; give a folder"),
    "corpus: layers": (["corpus", "data.txt", "out", "--layers", "1"], "No sites asked for: --layers"),
    "panel: nobody": (["panel", "magic"], "No such technique: 'magic'"),
    "panel: none": (["panel", "grains"], "No panel: grains has none"),
    "toys: nothing": (["toys", "binders"], "No shipped model is called 'binders'"),
    "toys: no name": (["toys"], "give names"),
    "panel: nowhere": (["panel", "zerotuning", "-o", "missing/x.html"], "Nowhere to write"),
}
USAGE = {
    "layers": (["corpus", "data.txt", "out", "--layers", "a,b"], "'a,b' is no list of layers; write numbers"),
    "score": (["corpus", "data.txt", "out", "--score", "magic"], "invalid choice: 'magic'"),
    "dtype": (["corpus", "data.txt", "out", "--dtype", "int4"], "invalid choice: 'int4'"),
    "batch": (["corpus", "data.txt", "out", "--batch-tokens", "0"], "'0' is no number of tokens"),
    "gallery": (["gallery", "more"], "unrecognized arguments"),
    "command": (["fly"], "invalid choice: 'fly'"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("one text\n")
    (tmp_path / "data.jsonl").write_text('{"text": "one text"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "data.docx").write_text("no text")


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)
def test_what_cannot_be_done_is_said_at_once(arguments, message, capsys):
    begun = time.process_time()
    assert main(arguments) == 2
    assert time.process_time() - begun < 2
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert not re.search(r"\b(column|layers|batch_tokens)=", told.err)


@pytest.mark.parametrize("arguments, message", USAGE.values(), ids=USAGE)
def test_what_cannot_be_read_is_said_in_english(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert "_layer_list" not in told


def test_the_gallery_is_aligned(capsys):
    assert main(["gallery"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "arXiv" in line]
    assert len({line.index("arXiv") for line in lines}) == 1


def test_no_model_library_for_a_slip():
    code = "import sys; from tokenscope.app.commands import main; main(['corpus', 'missing.txt', 'out']); main(['tour', 'a', '-o', 'missing/x.html']); main(['gallery']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False", done.stdout + done.stderr


def test_a_column_of_a_text_file(tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    assert main(["corpus", str(tmp_path / "lines.txt"), str(tmp_path / "out"), "--column", "nope"]) == 2
    assert "No fields in" in capsys.readouterr().err and not (tmp_path / "out").exists()
