"What every technique must do, read from the cards, on tiny models of several architectures. Each word of `RETURNS` has a class here."
import importlib
import inspect

import pytest
import torch
from transformers import AutoTokenizer

from architectures import VOCAB, tiny, tiny_reader
from tokenscope.app.cards import cards
from tokenscope.app.contract import RETURNS, control_differences, keeps_promise
from tokenscope.core.default_model import default_model
from tokenscope.core.edit import Edit
from tokenscope.core.scope import Scope
from tokenscope.measure.diagnosis import Diagnosis
from tokenscope.text.names import ScopeError

IDS = torch.randint(3, VOCAB - 1, (2, 9), generator=torch.Generator().manual_seed(2))
TEXT = "The cat sat on the mat, and nobody <xmp>saw it."
STEPS = "Tom has 3 cats and 4 dogs.\nHe gives 2 cats away.\nThat leaves 1 cat.\nSo 1 and 4 make 5."
ARCHITECTURES = ["llama", "gpt2", "gemma2", "mixtral"]
slug = lambda card: card["slug"]


def returning(word):
    "A mark: once for each technique whose card says this word."
    return pytest.mark.parametrize("card", [c for c in cards() if c["returns"] == word], ids=slug)


def module_of(card):
    return importlib.import_module(f"tokenscope.{card['family']}.{card['slug']}")


def parts(card):
    return getattr(module_of(card), card["front"]), getattr(module_of(card), card["control"])


def unless_skipped(card, what):
    "Skip a part of the contract that the card says cannot apply, with the card's reason."
    if what in card.get("skips", {}):
        pytest.skip(card["skips"][what])


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module", params=ARCHITECTURES)
def scope(request):
    return Scope(tiny(request.param))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def reader(request):
    "A tiny model that takes the default model's tokens."
    return tiny_reader(request.param)


@pytest.fixture(scope="module", params=ARCHITECTURES[:2])
def asked(request):
    "The same for what asks much of a model: two architectures."
    return tiny_reader(request.param, max_position_embeddings=2048)


def given_to(card, scope) -> tuple:
    "What a front takes before its keywords."
    given = card.get("given", ())
    if isinstance(given, str):
        return getattr(module_of(card), given)()
    if card["model"] == "checkpoint-pair":
        after = Scope(tiny("llama", vocab_size=scope.vocab_size))
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in after.model.parameters():
                p += 0.01 * torch.randn(p.shape, generator=noise)
        return Scope(tiny("llama", vocab_size=scope.vocab_size)), after
    return (scope, *given)


def text_of(card):
    return STEPS if "layers" in card.get("skips", {}) else TEXT


def test_every_word_has_its_class():
    assert set(CONTRACTS) == set(RETURNS)


@pytest.mark.parametrize("card", cards(), ids=slug)
class TestControls:
    def test_the_control_is_marked(self, card):
        front, control = parts(card)
        assert control.control_of is front

    def test_the_control_takes_what_the_front_takes_or_the_card_says_why(self, card):
        assert set(control_differences(*parts(card))) == set(card.get("differs", {}))

    def test_no_argument_is_hidden(self, card):
        front, control = parts(card)
        hidden = [n for n, p in inspect.signature(control).parameters.items() if p.kind is p.VAR_KEYWORD]
        assert hidden in ([], [n for n, p in inspect.signature(front).parameters.items() if p.kind is p.VAR_KEYWORD])


@returning("edits")
class TestEdits:
    def test_neutral_is_bit_equal(self, card, scope):
        plain = scope.model(IDS).logits
        with scope.edit(*parts(card)[0](scope, **card["neutral"])):
            assert torch.equal(scope.model(IDS).logits, plain)

    def test_example_and_control_change_something_and_compose_with_nothing(self, card, scope):
        plain = scope.model(IDS).logits
        for make in parts(card):
            edits = make(scope, **card["example"])
            assert keeps_promise("edits", edits)
            with scope.edit(*edits):
                moved = scope.model(IDS).logits
            with scope.edit(*edits, Edit("resid_post", add=0.0)), scope.edit(Edit("attn_scores", scale=1.0)):
                assert torch.equal(scope.model(IDS).logits, moved)
            assert moved.isfinite().all()
            assert (moved - plain).abs().max() > 1e-6
        assert torch.equal(scope.model(IDS).logits, plain)

    def test_off_after_an_exception(self, card, scope):
        plain, hooks = scope.model(IDS).logits, hooks_on(scope.model)
        with pytest.raises(RuntimeError, match="on purpose"), scope.edit(*parts(card)[0](scope, **card["example"])):
            raise RuntimeError("on purpose")
        assert torch.equal(scope.model(IDS).logits, plain)
        assert hooks_on(scope.model) == hooks

    def test_works_in_generate_with_and_without_cache(self, card, scope):
        rows = [IDS[0].tolist(), IDS[1, :4].tolist()]
        with scope.edit(*parts(card)[0](scope, **card["example"])):
            cached, whole = (scope.generate(rows, max_new_tokens=4, eos_token_id=None, use_cache=c) for c in (True, False))
            alone = [scope.generate(r, max_new_tokens=4, eos_token_id=None) for r in rows]
        assert cached == whole == alone

    def test_half_precision(self, card, scope):
        half = Scope(tiny("llama").to(torch.bfloat16))
        with half.edit(*parts(card)[0](half, **card["example"])):
            assert half.model(IDS).logits.isfinite().all()

    def test_wrong_layer_is_refused(self, card, scope):
        unless_skipped(card, "layers")
        with pytest.raises(ScopeError), scope.edit(*parts(card)[0](scope, **{**card["example"], "layers": 99})):
            pass


@returning("reading")
class TestReading:
    def test_a_value_for_each_token_and_nothing_left_behind(self, card, reader):
        text = text_of(card)
        ids = torch.tensor([reader.tokenizer(text)["input_ids"]])
        plain, hooks = reader.model(ids).logits, hooks_on(reader.model)
        for make in parts(card):
            reading = make(reader, text, **card["example"])
            assert keeps_promise("reading", reading)
            scores = reading.scores()
            assert scores.values.shape[-1] == len(scores.tokens)
            assert text.rstrip().endswith("".join(str(t) for t in scores.tokens).rstrip())
            assert "<xmp" not in scores._repr_html_()
            assert hooks_on(reader.model) == hooks
            assert torch.equal(reader.model(ids).logits, plain)

    def test_the_control_says_something_else(self, card, reader):
        first, again, control = (make(reader, text_of(card), **card["example"]).to_df() for make in (parts(card)[0], *parts(card)))
        assert first.equals(again)
        assert not first.equals(control)

    def test_padding_side_does_not_matter(self, card, reader):
        tables, before = [], reader.tokenizer.padding_side
        for side in ("left", "right"):
            reader.tokenizer.padding_side = side
            tables.append(parts(card)[0](reader, text_of(card), **card["example"]).to_df())
        reader.tokenizer.padding_side = before
        assert tables[0].equals(tables[1])

    def test_some_layers_and_positions_are_the_same_numbers(self, card, reader):
        unless_skipped(card, "layers")
        whole, part = (parts(card)[0](reader, TEXT, **{**card["example"], **more}).scores().values for more in ({}, dict(layers=[1], positions=slice(2, 5))))
        assert part.shape == (1, 3)
        assert abs(part[0] - whole[1, 2:5]).max() < 1e-5

    @pytest.mark.parametrize("what, text, more", [("text", "", {}), ("layers", TEXT, {"layers": 99}), ("positions", TEXT, {"positions": 99}), ("texts", [TEXT, TEXT], {})], ids=["empty", "layer", "position", "two texts"])
    def test_bad_input_is_refused(self, card, reader, what, text, more):
        unless_skipped(card, what)
        with pytest.raises(ScopeError):
            parts(card)[0](reader, text, **{**card["example"], **more})


class TestNumbers:
    "What is asked of a table and of a report alike."

    def check(self, card, asked):
        given = given_to(card, asked)
        models = [g.model for g in given if isinstance(g, Scope)]
        weights = [{n: p.clone() for n, p in m.state_dict().items()} for m in models]
        first, again, control = (make(*given, **card["example"]) for make in (parts(card)[0], *parts(card)))
        assert all(keeps_promise(card["returns"], result) for result in (first, again, control))
        first, again, control = (r if card["returns"] == "table" else r.to_df() for r in (first, again, control))
        assert len(first)
        assert first.equals(again)
        assert list(control.columns) == list(first.columns)
        assert not first.equals(control)
        for model, before in zip(models, weights):
            assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
            assert not hooks_on(model)


@returning("table")
class TestTable(TestNumbers):
    def test_repeats_and_differs_from_its_control(self, card, asked):
        self.check(card, asked)


@returning("report")
class TestReport(TestNumbers):
    def test_repeats_and_differs_from_its_control(self, card, asked):
        self.check(card, asked)

    def test_shows_itself(self, card, asked):
        report = parts(card)[0](*given_to(card, asked), **card["example"])
        assert len(repr(report)) > 20

    def test_wrong_layer_is_refused(self, card, asked):
        with pytest.raises(ScopeError):
            parts(card)[0](*given_to(card, asked), **{**card["example"], "layers": 99})


@returning("tokenizer")
class TestTokenizer:
    TEXTS = ["It is 12,345.6 or 7.", "no number", "שלום 12\n", "3.14159 and 1000000"]

    def test_round_trip_and_the_tokenizer_given_is_left_alone(self, card):
        own = AutoTokenizer.from_pretrained(default_model())
        size = len(own)
        for make in parts(card):
            cut = make(own, **card["example"])
            assert keeps_promise("tokenizer", cut)
            for text in self.TEXTS if make is parts(card)[0] else self.TEXTS[1:2]:  # the control's numbers say something else
                assert cut.decode(cut.encode(text)) == own.decode(own(text)["input_ids"])
        assert len(own) == size

    def test_neutral_is_the_tokenizer_itself(self, card):
        own = AutoTokenizer.from_pretrained(default_model())
        cut = parts(card)[0](own, **card["neutral"])
        assert [cut.encode(text) for text in self.TEXTS] == [own(text)["input_ids"] for text in self.TEXTS]

    def test_the_control_cuts_otherwise(self, card):
        cut, control = (make(AutoTokenizer.from_pretrained(default_model()), **card["example"]) for make in parts(card))
        text = "From 12345678 to 87654321.25 and 5."
        assert cut.encode(text) != control.encode(text)


@returning("diagnosis")
class TestDiagnosis:
    TEXT = "The river carried driftwood and lanterns past the sleeping village towards distant mountains."

    def test_cases_with_outcomes_that_repeat(self, card, asked):
        for make in parts(card):
            probe = make(asked, **card["example"])
            assert keeps_promise("diagnosis", probe)
            first, again = (probe.run([self.TEXT]) for _ in range(2))
            assert isinstance(first, Diagnosis)
            assert len(first)
            assert first.to_df().equals(again.to_df())
            assert abs(sum(share for share, *_ in first.rates().values()) - 1) < 1e-9
            assert not hooks_on(asked.model)

    def test_no_text_is_refused(self, card, asked):
        with pytest.raises(ScopeError):
            parts(card)[0](asked, **card["example"]).run([])


@returning("forecast")
class TestForecast:
    def test_paths_that_repeat_and_differ_from_the_control(self, card, asked):
        first, again, control = (make(asked, **card["example"]) for make in (parts(card)[0], *parts(card)))
        assert all(keeps_promise("forecast", f) for f in (first, again, control))
        assert first.paths.shape[::2] == (len(first.valid), 2)
        assert (first.paths == again.paths).all()
        assert first.prompt != control.prompt or (first.paths != control.paths).any()
        assert len(first._repr_html_()) > 100


CONTRACTS = {"edits": TestEdits, "reading": TestReading, "table": TestTable, "report": TestReport, "tokenizer": TestTokenizer, "diagnosis": TestDiagnosis, "forecast": TestForecast}
