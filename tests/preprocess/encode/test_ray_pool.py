"""Under Ray: the bytes of the local pool, on a cluster of two nodes, and a task that dies does not end the run."""

import os

import pytest

from preprocess.common.errors import InputError
from preprocess.encode.local_pool import WorkerDied
from preprocess.encode.ray_pool import run_ray
from tests.preprocess.helpers import folder_bytes, shard

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install --no-deps -r requirements-cluster.txt")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def two_nodes():
    """Ray's own cluster for tests: two nodes of one core, each with processes of its own."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield ray
    ray.shutdown()
    cluster.shutdown()


def test_two_nodes_write_the_bytes_of_the_local_pool(
    two_nodes, tmp_path, short_folder, model_folder, codec_folder, hubert_folder
):
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    given = {"manifest": short_folder / "corpus.jsonl", "hours_per_shard": 0.0004, **tools}
    assert len(two_nodes.nodes()) == 2
    assert shard(out=tmp_path / "ray", executor="ray", **given) == 0
    assert shard(out=tmp_path / "local", workers=1, **given) == 0
    assert folder_bytes(tmp_path / "ray") == folder_bytes(tmp_path / "local")


def test_a_task_that_dies_twice_is_reported_and_the_others_go_on(two_nodes, tmp_path):
    def work(job):
        if job == 1:
            with open(tmp_path / "tries", "a") as file:
                file.write("x")
            os.abort()
        return job * job

    results = dict(run_ray(work, [0, 1, 2]))
    assert results == {0: 0, 1: WorkerDied("WorkerCrashedError"), 2: 4}
    assert (tmp_path / "tries").read_text() == "xx"


def test_an_input_error_in_a_task_ends_the_run_as_it_is(two_nodes):
    def refuse(job):
        raise InputError("the disk", "no room", "some", "Free it.")

    with pytest.raises(InputError, match="the disk: found no room"):
        list(run_ray(refuse, [1]))
