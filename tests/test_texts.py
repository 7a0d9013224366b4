"Corpus sources: every kind gives the same texts, shards hold each once, nothing is held whole."
import json

import pytest
from hypothesis import given, settings, strategies as st

from tokenscope.text.names import ScopeError
from tokenscope.text.texts import TextSource, plan_shards, shards_of, text_source

pyarrow = pytest.importorskip("pyarrow")
import pyarrow.parquet  # noqa: E402


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=40), st.integers(1, 60), st.integers(1, 9), st.randoms())
def test_shards_hold_every_text_once(texts, characters, most, random):
    plan = plan_shards(text_source(texts), characters, most)
    assert plan.bounds[0] == 0 and plan.bounds[-1] == len(texts) and sorted(set(plan.bounds)) == plan.bounds
    assert [t for _, held in shards_of(text_source(texts), plan, range(len(plan))) for t in held] == texts
    some = random.sample(range(len(plan)), random.randint(0, len(plan)))
    assert dict(shards_of(text_source(texts), plan, some)) == {k: texts[plan.bounds[k]:plan.bounds[k + 1]] for k in some}


def test_every_kind_of_source_gives_the_same_texts(tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = ["one", "", "three é", "a\u2028b"]
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in texts) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    table = datasets.Dataset.from_dict({"text": texts})
    sources = [texts, tuple(texts), [{"text": t} for t in texts], tmp_path / "a.txt", str(tmp_path / "a.jsonl"), tmp_path / "a.parquet", table, table.to_iterable_dataset()]
    assert len({plan_shards(text_source(s)).sha256 for s in sources}) == 1
    assert all(list(text_source(s)) == texts for s in sources)


def test_a_stream_is_never_held_whole():
    alive = most = 0

    class Counted(str):
        def __new__(cls, text):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, text)

        def __del__(self):
            nonlocal alive
            alive -= 1

    source = TextSource("stream", lambda: (Counted(f"text {i}") for i in range(5000)))
    plan = plan_shards(source, texts=50)
    for _, held in shards_of(source, plan, range(len(plan))):
        pass
    assert most <= 110


@pytest.mark.parametrize("data, message", [
    ("a.csv", "Unknown kind of corpus"), ("missing.jsonl", "No such corpus file"), ([], "Nothing in the corpus"), (iter(["a"]), "Not a corpus"), (7, "Not a corpus"),
    ([b"a"], "Not a text in the corpus: row 0"), (["a", None], "Not a text in the corpus: row 1"), ([{"body": "a"}], "No such column in the corpus: 'text'")])
def test_bad_sources(data, message):
    with pytest.raises(ScopeError, match=message):
        plan_shards(text_source(data))


def test_broken_files_say_where(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (tmp_path / "c.txt").write_bytes(b"fine\nbad \xff byte\n")
    with pytest.raises(ScopeError, match="Broken JSON in the corpus: line 2 of a.jsonl"):
        list(text_source(tmp_path / "a.jsonl"))
    with pytest.raises(ScopeError, match="Not a Parquet file"):
        list(text_source(tmp_path / "b.parquet"))
    assert list(text_source(tmp_path / "c.txt")) == ["fine", "bad \ufffd byte"]
