"""Keys, names of the host, and pages of other origins."""

from __future__ import annotations

import pytest
from serve.http.calling import error_of

from ensuite.serve.http import keys
from ensuite.serve.store import StoreUnavailable

EVENT = {"events": [{"user_id": "ann", "item_id": 30}]}
READS = [
    ("POST", "/v1/recommend", {"history": [30, 40], "k": 1}),
    ("GET", "/v1/users/ann", None),
    ("GET", "/v1/items/30/similar", None),
    ("GET", "/v1/model", None),
    ("GET", "/metrics", None),
]
WRITES = [
    ("POST", "/v1/events", EVENT),
    ("DELETE", "/v1/users/ann", None),
    ("PUT", "/v1/items", {"items": [{"item_id": 30, "title": "Thirty"}]}),
    ("POST", "/v1/model", {"run": "none"}),
]


@pytest.fixture
def keyed(start):
    call = start("sasrec-1", require_keys=True)
    call.secrets = {
        scope: call.service.store.add_key(scope, frozenset(scope.split("+")))
        for scope in ("read", "write", "read+write")
    }

    def use(secret: str | None) -> None:
        call.headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}

    call.use = use
    return call


@pytest.mark.parametrize(("method", "url", "body"), READS + WRITES)
def test_no_way_in_without_a_key(keyed, method, url, body):
    for secret in (None, "wrong", keyed.secrets["read"][:-1], ""):
        keyed.use(secret)
        answer = keyed(method, url, body)
        assert error_of(answer)[:2] == (401, "Authorization")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    keyed.use(keyed.secrets["write" if (method, url, body) in READS else "read"])
    assert error_of(keyed(method, url, body))[0] == 403
    keyed.use(keyed.secrets["read+write"])
    assert keyed(method, url, body).status_code not in (401, 403)
    keyed.use(keyed.secrets["read" if (method, url, body) in READS else "write"])
    assert keyed(method, url, body).status_code not in (401, 403)


def test_every_route_but_the_probes_asks_for_a_key(keyed):
    keyed.use(None)
    paths = keyed.app.openapi()["paths"]
    for path, operations in paths.items():
        for method in operations:
            answer = keyed(method.upper(), path.replace("{", "").replace("}", ""), {})
            assert (answer.status_code == 401) == (path not in ("/healthz", "/readyz")), (method, path)


def test_a_revoked_key_is_worth_nothing(keyed, monkeypatch):
    keyed.use(keyed.secrets["read"])
    assert keyed("GET", "/v1/model").status_code == 200
    keyed.service.store.revoke_key("read")
    assert keyed("GET", "/v1/model").status_code == 200  # remembered for a moment
    monkeypatch.setattr(keys, "FRESH", 0.0)
    assert keyed("GET", "/v1/model").status_code == 401


def test_while_the_store_is_away_known_keys_go_on_and_others_wait(keyed, monkeypatch):
    keyed.use(keyed.secrets["read"])
    assert keyed("GET", "/v1/model").status_code == 200
    monkeypatch.setattr(keys, "FRESH", 0.0)

    def away(*_):
        raise StoreUnavailable("away")

    monkeypatch.setattr(keyed.service.store, "check_key", away)
    assert keyed("GET", "/v1/model").status_code == 200
    keyed.use(keyed.secrets["read+write"])
    assert keyed("GET", "/v1/model").status_code == 503


def test_keys_are_remembered_up_to_a_number(keyed, monkeypatch):
    monkeypatch.setattr(keys, "KEPT", 2)
    for secret in keyed.secrets.values():
        keyed.use(secret)
        keyed("GET", "/v1/model")
    assert len(keyed.app.state.keys._known) == 2


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]", "[::1]:8000"])
def test_without_keys_it_answers_to_the_names_of_the_loopback(start, host):
    assert start()("GET", "/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", ""])
def test_and_to_no_other(start, host):
    assert error_of(start()("GET", "/v1/model", headers={"Host": host}))[0] == 421


def test_with_keys_a_service_has_any_name(keyed):
    keyed.use(keyed.secrets["read"])
    assert keyed("GET", "/v1/model", headers={"Host": "shop.example"}).status_code == 200


def test_no_foreign_page_unless_its_origin_is_named(start):
    ask = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    closed = start()
    assert "access-control-allow-origin" not in closed("OPTIONS", "/v1/events", headers=ask).headers
    call = start(origins=["https://shop.example"])
    answer = call("OPTIONS", "/v1/events", headers=ask)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    other = ask | {"Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in call("OPTIONS", "/v1/events", headers=other).headers
