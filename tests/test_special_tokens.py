"Token lists are joined, cut and compared rightly whatever a tokenizer sets around a text: nothing, a begin, an end, or both."
import copy
import functools

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from architectures import tiny_reader
from tokenscope.app.views import mood_direction
from tokenscope.change.answers import continuation_nll, option_margins, option_scores
from tokenscope.change.contrasts import answer_logprobs, answer_rows
from tokenscope.core.scope import Scope
from tokenscope.data.haystacks import make_haystack
from tokenscope.data.needles import multi_thread
from tokenscope.data.tokenizer_catalogue import real_tokenizer
from tokenscope.learn.binding import binding_task
from tokenscope.learn.steps import step_batch
from tokenscope.lenses.counting_readout import digit_tokens, question_rows
from tokenscope.lenses.function_tokens import patch_position
from tokenscope.lenses.needle_threading import pair_attention, task_ids, teacher_forced
from tokenscope.measure.direct_logits import direct_logit_attribution
from tokenscope.measure.language_mass import language_mass, token_sets
from tokenscope.measure.neighbours import build_bank
from tokenscope.measure.predictions import predictions_of
from tokenscope.steering.zerotuning import LabelledPrompts, label_logprobs, leverage
from tokenscope.text.batch import id_rows, rows_of
from tokenscope.text.ends import inner_ids, plain_ids, text_ends, whole_ids
from tokenscope.text.names import BadArgument, ScopeError
from tokenscope.text.tokens import token_names, tokens_of
from tokenscope.tokenizers.hierarchical_ar import flops_per_byte
from tokenscope.tokenizers.lmtraj import predict_trajectories
from tokenscope.tokenizers.tokenization_counts import answer_scores
from tokenscope.tokenizers.tokenizer_betrayal import banned_share, encoding_divergence, encoding_logprobs
from tokenscope.tokenizers.triadic_suffix import TriadicTokenizer

BEGIN, END = 1, 2  # <|im_start|> and <|im_end|> of the default vocabulary
AROUND = {"none": ([], []), "begin": ([BEGIN], []), "end": ([], [END]), "both": ([BEGIN], [END])}
ENDS = pytest.mark.parametrize("ends", ["begin", "end", "both"])
PROMPT, MORE = "The capital of France", ["The sea is", "It was cold, and the wind"]


@functools.cache
def model():
    return tiny_reader("llama", trainable=False, max_position_embeddings=512).model


@functools.cache
def scope_of(ends: str) -> Scope:
    "A tiny model whose tokenizer sets these ends."
    tokenizer = copy.deepcopy(real_tokenizer("smollm2"))
    before, after = AROUND[ends]
    parts = ["<|im_start|>"] * len(before) + ["$A"] + ["<|im_end|>"] * len(after)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(parts), special_tokens=[("<|im_start|>", BEGIN), ("<|im_end|>", END)])
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" \
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    return Scope(model(), tokenizer)


@functools.cache
def plain(text: str) -> tuple:
    return tuple(scope_of("none").tokenizer(text, add_special_tokens=False)["input_ids"])


def begun(ends: str, text: str) -> list:
    "The ids of a text that goes on, by hand."
    return [*AROUND[ends][0], *plain(text)]


def by_hand(row: list) -> torch.Tensor:
    "Log-probabilities of the next token after each one: (token, vocab)."
    with torch.no_grad():
        return model()(torch.tensor([row])).logits[0].log_softmax(-1)


def answer_by_hand(prompt: list, answer: list) -> float:
    logp = by_hand([*prompt, *answer])
    return sum(float(logp[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


@ENDS
def test_a_text_is_cut_as_the_tokenizer_does_and_goes_on_without_its_end(ends):
    scope, (before, after) = scope_of(ends), AROUND[ends]
    assert text_ends(scope.tokenizer) == (before, after)
    assert scope.encode(PROMPT).input_ids[0].tolist() == scope.tokenizer(PROMPT)["input_ids"] == [*before, *plain(PROMPT), *after]
    assert id_rows([PROMPT, [5, 6]], scope.tokenizer, ends="begin") == [begun(ends, PROMPT), [5, 6]]
    assert id_rows(PROMPT, scope.tokenizer, "none") == [list(plain(PROMPT))] == [plain_ids(scope.tokenizer, PROMPT)]
    assert inner_ids(scope.tokenizer, " Paris") == list(plain(" Paris"))
    [tokens] = rows_of(PROMPT, scope.tokenizer)[1]
    assert tokens.special == [True] * len(before) + [False] * len(plain(PROMPT)) + [True] * len(after)
    assert tokens.text == PROMPT and tokens.offsets[-1][1] == len(PROMPT)
    with pytest.raises(BadArgument, match="ends"):
        scope.encode(PROMPT, ends="all")


@ENDS
def test_ends_that_a_text_holds_are_not_set_again(ends):
    tokenizer, (before, after) = scope_of(ends).tokenizer, AROUND[ends]
    whole = "<|im_start|>" * len(before) + PROMPT + "<|im_end|>" * len(after)
    right = [*before, *plain(PROMPT), *after]
    assert id_rows([whole, PROMPT], tokenizer) == [right, right]
    [tokens] = rows_of([whole], tokenizer)[1]
    assert tokens.text == whole and tokens.offsets[0][0] == 0 and tokens.offsets[-1][1] == len(whole)
    assert whole_ids(tokenizer, whole, "begin")[0] == right  # the text's own end stays
    chat = [{"role": "user", "content": "Hello"}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert id_rows(chat, tokenizer) == id_rows(asked, tokenizer, "begin")


@ENDS
def test_what_comes_next(ends):
    scope, row = scope_of(ends), begun(ends, PROMPT)
    logp = by_hand(row)[-1]
    with torch.no_grad():
        right = model().generate(torch.tensor([row]), max_new_tokens=5, do_sample=False, pad_token_id=0)[0, len(row):].tolist()
    assert scope.generate(PROMPT, max_new_tokens=5, return_ids=True)[1] == right
    assert scope.generate([MORE[1], PROMPT], max_new_tokens=5, return_ids=True)[1][1] == right
    best = logp.topk(3)
    assert torch.allclose(torch.tensor(scope.next_tokens(PROMPT, k=3).values).float(), best.values.exp(), atol=1e-5)
    asked = predictions_of(scope, PROMPT)
    assert (asked.ids.tolist(), asked.targets, asked.positions) == (row, [int(best.indices[0])], [len(row)])
    parts = direct_logit_attribution(scope, PROMPT, " Paris")
    with torch.no_grad():
        logit = float(model()(torch.tensor([row])).logits[0, -1, plain(" Paris")[0]])
    assert parts.logit == pytest.approx(logit, abs=1e-4) and parts.gap < 1e-4 and parts.position == len(row) - 1
    sets = torch.tensor([500, 501]), torch.tensor([600])
    mass = float(logp.exp()[sets[0]].sum() - logp.exp()[sets[1]].sum())
    assert float(language_mass(scope, [PROMPT], sets)[0]) == pytest.approx(mass, abs=1e-6)


@ENDS
def test_an_answer_follows_its_prompt(ends):
    scope, row = scope_of(ends), begun(ends, PROMPT)
    right = {answer: answer_by_hand(row, plain(answer)) for answer in (" Paris", " Rome or Paris")}
    assert answer_rows(scope, [PROMPT], [" Paris"]) == ([[*row, *plain(" Paris")]], [len(row)])
    assert answer_logprobs(scope, [PROMPT] * 2, list(right)).tolist() == pytest.approx(list(right.values()), abs=1e-4)
    assert option_scores(scope, [PROMPT], list(right))[0].tolist() == pytest.approx(list(right.values()), abs=1e-4)
    means = [value / len(plain(answer)) for answer, value in right.items()]
    assert float(option_margins(scope, [PROMPT], [" Paris"], [[" Rome or Paris"]])[0]) == pytest.approx(means[0] - means[1], abs=1e-4)
    asked = predictions_of(scope, PROMPT, " Rome or Paris")
    assert asked.targets == list(plain(" Rome or Paris")) and asked.ids.tolist() == [*row, *plain(" Rome or")]
    by_ids = predictions_of(scope, row, " Rome or Paris")
    assert by_ids.ids.tolist() == asked.ids.tolist() and by_ids.positions == asked.positions


@ENDS
def test_a_text_is_scored_after_the_one_before_it(ends):
    scope, answer = scope_of(ends), list(plain("Grey and wide."))
    row = begun(ends, MORE[0] + "\n")
    found = continuation_nll(scope, [MORE[0], PROMPT], ["Grey and wide.", ""])
    assert float(found[0]) == pytest.approx(-answer_by_hand(row, answer) / len(answer), abs=1e-4) and found[1].isnan()
    n = len(AROUND[ends][0])
    short = continuation_nll(scope, [MORE[0]], ["Grey and wide."], max_tokens=2)
    assert float(short[0]) == pytest.approx(-answer_by_hand(row[: n + 2], answer[:2]) / 2, abs=1e-4)


@ENDS
def test_encodings_of_a_word(ends):
    scope, row = scope_of(ends), begun(ends, "It was in")
    ways = encoding_logprobs(scope, "It was in", " February", max_pieces=2)
    for ids, logp in zip(ways.ids[:3], ways.logp):
        assert logp == pytest.approx(answer_by_hand(row, ids), abs=1e-3)
    share, banned = banned_share(scope, "It was in", ways, "phantoms")
    assert share == pytest.approx(float(by_hand(row)[-1].exp()[sorted(banned)].sum()), abs=1e-6)
    table = encoding_divergence(scope, "It was in", " May", " again", " June")
    rest = list(plain(" again"))
    one, two = (by_hand([*row, *plain(word), *rest])[-len(rest) - 1] for word in (" May", " June"))
    right = float((one.exp() * (one - two)).sum())
    assert table[table.kind == "other word"].kl.iloc[0] == pytest.approx(right, abs=1e-3)


@ENDS
def test_tasks_with_answers(ends):
    scope = scope_of(ends)
    task = multi_thread(make_haystack(4, seed=1), n_threads=1, hops=1, seed=1)
    ids, [*_, (_, _, start, stop)] = task_ids(scope, task)
    row = begun(ends, task.prompt)
    assert ids[: len(row)] == row and END not in ids
    right = answer_by_hand(ids[:start], ids[start:stop]) / (stop - start)
    assert teacher_forced(scope, [task]).logprob.iloc[-1] == pytest.approx(right, abs=1e-3)
    attention = scope.read([ids[:start]], "pattern", layers=1, positions=-1)["pattern"][0, 0, :, 0].mean(0)
    first, last = task.haystack.spans[2]
    inside = [j + len(AROUND[ends][0]) for j, (a, _) in enumerate(tokens_of(scope.tokenizer, list(plain(task.prompt))).offsets) if first <= a < last]
    assert pair_attention(scope, task, layers=1).attention.iloc[2] == pytest.approx(float(attention[inside].sum()), abs=1e-5)
    scored = answer_scores(scope, ["1+2="], ["1+2="], [" 3"])
    assert float(scored[0, 0]) == pytest.approx(answer_by_hand([*begun(ends, "1+2="), *plain("1+2=")], list(plain(" 3"))), abs=1e-4)
    assert question_rows(scope, ["How many? Answer:"]) == [[*begun(ends, "How many? Answer:"), *digit_tokens(scope).lead]]
    assert digit_tokens(scope).ids.tolist() == [plain(f"Answer: {k}")[-1] for k in range(1, 10)]


@ENDS
def test_prompts_of_the_techniques(ends):
    scope = scope_of(ends)
    task = LabelledPrompts([PROMPT, MORE[0]], [0, 1], [" Paris", " grey"])
    scores, _ = label_logprobs(scope, task)
    first = [plain(label)[0] for label in task.labels]
    for prompt, row in zip(task.prompts, scores):
        assert row.tolist() == pytest.approx(by_hand(begun(ends, prompt))[-1, first].tolist(), abs=1e-4)
    same = patch_position(scope, [PROMPT], [PROMPT], 1, -1)[0].log_softmax(-1)
    assert torch.allclose(same, by_hand(begun(ends, PROMPT))[-1], atol=1e-4)
    asked = binding_task(scope, prefix="So:")
    assert asked.prefix == begun(ends, "So:") and binding_task(scope).prefix == AROUND[ends][0]
    batch = step_batch(scope.tokenizer, [("one", "two")], sep=";", eos=".")
    assert batch.ids[0].tolist() == [*begun(ends, "one"), *plain(";"), *plain("two"), *plain(".")]
    assert batch.ids[0][batch.scored[0]].tolist() == [*plain("two"), *plain(".")]
    assert flops_per_byte(scope, [PROMPT]) == flops_per_byte(scope_of("none"), [PROMPT])
    texts = [["le chat et la souris"] * 4, ["the cat and the mouse"] * 2]
    found, right = (token_sets(s, *texts, ratio=0.5, least=1) for s in (scope, scope_of("none")))
    assert [a.tolist() for a in found] == [b.tolist() for b in right]
    triadic = TriadicTokenizer(scope.tokenizer)
    assert triadic.encode(PROMPT) == [*AROUND[ends][0], *plain(PROMPT), *AROUND[ends][1]] == id_rows(PROMPT, triadic)[0]


@pytest.mark.parametrize("ends, same", [("end", "none"), ("both", "begin")])
def test_an_end_changes_nothing_about_what_comes_next(ends, same):
    some, other = scope_of(ends), scope_of(same)
    assert torch.equal(mood_direction(some, 1), mood_direction(other, 1))
    assert leverage(some, PROMPT, gammas=(2.0,)).kl.tolist() == leverage(other, PROMPT, gammas=(2.0,)).kl.tolist()
    prompts = ["[(0.1, 0.2), (0.3, 0.4)] ->"]
    texts = [predict_trajectories(s, prompts, temperature=0, frames=2)[2] for s in (some, other)]
    assert texts[0] == texts[1]


def test_a_bank_describes_the_tokens_that_it_kept():
    scope = scope_of("both")
    bank = build_bank(scope, ["<|im_start|>Hello there, old friend", "Hello there, half \ud83c"], layers=[1], min_pos=1)
    told = [bank.describe(row) for row in range(len(bank))]
    assert [t["word"] for t in told if t["token"] == " there"] and all(t["token"] in t["text"] for t in told if t["span"][1] > t["span"][0])


CHAT = [{"role": "user", "content": "Name the capital of France."}]


@pytest.mark.parametrize("answer", ["The capital of France is", "It is ", "It is\n\nParis"])
def test_a_begun_answer_is_gone_on_with(answer):
    scope = scope_of("none")
    begun_chat = [*CHAT, {"role": "assistant", "content": answer}]
    text = scope.tokenizer.apply_chat_template(begun_chat, tokenize=False, continue_final_message=True)
    assert text.endswith(answer)
    row = list(plain(text))
    assert scope.encode(begun_chat).input_ids[0].tolist() == row == scope.encode([begun_chat]).input_ids[0].tolist()
    assert scope.generate(begun_chat, max_new_tokens=4) == scope.generate(row, max_new_tokens=4)
    empty = [*CHAT, {"role": "assistant", "content": ""}]
    assert id_rows(empty, scope.tokenizer) == id_rows(CHAT, scope.tokenizer)


PARTS_ONLY = "{% for m in messages %}{{ m['role'] }}:{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{{ '\\n' }}{% endfor %}"


def test_contents_in_parts_and_without_text():
    scope = scope_of("none")
    said = [{"type": "text", "text": "Name the capital"}, {"type": "text", "text": " of France."}]
    assert id_rows([{"role": "user", "content": said}], scope.tokenizer) == id_rows(CHAT, scope.tokenizer)
    whole = [*CHAT, {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
    assert scope.encode(whole).tokens[0].pieces[-2:] == ["It", " is"]
    for message in ({"role": "assistant", "content": None}, {"role": "user"}, {"role": "user", "content": []}, {"role": "user", "content": 5}):
        with pytest.raises(ScopeError, match="message 1"):
            scope.encode([*CHAT, message])
    with pytest.raises(ScopeError, match="reads texts, and a picture was given"):
        scope.encode([{"role": "user", "content": [{"type": "image", "url": "a.png"}, *said]}])
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {}}}]}
    with pytest.raises(ScopeError, match="tool_calls"):
        scope.encode([*CHAT, call])


def test_the_template_decides(monkeypatch):
    tokenizer = scope_of("none").tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", PARTS_ONLY)
    assert id_rows(CHAT, tokenizer) == [list(plain("user:Name the capital of France.\n"))]
    calls = "{% for m in messages %}{% if m.tool_calls %}call {{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}{{ '\\n' }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", calls)
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {}}}]}
    assert id_rows([*CHAT, call], tokenizer) == [list(plain("Name the capital of France.\ncall clock\n"))]
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadArgument, match="roles must alternate"):
        id_rows(CHAT, tokenizer)


def letters(**special) -> PreTrainedTokenizerFast:
    "A tokenizer of single bytes with one special token."
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    if special:
        tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", special=True, **special)})
    return tokenizer


@pytest.mark.parametrize("text", ["cat <mask>", "<mask> cat", "a <mask> b", "a <mask>  <mask>", " <mask> ", "a<mask>b", "<mask>", "a <mask>é <mask>\n"])
@pytest.mark.parametrize("special", [dict(lstrip=True), dict(rstrip=True), dict(lstrip=True, rstrip=True), dict(single_word=True), dict(normalized=True)])
def test_special_tokens_that_strip_have_their_place(text, special):
    tokenizer = letters(**special)
    made = tokenizer(text, return_offsets_mapping=True)
    [tokens] = rows_of(text, tokenizer)[1]
    assert tokens.offsets == [tuple(o) for o in made["offset_mapping"]] and tokens.text == text
    assert [piece == "<mask>" for piece in tokens.pieces] == [i == tokenizer.mask_token_id for i in made["input_ids"]]
    assert b"".join(tokens.raw).decode() == text


def test_without_stated_offsets_the_text_says_where_a_special_token_lies():
    tokenizer = letters(lstrip=True)
    tokens = tokens_of(tokenizer, tokenizer("cat <mask> é")["input_ids"], text="cat <mask> é")
    assert tokens.offsets[3] == (3, 10) and tokens.offsets[-1] == (11, 12)


@pytest.mark.parametrize("text", ["hello ☃", "☃ hello", "a ☃ hello", "☃", "hello ☃ "])
def test_unknown_tokens_have_their_place(text):
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "a": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    [tokens] = rows_of(text, PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]"))[1]
    assert "".join(text[a:b] for a, b in tokens.offsets) == text and tokens.text == text
    assert [i == 0 for i in tokens.ids] == ["☃" in text[a:b] for a, b in tokens.offsets] == tokens.special


def test_decomposed_accents_and_halves_of_characters():
    tokenizer = letters()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    text = "cafe\u0301 e\u0301t"
    [tokens] = rows_of(text, tokenizer)[1]
    assert tokens.text == text and b"".join(tokens.raw).decode() == text
    assert tokens.offsets[0][0] == 0 and tokens.offsets[-1] == (8, 9) and tokens.pieces[-1] == "t"
    halves = tokenizer("😀", add_special_tokens=False)["input_ids"]
    assert len({tokenizer.decode([i]) for i in halves}) == 1 < len(set(token_names(tokenizer, halves))) == len(set(halves))
    with pytest.raises(BadArgument, match="Half a surrogate pair.*place 2"):
        id_rows(["whole", "a \ud83c"], tokenizer)


class Sampling:
    "A SentencePiece tokenizer that draws, as far as it is looked at."
    is_fast = False
    sp_model_kwargs = {"enable_sampling": True, "alpha": 0.1}


def test_random_cuts_are_refused():
    tokenizer = letters()
    tokenizer.backend_tokenizer.model.dropout = 0.3
    scope = Scope(model(), tokenizer)
    for call in (scope.encode, scope.generate, lambda text: answer_logprobs(scope, [[1, 2]], [text]), lambda text: scope.read([text], "embed")):
        with pytest.raises(BadArgument, match="cuts at random: BPE dropout 0.3.*dropout = None"):
            call("the fox")
    assert scope.encode([40, 41]).input_ids.tolist() == [[40, 41]]
    for dropout in (None, 0.0):
        tokenizer.backend_tokenizer.model.dropout = dropout
        assert len(id_rows("fox", tokenizer)[0]) == 3
    drawn = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", -1.0), ("b", -1.0), ("ab", -2.0)], unk_id=0)))
    drawn.backend_tokenizer.model.alpha = 0.5
    for other in (Sampling(), drawn):
        with pytest.raises(BadArgument, match="cuts at random"):
            id_rows("ab", other)
    with pytest.raises(BadArgument, match="cuts at random"):
        id_rows("ab", TriadicTokenizer(_dropped()))


def _dropped():
    tokenizer = letters()
    tokenizer.backend_tokenizer.model.dropout = 0.3
    return tokenizer


def test_small_inputs_stay_clear():
    scope = scope_of("none")
    for text in ("", [], [""]):
        with pytest.raises(ScopeError, match="Nothing to read"):
            scope.encode(text)
    assert scope_of("begin").encode("").input_ids.tolist() == [[BEGIN]]
    with pytest.raises(ScopeError, match="Nothing to read"):
        scope_of("end").generate("")
    with pytest.raises(ScopeError, match="too long"):
        scope.encode("word " * 600)
    with pytest.raises(ScopeError, match="No tokenizer"):
        Scope(model()).encode("text")
