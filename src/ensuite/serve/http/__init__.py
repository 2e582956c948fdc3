"""The service over HTTP: FastAPI around `ensuite.serve.service.Service`."""

from __future__ import annotations

from importlib.util import find_spec

from ensuite.errors import EnsuiteError

if not (find_spec("fastapi") and find_spec("uvicorn") and find_spec("prometheus_client")):
    raise EnsuiteError(
        "the service needs FastAPI, uvicorn and prometheus-client, which are not installed: "
        "pip install 'ensuite[serve]'"
    )

from ensuite.serve.http.app import build_app

__all__ = ["build_app"]
