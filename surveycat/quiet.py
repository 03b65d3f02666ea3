"""Start the network's backend: silent on the user's terminal, and with memory that it may keep."""

import contextlib
import ctypes
import faulthandler
import os
import sys

__all__ = ["start_backend"]

DASK_TRIMS = "65536"  # bytes; what Dask sets in its worker processes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def start_backend():
    """Import Keras with its backend and have it find its devices, unseen; memory of GPUs is taken as it is needed.

    TensorFlow tells of instruction sets and missing GPUs on standard error, past Python and whatever its log
    level. A user who set ``TF_CPP_MIN_LOG_LEVEL`` below 2 sees it all.
    """
    if "keras" in sys.modules:
        return
    # Several processes share a GPU with others: none takes all of its memory at once. torch never does.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") == DASK_TRIMS:
        _keep_memory()
    hide = int(os.environ.get("TF_CPP_MIN_LOG_LEVEL") or 0) >= 2 and sys.stderr is not None
    with _hidden_stderr() if hide else contextlib.nullcontext():
        import keras

        keras.ops.zeros(1)  # the first array opens the devices


def _keep_memory():
    """Let this process keep what it frees, as it would outside Dask.

    Dask has the C library give memory back to the system whenever 64 KiB are free. The network, whose arrays are
    megabytes, then has all of them mapped and cleared anew, and takes 1.8 times as long on a CPU.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # of glibc, which alone heeds that variable
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest values to which it adapts by itself
        libc.mallopt(M_TRIM_THRESHOLD, 2**26)


@contextlib.contextmanager
def _hidden_stderr():
    """Send file descriptor 2 nowhere for a while; a crash of the process still tells where it was."""
    sys.stderr.flush()
    watched = faulthandler.is_enabled()
    with os.fdopen(os.dup(2), "w") as seen, open(os.devnull, "w") as nowhere:
        if not watched:
            faulthandler.enable(file=seen)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(seen.fileno(), 2)
            if not watched:
                faulthandler.disable()
