"""Work on many machines: a Ray cluster, one task per job, one core per task.

    python -m pip install --no-deps -r requirements-cluster.txt        on every node
    ray start --head                                                   and `ray start --address=...` on the others
    python -m preprocess.shard ... --executor ray

Ray schedules the tasks. Manifest, recordings, models and --out lie on a file system that all nodes share, under the
same paths, and the project is installed on each node.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from preprocess.common.errors import InputError
from preprocess.encode.local_pool import TRIES, Job, Result, WorkerDied


def run_ray(
    work: Callable[[Job], Result], jobs: Sequence[Job], on_progress: Callable[[Result], None] = lambda result: None
) -> Generator[tuple[int, Result | WorkerDied], None, None]:
    """(job's number, result of `work(job)` or WorkerDied), in the order in which jobs end.

    A task whose worker dies is tried once more. Joins the cluster that is there (RAY_ADDRESS, or one started on this
    machine), else starts one on this machine's cores. An exception in `work` is raised here: an InputError as it is.
    `on_progress` is called with each result.
    """
    ray = _import_ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_single_threaded).remote
    numbers = {task(work, job): number for number, job in enumerate(jobs)}
    try:
        while numbers:
            for done in ray.wait(list(numbers))[0]:
                number = numbers.pop(done)
                try:
                    result = ray.get(done)
                    on_progress(result)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, InputError) else error from None
                except ray.exceptions.RayError as error:  # the worker, its memory or its node failed
                    result = WorkerDied(type(error).__name__)
                yield number, result
    finally:
        for reference in numbers:
            ray.cancel(reference, force=True)


def _single_threaded(work: Callable[[Job], Result], job: Job) -> Result:
    import torch

    torch.set_num_threads(1)  # as in the local pool: another number of threads may round differently
    return work(job)


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(
            "--executor ray",
            "no Ray in this environment",
            "Ray, an optional extra",
            "Install it on every node: python -m pip install --no-deps -r requirements-cluster.txt",
        ) from error
    return ray
