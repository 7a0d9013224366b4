"The table of shipped small models, the README beside them, and training that several processes ask for."
import os
import subprocess
import sys

import pytest
from notebooks import ROOT

from tokenscope.app.commands import main
from tokenscope.learn.shipped import SHIPPED, _named, _shipped_markdown, makings, shipped
from tokenscope.text.names import ScopeError

SHIPPED_FOLDER = ROOT / "tokenscope/shipped"

TRAIN = """
import sys, time
from pathlib import Path
from tokenscope.learn.small_models import load_header, save_small, small_llama, train_lm, train_once, word_tokenizer
from tokenscope.text.names import ScopeError
import torch

def make(draft):
    Path(sys.argv[2]).open("a").write("trained\\n")
    words = word_tokenizer("ab")
    model = small_llama(len(words), n_layers=1, d_model=8)
    ids = torch.tensor([[1, 4, 5]])
    losses = train_lm(model, lambda step: (ids, ids), 2)
    time.sleep(0.5)
    save_small(model, words, draft, losses)

print(load_header(train_once(sys.argv[1], make))["losses"])
"""


def test_the_readme_shows_the_table_and_every_file_has_a_row():
    assert _shipped_markdown() in (SHIPPED_FOLDER / "README.md").read_text(encoding="utf-8"), "print _shipped_markdown() into tokenscope/shipped/README.md"
    assert {row.file for row in SHIPPED.values()} == {f.name for f in SHIPPED_FOLDER.glob("*.safetensors")}
    for name, row in SHIPPED.items():
        assert abs(row.path.stat().st_size / 1000 - row.kilobytes) < 2, name


def test_makers_and_loaders_are_there():
    for row in SHIPPED.values():
        assert callable(_named(row.maker)) and callable(_named(row.loader))


@pytest.mark.parametrize("name", ("rewriter", "rlvr_sft", "adder_l2r_aligned", "walker_digits", "hat_blocks", "step_sae", "sae"))
def test_a_shipped_model_says_where_it_comes_from(name):
    model = shipped(name)
    assert model.made_by and (model.losses or name in ("rlvr_sft", "sae"))
    assert not any(p.requires_grad for p in getattr(model.model, "parameters", list)())


def test_runs_that_make_several_files_are_there_once(capsys):
    assert list(makings(["rlvr_rl", "rlvr_base", "binding"])) == ["rlvr_rl", "binding"]
    assert main(["toys", "--list"]) == 0 and capsys.readouterr().out.split() == list(makings())
    assert main(["toys", "binders", "--list"]) == 2 and "No shipped model is called" in capsys.readouterr().err
    with pytest.raises(ScopeError, match="Not a scope"):
        shipped("hat").scope


def test_two_processes_train_a_model_once(tmp_path):
    run = [sys.executable, "-c", TRAIN, str(tmp_path / "cache/small.safetensors"), str(tmp_path / "log")]
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(2)]
    one, two = (process.communicate(timeout=120)[0] for process in both)
    assert one == two and one.startswith("[") and (tmp_path / "log").read_text() == "trained\n"
