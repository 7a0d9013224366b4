"Walkers, and paths as text: exact identities, many models and tokenizers, and what users get wrong."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from architectures import VOCAB, tiny
from tokenscope.data.cuts import token_counts
from tokenscope.data.tokenizer_catalogue import real_tokenizer, tokenizer_catalogue
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.learn.walkers import ade_fde, cluster_paths, constant_velocity, direction_of, kalman_velocity, path_spread, read_eth_ucy, simulate_walkers, stand_still, walk_copies
from tokenscope.learn.shipped import shipped
from tokenscope.tokenizers.lmtraj import (TASKS, CoordinateGrammar, lmtraj, make_prompt, predict_trajectories, sample_walks, shuffled_history, text_to_traj, train_numeric_tokenizer,
                                          traj_to_text, walk_texts)

paths = st.lists(st.tuples(*[st.floats(-99, 99)] * 2), min_size=12, max_size=12)


@given(paths)
@settings(max_examples=60, deadline=None)
def test_reading_undoes_writing(path):
    assert text_to_traj(traj_to_text(path)).tolist() == [[round(v, 2) + 0.0 for v in point] for point in path]
    floor = np.abs(text_to_traj(traj_to_text(path, 1)) - np.array(path))
    assert floor.max() <= 0.05 + 1e-9


def test_the_hand_case_and_the_repairs():
    assert text_to_traj("[(1.00, 2.00), (3.00, 4.00)]", 2).tolist() == [[1, 2], [3, 4]]
    assert traj_to_text([[1, 2], [3, -0.001]]) == "[(1.00, 2.00), (3.00, 0.00)]" and traj_to_text([[10, 20]], 0, 0.25) == "[(2, 5)]"
    path = np.arange(28.0).reshape(14, 2) - 9
    assert (text_to_traj("x " + traj_to_text(path[:12]) + " y") == path[:12]).all()
    assert (text_to_traj(traj_to_text(path[:13])) == path[:12]).all()
    short = text_to_traj(traj_to_text(path[:11]))
    assert (short[:11] == path[:11]).all() and (short[11] == path[10]).all()
    assert text_to_traj(traj_to_text(path[:10])) is None and text_to_traj(traj_to_text(path)) is None


@pytest.mark.parametrize("text", ["", "[", "[()]", "[(1.-20, 3)]", "[(1, 2), (3", "[(" + "1" * 40 + ", 2)]", "[(١, ٢)]", "[(1,\x00 2)]", "[(1e5, 2)]", "[(nan, 2)]", "\ud800[(1 2)]", "[(__import__('os'), 2)]", "שלום [(1; 2)]"])
def test_what_is_no_path(text):
    assert text_to_traj(text, 1) is None


def test_a_path_amid_other_scripts_is_found():
    assert text_to_traj("\ud800 שלום \x00 [(1.5, -2)] ١٢٣", 1).tolist() == [[1.5, -2]]


def test_straight_lines_and_errors():
    line = np.arange(20)[:, None] * [0.4, -0.3]
    for predict in (constant_velocity, kalman_velocity):
        assert np.allclose(ade_fde(predict(line[:8]), line[8:]), 0, atol=1e-9)
    assert ade_fde(stand_still(np.ones((8, 2))), np.ones((12, 2))) == (0, 0)
    observed, future = simulate_walkers(20, seed=4)
    guesses = constant_velocity(observed, 20, 0.2)
    ade, fde = zip(*(ade_fde(guesses[:, :, :k], future) for k in range(1, 21)))
    assert (np.diff(ade, axis=0) <= 0).all() and (np.diff(fde, axis=0) <= 0).all()
    assert (ade[-1] <= ade_fde(guesses, future, False)[0] + 1e-12).all()
    far = np.linalg.norm(guesses - future[:, :, None], axis=-1)
    assert (far.mean(-1) <= far.max(-1)).all() and path_spread(np.stack([line, line + [3, 4]])) == pytest.approx(5)
    assert cluster_paths(guesses[0, 0], 20).shape == (20, 12, 2)


def test_walks_are_the_same_for_a_seed_and_forks_are_even():
    assert all((a == b).all() for a, b in zip(simulate_walkers(5, 1, True), simulate_walkers(5, 1, True)))
    walks, forked = sample_walks(300, seed=3, fork=True)
    turned = [direction_of(w) for w in walks]
    assert forked.all() and 0.4 < turned.count("left") / (turned.count("left") + turned.count("right")) < 0.6


def test_copies():
    walk = np.random.default_rng(0).normal(size=(3, 20, 2))
    copies = list(walk_copies(walk))
    assert len(copies) == 200 and len({c.round(6).tobytes() for c in copies}) == 200
    plain = list(walk_copies(walk, shifts=(0,)))
    assert np.allclose(plain[1][:, 8:], walk[:, :12][:, ::-1])
    for k in (1, 2, 4):
        assert np.allclose(list(walk_copies(plain[k], shifts=(0,)))[k], walk)


@given(st.floats(0, 6.28))
@settings(max_examples=20, deadline=None)
def test_direction_does_not_depend_on_the_frame_of_reference(a):
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    for w in sample_walks(6, seed=8)[0]:
        assert direction_of(w) == direction_of(w @ turn)


def test_answers_from_positions():
    t = np.arange(20)[:, None] * np.array([0.4, 0])
    crowd = np.stack([t, t + [0, 0.5], t * 2 + [0, 3], t[::-1] + [0.2, 0.01]])
    say = lambda task: make_prompt(crowd, task)[1].strip()
    assert (say("direction"), say("group"), say("mimicry"), say("collision")) == ("forward", "pedestrian 1", "pedestrian 1", "pedestrian 2")
    assert say("destination") == "(7.60, 0.00)" and len(TASKS) == 6
    assert make_prompt(crowd[:, :8])[1] is None and make_prompt(crowd[:1], "group")[1] == " nobody"
    assert [direction_of(np.concatenate([t[:8], t[7] + s * np.arange(1, 13)[:, None] * 0.4])) for s in ([0, 1], [0, -1], [-1, 0], [0, 0])] == ["left", "right", "backward", "stop"]


def small_tokenizer():
    return train_numeric_tokenizer([p + a for p, a in walk_texts(*sample_walks(20))], kind="char")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_models_of_many_families_write_paths_under_the_grammar(family):
    tokenizer = small_tokenizer()
    assert len(tokenizer) <= VOCAB
    scope = Scope(tiny(family, max_position_embeddings=512), tokenizer)
    prompts = [make_prompt(w[None])[0] for w in sample_walks(2)[0]]
    for how in (dict(temperature=2), dict(temperature=0), dict(beams=2)):
        found, valid, texts = predict_trajectories(scope, prompts, n=2, frames=2, **how)
        assert all(text_to_traj(t, 2) is not None for some in texts for t in some) and found.shape == (2, 1 if "beams" in how else 2, 2, 2)
    same = [predict_trajectories(scope, prompts, n=1, frames=2, **how)[2] for how in (dict(temperature=0), dict(beams=1), dict(temperature=1e-4))]
    assert same[0] == same[1] == same[2]


@pytest.mark.parametrize("name", [e.name for e in tokenizer_catalogue()])
def test_every_tokenizer_of_the_catalogue_can_follow_the_grammar(name):
    tokenizer, draw = real_tokenizer(name), np.random.default_rng(0)
    grammar, ids = CoordinateGrammar(tokenizer, 0, n_points=3, decimals=2), []
    for _ in range(80):
        ids.append(int(draw.choice(grammar.allowed("".join(grammar.pieces[i] for i in ids)))))
        if ids[-1] == grammar.end:
            break
    assert ids[-1] == grammar.end and text_to_traj(tokenizer.decode(ids[:-1]), 3) is not None
    assert 30 < token_counts(traj_to_text(sample_walks(1)[0][0, 8:]), [tokenizer]).tokens.iloc[0] < 250


def test_ratios_survive_the_grammar():
    tokenizer = small_tokenizer()
    scores = torch.randn(3, len(tokenizer))
    out = CoordinateGrammar(tokenizer, 0)(torch.zeros(3, 0, dtype=torch.long), scores).softmax(-1)
    kept, plain = out[0] > 0, scores.softmax(-1)
    assert torch.allclose(out[:, kept], plain[:, kept] / plain[:, kept].sum(-1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_numeric_tokenizers_lose_nothing(kind):
    texts = [p + a for p, a in walk_texts(*sample_walks(60))]
    tokenizer = train_numeric_tokenizer(texts, 300, kind)
    assert all(tokenizer.decode(tokenizer(t)["input_ids"]) == t for t in texts[:10]) and len(tokenizer) <= 300


def test_the_shipped_model_and_its_control():
    scope, walk = shipped("walker_numeric").scope, sample_walks(1, seed=50, fork=True)[0][0]
    found = lmtraj(scope, walk[:8] + 100, scene="a fork ahead.", n=5)
    assert found.paths.shape == (5, 12, 2) and np.linalg.norm(found.paths[:, 0] - walk[7] - 100, axis=-1).max() < 5
    again = lmtraj(scope, walk[:8] + 100, scene="a fork ahead.", n=5)
    assert (found.paths == again.paths).all() and "guesses" in found._repr_html_()
    other = shuffled_history(scope, walk[:8], n=5, scene="a fork ahead.")
    assert other.prompt != found.prompt and (other.observed[-1] == walk[7]).all()
    assert lmtraj(scope, np.stack([walk[:8], walk[:8] + 1]), n=2, examples=[walk[None]]).prompt.count("pedestrian 1") == 1


def test_files(tmp_path):
    file = tmp_path / "tracks.txt"
    file.write_text("\n".join(f"{10 * k} {p} {k * 0.4} {p}" for p in (1, 2) for k in range(22) if (p, k) != (2, 10)))
    observed, future, who = read_eth_ucy(file)
    assert observed.shape == (3, 8, 2) and future.shape == (3, 12, 2) and set(who[:, 0]) == {1}


def test_what_users_get_wrong(tmp_path):
    scope, walk = shipped("walker_numeric").scope, sample_walks(1)[0][0]
    (tmp_path / "a.txt").write_text("1 2 3\n")
    (tmp_path / "b.txt").write_text("1 2 3 nan\n")
    (tmp_path / "c.txt").write_text("1 2 3 4\n")
    for wrong in (lambda: lmtraj(scope, walk[:7]), lambda: lmtraj(scope, []), lambda: lmtraj(scope, "path"), lambda: lmtraj(scope, walk[:8] * np.nan), lambda: traj_to_text([[np.inf, 0]]), lambda: traj_to_text([]),
                  lambda: predict_trajectories(scope, []), lambda: predict_trajectories(scope, ["x"], n=0), lambda: predict_trajectories(scope, ["x"], temperature=-1), lambda: predict_trajectories(scope, ["pedestrian " * 600]),
                  lambda: shipped("walker_t5"), lambda: make_prompt(walk[None], "poem"), lambda: make_prompt(walk), lambda: train_numeric_tokenizer([""]), lambda: train_numeric_tokenizer(["a"], kind="word"),
                  lambda: simulate_walkers(0), lambda: ade_fde(walk[None], walk[:5]), lambda: constant_velocity(walk[:1]), lambda: sample_walks(0),
                  *(lambda f=f: read_eth_ucy(tmp_path / f) for f in ("a.txt", "b.txt", "c.txt", "d.txt"))):
        with pytest.raises(ScopeError):
            wrong()
