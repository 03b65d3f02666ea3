"""Search a large image on all GPUs of one machine, one worker process for each, by dask-cuda.

    python examples/several_gpus.py big.fits cat.parquet

``surveycat run --workers N`` gives each process a GPU of its own, too; dask-cuda also binds it to the cores that are
near to that GPU. Over several machines start ``dask scheduler`` on one and ``dask cuda worker tcp://host:8786`` on
each, and use ``surveycat run --scheduler tcp://host:8786``.
"""

import argparse

from dask_cuda import LocalCUDACluster

import surveycat


def main():
    """Start the workers, search, end the workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("out")
    options = parser.parse_args()

    with LocalCUDACluster(threads_per_worker=1) as cluster:
        surveycat.run(options.image, options.out, scheduler=cluster.scheduler_address, resume=True)


if __name__ == "__main__":
    main()
