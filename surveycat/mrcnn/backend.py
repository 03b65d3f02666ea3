"""One compiled call on whichever backend Keras runs on: the only place that names the backends."""

import importlib

import keras
import numpy as np


def versions():
    """Say what computes: answers differ by float noise from one to another.

    Returns
    -------
    dict of str
        Versions of Keras and of the backend that it runs on, by name.
    """
    backend = keras.backend.backend()
    return {"keras": keras.__version__, backend: importlib.import_module(backend).__version__}


def compiled(function):
    """Compile a function of tensors for repeated calls of the same shapes.

    Parameters
    ----------
    function : callable
        Arrays in, tensors out; written in `keras.ops`.

    Returns
    -------
    callable
        The same function: a graph on TensorFlow, XLA on JAX, without gradients on torch.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow

        return tensorflow.function(function, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(function)
    import torch

    @torch.no_grad()
    def with_tensors(*arguments):  # the other two backends turn arrays into tensors by themselves
        return function(*(keras.ops.convert_to_tensor(a) if isinstance(a, np.ndarray) else a for a in arguments))

    return with_tensors
