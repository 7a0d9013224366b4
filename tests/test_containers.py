"Containers keep every text, and standard readers accept what they write."
import csv
import io
import json
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import example, given, settings, strategies as st

from tokenscope.text.containers import INSTRUCTION, STRUCTURES, Request, canonicalise, filler, keyorder, padded, parse, render
from tokenscope.text.names import ScopeError

AWKWARD = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\ufffe\uffff", include_characters="\n\t\"'\\:,<>&#|=;{}- "), max_size=30)
NAMES = st.sampled_from(["country", "word", "first_number", "n", "where", "answer"])
REQUESTS = st.builds(Request, st.dictionaries(NAMES, AWKWARD, max_size=4), AWKWARD)


@settings(max_examples=300, deadline=None)
@given(REQUESTS, st.sampled_from(STRUCTURES))
@example(Request({"word": "x' AND question = 'y"}, "' AND word = ''; --"), "sql_select")
@example(Request({"word": "a.\nThe word is b."}, "The word is c."), "plain")
@example(Request({"word": " \\| "}, "\\n | \n"), "markdown_table")
@example(Request({"word": "1e3", "n": "no"}, "007"), "yaml")
def test_nothing_is_lost(request_, structure):
    text = render(request_, structure)
    assert parse(text, structure) == request_ and list(parse(text, structure).fields) == list(request_.fields)
    assert canonicalise(text, structure) == render(request_)


@settings(max_examples=100, deadline=None)
@given(REQUESTS)
def test_standard_readers_agree(request_):
    body = lambda s: render(request_, s).removeprefix(INSTRUCTION)
    assert json.loads(body("json")) == request_.record
    assert {e.tag: e.text or "" for e in ElementTree.fromstring(body("xml"))} == request_.record
    assert list(csv.reader(io.StringIO(body("csv"), newline=""))) == [list(request_.record), list(request_.record.values())]


@pytest.mark.parametrize("value", ["no", "1e3", " x ", "#", "é 👩‍👩‍👧", "a\nb", "'\""])
def test_yaml_reads_the_same(value):
    assert yaml.safe_load(render(Request({"word": value}, value), "yaml").removeprefix(INSTRUCTION)) == {"word": value, "question": value}


@settings(max_examples=50, deadline=None)
@given(REQUESTS, st.integers(0, 400))
def test_controls_keep_the_content(request_, characters):
    assert parse(keyorder(request_), "json").fields == request_.fields
    assert filler(request_).endswith(render(request_).removeprefix(INSTRUCTION))
    assert padded(request_, characters).endswith(render(request_).removeprefix(INSTRUCTION))
    assert abs(len(padded(request_, characters)) - max(characters, len(render(request_)))) <= 26


@pytest.mark.parametrize("wrong", [lambda: Request({"a": "\x00"}, ""), lambda: Request({"a": "\ud800"}, ""), lambda: Request({"a": 3}, ""), lambda: Request({"A b": ""}, ""), lambda: Request({"question": ""}, ""),
                                   lambda: parse("{}", "json"), lambda: parse("[1]", "json"), lambda: parse("answer(f(1))", "python_call"), lambda: parse("<a>", "xml"), lambda: parse("a", "csv"), lambda: render(Request({}, ""), "toml")])
def test_refused(wrong):
    with pytest.raises(ScopeError):
        wrong()
