"""The Ray example on a local cluster of two nodes: `two_nodes.py ARTIFACT RESULT`, in an environment that has Ray.

Writes a JSON object to the file RESULT: what one replica answers whole and streamed, and the nodes of the replicas
before and after more was asked than one of them takes.
"""

import json
import socket
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "ray"))
import deploy

with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]
DEADLINE = 60  # seconds until replicas count as never started


def ask(**fields: object) -> str:
    body = {"model": "smollm2", "prompt": "Once upon a time", "temperature": 0, **fields}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/completions", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read().decode()


def nodes() -> list[str]:
    """The node of each replica that runs."""
    actors = list_actors(filters=[("state", "=", "ALIVE")])
    return [actor.node_id for actor in actors if actor.class_name.startswith("ServeReplica")]


def nodes_once_busy() -> list[str]:
    """The same, while so much is asked that a second replica is wanted, once it runs."""
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            ask(max_tokens=20, ignore_eos=True)

    callers = 3 * deploy.BATCH
    with ThreadPoolExecutor(callers) as pool:
        asking = [pool.submit(keep_asking) for _ in range(callers)]
        try:
            for _ in range(DEADLINE):
                if len(found := nodes()) == 2:
                    return found
                done.wait(1)
            return found
        finally:
            done.set()
            for each in asking:
                each.result()  # no request fails


def main(artifact: str, result: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"port": PORT})
        serve.run(deploy.application({"artifact": artifact, "name": "smollm2", "most_replicas": "2"}))
        found = {"whole": json.loads(ask(max_tokens=8)), "streamed": ask(max_tokens=8, stream=True), "before": nodes()}
        Path(result).write_text(json.dumps(found | {"after": nodes_once_busy()}))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
