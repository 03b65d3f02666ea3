"""Search a large image on a SLURM cluster: each job is one worker process.

    python examples/slurm.py big.fits cat.parquet --jobs 20 --queue normal --account myproject

Run it where jobs are submitted from; image and output must lie on a disk that the nodes share. It needs
dask-jobqueue. With GPUs, ask for one for each job: ``--directive=--gres=gpu:1``. Stopped, it goes on with the
same line.
"""

import argparse

from dask_jobqueue import SLURMCluster

import surveycat


def main():
    """Start the jobs, search, end the jobs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("out")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--queue")
    parser.add_argument("--account")
    parser.add_argument("--walltime", default="02:00:00")
    parser.add_argument("--directive", action="append", default=[], help="Another option of sbatch.")
    options = parser.parse_args()

    with SLURMCluster(
        queue=options.queue,
        account=options.account,
        walltime=options.walltime,
        cores=1,  # threads for tasks: the network has threads of its own
        processes=1,
        job_cpu=4,  # cores for these
        memory="8GB",
        job_extra_directives=options.directive,
        job_script_prologue=["export OMP_NUM_THREADS=4 TF_NUM_INTRAOP_THREADS=4 TF_NUM_INTEROP_THREADS=1"],
    ) as cluster:
        cluster.scale(jobs=options.jobs)
        cluster.wait_for_workers(1, timeout=3600)  # the queue may be long
        surveycat.run(options.image, options.out, scheduler=cluster.scheduler_address, resume=True)


if __name__ == "__main__":
    main()
