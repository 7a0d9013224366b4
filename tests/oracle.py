"""What a tiny Llama or Mistral computes under some edits, written out in plain PyTorch, without cache, padding, hooks and kernels:
what the fuzzer holds every other way of running the model against."""
from dataclasses import dataclass, replace

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

SQUARES = ("attn_scores", "pattern")
WORDS = {"first": 0, "last": -1, "all": slice(None), "not first": slice(1, None)}


@dataclass(frozen=True)
class Change:
    "One edit, in words that a failing example prints and that another process can read."

    site: str
    layers: tuple | None
    op: str  # add, scale, set, fn, or fn in place
    value: float
    vector: bool  # one number for each coordinate
    positions: object  # a word, a number, a tuple of numbers or (start, stop) as a slice
    heads: tuple | None = None
    keys: object = "all"
    when: str = "always"

    def numbers(self, width: int):
        "The value, as the edit gets it."
        return self.value * torch.linspace(0.5, 1.5, width) if self.vector else self.value

    def applied(self, x):
        "The whole tensor, changed."
        value = self.numbers(x.shape[-1])
        if self.op == "set":
            return torch.as_tensor(value, dtype=x.dtype).expand_as(x)
        return {"add": x + value, "scale": x * value}.get(self.op, x * -0.5 + value)

    def meets(self, index: torch.Tensor, n_prompt: int, chosen=None) -> torch.Tensor:
        "Which of these tokens are meant by their positions."
        chosen = self.positions if chosen is None else chosen
        if chosen in ("prompt", "generated"):
            return (index < n_prompt) == (chosen == "prompt")
        chosen = WORDS.get(chosen, chosen) if isinstance(chosen, str) else chosen
        if isinstance(chosen, range):
            chosen = slice(chosen.start, chosen.stop)
        if isinstance(chosen, slice):
            stop = torch.inf if chosen.stop is None else chosen.stop
            start, stop = (n_prompt + p if p < 0 else p for p in (chosen.start or 0, stop))
            return (index >= start) & (index < stop)
        numbers = [chosen] if isinstance(chosen, int) else chosen
        numbers = [n_prompt + p if p < 0 else p for p in numbers]
        return torch.isin(index, torch.tensor(numbers, dtype=index.dtype))

    def in_time(self, index: torch.Tensor, n_prompt: int, start: int) -> torch.Tensor:
        "Which tokens run while the edit is in force and `when` agrees."
        early = index < n_prompt
        return (index >= start) & {"always": early | True, "prompt": early, "generated": ~early}[self.when]

    def of_heads(self, n: int) -> torch.Tensor:
        "Which heads are meant."
        return torch.tensor([self.heads is None or i in self.heads for i in range(n)])


class Oracle:
    "One text through the model, with the tensors of all sites."

    def __init__(self, model, changes, ids, n_prompt, start=0):
        "`start`: tokens before it went through without the edits, and are in the cache."
        self.changes = changes
        self.index = torch.arange(len(ids))
        self.n_prompt, self.start = n_prompt, start
        self.window = getattr(model.config, "sliding_window", None)
        self.sites = {}
        with torch.no_grad():
            self.run(model, torch.as_tensor(ids))

    def of(self, site, layer):
        "The changes at one site of one layer."
        return [c for c in self.changes if c.site == site and (layer is None or c.layers is None or layer in c.layers)]

    def at(self, site, layer, x):
        "A site with a token axis, after its changes."
        for c in self.of(site, layer):
            mask = c.meets(self.index, self.n_prompt) & c.in_time(self.index, self.n_prompt, self.start)
            mask = mask.view(-1, *[1] * (x.ndim - 1))
            if x.ndim == 3:
                mask = mask & c.of_heads(x.shape[1])[:, None]
            x = torch.where(mask, c.applied(x), x)
        return self.note(site, layer, x)

    def note(self, site, layer, x):
        self.sites[(site, layer)] = x
        return x

    def as_seen(self, site, layer, x):
        "Keys or values as each query sees them, (query, key, kv_head, d_head): each forward changes what the cache holds."
        seen = x.expand(len(x), *x.shape)
        for c in self.of(site, layer):
            mask = c.meets(self.index, self.n_prompt)[None, :, None, None] & c.of_heads(x.shape[1])[:, None]
            mask = mask & c.in_time(self.index, self.n_prompt, self.start)[:, None, None, None]
            seen = torch.where(mask, c.applied(seen), seen)
        self.note(site, layer, seen[-1])
        return seen

    def cells(self, site, layer, x, visible):
        "Scores or weights (head, query, key): what the model hides stays as it is."
        for c in self.of(site, layer):
            mask = (c.meets(self.index, self.n_prompt) & c.in_time(self.index, self.n_prompt, self.start))[:, None] & visible
            mask = mask & c.meets(self.index, self.n_prompt, c.keys) & c.of_heads(len(x))[:, None, None]
            x = torch.where(mask, c.applied(x), x)
        return self.note(site, layer, x)

    def attention(self, block, layer, x, cos, sin):
        "What the block adds to the stream."
        q, k, v = (p(x).view(len(x), -1, block.head_dim).transpose(0, 1)[None] for p in (block.q_proj, block.k_proj, block.v_proj))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))  # (token, head, d_head)
        q = self.at("q", layer, q)
        share = q.shape[1] // k.shape[1]
        k = self.as_seen("k", layer, k).repeat_interleave(share, 2)
        v = self.as_seen("v", layer, v).repeat_interleave(share, 2)
        apart = self.index[:, None] - self.index
        visible = (apart >= 0) & (apart < (self.window or torch.inf))
        scores = torch.einsum("qhd,qkhd->hqk", q, k) * block.scaling
        scores = self.cells("attn_scores", layer, scores, visible).masked_fill(~visible, -torch.inf)
        self.note("attn_scores", layer, scores)
        pattern = self.cells("pattern", layer, scores.softmax(-1), visible)
        z = self.at("z", layer, torch.einsum("hqk,qkhd->qhd", pattern, v))
        return block.o_proj(z.flatten(1))

    def run(self, model, ids):
        "All layers."
        body = model.model
        x = self.at("embed", None, body.embed_tokens(ids))
        cos, sin = body.rotary_emb(x[None], self.index[None])
        for i, layer in enumerate(body.layers):
            x = self.at("resid_pre", i, x)
            x = x + self.at("attn_out", i, self.attention(layer.self_attn, i, layer.input_layernorm(x), cos, sin))
            x = self.at("resid_mid", i, x)
            h = layer.post_attention_layernorm(x)
            h = self.at("mlp_post", i, layer.mlp.act_fn(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
            x = x + self.at("mlp_out", i, layer.mlp.down_proj(h))
            x = self.at("resid_post", i, x)
        self.logits = self.at("logits", None, model.lm_head(body.norm(x)))
