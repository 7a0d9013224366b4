"One spelling an idea: the parameters of public functions, read from the syntax trees. The list of those that are left may only shrink."
import ast
from collections import Counter

from house import PACKAGE

ROOMS = ("text", "show", "core", "corpus", "data", "change", "measure", "learn", "app")
WORDS = {"file": "path", "batch_size": "batch_tokens", "most": "max_…", "top": "k", "n": "n_… of what", "samples": "n_samples"}
SEEDS = {
    "charbench": "the paper's 42",
    "scope": "None: sampling goes on from the surrounding random state",
    "neighbours": "None: first come, nothing is drawn",
}  # module -> why its default seed is not 0
ORDER = ("layers", "positions", "heads", "seed")


def parameters(node) -> list:
    "(name, annotation, default) of each parameter, in order."
    found = [*node.args.posonlyargs, *node.args.args]
    pad = [None] * (len(found) - len(node.args.defaults))
    pairs = [*zip(found, [*pad, *node.args.defaults]), *zip(node.args.kwonlyargs, node.args.kw_defaults)]
    return [(a.arg, ast.unparse(a.annotation) if a.annotation else "", ast.unparse(d) if d else "") for a, d in pairs]


def faults() -> Counter:
    "(room/module, what is wrong) and how often."
    counted = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem.startswith("_"):
            continue
        page = f"{path.parent.name}/{path.stem}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            listed = parameters(node)
            for name, kind, default in listed:
                if name in WORDS and (path.parent.name in ROOMS or name == "batch_size"):
                    counted[page, f"{name}: write {WORDS[name]}"] += 1
                if name == "positions" and default == "None":
                    counted[page, "positions defaults to None: a word says which"] += 1
                if name == "layers" and not kind.startswith(("Layers", "list[int]")):
                    counted[page, "layers are not annotated Layers"] += 1
                if name == "seed" and default not in ("", "0") and path.stem not in SEEDS:
                    counted[page, "another default seed than 0"] += 1
            order = [ORDER.index(name) for name, _, _ in listed if name in ORDER]
            if order != sorted(order):
                counted[page, "the order is layers, positions, heads, seed"] += 1
    return counted


# What is left, as room/page, what is wrong, how often.
LEFT = {
    ("learn/adders", "batch_size: write batch_tokens"): 2,
    ("learn/adders", "n: write n_… of what"): 2,
    ("learn/binding", "n: write n_… of what"): 2,
    ("learn/binding", "samples: write n_samples"): 2,
    ("learn/small_models", "n: write n_… of what"): 1,
    ("learn/steps", "n: write n_… of what"): 1,
    ("learn/tuned_pairs", "n: write n_… of what"): 2,
    ("learn/walkers", "file: write path"): 1,
    ("learn/walkers", "n: write n_… of what"): 2,
    ("lenses/mixing_mechanisms", "layers are not annotated Layers"): 2,
    ("lenses/step_sae", "batch_size: write batch_tokens"): 1,
    ("measure/claims", "n: write n_… of what"): 1,
    ("measure/neighbours", "layers are not annotated Layers"): 1,
    ("steering/austeer", "layers are not annotated Layers"): 2,
    ("steering/grains", "layers are not annotated Layers"): 2,
    ("steering/neural_foxp2", "layers are not annotated Layers"): 1,
    ("steering/struct_transform", "another default seed than 0"): 1,
    ("steering/zerotuning", "batch_size: write batch_tokens"): 1,
    ("steering/zerotuning", "layers are not annotated Layers"): 1,
    ("tokenizers/hierarchical_ar", "layers are not annotated Layers"): 1,
    ("tokenizers/lexinvariant", "another default seed than 0"): 1,
    ("tokenizers/tokenization_counts", "batch_size: write batch_tokens"): 1,
    ("tokenizers/tokenizer_betrayal", "batch_size: write batch_tokens"): 1,
}


def test_one_spelling_an_idea():
    grown = {key: number for key, number in faults().items() if number > LEFT.get(key, 0)}
    assert not grown
