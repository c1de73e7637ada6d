"""llama.cpp's own server, from the prebuilt wheel: serve_llamacpp.py MODEL PORT OPTIONS (JSON)."""

from __future__ import annotations

import json
import sys

import xllamacpp

model, port, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path = model
params.hostnames = ["127.0.0.1"]
params.port = port
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
params.n_parallel = options["users"]
# Each slot has an equal part of the context, which makes many users faster than one cache for all does.
params.n_ctx = options["users"] * options["sequence_tokens"]
params.kv_unified = False
params.n_gpu_layers = 0
params.cache_ram_mib = 0  # no prompt comes again after others, so none is copied aside
params.verbosity = 0
params.ui = False
server = xllamacpp.Server(params)
sys.stdin.read()
