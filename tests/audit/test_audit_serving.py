"""A live provider, audits of files, and the command."""

import json

import pytest
import typer
from hashed_embedder import ANSWER, EMBED, TOKENS
from starlette.testclient import TestClient
from typer.testing import CliRunner

from outlay.audit import offline, serving
from outlay.audit.coin import CoIn
from outlay.audit.commitment import Auditor, Challenge
from outlay.audit.heads import shipped
from outlay.audit.serving import FingerprintStore, LiveProvider, NotYetError, provider_app
from outlay.audit.wire import challenge_json, opening_json, read_case, read_openings
from outlay.cli import audit as command
from outlay.errors import EndpointError, InputError

HEADS = str(shipped(32))
COIN = CoIn(block=8, seed=5, heads=HEADS)


@pytest.fixture(scope="module", autouse=True)
def hashed():
    """The auditor embeds answers as the provider of these tests does."""
    patch = pytest.MonkeyPatch()
    patch.setattr("outlay.audit.coin.embedder", lambda name: EMBED)
    yield
    patch.undo()


def held(ttl=60.0, most=10, clock=None):
    store = FingerprintStore(ttl, most, **({"clock": clock} if clock else {}))
    return store, store.put(COIN.commit(TOKENS, EMBED))


def test_a_live_provider_commits_and_opens(monkeypatch):
    store, name = held()
    with TestClient(provider_app(store)) as client:
        monkeypatch.setattr(serving.httpx, "Client", lambda **_: client)
        live = LiveProvider("http://testserver", name)
        case = read_case({"bill": {"reasoning_tokens": 400, "id": name}, "answer": ANSWER})
        commitment = live.commit()
        direct = COIN.commit(TOKENS, EMBED)
        wanted = COIN.audit(direct.commit(), 400, ANSWER, direct.prove)
        assert COIN.audit(commitment, 400, ANSWER, live.open) == wanted
        assert case.name == name
        with pytest.raises(EndpointError, match="404"):
            LiveProvider("http://testserver", "guess").commit()
        with pytest.raises(EndpointError, match=r"400.*another commitment"):
            live.open(Challenge(bytes(32), b"n" * 16, (0,)))


def test_what_is_no_request_is_refused_without_a_trace():
    store, name = held()
    with TestClient(provider_app(store)) as client:
        for path in ("/commit", "/open"):
            for body in (b"", b"[]", b"{", b'{"id": 3}', b"[" * 100_000, b"x" * 1_100_000):
                assert client.post(path, content=body).status_code == 400
        for challenge in (None, {}, {"digest": "zz", "nonce": "", "indices": [0]}):
            sent = {"id": name, "challenge": challenge}
            assert client.post("/open", json=sent).status_code == 400
        assert client.get("/commit").status_code == 405


def test_openings_stop_at_the_limits_over_all_requests():
    store, name = held()
    commitment = store.commitment(name)
    digest = commitment.digest
    with TestClient(provider_app(store)) as client:

        def ask(number, indices):
            challenge = Challenge(digest, bytes([number]) * 16, tuple(indices))
            sent = {"id": name, "challenge": challenge_json(challenge)}
            return client.post("/open", json=sent)

        assert ask(1, range(16)).status_code == 200  # 4 % of 400
        refused = ask(2, [16])
        assert refused.status_code == 400
        assert "limits allow" in refused.json()["error"]["message"]
        assert "answered before" in ask(1, range(16)).json()["error"]["message"]


def test_entries_end_after_their_time_and_the_oldest_go_first():
    now = [0.0]
    store, name = held(ttl=10, most=2, clock=lambda: now[0])
    second = store.put(COIN.commit(TOKENS, EMBED))
    third = store.put(COIN.commit(TOKENS, EMBED))
    assert store.commitment(name) is None
    assert store.commitment(second) is not None
    store.forget(second)
    assert len(store) == 1
    now[0] = 10.0
    assert store.commitment(third) is None
    assert store.prove(third, Challenge(b"", b"", (0,))) is None
    for bad in ({"ttl": 0}, {"most": 0}):
        with pytest.raises(InputError, match="above 0"):
            FingerprintStore(**bad)


def test_an_id_belongs_to_its_owner_and_its_commitment_may_still_be_coming():
    store = FingerprintStore()
    store.announce("later", "me")
    assert store.commitment("later", "you") is None
    for ask in (store.commitment, lambda *of: store.prove(of[0], Challenge(b"", b"", (0,)), of[1])):
        with pytest.raises(NotYetError, match="still being made"):
            ask("later", "me")
    assert len(store) == 0
    store.put(COIN.commit(TOKENS, EMBED), "later", "me")
    assert store.commitment("later", "me").tokens == 400
    assert store.commitment("later", "you") is None
    assert store.commitment("later") is None
    store.announce("never")
    store.forget("never")
    assert store.commitment("never") is None


def test_the_oldest_go_when_their_tokens_are_too_many():
    store = FingerprintStore(most_tokens=800)
    names = [store.put(COIN.commit(TOKENS, EMBED)) for _ in range(3)]
    assert [store.commitment(name) is not None for name in names] == [False, True, True]
    store.put(COIN.commit([f" w{i}" for i in range(900)], EMBED))
    assert len(store) == 0  # one that is too large alone is not kept either


def test_a_live_auditor_waits_for_a_commitment_that_is_being_made(monkeypatch):
    store = FingerprintStore()
    store.announce("soon")
    naps = []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            store.put(COIN.commit(TOKENS, EMBED), "soon")

    with TestClient(provider_app(store)) as client:
        monkeypatch.setattr(serving.httpx, "Client", lambda **_: client)
        monkeypatch.setattr(serving.time, "sleep", nap)
        assert LiveProvider("http://testserver", "soon").commit().tokens == 400
        assert len(naps) == 2
        store.announce("stuck")
        with pytest.raises(EndpointError, match=r"409.*still being made"):
            LiveProvider("http://testserver", "stuck", timeout=0.0).commit()


def case_file(path, tokens=TOKENS, billed=400, openings=True, **changes):
    provider = COIN.commit(tokens, EMBED)
    commitment = provider.commit()
    data = {
        "bill": {"completion_tokens_details": {"reasoning_tokens": billed}},
        "answer": ANSWER,
        "commitment": commitment.to_dict(),
    }
    if openings:
        auditor = Auditor(commitment, len(tokens), seed=0)
        challenge = auditor.ask(COIN.plan(commitment).tokens)
        data["openings"] = [opening_json(each) for each in provider.prove(challenge)]
    path.write_text(json.dumps(data | changes))
    return path


def cli(*words):
    typer_app = typer.Typer()
    command.register(typer_app)
    typer_app.callback()(lambda: None)
    return CliRunner().invoke(typer_app, ["audit", *map(str, words)])


KNOBS = ("--method", f"block=8,heads={HEADS}", "--seed", 5)


def test_a_file_is_audited_as_its_provider_would_be(tmp_path):
    file = case_file(tmp_path / "a.json")
    report = offline.audit_case(COIN, offline.load_case(file))
    direct = COIN.commit(TOKENS, EMBED)
    assert report == COIN.audit(direct.commit(), 400, ANSWER, direct.prove)
    page = tmp_path / "report.html"
    done = cli(file, *KNOBS, "--json", "--html", page)
    said = json.loads(done.stdout)[str(file)]
    assert said["verdict"] == report.verdict
    assert done.exit_code == {"benign": 0, "malicious": 3, "inconclusive": 4}[report.verdict]
    text = page.read_text()
    assert "Audit of hidden tokens" in text
    assert "honest work" in text
    assert "400 hidden tokens billed" in cli(file, *KNOBS).stdout


def test_a_challenge_for_a_file_names_the_tokens_to_open(tmp_path):
    file = case_file(tmp_path / "a.json", openings=False)
    asked = json.loads(cli(file, *KNOBS, "--challenge").stdout)[str(file)]
    assert 399 in asked
    assert len(asked) <= 16
    assert cli(file, *KNOBS).exit_code == 2


def test_wrong_bills_and_openings_in_files_are_found(tmp_path):
    assert cli(case_file(tmp_path / "b.json", billed=500), *KNOBS).exit_code == 3
    file = case_file(tmp_path / "c.json")
    data = json.loads(file.read_text())
    data["openings"][2]["path"][0] = "00" * 32
    file.write_text(json.dumps(data))
    report = offline.audit_case(COIN, offline.load_case(file))
    assert report.verdict == "malicious"
    assert "does not lead to the root" in report.reasons[0]
    data["openings"][3] = data["openings"][2]
    file.write_text(json.dumps(data))
    assert "opened twice" in cli(file, *KNOBS).output
    assert cli(case_file(tmp_path / "d.json", openings=False), *KNOBS).exit_code == 2


def test_files_and_knobs_that_cannot_be_used_say_so(tmp_path):
    broken = tmp_path / "x.json"
    for text in ("", "[]", '{"bill": {}}', '{"bill": {"reasoning_tokens": -1}}', "[" * 100_000):
        broken.write_text(text)
        assert cli(broken, *KNOBS).exit_code == 2
    assert "cannot be read" in cli(tmp_path / "none.json", *KNOBS).output
    file = case_file(tmp_path / "a.json")
    assert "seed" in cli(file, "--method", "block=8").output
    assert "no knob 'blok'" in cli(file, "--method", "blok=8").output
    assert "not set" in cli(file, *KNOBS, "--url", "http://x", "--key-env", "NOT_THERE_1").output
    with pytest.raises(InputError, match="opening 0"):
        read_openings(
            [{"index": 0, "block": 0, "block_vector": "%", "token_vector": "", "path": []}]
        )


def test_a_live_commitment_must_be_the_one_on_the_bill(tmp_path, monkeypatch):
    store, name = held()
    other = COIN.commit(TOKENS[:200], EMBED).commit()
    data = {"bill": {"reasoning_tokens": 400, "id": name}, "commitment": other.to_dict()}
    with TestClient(provider_app(store)) as client:
        monkeypatch.setattr(serving.httpx, "Client", lambda **_: client)
        with pytest.raises(InputError, match="not the one that came with the bill"):
            offline.audit_live(COIN, read_case(data), "http://testserver")
