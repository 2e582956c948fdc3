"""What the service says of itself holds for whatever is sent: requests drawn from its OpenAPI."""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis")
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from ensuite.serve.runs import RunFolder

ROUTES = [
    ("POST", "/v1/recommend"),
    ("POST", "/v1/events"),
    ("GET", "/v1/users/{user_id}"),
    ("DELETE", "/v1/users/{user_id}"),
    ("GET", "/v1/items/{item_id}/similar"),
    ("PUT", "/v1/items"),
    ("POST", "/v1/model"),
]
FIXED = [("GET", "/v1/model"), ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")]
"""Nothing can be sent wrongly there."""
MODES = schemathesis.GenerationMode
DRAWN = [(MODES.POSITIVE, *route) for route in ROUTES + FIXED] + [
    (MODES.NEGATIVE, *route) for route in ROUTES
]
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]

SETTINGS = settings(
    max_examples=25,
    derandomize=True,  # the same requests in every run
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_every_route_is_in_the_list(start):
    paths = start("markov").app.openapi()["paths"]
    assert sorted(ROUTES + FIXED) == sorted((m.upper(), path) for path, ms in paths.items() for m in ms)


@pytest.mark.parametrize(("mode", "method", "path"), DRAWN)
def test_nothing_drawn_from_the_schema_breaks_it(start, runs, mode, method, path):
    call = start("sasrec-1", runs=RunFolder(runs))
    call.happened("ann", 30, 40)
    schema = schemathesis.openapi.from_asgi("/openapi.json", call.app, headers={"Host": "localhost"})
    strategy = schema[path][method].as_strategy(generation_mode=mode)
    sent = []

    @SETTINGS
    @given(case=strategy)
    def send(case):
        if mode is MODES.POSITIVE and len(sent) % 2:
            make_known(case)
        answer = case.call(headers={"Host": "localhost"})
        case.validate_response(answer, checks=CHECKS)
        sent.append(answer.status_code)

    send()
    assert 421 not in sent
    if mode is MODES.POSITIVE:
        assert any(status < 300 for status in sent)


def make_known(case):
    """Put what this service knows into what was drawn, so that some requests are answered."""
    if case.path_parameters:
        case.path_parameters = {"user_id": "ann", "item_id": "30"}
        case.query = {}
    body = case.body
    if not isinstance(body, dict):
        return
    for one in [body, *body.get("requests", [])]:
        if "user_id" in one or "history" in one or not one:
            one.update(user_id="ann", k=2)
            one.pop("at", None)
            one.pop("candidates", None)
            one["history"] = [30, {"item_id": 40, "time": 5}][: 1 + len(one) % 2]
    for event in body.get("events", []):
        event.pop("time", None)
    for item in body.get("items", []):
        item["like"] = [30]
    if "run" in body:
        body["run"] = "sasrec-2"
