"""A random edit on a random form of a tiny model in a random use: the numbers of the oracle, or a `ScopeError`. Nothing else.

`make test` tries 2,000 examples, `make fuzz` 50,000 and writes the table of the page "What works with what"."""
import threading
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from oracle import SQUARES, Change, Oracle
from tokenscope import Edit, Scope
from tokenscope.core.following import steady
from tokenscope.text.names import ScopeError

SMALL = dict(vocab_size=53, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None, attention_dropout=0.0)
FAMILIES = {"llama": (LlamaForCausalLM, LlamaConfig, {}), "mistral": (MistralForCausalLM, MistralConfig, dict(sliding_window=4))}


@cache
def plain(family: str):
    "The model as the oracle takes it."
    cls, config, more = FAMILIES[family]
    torch.manual_seed(1)
    model = cls(config(**SMALL, **more)).eval().requires_grad_(False)
    for p in model.parameters():  # an initial model is nearly linear; larger weights make every part matter
        if p.ndim == 2:
            p.mul_(6)
    return model


def lora(model, modules):
    "The model with an adapter that changes what it says."
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(2)
    return get_peft_model(model, LoraConfig(r=2, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")).eval()


ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def merged(model):
    "What an adapted model computes, as plain weights."
    return deepcopy(model).merge_and_unload().eval().requires_grad_(False)


def by_layer(model):
    "Every layer replaced by its compiled self."
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(layer, backend="eager")
    return model


def each_compiled(model):
    "Every layer told to compile its own call."
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def in_place(model):
    "The model told to compile its own call."
    model.compile(backend="eager")
    return model


def offloaded(model):
    "Weights that accelerate brings when they are used."
    from accelerate import cpu_offload
    return cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model):
    "Weights that accelerate reads from the disk when they are used."
    import tempfile
    from accelerate import disk_offload
    return disk_offload(model, tempfile.mkdtemp(), execution_device=torch.device("cpu"))


def checkpointed(model):
    "A model in training that computes its activations twice."
    model.train().gradient_checkpointing_enable()
    return model.requires_grad_(True)


def dynamic_int8(model):
    "torch's own quantisation of linear layers."
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def torchao_int8(model):
    "torchao's quantisation of weights."
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    quantize_(model, Int8WeightOnlyConfig())
    return model


# form -> how it is made from the plain model
FORMS = {
    "frozen": lambda m: m,
    "trainable": lambda m: m.requires_grad_(True),
    "in training mode": lambda m: m.train(),
    "gradient checkpointing": checkpointed,
    "eager attention": lambda m: (m.set_attn_implementation("eager"), m)[1],
    "bfloat16": lambda m: m.bfloat16(),
    "float16": lambda m: m.half(),
    "LoRA on queries and values": lambda m: lora(m, ["q_proj", "v_proj"]),
    "LoRA on all linear layers": lambda m: lora(m, ALL_LINEAR),
    "torch.compile(model)": lambda m: torch.compile(m, backend="eager"),
    "model.compile()": in_place,
    "layers replaced by torch.compile": by_layer,
    "layer.compile()": each_compiled,
    "offloaded by accelerate": offloaded,
    "offloaded to the disk": on_disk,
    "int8 by torch": dynamic_int8,
    "int8 by torchao": torchao_int8,
}
ROUNDED = ("bfloat16", "float16", "int8 by torch", "int8 by torchao")  # its own numbers, near the oracle's
try:
    import torchao  # noqa: F401 (a heavy package that only this form needs)
except ImportError:
    FORMS.pop("int8 by torchao")


@cache
def made(family: str, form: str):
    "The form's scope, and the oracle's model of the same weights."
    model = FORMS[form](deepcopy(plain(family)))
    same = merged(model) if form.startswith("LoRA") else plain(family)
    return Scope(model), same


@dataclass(frozen=True)
class Example:
    "One try."

    family: str
    form: str
    use: str
    changes: tuple
    rows: tuple  # token ids of each text
    site: str = "resid_post"  # what `read` reads


def edit_of(change: Change, model) -> Edit:
    "The same change as tokenscope takes it."
    config = model.config
    width = {"mlp_post": config.intermediate_size, "logits": config.vocab_size}.get(change.site, config.hidden_size)
    width = config.head_dim if change.site in ("q", "k", "v", "z") else width

    def fn(x):
        "A new tensor."
        return x * -0.5 + change.numbers(x.shape[-1])

    def fn_in_place(x):
        "The tensor it was given, written into."
        return x.mul_(-0.5).add_(change.numbers(x.shape[-1]))

    how = {"fn": fn} if change.op == "fn" else {"fn": fn_in_place} if change.op == "fn in place" else {change.op: change.numbers(width)}
    positions, keys = (list(p) if isinstance(p, tuple) else slice(p.start, p.stop) if isinstance(p, range) else p for p in (change.positions, change.keys))
    return Edit(change.site, layers=change.layers and list(change.layers), positions=positions, keys=keys, when=change.when,
                heads=change.heads and list(change.heads), **how)


class Wrong(AssertionError):
    "A silent wrong number."


class Judge:
    "Compares what came out with the oracle."

    def __init__(self, example, same):
        self.example, self.same = example, same

    def oracle(self, ids, n_prompt, start=0, changes=None):
        return Oracle(self.same, self.example.changes if changes is None else changes, ids, n_prompt, start)

    def near(self, got, right, unedited, what):
        """Are the numbers right? Exactly for most forms. A rounded one has numbers of its own: they must lie near the oracle's, measured by how far
        the edit moves them."""
        tolerance = 2e-3 * max(1.0, float(right.abs().max()))
        if self.example.form in ROUNDED:
            tolerance = 0.35 * float((right - unedited).abs().max()) + 0.15 * max(1.0, float(right.abs().max()))
        gap = float((got.detach().float() - right).abs().max()) if got.shape == right.shape else float("inf")
        if not gap <= tolerance:
            raise Wrong(f"{what}: off by {gap:.3g} (the edit moves it by {float((right - unedited).abs().max()):.3g}) in {self.example}")

    def logits(self, got, ids, n_prompt=None, start=0):
        "Logits of one text's real tokens."
        n = len(ids) if n_prompt is None else n_prompt
        right, unedited = (self.oracle(ids, n, start, changes).logits for changes in (None, ()))
        self.near(got, right[-len(got):], unedited[-len(got):], "logits")

    def greedy(self, new, prompt, start=0):
        "Was each new token the likeliest one, as the oracle sees it?"
        ids = [*prompt, *new]
        right, unedited = (self.oracle(ids, len(prompt), start, changes).logits[len(prompt) - 1:-1] for changes in (None, ()))
        lost = right.max(-1).values - right.gather(1, torch.tensor(new)[:, None])[:, 0]
        self.near(lost, torch.zeros_like(lost), (right - unedited).abs().max(-1).values, "greedy choice")

    def beams(self, out, prompt, n_new):
        "Is the score of the best beam the one that the oracle gives it?"
        ids = out.sequences[0].tolist()
        scores = [self.oracle(ids, len(prompt), 0, changes).logits.log_softmax(-1)[len(prompt) - 1:-1].gather(1, torch.tensor(ids[len(prompt):])[:, None]).sum() / n_new
                  for changes in (None, ())]
        self.near(out.sequences_scores[0], *scores, "score of a beam")


N_NEW = 4


def padded(rows, side):
    "Ids and mask of several texts."
    width = max(map(len, rows))
    fill = [[0] * (width - len(r)) for r in rows]
    ids = torch.tensor([f + list(r) if side == "left" else list(r) + f for r, f in zip(rows, fill)])
    mask = torch.tensor([[0] * len(f) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(f) for r, f in zip(rows, fill)])
    return ids, mask


# ── uses: each runs the model inside the edit and lets the judge look ──
def forward_by_name(scope, judge, rows):
    ids, mask = padded(rows, "right")
    out = scope.model(input_ids=ids, attention_mask=mask).logits
    for row, got in zip(rows, out):
        judge.logits(got[:len(row)], row)


def forward_by_place(scope, judge, rows):
    ids, mask = padded(rows, "right")
    out = scope.model(ids, mask).logits
    for row, got in zip(rows, out):
        judge.logits(got[:len(row)], row)


def forward_left(scope, judge, rows):
    ids, mask = padded(rows, "left")
    places = (mask.cumsum(1) - 1).clamp(min=0)
    out = scope.model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    for row, got in zip(rows, out):
        judge.logits(got[-len(row):], row)


def forward_last(scope, judge, rows):
    out = scope.model(input_ids=torch.tensor(rows[:1]), logits_to_keep=1).logits
    judge.logits(out[0], rows[0])


def read_logits(scope, judge, rows):
    batch = scope.logits([list(r) for r in rows])
    for row, got in zip(rows, batch):
        judge.logits(got[:len(row)], row)


def read_site(scope, judge, rows):
    site = judge.example.site
    trace = scope.read([list(r) for r in rows], site)
    for i, row in enumerate(rows):
        right, unedited = (judge.oracle(row, len(row), 0, changes).sites for changes in (None, ()))
        for layer in range(scope.n_layers) if site != "embed" else [None]:
            got = trace.at(site, layer)[i]
            want, before = right[site, layer], unedited[site, layer]
            got = got[:, :len(row), :len(row)] if site in SQUARES else got[:len(row)]
            if site == "attn_scores":  # what is hidden is very low, by how much is the model's own affair
                hidden = torch.isneginf(want)
                got, want, before = (t.masked_fill(hidden, 0) for t in (got, want, before))
            judge.near(got, want, before, f"{site} of layer {layer}")


def generated(scope, judge, rows, **settings):
    ids, mask = padded(rows, "left")
    out = scope.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=N_NEW, do_sample=False, pad_token_id=0, **settings)
    for row, new in zip(rows, out[:, ids.shape[1]:].tolist()):
        judge.greedy(new, row)


def generate_scope(scope, judge, rows):
    _, out = scope.generate([list(r) for r in rows], max_new_tokens=N_NEW, return_ids=True)
    for row, new in zip(rows, out):
        judge.greedy(new, row)


def generate_static(scope, judge, rows):
    generated(scope, judge, rows, cache_implementation="static")


def generate_without_cache(scope, judge, rows):
    generated(scope, judge, rows, use_cache=False)


def generate_chunked(scope, judge, rows):
    generated(scope, judge, rows, prefill_chunk_size=2)


def generate_lookup(scope, judge, rows):
    generated(scope, judge, [rows[0] * 2], prompt_lookup_num_tokens=3)


def generate_beams(scope, judge, rows):
    ids = torch.tensor(rows[:1])
    out = scope.model.generate(input_ids=ids, max_new_tokens=N_NEW, num_beams=3, do_sample=False, pad_token_id=0, output_scores=True,
                               return_dict_in_generate=True, length_penalty=1.0)
    judge.beams(out, rows[0], N_NEW)


def two_threads(scope, judge, rows):
    "Two threads at once: each right, or refused."
    errors = []

    def run(row):
        try:
            for _ in range(3):
                judge.logits(scope.model(input_ids=torch.tensor([row])).logits[0], row)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(row,)) for row in (rows[0], rows[0][::-1])]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for e in sorted(errors, key=lambda e: isinstance(e, ValueError)):
        raise e


USES = {
    "forward, mask by name": forward_by_name,
    "forward, mask by place": forward_by_place,
    "forward, padded left": forward_left,
    "forward, last logits only": forward_last,
    "forward after a cache": None,  # `run` knows when its edit begins
    "scope.logits": read_logits,
    "scope.read": read_site,
    "model.generate": generated,
    "scope.generate": generate_scope,
    "generate, static cache": generate_static,
    "generate, no cache": generate_without_cache,
    "generate, prompt in chunks": generate_chunked,
    "generate, prompt lookup": generate_lookup,
    "generate, beams": generate_beams,
    "two threads": two_threads,
}


@contextmanager
def nothing_left(scope):
    "Hooks, settings and methods are as before."
    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in scope.model.modules())
        return hooks, scope.structure.config._attn_implementation, getattr(type(scope.model), 'generate', None), scope.model.training
    before = state()
    yield
    if state() != before:
        raise Wrong(f"something is left: {before} before, {state()} now")


def run(example: Example, edits: list, judge: Judge, scope: Scope):
    "One use of the model with some edits in force."
    graph = example.form in ("trainable", "gradient checkpointing")
    rows = [list(row) for row in example.rows]
    if example.use != "forward after a cache":
        with torch.set_grad_enabled(graph), scope.edit(*edits):
            USES[example.use](scope, judge, rows)
        return
    row = rows[0]
    start = 2
    with torch.no_grad():
        with steady(scope.model):
            cache = scope.model(input_ids=torch.tensor([row[:start]]), use_cache=True).past_key_values
        with scope.edit(*edits):
            out = scope.model(input_ids=torch.tensor([row[start:]]), past_key_values=cache).logits
    judge.logits(out[0], row, start, start)


def unable(example: Example, scope: Scope, error: Exception) -> bool:
    "Does the model itself, without any edit, stop with the same error?"
    try:
        run(example, [], Judge(example, made(example.family, example.form)[1]), scope)
    except Wrong:
        return False
    except Exception as own:
        return type(own) is type(error)
    return False


def tried(example: Example) -> str:
    """Run one example: "right", or the text of the `ScopeError` that refused it, or what stops transformers itself. Anything else is
    raised."""
    scope, same = made(example.family, example.form)
    edits = [edit_of(change, same) for change in example.changes]
    with nothing_left(scope):
        try:
            run(example, edits, Judge(example, same), scope)
        except Wrong:
            raise
        except Exception as error:
            if isinstance(error, ScopeError):
                return f"{error}"
            if unable(example, scope, error):
                return f"transformers: {error}"
            raise
    return "right"
