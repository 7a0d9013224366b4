"""The same work in the words of other packages, for `make bench`. Each works in an environment where its package is installed; elsewhere it is left
out. All return tensors in tokenscope's layout, so that equal work can be checked."""
import torch

SPEAK = dict(max_new_tokens=24, do_sample=False)
PLAIN = dict(**SPEAK, eos_token_id=None, pad_token_id=0)


def own_model(scope, **kwargs):
    "The same model once more: some peers change the one they are given."
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(scope.model.config._name_or_path, dtype=scope.dtype, **kwargs)


class TransformerLens:
    "It runs attention in eager mode."

    def __init__(self, scope):
        from transformer_lens import TransformerBridge
        from transformer_lens.tools.analysis import logit_lens
        model = own_model(scope, attn_implementation="eager")
        self.bridge = TransformerBridge.boot_transformers(scope.model.config._name_or_path, hf_model=model, tokenizer=scope.tokenizer, dtype=scope.dtype)
        self.n = scope.n_layers
        self._lens = logit_lens

    def all_layers(self, ids):
        _, cache = self.bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_resid_post"))
        return torch.stack([cache["resid_post", i] for i in range(self.n)], 1)

    def one_layer(self, ids, layer):
        name = f"blocks.{layer}.hook_out"
        return self.bridge.run_with_cache(ids, names_filter=name, stop_at_layer=layer + 1)[1][name][:, None]

    def sites(self, ids, names):
        wanted = {f"hook_{name}" for name in names} | {f"attn.hook_{name}" for name in names} | {f"mlp.hook_{name}" for name in names}
        return self.bridge.run_with_cache(ids, names_filter=lambda name: name.split(".", 2)[-1] in wanted)[1]

    def everything(self, ids):
        return self.bridge.run_with_cache(ids)[1]

    def steered(self, ids, layer, direction):
        with self.bridge.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", lambda x, hook: x + direction)]):
            return self.unsteered(ids)

    def unsteered(self, ids):
        return self.bridge.generate(ids, **SPEAK, stop_at_eos=False, verbose=False, return_type="tokens")

    def lens(self, ids, positions):
        return self._lens(self.bridge, ids, positions=positions, layers=range(1, self.n + 1), top_k=3).readout.top_ids  # its layer l is what enters block l


class NNsight:
    def __init__(self, scope):
        from nnsight import LanguageModel
        self.model = LanguageModel(own_model(scope), tokenizer=scope.tokenizer)

    def all_layers(self, ids):
        with self.model.trace(ids):
            states = list().save()
            for block in self.model.model.layers:
                states.append(block.output)
        return torch.stack(states, 1)

    def one_layer(self, ids, layer):
        with self.model.trace(ids) as tracer:
            state = self.model.model.layers[layer].output.save()
            tracer.stop()
        return state[:, None]

    def steered(self, ids, layer, direction):
        with self.model.generate(ids, **PLAIN) as tracer:
            for _ in tracer.iter[:PLAIN["max_new_tokens"]]:
                self.model.model.layers[layer].output = self.model.model.layers[layer].output + direction
            said = tracer.result.save()
        return said

    def unsteered(self, ids):
        with self.model.generate(ids, **PLAIN) as tracer:
            said = tracer.result.save()
        return said

    def lens(self, ids, positions):
        at = slice(None) if positions is None else slice(positions, None)
        with self.model.trace(ids):
            found = list().save()
            for block in self.model.model.layers:
                found.append(self.model.lm_head(self.model.model.norm(block.output[:, at])).softmax(-1).topk(3).indices)
        return torch.stack(found, 1)


class Pyvene:
    "With transformers 5 its collecting intervention fails (blocks return a tensor), and adding works for one text at a time."

    def __init__(self, scope):
        import pyvene
        self.pyvene, self.model = pyvene, own_model(scope)

    def steered(self, ids, layer, direction):
        place = {"layer": layer, "component": "block_output", "intervention_type": self.pyvene.AdditionIntervention, "source_representation": direction}
        if not hasattr(self, "steering"):
            self.steering = self.pyvene.IntervenableModel(place, self.model)
        return self.steering.generate({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, unit_locations=None, intervene_on_prompt=True, **PLAIN)[1]


def peers(scope) -> dict:
    "The installed ones, by name."
    found = {}
    for name, make in {"TransformerLens": TransformerLens, "nnsight": NNsight, "pyvene": Pyvene}.items():
        try:
            found[name] = make(scope)
        except ImportError:
            pass
    return found


class Inseq:
    "Its baseline is the embedding of the unknown token, its rule Gauss-Legendre, both as Captum's."

    def __init__(self, scope):
        import inseq
        self.model = inseq.load_model(own_model(scope), "integrated_gradients", tokenizer=scope.tokenizer)
        self.baseline = scope.tokenizer.unk_token_id

    def integrated_gradients(self, text, continuation, steps):
        found = self.model.attribute(text, text + continuation, n_steps=steps, attributed_fn="logit", show_progress=False)
        return found.sequence_attributions[0].target_attributions.sum(-1).T  # (target, token), NaN from the target on
