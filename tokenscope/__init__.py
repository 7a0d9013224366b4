"See, change, choose and teach single tokens inside language and vision-language models."
__version__ = "0.1.0"

# A lazy name table: importing the package imports neither torch nor transformers.
_where = {
    "load": "core.scope", "Scope": "core.scope", "Trace": "core.trace", "Edit": "core.edit",
    "TokenScores": "show.display", "strips": "show.display", "attention_map": "show.pictures",
    "Tokens": "text.tokens", "explore": "show.explore", "claim": "measure.claims",
    "tour": "app.tour", "gallery": "app.gallery",
}
__all__ = ["__version__", *_where]


def __getattr__(name):
    "Import the module that holds `name` the first time it is asked for."
    if name not in _where:
        raise AttributeError(f"module 'tokenscope' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    value = getattr(import_module(f"tokenscope.{_where[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
