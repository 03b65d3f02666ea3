"""One compiled call on whichever backend Keras runs on: the only place that names the backends."""

import keras


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

    return torch.no_grad()(function)
