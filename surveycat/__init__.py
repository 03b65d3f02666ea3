"""Galaxy catalogues from survey images of any size.

    import surveycat
    table = surveycat.run("field.jpg", "cat.parquet", ra=351.65, dec=0.10)

Everything is imported when it is first used: `import surveycat` costs nothing.
"""

import importlib
import os
import sys
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["SurveycatError", "__version__", "bulk", "fetch", "inject", "match", "read", "run", "write"]

# TensorFlow writes pages of log to the user's terminal unless told not to before its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_HOME = {
    "SurveycatError": "surveycat.errors",
    "bulk": "surveycat.bulk",
    "inject": "surveycat.inject",
    "match": "surveycat.match",
    "fetch": "surveycat.mosaic",
    "read": "surveycat.catalog",
    "run": "surveycat.pipeline",
    "write": "surveycat.catalog",
}


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'surveycat' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `surveycat.match` the function: importing the module of that name would put it in the function's place."""

    def __setattr__(self, name, value):
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
