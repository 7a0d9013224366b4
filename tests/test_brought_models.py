"""Models as users bring them: in training, adapted, compiled, offloaded, quantised, edited twice, generating in other ways. Right
numbers, or an error that says why not. What forms and uses have in common is fuzzed in `test_fuzz`; here stands what each fault was."""
import copy
import tempfile
import threading

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForSequenceClassification

from architectures import SMALL, tiny
from fuzz import ALL_LINEAR, lora
from tokenscope import Edit, Scope
from tokenscope.core.structure import table_rows
from tokenscope.corpus.corpus import run_corpus
from tokenscope.text.names import ScopeError

IDS = [5, 9, 17, 33, 65, 9, 17, 33, 70, 9, 17]


class Ids:
    "A tokenizer of which only the ids are needed."

    def __call__(self, texts, **_):
        return {"input_ids": [IDS for _ in texts]}

    def get_vocab(self):
        return {"a": 0}


def own_logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def fresh(**more):
    return tiny("llama", trainable=False, **more)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_of_a_model_whose_weights_require_gradients(family):
    model = tiny(family, trainable=True)
    logp = own_logits(model).log_softmax(-1)[0]
    right = -logp[:-1].gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    np.testing.assert_allclose(Scope(model).surprisal(IDS).values[1:], right, atol=1e-5)
    np.testing.assert_allclose(Scope(model).entropy(IDS).values, -(logp.exp() * logp).sum(-1), atol=1e-5)


@pytest.mark.parametrize("modules", [["q_proj", "v_proj"], ALL_LINEAR])
def test_an_adapter_around_the_model(modules):
    model = lora(fresh(), modules)
    scope = Scope(model)
    torch.testing.assert_close(scope.logits(IDS), own_logits(model))
    seen = {}
    down = model.get_base_model().model.layers[1].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda m, args: seen.update(right=args[0]))
    plain = own_logits(model)
    hook.remove()
    torch.testing.assert_close(scope.read(IDS, "mlp_post", layers=1)["mlp_post"][0], seen["right"])
    with scope.edit(Edit("mlp_post", layers=1, scale=0.0)):
        assert (scope.logits(IDS) - plain).abs().max() > 1e-3
    with scope.edit(Edit("logits", scale=-1.0)):  # `generate` calls the model inside the wrapper
        assert scope.generate(IDS, max_new_tokens=1) == [int(plain[0, -1].argmin())]


def test_states_before_the_text_are_refused():
    from peft import PromptTuningConfig, get_peft_model
    with pytest.raises(ScopeError, match="puts trained states before the text"):
        Scope(get_peft_model(fresh(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")))


def test_a_function_may_write_into_what_it_is_given():
    def write(x):
        x[..., 0] = 50.0
        return x

    scope = Scope(fresh())
    plain = scope.read(IDS, "resid_post", layers=1)["resid_post"][0, 0]
    with scope.edit(Edit("resid_post", layers=1, positions=3, fn=write)):
        edited = scope.read(IDS, "resid_post", layers=1)["resid_post"][0, 0]
    assert (edited != plain).any(-1).nonzero()[:, 0].tolist() == [3]


def test_a_static_cache_shows_no_later_token():
    scope, seen = Scope(fresh()), []
    with scope.edit(Edit("pattern", layers=0, fn=lambda p: seen.append(p.clone()) or p)):
        scope.generate(IDS, max_new_tokens=1, cache_implementation="static")
    assert seen[0].triu(1).abs().sum() < 1e-4


@pytest.mark.parametrize("where", [dict(positions="last"), dict(positions="prompt"), dict(positions="generated"), dict(positions=-2), dict(when="generated")])
def test_prompt_lookup_says_what_greedy_search_says(where):
    scope = Scope(fresh())
    torch.manual_seed(0)
    with scope.edit(Edit("resid_post", layers=1, add=3 * torch.randn(32), **where)):
        greedy = scope.generate(IDS, max_new_tokens=10)
        assert scope.generate(IDS, max_new_tokens=10, prompt_lookup_num_tokens=3) == greedy


@pytest.mark.parametrize("edit", [Edit("z", layers=1, scale=0.0), Edit("mlp_out", layers=1, scale=0.0), Edit("attn_scores", layers=1, keys=2, add=5.0)], ids=lambda e: e.site)
def test_layers_that_were_compiled_and_used(edit):
    model, twin = fresh(), Scope(fresh())
    for layer in model.model.layers:
        layer.compile(backend="eager")
    own_logits(model)
    with Scope(model).edit(edit), twin.edit(edit):
        torch.testing.assert_close(own_logits(model), own_logits(twin.model))


def test_a_weight_that_is_nan_gives_nan():
    model = fresh()
    model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    assert np.isnan(Scope(model).entropy(IDS).values).all()


def test_edits_may_be_closed_in_any_order():
    scope = Scope(fresh())
    with scope.edit(Edit("z", layers=1, scale=0.0)):
        right = scope.logits(IDS)
    first, second = scope.edit(Edit("z", layers=0, scale=0.0)), scope.edit(Edit("z", layers=1, scale=0.0))
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    torch.testing.assert_close(scope.logits(IDS), right)
    second.__exit__(None, None, None)
    assert scope.model.config._attn_implementation == "sdpa" and "generate" not in vars(scope.model)


def test_a_copy_made_inside_an_edit_is_free_of_it_afterwards():
    scope = Scope(fresh())
    plain = scope.logits(IDS)
    with scope.edit(Edit("z", layers=1, scale=0.0)):
        twin = Scope(copy.deepcopy(scope.model))
    torch.testing.assert_close(twin.logits(IDS), plain)
    with twin.edit(Edit("z", layers=1, scale=0.5)), scope.edit(Edit("z", layers=1, scale=0.5)):
        torch.testing.assert_close(twin.logits(IDS), scope.logits(IDS))


@pytest.mark.parametrize("site", ["q", "k", "v", "z", "pattern", "attn_scores", "mlp_post", "resid_mid"])
@pytest.mark.parametrize("trainable", [False, True])
def test_a_gradient_at_every_site(site, trainable):
    scope = Scope(tiny("llama", trainable=trainable))
    with torch.no_grad():  # what is asked for counts, not what stands around it
        trace = scope.read(IDS, [site, "logits"], layers=1, grad=True)
    slope, = torch.autograd.grad(trace["logits"][0, -1].log_softmax(-1)[7], trace.at(site, 1))
    assert slope.norm() > 0


@pytest.mark.parametrize("start,how", [(0.0, "add"), (1.0, "scale")])
def test_a_vector_that_begins_neutral_is_trained(start, how):
    scope = Scope(fresh())
    vector = torch.full((32,), start, requires_grad=True)
    with scope.edit(Edit("resid_post", layers=1, **{how: vector})), torch.enable_grad():
        scope.model(input_ids=torch.tensor([IDS])).logits[0, -1].log_softmax(-1)[7].backward()
    assert vector.grad.norm() > 0


def test_attention_received_counts_the_queries_that_see():
    model = tiny("mistral", trainable=False)  # a window of four
    pattern = Scope(model).read(IDS, "pattern", layers=0)["pattern"][0, 0].mean(0)
    n = len(IDS)
    sees = torch.ones(n, n).tril() * torch.ones(n, n).triu(-3)
    received = Scope(model).attention_received(IDS, layers=0).values.ravel()
    np.testing.assert_allclose(received, (pattern * sees).sum(0) / sees.sum(0), atol=1e-5)


def test_a_classifier_has_no_words_to_say():
    scope = Scope(LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=9)).eval())
    for call in (lambda: scope.next_tokens(IDS, k=3), lambda: scope.logits(IDS), lambda: scope.surprisal(IDS)):
        with pytest.raises(ScopeError, match="No unembedding"):
            call()


def test_an_encoder_decoder_is_refused():
    sizes = dict(vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32)
    with pytest.raises(ScopeError, match="is an encoder-decoder"):
        Scope(BartForConditionalGeneration(BartConfig(max_position_embeddings=64, **sizes)))


def test_generate_gives_what_transformers_was_asked_for():
    scope = Scope(fresh())
    right = scope.model.generate(torch.tensor([IDS]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    out = scope.generate(IDS, max_new_tokens=4, return_dict_in_generate=True, output_scores=True)
    assert out.sequences.tolist() == right.tolist() and len(out.scores) == 4
    assert scope.generate(IDS, max_length=len(IDS) + 4) == right[0, len(IDS):].tolist()


def test_new_ids_hold_no_padding():
    scope = Scope(fresh())
    end = scope.generate(IDS, max_new_tokens=1)[0]
    alone = scope.generate(IDS, max_new_tokens=6, return_ids=True, eos_token_id=end)[1]
    assert scope.generate([IDS, [5, 80, 81]], max_new_tokens=6, return_ids=True, eos_token_id=end)[1][0] == alone


def test_dropout_rests_while_a_model_is_read():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4))
    scope = Scope(model)
    np.testing.assert_array_equal(scope.surprisal(IDS).values[1:], scope.surprisal(IDS).values[1:])
    assert torch.equal(*(scope.read(IDS, "resid_post")["resid_post"] for _ in "ab")) and model.training


def test_a_mask_given_by_place():
    scope = Scope(fresh())
    padded, mask = torch.tensor([[3, 3, 3, *IDS[:4]]]), torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    with scope.edit(Edit("resid_post", layers=1, set=0.0, positions=0)):
        states = scope.model(padded, mask, output_hidden_states=True).hidden_states[2][0]
    assert (states.abs().sum(-1) == 0).nonzero()[:, 0].tolist() == [3]


def test_two_scopes_on_one_model_see_the_same_edits():
    scope = Scope(fresh())
    other = Scope(scope.model)
    with scope.edit(Edit("logits", add=3.0)):
        torch.testing.assert_close(other.logits(IDS), own_logits(scope.model))
        with pytest.raises(ScopeError, match="An edit of the site logits is in force"):
            other.surprisal(IDS)


@pytest.mark.parametrize("positions", [torch.tensor([1, 2]), np.array([1, 2]), (1, 2), range(1, 3)], ids=["tensor", "array", "tuple", "range"])
def test_positions_as_arrays(positions):
    scope = Scope(fresh())
    with scope.edit(Edit("resid_post", layers=1, set=0.0, positions=positions)):
        states = scope.read(IDS, "resid_post", layers=1)["resid_post"][0, 0]
    assert (states.abs().sum(-1) == 0).nonzero()[:, 0].tolist() == [1, 2]
    with pytest.raises(ScopeError, match="Not position numbers"):
        Edit("resid_post", set=0.0, positions=[True] * 11)


def test_a_batch_padded_on_the_right_is_continued_after_its_text():
    scope = Scope(fresh())
    batch = {"input_ids": torch.tensor([IDS, IDS[:4] + [0] * 7]), "attention_mask": torch.tensor([[1] * 11, [1] * 4 + [0] * 7])}
    assert scope.generate(batch, max_new_tokens=6) == [scope.generate(IDS, max_new_tokens=6), scope.generate(IDS[:4], max_new_tokens=6)]


def test_a_padded_batch_with_a_static_cache():
    scope = Scope(fresh())
    edit = Edit("resid_post", layers=1, add=5.0, positions=1)
    with scope.edit(edit):
        rows = [scope.generate(row, max_new_tokens=4) for row in (IDS, IDS[:4])]
        assert scope.generate([IDS, IDS[:4]], max_new_tokens=4, cache_implementation="static") == rows


def test_a_layer_that_was_replaced_is_noticed():
    scope = Scope(fresh())
    scope.read(IDS, "mlp_out")
    layers = scope.model.model.layers
    layers[1] = type(layers[1])(scope.model.config, 1).eval()
    with pytest.raises(ScopeError, match="Sites that did not run in this forward: mlp_out of layer 1"):
        scope.read(IDS, "mlp_out", layers=[1, 2])
    with scope.edit(Edit("mlp_out", layers=1, scale=0.0)), pytest.raises(ScopeError, match="Sites that did not run"):
        own_logits(scope.model)
    with Scope(scope.model).edit(Edit("mlp_out", layers=1, scale=0.0)):
        own_logits(scope.model)


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_that_accelerate_keeps_elsewhere(family, where):
    from accelerate import cpu_offload, disk_offload
    model, device = tiny(family, trainable=False), torch.device("cpu")
    here = Scope(copy.deepcopy(model))
    away = Scope(cpu_offload(model, execution_device=device) if where == "memory" else disk_offload(model, tempfile.mkdtemp(), execution_device=device))
    assert away.device == device
    sites = ["q", "pattern", "mlp_post", "resid_post", "attn_out"]
    for site in sites:
        assert torch.equal(here.read(IDS, sites, layers=[0, 1])[site], away.read(IDS, sites, layers=[0, 1])[site])
    assert here.generate(IDS, max_new_tokens=4) == away.generate(IDS, max_new_tokens=4)
    rows = table_rows(away.structure.embedding, torch.tensor([5, 9]))
    assert torch.equal(rows, table_rows(here.structure.embedding, torch.tensor([5, 9])))
    assert all(p.is_meta for p in away.model.parameters())  # a reading that stops early leaves nothing behind


def test_layers_that_torch_has_quantised():
    model = torch.ao.quantization.quantize_dynamic(fresh(), {torch.nn.Linear}, dtype=torch.qint8)
    seen = {}
    hook = model.model.layers[0].mlp.register_forward_hook(lambda m, args, out: seen.update(right=out))
    own_logits(model)
    hook.remove()
    torch.testing.assert_close(Scope(model).read(IDS, "mlp_out", layers=0)["mlp_out"][:, 0], seen["right"])
    with pytest.raises(ScopeError, match="No rows to read"):
        table_rows(model.lm_head)


def corpus(scope, folder, **more):
    return run_corpus(scope, ["a"], folder, **more).to_df().surprisal


def test_a_job_notices_one_changed_neuron(tmp_path):
    scope = Scope(fresh())
    scope.tokenizer = Ids()
    corpus(scope, tmp_path)
    scope.model.model.layers[1].mlp.down_proj.weight[:, 10] = 5.0
    with pytest.raises(ScopeError, match="The folder holds another job"):
        corpus(scope, tmp_path)


def test_a_job_notices_the_edits_in_force(tmp_path):
    scope = Scope(fresh())
    scope.tokenizer = Ids()
    plain = corpus(scope, tmp_path / "plain")
    with scope.edit(Edit("resid_post", layers=1, add=1.0)):
        with pytest.raises(ScopeError, match="The folder holds another job"):
            corpus(scope, tmp_path / "plain")
        assert (corpus(scope, tmp_path / "edited") - plain).abs().max() > 1e-3
    with scope.edit(Edit("logits", scale=30.0)), pytest.raises(ScopeError, match="An edit of the site logits is in force"):
        corpus(scope, tmp_path / "logits")
    with scope.edit(Edit("resid_post", layers=1, fn=torch.relu)):
        with pytest.raises(ScopeError, match="could not be told from another's"):
            corpus(scope, tmp_path / "function")
        corpus(scope, tmp_path / "function", label="rectified")


def test_a_second_thread_is_refused():
    scope, refused, begun, may_end = Scope(fresh()), [], threading.Event(), threading.Event()

    def slow(x):
        begun.set()
        may_end.wait(10)
        return x + 1

    def other():
        begun.wait(10)
        try:
            own_logits(scope.model)
        except ScopeError as e:
            refused.append(e)
        may_end.set()

    thread = threading.Thread(target=other)
    with scope.edit(Edit("resid_post", layers=1, fn=slow)):
        thread.start()
        own_logits(scope.model)
        thread.join()
    assert "Two threads run this model at once" in str(refused[0])


def test_a_cache_that_the_model_would_leave_out_is_refused():
    model = fresh().train()
    model.gradient_checkpointing_enable()
    scope = Scope(model)
    with scope.edit(Edit("resid_post", layers=1, add=1.0)), pytest.raises(ScopeError, match="the model leaves out its cache"):
        model.generate(torch.tensor([IDS]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    scope.generate(IDS, max_new_tokens=2)  # in evaluation mode, for the time of the call


def test_a_dropout_that_attention_and_mlp_share_is_no_place_of_either():
    from transformers import PhiConfig, PhiForCausalLM
    torch.manual_seed(0)
    model = PhiForCausalLM(PhiConfig(**SMALL)).eval().requires_grad_(False)
    seen = {}
    layer = model.model.layers[0]
    hooks = [layer.mlp.register_forward_hook(lambda m, a, out: seen.update(mlp_out=out)), layer.self_attn.register_forward_hook(lambda m, a, out: seen.update(attn_out=out[0]))]
    own_logits(model)
    for hook in hooks:
        hook.remove()
    trace = Scope(model).read(IDS, ["attn_out", "mlp_out"], layers=0)
    for site, right in seen.items():
        torch.testing.assert_close(trace[site][:, 0], right)


def test_a_block_that_adds_the_stream_itself_has_no_output_of_its_own():
    from transformers import MptConfig, MptForCausalLM
    model = MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=99, max_seq_len=64)).eval()
    with pytest.raises(ScopeError, match="No mlp_out in layer 0"):
        Scope(model).read(IDS, "mlp_out")


def test_an_attention_that_is_called_twice_has_no_single_pattern():
    from transformers import DiffLlamaConfig, DiffLlamaForCausalLM
    model = DiffLlamaForCausalLM(DiffLlamaConfig(**SMALL)).eval()
    with pytest.raises(ScopeError, match="More than once in one forward"):
        Scope(model).read(IDS, "pattern")


@pytest.mark.parametrize("where", ["layers", "positions", "heads", "keys"])
def test_a_generator_is_asked_once_and_kept(where):
    scope = Scope(fresh())
    edits = [Edit("attn_scores", add=3.0, **{where: kind}) for kind in ([1, 2], (i for i in [1, 2]))]
    changed = []
    for edit in [edits[0], edits[1], edits[1]]:
        with scope.edit(edit):
            changed.append(scope.logits(IDS))
    torch.testing.assert_close(changed[0], changed[1])
    torch.testing.assert_close(changed[0], changed[2])


def test_an_interrupted_forward_leaves_no_trace():
    scope, stop = Scope(fresh()), [True]

    def fn(x):
        if stop.pop() if stop else False:
            raise KeyboardInterrupt
        return x + 3

    edit = Edit("resid_post", layers=0, positions=2, fn=fn)
    with scope.edit(edit):
        with pytest.raises(KeyboardInterrupt):
            scope.logits(IDS)
        after = scope.logits(IDS[:6])
    with scope.edit(edit):
        torch.testing.assert_close(scope.logits(IDS[:6]), after)
    assert (scope.logits(IDS[:6]) - after).abs().max() > 1e-3


def test_guidance_is_refused_however_it_is_asked_for():
    from transformers import GenerationConfig
    scope = Scope(fresh())
    settings = GenerationConfig(guidance_scale=2.0, max_new_tokens=2, pad_token_id=0)
    with scope.edit(Edit("resid_post", layers=1, add=1.0)), pytest.raises(ScopeError, match="guidance_scale runs a second prompt"):
        scope.generate(IDS, generation_config=settings)


def test_a_loss_that_an_edit_of_the_logits_missed_is_refused():
    scope = Scope(fresh())
    with scope.edit(Edit("logits", scale=2.0)), pytest.raises(ScopeError, match="needs logits alone"):
        scope.model(torch.tensor([IDS]), labels=torch.tensor([IDS]))


@pytest.mark.parametrize("wrong", [slice(3, 0, -1), [1.5, 2.5], ["a"]], ids=str)
def test_positions_that_are_none(wrong):
    with pytest.raises((ScopeError, TypeError)):
        Edit("resid_post", add=1.0, positions=wrong)


def test_a_slice_may_begin_before_the_text():
    scope = Scope(fresh())
    with scope.edit(Edit("resid_post", layers=1, set=0.0, positions=slice(-12, None, 2))):
        states = scope.read(IDS, "resid_post", layers=1)["resid_post"][0, 0]
    assert (states.abs().sum(-1) == 0).nonzero()[:, 0].tolist() == list(range(11))[-12::2]


def test_an_adapter_that_came_after_the_scope_is_refused():
    model = fresh()
    scope = Scope(model)
    scope.read(IDS, "mlp_post")
    lora(model, ALL_LINEAR)
    with pytest.raises(ScopeError, match="down_proj of .* is another module than when the Scope looked"):
        scope.read(IDS, "mlp_post")
    assert Scope(model).read(IDS, "mlp_post")["mlp_post"].isfinite().all()


def test_bidirectional_models_are_refused():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    with pytest.raises(ScopeError, match="use_bidirectional_attention"):
        Scope(Gemma3ForCausalLM(Gemma3TextConfig(**sizes, use_bidirectional_attention=True)))


def test_a_forward_of_a_logits_processor_is_no_step():
    "It is read as a text of its own, and its places are its own."
    scope = Scope(fresh())
    other = torch.tensor([IDS[:4]])
    edit = Edit("resid_post", layers=1, positions=-1, scale=5.0)
    aside = []

    def processor(ids, scores):
        aside.append(scope.model(input_ids=other).logits)
        return scores

    with scope.edit(edit):
        plain = scope.generate(IDS, max_new_tokens=3)
        right = own_logits(scope.model, IDS[:4])
        assert scope.generate(IDS, max_new_tokens=3, logits_processor=[processor]) == plain
    assert all(torch.equal(one, right) for one in aside) and len(aside) == 3


def test_logits_by_index_are_not_edited():
    scope = Scope(fresh())
    ids = torch.tensor([IDS])
    with scope.edit(Edit("logits", scale=2.0, positions=-1)), torch.no_grad():
        two = scope.model(input_ids=ids, logits_to_keep=2).logits
        torch.testing.assert_close(two, scope.model(input_ids=ids).logits[:, -2:])
        with pytest.raises(ScopeError, match="logits_to_keep by index"):
            scope.model(input_ids=ids, logits_to_keep=torch.tensor([0, 3]))


def test_settings_of_torch_and_of_the_config():
    "Another default number type, tuples for outputs, positions counted from five, weights of inference mode."
    scope = Scope(fresh())
    right = scope.surprisal(IDS).values
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(scope.surprisal(IDS).values, right)
    finally:
        torch.set_default_dtype(torch.float32)
    scope.model.config.return_dict = False
    np.testing.assert_array_equal(scope.surprisal(IDS).values, right)
    scope.model.config.return_dict = True
    places = torch.arange(5, 5 + len(IDS))[None]
    padded = dict(input_ids=torch.tensor([[*IDS, 0, 0]]), attention_mask=torch.tensor([[1] * len(IDS) + [0, 0]]))
    padded["position_ids"] = torch.cat([places, places[:, -2:] + 2], 1)
    with torch.no_grad():
        own = scope.model(**padded).logits[:, : len(IDS)]
    torch.testing.assert_close(scope.logits(padded)[:, : len(IDS)], own)
    with torch.inference_mode():
        held = Scope(tiny("llama", trainable=False))
    with pytest.raises(ScopeError, match="made inside torch.inference_mode"):
        held.read(IDS, "resid_post", grad=True)


def test_a_read_pattern_shows_no_later_token_whatever_is_set_there():
    scope = Scope(fresh())
    with scope.edit(Edit("pattern", add=0.5)):
        pattern = scope.read(IDS, "pattern")["pattern"]
    assert pattern.triu(1).abs().max() == 0 and (pattern.diagonal(dim1=-2, dim2=-1) > 0.5).all()
