"""The service over HTTP: FastAPI around `ensuite.serve.service.Service`."""

from __future__ import annotations

from importlib.util import find_spec

from ensuite.errors import EnsuiteError

if not all(map(find_spec, ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client"))):
    raise EnsuiteError(
        "the service needs FastAPI, fastapi-offline, uvicorn and prometheus-client, which are not all "
        "installed: pip install 'ensuite[serve]'"
    )

from ensuite.serve.http.app import build_app

__all__ = ["build_app"]
