"""What other packages do with the forms of a model on the page "What works with what": states read, an edit in a forward, an edit in
`generate`, each held against the fuzzer's oracle. `python tests/benchmarks/peers_works.py` in an environment with the peers; it writes
`peers_works.json` beside itself."""
import json
import sys
import tempfile
import warnings
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import FORMS, N_NEW, ROUNDED, merged, plain  # noqa: E402
from oracle import Change, Oracle  # noqa: E402

IDS = [5, 9, 17, 33, 40, 9]
LAYER, PLACE = 1, 2
VECTOR = 2.0 * torch.linspace(0.5, 1.5, 16)
AT_PLACE, EVERYWHERE = (Change("resid_post", (LAYER,), "add", 2.0, True, where) for where in (PLACE, "all"))
GENERATING = dict(max_new_tokens=N_NEW, do_sample=False, pad_token_id=0)


class Tokenscope:
    package = "tokenscope-lab"

    def __init__(self, model):
        from tokenscope import Edit, Scope
        self.scope, self.edit = Scope(model), lambda positions: Edit("resid_post", layers=LAYER, add=VECTOR, positions=positions)

    def read(self):
        return self.scope.read(IDS, "resid_post", layers=LAYER)["resid_post"][0, 0]

    def forward(self):
        with self.scope.edit(self.edit(PLACE)):
            return self.scope.logits(IDS)[0]

    def generate(self):
        with self.scope.edit(self.edit("all")):
            return self.scope.generate(IDS, max_new_tokens=N_NEW)


class NNsight:
    package = "nnsight"

    def __init__(self, model):
        from nnsight import LanguageModel
        from tokenscope import load
        self.model = LanguageModel(model, tokenizer=load().tokenizer)
        self.ids = torch.tensor([IDS])
        inside = self.model
        for name in ("_orig_mod", "base_model", "model"):  # down to the module that holds the layers
            inside = inside if hasattr(inside, "layers") else getattr(inside, name, inside)
        self.block = (inside if hasattr(inside, "layers") else inside.model).layers[LAYER]

    def read(self):
        with self.model.trace(self.ids):
            state = self.block.output.save()
        return state[0]

    def forward(self):
        with self.model.trace(self.ids):
            new = self.block.output.clone()
            new[:, PLACE] += VECTOR.to(new.dtype)
            self.block.output = new
            logits = self.model.output.logits.save()
        return logits[0]

    def generate(self):
        with self.model.generate(self.ids, **GENERATING) as tracer:
            for _ in tracer.iter[:N_NEW]:
                self.block.output = self.block.output + VECTOR.to(self.block.output.dtype)
            said = tracer.result.save()
        return said[0, len(IDS):].tolist()


class TransformerLens:
    package = "transformer-lens"

    def __init__(self, model):
        from tokenscope import load
        from transformer_lens import TransformerBridge
        folder = tempfile.mkdtemp()
        plain("llama").save_pretrained(folder)
        self.bridge = TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=load().tokenizer, dtype=next(model.parameters()).dtype)
        self.ids, self.name = torch.tensor([IDS]), f"blocks.{LAYER}.hook_out"

    def read(self):
        return self.bridge.run_with_cache(self.ids)[1][self.name][0]

    def forward(self):
        def push(x, hook):
            x[:, PLACE] += VECTOR.to(x.dtype)
            return x
        return self.bridge.run_with_hooks(self.ids, fwd_hooks=[(self.name, push)])[0]

    def generate(self):
        with self.bridge.hooks(fwd_hooks=[(self.name, lambda x, hook: x + VECTOR.to(x.dtype))]):
            said = self.bridge.generate(self.ids, max_new_tokens=N_NEW, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens")
        return said[0, len(IDS):].tolist()


def outcome(peer, use, same, rounded) -> str:
    "right, wrong, or the error's type."
    read, edited = (Oracle(same, changes, IDS, len(IDS)) for changes in ((), (AT_PLACE,)))
    room = 0.35 * float((edited.logits - read.logits).abs().max()) if rounded else 2e-3
    try:
        got = getattr(peer, use)()
    except Exception as e:
        return type(e).__name__
    if use == "generate":
        logits = Oracle(same, (EVERYWHERE,), [*IDS, *got], len(IDS)).logits[len(IDS) - 1:-1]
        gap = (logits.max(-1).values - logits.gather(1, torch.tensor(got)[:, None])[:, 0]).max()
    else:
        gap = (got.float() - (read.sites["resid_post", LAYER] if use == "read" else edited.logits)).abs().max()
    return "right" if gap < room * (3 if rounded else 1) else "wrong"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    rows = []
    for form, make in FORMS.items():
        for cls in (Tokenscope, TransformerLens, NNsight):
            with torch.no_grad():
                try:
                    model = make(deepcopy(plain("llama")))
                    same = merged(model) if form.startswith("LoRA") else plain("llama")
                    model(torch.tensor([IDS]))  # it was used before, as it is with a user
                    peer = cls(model)
                except Exception as e:
                    rows += [dict(form=form, who=cls.__name__, use=use, outcome=type(e).__name__) for use in ("read", "forward", "generate")]
                    continue
                rows += [dict(form=form, who=cls.__name__, use=use, outcome=outcome(peer, use, same, form in ROUNDED)) for use in ("read", "forward", "generate")]
            print(form, cls.__name__, *[row["outcome"] for row in rows[-3:]], flush=True)
    found = dict(versions={cls.__name__: version(cls.package) for cls in (Tokenscope, TransformerLens, NNsight)}, rows=rows)
    Path(__file__).with_name("peers_works.json").write_text(json.dumps(found, indent=1) + "\n")
