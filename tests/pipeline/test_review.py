"""The review without a browser: what the server refuses, what the rows say, what is written."""

import hashlib
import http.client
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clean_folder import make_clean_folder
from review_folder import HOSTILE_KEYS, key_of, write_review

from jobs import review
from pipeline import images
from pipeline.cleaning import overrule
from pipeline.cleaning.manifest.attributes import COLUMNS
from pipeline.cleaning.manifest.coverage import SMALL, coverage, lines
from pipeline.cleaning.manifest.read import read_manifest
from pipeline.cleaning.tables import MANIFEST, OVERRULE
from pipeline.errors import RunError, UserError
from pipeline.ledger import PLAN, Ledger
from pipeline.review.application import Application
from pipeline.review.catalogue import Catalogue, Query
from pipeline.review.pictures import SIDES, NoPicture, Pictures, thumbnail
from pipeline.review.server import MAX_BODY_BYTES, Server
from pipeline.review.verdicts import Conflict, Refused, Verdicts, effect
from pipeline.storage import LocalStore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twelve records, every outcome among them; tests may write verdicts and nothing else."""
    return make_clean_folder(tmp_path_factory.mktemp("made"))


@pytest.fixture
def own(made, tmp_path):
    """A copy of it that may be broken."""
    root = made.source.parent
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    store = LocalStore(tmp_path / "out")
    plan = store.read(PLAN).decode().replace(str(root.resolve()), str(tmp_path.resolve()))
    store.write(PLAN, plan.encode())
    return replace(made, source=tmp_path / "in", out=store.url, store=store)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An OUT of 130 faces that nobody writes to."""
    return write_review(tmp_path_factory.mktemp("many"))


class Client:
    """Raw requests, with the cookie and the page's own Host and Origin unless told otherwise."""

    def __init__(self, server):
        self.server = server
        self.port = server.gate.port
        self.cookie = f"{server.gate.cookie}={server.gate.token}"

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body; a header of None is left out."""
        sent = {"Host": f"127.0.0.1:{self.port}", "Cookie": self.cookie}
        if method == "POST":
            sent |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
            sent |= {"Content-Length": str(len(body or b""))}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.headers, data

    def json(self, path):
        status, _, data = self.ask("GET", path)
        assert status == 200, data
        return json.loads(data)

    def decide(self, row, verdict, seen=""):
        body = json.dumps({"row": row, "verdict": verdict, "seen": seen}).encode()
        status, _, data = self.ask("POST", "/api/verdict", body)
        return status, json.loads(data)


@pytest.fixture(scope="module")
def served(made):
    with Server(Application(made.store)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()


@pytest.fixture
def client(served, made):
    """A server over `made`, whose overrule file is as in the beginning."""
    made.store.write(OVERRULE, b"shard,key,verdict\n000000,bob_one,accept\n")
    return served


def row_of(client, key):
    rows = client.json("/api/rows")["rows"]
    return next(row["row"] for row in rows if row["key"] == key)


# ------------------------------------------------------------------------------- who may ask


def test_the_token_is_exchanged_for_a_cookie(client):
    status, headers, body = client.ask("GET", f"/?token={client.server.gate.token}", Cookie=None)
    assert status == 200
    assert headers["Set-Cookie"] == f"{client.cookie}; Path=/; HttpOnly; SameSite=Strict"
    assert client.server.gate.token.encode() not in body
    assert str(client.port) in headers["Set-Cookie"]  # two reviews do not take each other's
    assert client.ask("GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("path", "cookie"),
    [("/?token=wrong", None), ("/?token=", None), ("/", None), ("/api/rows", None),
     ("/picture/0/before", "vsp-review=guess"), ("/coverage", 'vsp-review-1="'),
     ("/assets/review.js", "\xe4=\xe4")],
)  # fmt: skip
def test_without_the_token_nothing_is_told(client, path, cookie):
    status, headers, body = client.ask("GET", path, Cookie=cookie)
    assert status == 403
    assert "Set-Cookie" not in headers
    assert b"astronaut" not in body
    assert b"/in/" not in body


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Host": None},
     {"Host": "127.0.0.1.evil.example:80"}, {"Origin": "http://evil.example"},
     {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Sec_Fetch_Site": "same-site"},
     {"Sec_Fetch_Site": "cross-site"}],
)  # fmt: skip
def test_other_names_and_pages_are_refused(client, headers):
    assert client.ask("GET", "/api/rows", **headers)[0] == 403
    body = b'{"row": 0, "verdict": "reject", "seen": ""}'
    before = client.server.application.verdicts.current()
    assert client.ask("POST", "/api/verdict", body, **headers)[0] == 403
    assert client.server.application.verdicts.current() == before


def test_a_post_needs_its_origin_and_json(client):
    body = b'{"row": 0, "verdict": "reject", "seen": ""}'
    assert client.ask("POST", "/api/verdict", body, Origin=None)[0] == 403
    assert client.ask("POST", "/api/verdict", body, Content_Type="text/plain")[0] == 415
    assert client.ask("POST", "/api/verdict", body)[0] == 200


def test_every_answer_is_locked_down(client):
    for method, path in (("GET", "/"), ("GET", "/nowhere"), ("GET", "/picture/0/before"),
                         ("PUT", "/"), ("GET", "/?token=no")):  # fmt: skip
        headers = client.ask(method, path)[1]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Python" not in headers["Server"]


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/assets/../review.py", "/assets/..%2f..%2fserver.py", "/assets/",
     "/picture/0/../../out", "/picture/-1/before", "/picture/12/before", "/picture/%2e%2e/before",
     "/picture/1e3/before", "/picture/99999999999999999999/before", "/picture/0/copy",
     "/picture/%C2%B2/before", "/_vsp/plan.json", "/api", "/api/row/x", "//etc/passwd", "/%00"],
)  # fmt: skip
def test_no_path_leads_anywhere(client, path):
    assert client.ask("GET", path)[0] == 404


def test_methods_head_and_bodies(client):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        status, headers, _ = client.ask(method, "/")
        assert (status, headers["Allow"]) == (405, "GET, HEAD, POST")
    got, had = client.ask("GET", "/api/rows"), client.ask("HEAD", "/api/rows")
    assert had[0] == 200
    assert had[2] == b""
    assert had[1]["Content-Length"] == str(len(got[2]))
    big = b"x" * (MAX_BODY_BYTES + 1)
    assert client.ask("POST", "/api/verdict", big)[0] == 413
    assert client.ask("POST", "/api/verdict", b"", Content_Length="9" * 30)[0] == 413
    assert client.ask("POST", "/api/verdict", b"{}", Content_Length=None)[0] == 411
    assert client.ask("POST", "/api/verdict", b"0\r\n\r\n", Transfer_Encoding="chunked")[0] == 411
    assert client.ask("GET", "/", b"xx", Content_Length="2")[0] == 400
    assert client.ask("GET", f"/?{'a=1&' * 50}")[0] == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"[" * 4000, b'{"row": 0}', b'{"row": true, "verdict": "", "seen": ""}',
     b'{"row": 12, "verdict": "keep", "seen": ""}', b'{"row": -1, "verdict": "keep", "seen": ""}',
     b'{"row": 0, "verdict": "burn", "seen": ""}', b'{"row": 0, "verdict": [], "seen": {}}',
     b'{"row": 0, "verdict": "keep", "seen": "", "key": "../x"}'],
)  # fmt: skip
def test_bodies_that_no_page_sends(client, made, body):
    assert client.ask("POST", "/api/verdict", body)[0] in (400, 404)
    assert overrule.load(made.store) == {("000000", "bob_one"): "accept"}


@pytest.mark.parametrize("query", ["order=up", "low=nan", "low=-1", "page=inf", "verdict=burn"])
def test_questions_that_no_page_asks(client, query):
    assert client.ask("GET", f"/api/rows?{query}")[0] == 400


# ------------------------------------------------------------------------------ what it shows


def test_rows_are_sorted_by_doubt_and_told(client):
    found = client.json("/api/rows")
    assert found["total"] == 12
    doubts = [row["doubt"] for row in found["rows"]]
    assert doubts == sorted(doubts, reverse=True)
    row = client.json(f"/api/row/{row_of(client, 'cat')}")
    assert row["sentence"] == "restored, not accepted: its quality did not rise; the original stays"
    assert row["pictures"] == {"before": "", "after": ""}
    copy = client.json(f"/api/row/{row_of(client, 'ann/one-small')}")["copy"]
    assert copy == {"row": row_of(client, "ann/one"), "key": "000000/ann/one"}


def test_pictures_are_the_bytes_of_the_tars(client, made):
    seen = client.server.application.catalogue
    pictures = Pictures(made.store, {unit.shard: unit.source for unit in made.plan.units})
    for key, side in (("cat", "before"), ("cat", "after"), ("ann/two", "after")):
        row = row_of(client, key)
        status, headers, data = client.ask("GET", f"/picture/{row}/{side}")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert data == pictures.read(seen.full(row), side)
    values = seen.full(row_of(client, "ann/two"))
    for side, column in zip(SIDES, ("sha256", "sha256_out"), strict=True):
        assert hashlib.sha256(pictures.read(values, side)).hexdigest() == values[column]
    small = client.ask("GET", f"/picture/{row_of(client, 'cat')}/before?size=small")[2]
    assert images.read_header(small).width == 96


def answer(application, path):
    return json.loads(application.get(path, {}).body)


def test_what_is_gone_is_said(own):
    application = Application(own.store)
    numbers = {row["key"]: row["row"] for row in answer(application, "/api/rows")["rows"]}
    row = numbers["bob_one"]
    assert answer(application, f"/api/row/{row}")["pictures"]["before"] == ""
    (own.source / "000000.tar").unlink()
    assert answer(application, f"/api/row/{row}")["pictures"]["before"] == "the input is gone"
    shown = application.get(f"/picture/{row}/before", {})
    assert (shown.status, json.loads(shown.body)["error"]) == (404, "the input is gone")
    torn = answer(application, f"/api/row/{numbers['torn']}")
    assert not any(each["can"] for each in torn["effects"].values())


def test_a_tar_that_broke_or_changed_is_read_anew(own):
    values = Catalogue(own.store).full(0)
    pictures = Pictures(own.store, {unit.shard: unit.source for unit in Ledger(own.store).plan().units})  # fmt: skip  # noqa: E501
    whole = pictures.read(values, "before")
    tar = own.source / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-2048])
    assert pictures.read(values, "before") == whole
    tar.write_bytes(b"no tar")
    with pytest.raises(NoPicture, match="any more"):
        pictures.read(values, "before")


def test_a_thumbnail_keeps_its_shape():
    wide = images.encode(np.zeros((50, 400, 3), np.uint8), "png")
    header = images.read_header(thumbnail(wide)[1])
    assert (header.width, header.height) == (96, 12)
    with pytest.raises(NoPicture):
        thumbnail(b"<svg onload=alert(1)>")


def test_a_manifest_that_changes_meanwhile_is_not_mixed(own):
    application = Application(own.store)
    part = own.store.path(f"{MANIFEST}/000000.parquet")
    part.write_bytes(part.read_bytes())
    answered = application.get("/api/row/0", {})
    assert answered.status == 409
    assert "again" in json.loads(answered.body)["error"]
    own.store.path(f"{MANIFEST}/000001.parquet").unlink()
    with pytest.raises(RunError, match="anew"):
        application.catalogue.full(len(application.catalogue) - 1)


def test_hostile_names_are_data_only(many):
    application = Application(many)
    rows = json.loads(application.get("/api/rows", {"order": "set"}).body)["rows"]
    assert tuple(row["key"] for row in rows[: len(HOSTILE_KEYS)]) == HOSTILE_KEYS
    page = application.get("/coverage", {}).body.decode()
    assert "<script" not in page
    assert "onerror" in page  # a source of that name is shown
    assert "<img" not in page


# ----------------------------------------------------------------------------------- queries


def test_queries_against_the_plain_way(many):
    catalogue = Catalogue(many)
    rows = read_manifest(many).to_pylist()
    cases = {
        Query(outcome="fallback"): lambda r: r["outcome"] == "fallback",
        Query(decision_reason="good", low=0.6): lambda r: (
            r["decision_reason"] == "good" and r["quality"] >= 0.6
        ),
        Query(fallback="identity", high=0.2): lambda r: (
            r["fallback"] == "identity" and r["quality"] <= 0.2
        ),
        Query(source="web", person="SON 1"): lambda r: (
            r["source"] == "web" and "son 1" in r["person"]
        ),
        Query(key="FACE01"): lambda r: "face01" in r["key"],
        Query(source="nowhere"): lambda r: False,
    }
    for query, wanted in cases.items():
        expected = [n for n, row in enumerate(rows) if wanted(row)]
        assert sorted(catalogue.select(query, {}).tolist()) == expected
    for order, key in (("doubt", lambda n: -rows[n]["doubt"]), ("worst", lambda n: rows[n]["quality"])):  # fmt: skip  # noqa: E501
        assert catalogue.select(Query(order=order), {}).tolist() == sorted(
            range(len(rows)), key=key
        )
    near = catalogue.select(Query(order="identity"), {}).tolist()
    margins = [abs((rows[n]["identity"] or np.nan) - 0.45) for n in near]
    known = [margin for margin in margins if not np.isnan(margin)]
    assert known == sorted(known) == margins[: len(known)]
    assert catalogue.full(77)["key"] == rows[77]["key"] == key_of(77)
    assert catalogue.find("000001", rows[100]["key"]) == 100
    assert catalogue.find("000000", rows[100]["key"]) is None


def test_overruled_rows_are_found(many):
    catalogue = Catalogue(many)
    overrules = {("000001", "face0100"): "keep", ("", "face0003"): "reject", ("000000", "face0100"): "keep", ("", "face0099"): "keep"}  # fmt: skip  # noqa: E501
    overrules |= {("", key_of(7)): "reject"}
    found = catalogue.select(Query(verdict="decided", order="set"), overrules).tolist()
    assert found == [7, 99, 100]
    assert catalogue.select(Query(verdict="keep", order="set"), overrules).tolist() == [99, 100]


def test_paging_and_the_first_open_row(many):
    application = Application(many)
    pages = [json.loads(application.get("/api/rows", {"page": str(n)}).body) for n in range(3)]
    rows = [row["row"] for page in pages for row in page["rows"]]
    assert sorted(rows) == list(range(130))
    for row in rows[:61]:
        shard, key = application.catalogue.place(row)
        application.verdicts.write((shard, key), "keep", "")
    found = json.loads(application.get("/api/rows", {"page": "undecided"}).body)
    assert found["page"] == 1
    assert [row["verdict"] for row in found["rows"][:2]] == ["keep", ""]
    many.remove(OVERRULE)


def test_no_manifest_and_damaged_ones_are_told(tmp_path):
    with pytest.raises(UserError, match="no manifest here; run `vsp clean"):
        Catalogue(LocalStore(tmp_path))
    (tmp_path / MANIFEST).mkdir()
    part = tmp_path / MANIFEST / "a.parquet"
    pq.write_table(pa.table({"key": ["a"]}), part)
    with pytest.raises(UserError, match="no manifest of"):
        Catalogue(LocalStore(tmp_path))
    part.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged"):
        Catalogue(LocalStore(tmp_path))


# ---------------------------------------------------------------------------------- verdicts


def test_a_verdict_is_on_the_disk_when_it_is_answered(client, made):
    row = row_of(client, "cat")
    assert client.decide(row, "accept") == (200, {"row": row, "verdict": "accept", "decided": 2})
    text = made.store.read(OVERRULE).decode()
    assert text == "shard,key,verdict\n000000,bob_one,accept\n000001,cat,accept\n"
    assert client.decide(row, "", "accept")[0] == 200
    assert overrule.load(made.store) == {("000000", "bob_one"): "accept"}


def test_nothing_else_is_ever_written(client, made):
    root = made.store.root
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    for path in ("/", "/coverage", "/api/about", "/api/rows", "/picture/2/after"):
        client.ask("GET", path)
    client.decide(row_of(client, "cat"), "keep")
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed == {root / OVERRULE}


def test_two_tabs_lose_nothing(client, made):
    rows = [row["row"] for row in client.json("/api/rows")["rows"] if row["key"] not in ("notes", "torn", "bob_one")]  # fmt: skip  # noqa: E501
    with ThreadPoolExecutor(8) as tabs:
        answers = list(tabs.map(lambda row: client.decide(row, "keep")[0], rows))
    assert answers == [200] * len(rows)
    assert len(overrule.load(made.store)) == len(rows) + 1


def test_two_programs_lose_nothing(client, made):
    places = [("000000", f"face{n}") for n in range(24)]
    programs = [Verdicts(made.store) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: programs[n % 4].write(places[n], "keep", ""), range(24)))
    assert set(places) < set(overrule.load(made.store))
    assert programs[0].current() == programs[3].current()


def test_another_tabs_verdict_is_not_overwritten_unseen(client, made):
    row = row_of(client, "bob_one")
    status, answer = client.decide(row, "reject", "")
    assert status == 409
    assert "accept" in answer["error"]
    assert client.decide(row, "reject", "accept")[0] == 200


def test_a_file_written_by_hand_counts(client, made):
    made.store.write(OVERRULE, b"key,verdict\ncat,reject\n")
    row = row_of(client, "cat")
    assert client.json(f"/api/row/{row}")["verdict"] == "reject"
    status, answer = client.decide(row, "", "reject")
    assert (status, "every shard" in answer["error"]) == (409, True)
    assert client.decide(row, "keep", "reject")[0] == 200
    made.store.write(OVERRULE, b"key,verdict\ncat,burn\n")
    status, answer = client.decide(row, "keep", "keep")
    assert (status, "expected accept, keep, reject" in answer["error"]) == (409, True)


def test_what_a_verdict_does_is_said_and_what_it_cannot_refused(made):
    catalogue = Catalogue(made.store)
    rows = {catalogue.full(n)["key"]: catalogue.full(n) for n in range(len(catalogue))}
    assert effect(rows["cat"], "accept") == "takes the restored face, whatever was measured"
    assert effect(rows["ann/one"], "accept").startswith("restores this face and takes the result")
    assert effect(rows["ann/two"], "keep") == "puts the original back"
    assert effect(rows["stone"], "keep") == "puts the original in, as it is"
    assert effect(rows["stone"], "reject") == "stays left out"
    with pytest.raises(Refused, match="no picture that could be taken"):
        effect(rows["cat"] | {"fallback": "not_finite"}, "accept")
    for key in ("torn", "notes"):
        with pytest.raises(Refused, match="no picture to decide about"):
            effect(rows[key], "reject")
    with pytest.raises(Refused, match="on request"):
        effect(rows["cat"] | {"outcome": "forgotten", "status": "forgotten"}, "keep")


def test_the_command_to_apply_is_named(client, made):
    application = client.server.application
    assert application.command() == f"vsp clean {made.source.resolve()} {made.out}"
    (made.source / "more.tar").touch()  # the folder holds more than was cleaned
    assert application.command() == f"vsp clean IN {made.out}"
    (made.source / "more.tar").unlink()
    with pytest.raises(Conflict):
        application.verdicts.write(("000000", "bob_one"), "keep", "keep")


def test_a_taken_port_is_told_in_one_line(client):
    with pytest.raises(UserError, match="--port"):
        Server(client.server.application, client.port)


# ---------------------------------------------------------------------------------- coverage


def test_a_bias_shows_and_equal_groups_do_not(tmp_path):
    found = coverage(read_manifest(write_review(tmp_path, 400)))
    age = next(each for each in found.attributes if each.name == "age")
    assert age.is_field
    children = next(group for group in age.groups if group.label == "0 to 9")
    assert children.unequal[0] == "rejected more"
    assert children.rejected.value == 1.0
    assert children.difference.high < 0
    assert any("age, 0 to 9" in line for line in lines(found))
    assert next(each for each in found.attributes if each.name == "source").is_field is False
    assert not any(group.unequal for each in found.attributes if each.name == "source" for group in each.groups)  # fmt: skip  # noqa: E501
    assert "note" not in {each.name for each in found.attributes}  # every image its own


def table(rows):
    """A manifest's columns for coverage; what is not given is null."""
    names = {name: [row.get(name) for row in rows] for name in COLUMNS}
    text = ("status", "outcome", "sha256_out", "format", "source", "licence", "fields")
    types = {name: pa.string() if name in text else pa.float64() for name in COLUMNS}
    types["is_gray"] = pa.bool_()
    return pa.table({name: pa.array(values, types[name]) for name, values in names.items()})


def group_rows(name, kept, rejected):
    row = {"status": "inspected", "fields": json.dumps({"group": name})}
    return [row | {"outcome": "kept"}] * kept + [row | {"outcome": "rejected"}] * rejected


def test_shares_and_counts_are_exact():
    unread = [{"status": "refused", "outcome": "rejected", "fields": '{"group": "a"}'}]
    found = coverage(table([*group_rows("a", 60, 20), *group_rows("b", 15, 5), *unread]))
    assert (found.total, found.before, found.after, found.rejected) == (101, 100, 75, 25)
    a, b = found.attributes[0].groups
    assert (a.label, a.before, a.after, a.share_before, a.share_after) == ("a", 80, 60, 0.8, 0.8)
    assert a.difference.value == 0
    assert (b.num_rejected, b.rejected.value, b.is_small) == (5, 0.25, False)
    assert not a.unequal
    assert not b.unequal


def test_a_small_group_is_marked_and_never_called_unequal():
    found = coverage(table([*group_rows("a", 90, 10), *group_rows("b", 0, SMALL - 1)]))
    b = next(group for group in found.attributes[0].groups if group.label == "b")
    assert b.is_small
    assert b.unequal == ()
    assert len(lines(found)) == 2


def test_the_interval_of_a_difference_covers():
    """Of 400 sets without any bias about 95 % leave zero in."""
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(400):
        size, kept = rng.random(200) < 0.3, rng.random(200) < 0.7
        counts = [int((size & kept).sum()), int((size & ~kept).sum()),
                  int((~size & kept).sum()), int((~size & ~kept).sum())]  # fmt: skip
        rows = [*group_rows("a", *counts[:2]), *group_rows("b", *counts[2:])]
        a = next(g for g in coverage(table(rows)).attributes[0].groups if g.label == "a")
        inside += a.difference.low <= 0 <= a.difference.high
    assert 0.92 < inside / 400 < 0.975


def test_restored_images_count_where_they_are_now():
    low = {"status": "inspected", "outcome": "restored", "quality": 0.1, "quality_after": 0.7}
    high = {"status": "inspected", "outcome": "kept", "quality": 0.7}
    tried = {"status": "inspected", "outcome": "fallback", "quality": 0.1, "quality_after": 0.9}
    found = coverage(table([low] * 30 + [high] * 60 + [tried] * 10))
    quality = next(each for each in found.attributes if each.name == "quality")
    assert quality.follows
    counts = {group.label: (group.before, group.after) for group in quality.groups}
    assert counts == {"under 0.2": (40, 10), "0.6 to 0.8": (60, 90)}
    assert quality.groups[0].num_fallback == 10


def test_numbers_become_bins_and_odd_fields_do_no_harm():
    rows = [
        {"status": "inspected", "outcome": "kept",
         "fields": json.dumps({"age": n % 60, "id": n, "name": f"x{n}", "size": 128.0,
                               "points": [1, 2], "weight": n / 7, "flag": n % 3 != 0})}
        for n in range(300)
    ]  # fmt: skip
    rows += [{"status": "inspected", "outcome": "kept", "fields": bad} for bad in ("{", "[]", None)]
    found = coverage(table(rows))
    named = {each.name: [group.label for group in each.groups] for each in found.attributes}
    assert set(named) == {"age", "flag"}
    assert named["age"][:2] == ["0 to 9", "10 to 19"]
    assert named["flag"] == ["yes", "no"]
    assert found.attributes[0].missing == 3
    assert coverage(table([])).attributes == ()


# ------------------------------------------------------------------------------- the command


def test_ctrl_c_tells_what_applies_the_verdicts(client, made, monkeypatch, capsys):
    def decide_and_stop(server):
        server.application.verdicts.write(("000001", "cat"), "keep", "")
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", decide_and_stop)
    assert review.command(made.out, open_browser=False) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("http://127.0.0.1:")
    assert "1 verdict written, 2 in the file" in told[-2]
    assert told[-1].strip() == client.server.application.command()
