"""An artifact behind Ray Serve, on as many machines as the load needs.

    pip install 'aicc[ray]'
    cd examples/ray
    serve run deploy:application artifact=/models/smollm2-135m.aicc most_replicas=8

Each replica is the application of `aicc serve`, whole: it loads the artifact, which every machine must
have at this path, and batches what it is sent. Ray starts replicas, spreads requests over them, and
ends them when less is asked. Its proxy listens on 127.0.0.1:8000 and asks nobody for a key;
`serve run` and Ray's own configuration say where else it listens, and `keys` makes the replicas ask.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray import serve
from starlette.applications import Starlette

from aicc.runtime import load
from aicc.runtime.server import create_app
from aicc.runtime.server.app import Front, Limits
from aicc.runtime.server.keys import ApiKeys

BATCH = 16  # requests a replica answers at once before another one is started
DRAIN_SECONDS = 60.0  # longest a replica that ends may take to finish its answers


def application(arguments: Mapping[str, str]) -> serve.Application:
    """What `serve run` deploys.

    Args:
        arguments: ``artifact``, a path; optional are ``name``, what requests call the model; ``replicas``
            and ``most_replicas`` (1 and 4); ``threads`` of each replica, which are also the processors it
            is given (1); ``keys``, a file of API keys.

    Raises:
        ValueError: An argument is missing or unknown.
    """
    known = {"artifact", "name", "replicas", "most_replicas", "threads", "keys"}
    if "artifact" not in arguments or arguments.keys() - known:
        raise ValueError(f"Give artifact=PATH and, if you like, {', '.join(sorted(known - {'artifact'}))}.")
    threads = int(arguments.get("threads", 1))
    limits = Limits()

    def app() -> Starlette:
        """Made on the replica, which is ready once its model is."""
        model = load(arguments["artifact"], threads=threads)
        keys = ApiKeys.read(arguments["keys"]) if "keys" in arguments else None
        # Requests name the proxy's host, whatever that is.
        return create_app({arguments.get("name", model.manifest.name): model}, limits, Front(hosts=None, keys=keys))

    deployment = serve.deployment(
        serve.ingress(app)(),
        name="aicc",
        ray_actor_options={"num_cpus": threads},
        # Ray keeps what is more than this in its own queue, where the server would answer 429, as it still does
        # where requests that ask for several choices make more sequences than this.
        max_ongoing_requests=limits.sequences,
        autoscaling_config={
            "min_replicas": int(arguments.get("replicas", 1)),
            "max_replicas": int(arguments.get("most_replicas", 4)),
            "target_ongoing_requests": BATCH,
        },
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    return deployment.bind()
