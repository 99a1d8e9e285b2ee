"""Cases of test_hub.py: a push that fails leaves the Hub as it was, and says what to do."""

import os
import resource
import signal

import pytest

from rgtg_logits.errors import HubError, InvalidArgumentError

COMMIT = "POST /api/models/.*/commit/"


@pytest.fixture(params=["new", "existing", "branch"])
def destination(request, hub):
    """Options of a push to a repository that does not exist, one that does, a branch that does not."""
    if request.param != "new":
        hub.put("org/rm", {"model.safetensors": b"old", "README.md": b"old"})
    return {"revision": "v2"} if request.param == "branch" else {}


@pytest.mark.parametrize(
    "fault, message",
    [
        ({"pattern": COMMIT, "status": 500}, r"the Hub failed \(500: Injected 500\).*Try again in a few minutes"),
        ({"pattern": COMMIT, "status": 403}, r"the access token may not do that \(403"),
        ({"pattern": COMMIT, "status": 409}, r"it was changed at the same time"),
        ({"pattern": COMMIT, "status": 429}, "too many requests.*Wait a few minutes"),
        ({"pattern": COMMIT, "status": 429, "headers": {"Retry-After": "3600"}}, "Wait 3600 seconds, then try again"),
        ({"pattern": COMMIT, "drop": "request"}, "the connection failed or broke off.*Check the network"),
        ({"pattern": "preupload", "status": 403}, "the access token may not do that"),
        ({"pattern": "preupload", "status": 503, "times": 9}, r"the Hub failed \(503"),
        ({"pattern": "objects/batch", "status": 401}, "no valid access token"),
        ({"pattern": "PUT /large", "status": 403, "times": 9}, "the access token may not do that"),
        ({"pattern": "PUT /large", "drop": "request", "times": 9}, "the connection failed or broke off"),
    ],
)
def test_a_push_that_fails_changes_nothing(hub, model, destination, fault, message):
    before = hub.state()
    hub.fail(**fault)
    with pytest.raises(HubError, match=rf"Expected to push to 'org/rm' on the Hub, but .*{message}") as caught:
        model.push_to_hub("org/rm", **destination)
    assert caught.value.__cause__ is not None
    assert hub.state() == before
    # The same push succeeds without the fault.
    hub.faults.clear()
    model.push_to_hub("org/rm", **destination)
    assert hub.titles("org/rm", destination.get("revision", "main"))[0] == "Upload reward model"


@pytest.mark.parametrize(
    "repository, token, message",
    [
        ("org/rm", "hf_wrong", "no valid access token .*Invalid credentials.*hf auth login"),
        ("org/rm", "hf_reader", "the access token may not do that .*write permission"),
        ("org/rm", "hf_stranger", "the access token may not do that"),
        ("org/rm", False, "no valid access token"),
        ("rm", "hf_wrong", "no valid access token"),
        ("a/b/c", None, "that is no name of a repository"),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_token_without_permission_changes_nothing(hub, model, repository, token, message, exists):
    if exists:
        hub.put("org/rm", {"model.safetensors": b"old"})
    before = hub.state()
    with pytest.raises(HubError, match=message):
        model.push_to_hub(repository, token=token)
    assert hub.state() == before


def test_a_user_who_is_not_logged_in(hub, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="but no access token was found. Log in with `hf auth login`, or set HF_TOKEN"):
        model.push_to_hub("rm")
    with pytest.raises(HubError, match="no valid access token"):
        model.push_to_hub("org/rm")
    assert hub.repositories == {}


def test_a_name_that_a_hidden_repository_has(hub, model):
    hub.put("org/rm", {"model.safetensors": b"old"}, private=True)
    before = hub.state()
    hub.fail("GET /api/models/org/rm$", 404, headers={"X-Error-Code": "RepoNotFound"})
    with pytest.raises(HubError, match="the name is taken by a repository that the access token may not see"):
        model.push_to_hub("org/rm")
    assert hub.state() == before


def test_a_hub_that_asks_to_wait_is_waited_for(hub, model, waits):
    hub.fail("POST /api/repos/create", 429, headers={"Retry-After": "7"})
    hub.fail(COMMIT, 429, headers={"RateLimit": '"api";r=0;t=50'})
    model.push_to_hub("org/rm")
    assert {7, 50} <= set(waits) and hub.titles("org/rm") == ["Upload reward model", "initial commit"]
    hub.fail(COMMIT, 429, headers={"Retry-After": "1"}, times=9)
    before = hub.state()
    with pytest.raises(HubError, match="Wait 1 seconds"):
        model.push_to_hub("org/rm", max_shard_size="20KB")
    assert hub.state() == before and sum("/commit/" in line for line in hub.log) == 5


def test_a_commit_whose_answer_is_lost_has_arrived(hub, model):
    hub.fail(COMMIT, drop="answer")
    address = model.push_to_hub("org/rm")
    assert hub.titles("org/rm") == ["Upload reward model", "initial commit"]
    assert address == f"{hub.url}/org/rm/commit/{hub.repositories['org/rm'].refs['main']}"


@pytest.mark.parametrize("fails", [False, True])
def test_a_creation_whose_answer_is_lost_is_taken_for_done(hub, model, fails):
    hub.fail("POST /api/repos/create", drop="answer")
    hub.fail("POST /api/models/org/rm/branch", drop="answer")
    if fails:
        hub.fail(COMMIT, 403)
        with pytest.raises(HubError, match="may not do that"):
            model.push_to_hub("org/rm", revision="v2")
        assert hub.repositories == {}
    else:
        model.push_to_hub("org/rm", revision="v2")
        assert hub.titles("org/rm", "v2") == ["Upload reward model", "initial commit"]


def test_a_creation_that_fails(hub, model):
    hub.fail("POST /api/repos/create", 500)
    with pytest.raises(HubError, match=r"the Hub failed \(500"):
        model.push_to_hub("org/rm")
    assert hub.repositories == {}


def test_files_that_cannot_be_prepared(hub, model):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(HubError, match="that failed: .*Nothing was uploaded. Free some space there, or set TMPDIR"):
            model.push_to_hub("org/rm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert hub.log == []


def test_a_lost_answer_when_the_hub_cannot_be_asked_either(hub, model):
    hub.put("org/rm", {"model.safetensors": b"old"})
    hub.fail(COMMIT, drop="answer")
    hub.fail("GET /api/models/org/rm$", 500, skip=1, times=9)
    with pytest.raises(HubError, match=r"could not be asked either whether the commit arrived .* look at .*/commits"):
        model.push_to_hub("org/rm")
    hub.faults.clear()
    hub.fail(COMMIT, drop="answer")
    with pytest.raises(HubError, match="Look on its page first whether it was opened"):
        model.push_to_hub("org/rm", create_pr=True, max_shard_size="20KB")


def test_somebody_else_pushes_in_between(hub, model):
    hub.put("org/rm", {"model.safetensors": b"old"})
    hub.fail(COMMIT, act=lambda: hub.put("org/rm", {"model.safetensors": b"theirs"}, title="theirs"))
    with pytest.raises(HubError, match=r"somebody else pushed at the same time \(412.*Push again"):
        model.push_to_hub("org/rm")
    assert hub.files("org/rm") == {"model.safetensors": b"theirs"}


def test_a_message_tells_what_could_not_be_deleted(hub, model):
    hub.fail(COMMIT, 403)
    hub.fail("DELETE", 500, times=9)
    with pytest.raises(
        HubError, match=r"may not do that .* empty repository .* could not be deleted again: .*/settings"
    ):
        model.push_to_hub("org/rm")
    assert set(hub.files("org/rm")) == {".gitattributes"}


def test_an_interrupt_leaves_nothing(hub, model):
    hub.fail(COMMIT, act=lambda: os.kill(os.getpid(), signal.SIGINT), drop="answer", status=500)
    # A shell makes programs in the background ignore interrupts, and so do the programs that they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.push_to_hub("org/rm")
    finally:
        signal.signal(signal.SIGINT, before)
    assert hub.repositories == {}


def test_a_card_with_bad_metadata_is_refused(hub, model, tmp_path):
    (tmp_path / "card.md").write_text("---\nlicense: no-such-licence\n---\n# A\n")
    with pytest.raises(HubError, match=r"Invalid metadata in README.md. - .license. must be one of"):
        model.push_to_hub("org/rm", card=tmp_path / "card.md")
    assert hub.repositories == {}
    with pytest.raises(InvalidArgumentError, match="Expected card to be a file, but there is no"):
        model.push_to_hub("org/rm", card=tmp_path / "nothing.md")
