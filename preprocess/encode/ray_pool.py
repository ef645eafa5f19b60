"""Where work runs on many machines: a Ray cluster, one task a job, one core a task.

    python -m pip install --no-deps -r requirements-cluster.txt        on every node
    ray start --head                                                   and `ray start --address=...` on the others
    python -m preprocess.shard ... --executor ray

Ray schedules; nothing here does. Manifest, recordings, models and --out lie on a file system that all nodes share,
under the same paths, and the project is installed on each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from preprocess.common.errors import InputError
from preprocess.encode.local_pool import TRIES, WorkerDied


def run_ray(
    work: Callable[[Any], Any], jobs: Sequence[Any], on_progress: Callable[[Any], None] = lambda result: None
) -> Iterator[tuple[int, Any]]:
    """(job's number, result of `work(job)` or WorkerDied), as they come; a task that dies has one more try.

    Joins the cluster that is there (RAY_ADDRESS, or one started on this machine), else starts one of this
    machine's cores. An exception in `work` ends the run. `on_progress` hears each result.
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
                except ray.exceptions.RayError as error:  # the worker, its memory or its node
                    result = WorkerDied(type(error).__name__)
                yield number, result
    finally:
        for reference in numbers:
            ray.cancel(reference, force=True)


def _single_threaded(work: Callable[[Any], Any], job: Any) -> Any:
    import torch

    torch.set_num_threads(1)  # as in the local pool: other numbers of threads may round otherwise
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
