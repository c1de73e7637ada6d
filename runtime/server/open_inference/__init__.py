"""The Open Inference Protocol (KServe v2): tensors in, tensors out, as JSON or as bytes."""

from aicc.runtime.server.open_inference.rest import routes

__all__ = ["routes"]
