"What steering costs: collecting contrasts, beside the plain forwards that they need, and generating with the edits of each technique."
import pytest
import torch

from measure import ROUNDS, SMOKE, ratio_table
from tokenscope.text.batch import batches_by_length
from tokenscope.change.contrasts import Contrasts, answer_rows
from tokenscope.change.directions import difference_of_means
from tokenscope.data.languages import parallel_text
from tokenscope.core.scope import load
from tokenscope.core.states import last_states
from tokenscope.steering.austeer import atomic_units, austeer
from tokenscope.steering.clas_bench import steer_language
from tokenscope.steering.grains import grains
from tokenscope.steering.langfir import find_language_features
from tokenscope.steering.neural_foxp2 import neural_foxp2
from tokenscope.steering.struct_transform import undo_container
from tokenscope.steering.zerotuning import zerotuning

PAIRS = 200 if ROUNDS > 1 else 20
WORDS = [("wonderful", "terrible"), ("terrible", "wonderful"), ("good", "bad"), ("bad", "good")]
TEXTS = [[f"Review {i}: the {thing} was {pair[side]}." for i in range(PAIRS // 20) for thing in ("film", "meal", "hotel", "song", "book") for pair in WORDS] for side in (0, 1)]


@pytest.fixture(scope="module")
def scope():
    torch.set_num_threads(1)
    return load()


@torch.no_grad()
def test_collecting_two_hundred_pairs(scope):
    pairs = Contrasts([t.rsplit(" ", 1)[0] for t in TEXTS[0]], [" " + t.rsplit(" ", 1)[1] for t in TEXTS[0]], [" " + t.rsplit(" ", 1)[1] for t in TEXTS[1]])
    rows = answer_rows(scope, pairs.prompts * 2, pairs.right + pairs.wrong)[0]
    batches = [scope.encode([rows[i] for i in some]) for some in batches_by_length([len(r) for r in rows], 2048)]

    def plain():
        for batch in batches:
            scope.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    alone = scope.model(input_ids=torch.tensor([rows[0]]), use_cache=False, output_hidden_states=True).hidden_states[13][0, -1]
    torch.testing.assert_close(last_states(scope, rows, layers=12)[0, 0], alone, atol=5e-3, rtol=1e-3)
    ratio_table(f"Contrasts of {PAIRS} pairs", plain, {"tokenscope": {
        "last states, all layers": lambda: last_states(scope, rows),
        "difference of means, all layers": lambda: difference_of_means(scope, *TEXTS),
        "atomic units, all heads": lambda: atomic_units(scope, pairs),
    }}, {"last states, all layers": 1.1, "difference of means, all layers": 1.1, "atomic units, all heads": 1.1}, "ratio to a plain forward of these texts")


def test_generating_with_every_technique(scope):
    few = dict(contrasts=(["The sea is", "The day was"], [" wonderful", " lovely"], [" terrible", " awful"]))
    spanish, english = (texts[: 4 if SMOKE else 16] for texts in parallel_text(["spa", "eng"]).values())
    found = find_language_features(scope, spanish, n_random=4 if SMOKE else 16)
    ways = {
        "CLaS-Bench": steer_language(scope, source=english, target=spanish, layers=8), "ZeroTuning": zerotuning(scope, gamma=2.0), "AUSteer": austeer(scope, **(few if SMOKE else {}), k=100), "GrAInS": grains(scope, **few, k=1, n_steps=2, angle=15.0),
        "LangFIR, steer": found.steer(), "LangFIR, ablate": found.ablate(), "structure audit": undo_container(scope),
        "Neural FOXP2": neural_foxp2(scope, target=spanish, english=english, prompts=["Say: "], layers=10, n_features=64, epochs=2, top=8, positions="not first"),
    }
    n = 4 if SMOKE else 24
    speak = lambda: scope.generate("The sea is", max_new_tokens=n, min_new_tokens=n)

    def steered(edits):
        with scope.edit(*edits):
            return speak()

    made = {name: lambda edits=edits: steered(edits) for name, edits in ways.items() if edits}
    assert set(made) >= set(ways) - {"Neural FOXP2"}  # random features may all be without effect
    ratio_table(f"Generating {n} tokens with each technique", speak, {"tokenscope": made}, dict.fromkeys(made, 1.05), "ratio to a plain generate", 3 * ROUNDS if ROUNDS > 1 else 1)
