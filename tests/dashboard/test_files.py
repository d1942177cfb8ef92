"""The page's files: what is vendored, what a browser may do with them, and how large they are."""

import gzip
import json
import re
from hashlib import sha256

from api.ops.dashboard import STATIC
from tests.routes.conftest import CalledApi, StartApi
from tests.support.facts import Fact

_VENDORED = STATIC / "vendor" / "vendored.json"
_MOST_BYTES = 250_000


def test_each_vendored_file_is_the_listed_one() -> None:
    listed = {one["file"]: one for one in json.loads(_VENDORED.read_text(encoding="utf-8"))}
    files = {path.name: path for path in _VENDORED.parent.iterdir() if path != _VENDORED}
    assert listed.keys() == files.keys()
    for name, path in files.items():
        assert listed[name]["sha256"] == sha256(path.read_bytes()).hexdigest()
        assert listed[name].keys() == {"file", "what", "package", "version", "licence", "sha256"}


def test_the_page_is_small(fact: Fact) -> None:
    """Gzipped, all files together, as a slow connection would get them."""
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in STATIC.rglob("*") if path.is_file()}
    fact(f"{sum(sizes.values()):,} bytes gzipped in {len(sizes)} files")
    assert sum(sizes.values()) < _MOST_BYTES


async def test_a_file_has_its_type_its_policy_and_an_etag(api: CalledApi) -> None:
    for path, kind in {
        "/": "text/html; charset=utf-8",
        "/dashboard/app.js": "text/javascript; charset=utf-8",
        "/dashboard/style.css": "text/css; charset=utf-8",
        "/dashboard/icon.svg": "image/svg+xml",
    }.items():
        found = await api.http.get(path)
        assert (found.status_code, found.headers["content-type"]) == (200, kind)
        assert "script-src 'self'" in found.headers["content-security-policy"]
        assert "unsafe" not in found.headers["content-security-policy"]
        assert found.headers["x-content-type-options"] == "nosniff"
        again = await api.http.get(path, headers={"If-None-Match": found.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await api.http.head(path)).status_code == 200


async def test_no_page_loads_anything_from_elsewhere() -> None:
    """Every URL in our own files is one of this server, or the name of a namespace."""
    for path in STATIC.rglob("*.*"):
        if path.parent.name != "vendor":
            urls = re.findall(r"\w*:?//[\w.]+", path.read_text(encoding="utf-8"))
            assert set(urls) <= {"http://www.w3.org"}, path.name


async def test_nothing_but_the_files_is_served(api: CalledApi) -> None:
    for path in ("nope", "", "../__init__.py", "%2e%2e/__init__.py", "vendor/"):
        assert (await api.http.get(f"/dashboard/{path}")).status_code == 404


async def test_it_can_be_switched_off(start_api: StartApi) -> None:
    api = await start_api(dashboard=False)
    assert (await api.http.get("/")).status_code == 404
    assert (await api.http.get("/dashboard/app.js")).status_code == 404


async def test_only_dev_can_kill_a_worker(start_api: StartApi) -> None:
    """Elsewhere the route does not exist; there it kills no process but a living worker."""
    api = await start_api()
    assert (await api.http.get("/dashboard/config.json")).json() == {"dev_controls": False}
    assert (await api.http.post("/dev/kill-worker", json={"worker": "x"})).status_code == 404
    dev = await start_api(dev_controls=True)
    assert (await dev.http.get("/dashboard/config.json")).json() == {"dev_controls": True}
    for name in ("x", "vm-1-abcdef", "-1-", ""):
        assert (await dev.http.post("/dev/kill-worker", json={"worker": name})).status_code == 404
