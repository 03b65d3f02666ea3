"""One compiled call on whichever backend Keras runs on: the only place that names the backends."""

import importlib

import keras
import numpy as np

ROW_STEP = 16  # rows that a call on JAX is filled up to a multiple of


def versions():
    """Say what computes: answers differ by float noise from one to another.

    Returns
    -------
    dict of str
        Versions of Keras and of the backend that it runs on, by name.
    """
    backend = keras.backend.backend()
    return {"keras": keras.__version__, backend: importlib.import_module(backend).__version__}


def compiled(function, any_rows=False):
    """Compile a function of tensors for repeated calls of the same shapes.

    Parameters
    ----------
    function : callable
        Arrays in, tensors out; written in `keras.ops`.
    any_rows : bool
        Whether the first axes of its arguments may have another length in every call: see `rows_to_compute`.

    Returns
    -------
    callable
        The same function: a graph on TensorFlow, XLA on JAX, without gradients on torch.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _graph_of_any_rows(function) if any_rows else _graph(function)
    if backend == "jax":
        import jax

        return jax.jit(function)
    import torch

    @torch.no_grad()
    def with_tensors(*arguments):  # the other two backends turn arrays into tensors by themselves
        return function(*(keras.ops.convert_to_tensor(a) if isinstance(a, np.ndarray) else a for a in arguments))

    return with_tensors


def rows_to_compute(count):
    """How many rows to give to a function that was compiled for any number of them.

    Parameters
    ----------
    count : int
        Rows at hand.

    Returns
    -------
    int
        The same; on JAX, which compiles anew for each shape, the next of a few numbers.
    """
    return -(-count // ROW_STEP) * ROW_STEP if keras.backend.backend() == "jax" else count


def _graph(function, signature=None):
    """A TensorFlow graph, of the shapes of a signature if there is one."""
    import tensorflow

    return tensorflow.function(function, autograph=False, input_signature=signature)


def _graph_of_any_rows(function):
    """A TensorFlow graph of the shapes that the first call has, but for their first axes."""
    import tensorflow

    graph = None

    def with_signature(*arguments):
        nonlocal graph
        if graph is None:
            shapes = keras.tree.map_structure(
                lambda one: tensorflow.TensorSpec((None, *one.shape[1:]), one.dtype), arguments
            )
            graph = _graph(function, shapes)
        return graph(*arguments)

    return with_signature
