"See, change, choose and teach single tokens inside language and vision-language models."
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# A lazy name table: importing the package imports neither torch nor transformers.
_where = {
    "load": "core.scope", "Scope": "core.scope", "Trace": "core.trace", "Edit": "core.edit",
    "TokenScores": "show.display", "strips": "show.display", "attention_map": "show.pictures",
    "Tokens": "text.tokens", "explore": "show.explore", "claim": "measure.claims",
    "tour": "app.tour", "gallery": "app.gallery", "panel": "app.cards",
}
__all__ = ["__version__", *_where]

if TYPE_CHECKING:  # what type checkers and completion see of the table above
    from tokenscope.app.cards import panel as panel
    from tokenscope.app.gallery import gallery as gallery
    from tokenscope.app.tour import tour as tour
    from tokenscope.core.edit import Edit as Edit
    from tokenscope.core.scope import Scope as Scope, load as load
    from tokenscope.core.trace import Trace as Trace
    from tokenscope.measure.claims import claim as claim
    from tokenscope.show.display import TokenScores as TokenScores, strips as strips
    from tokenscope.show.explore import explore as explore
    from tokenscope.show.pictures import attention_map as attention_map
    from tokenscope.text.tokens import Tokens as Tokens


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
