"""Projects, members, tokens."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from registry_values import Clock

from llmray.errors import ConfigError, NotFoundError
from llmray.registry import schema
from llmray.registry.database import parse_url
from llmray.registry.records import Quota
from llmray.registry.registry import Registry


@pytest.fixture
def project(registry: Registry) -> Registry:
    registry.create_project("docs")
    registry.add_member("docs", "ada", "editor")
    return registry


def test_a_token_stands_for_a_member(project: Registry) -> None:
    token = project.issue_token("docs", "ada", ["infer", "feedback"])
    identity = project.authenticate(token)
    assert identity is not None
    assert (identity.project, identity.user, identity.role) == ("docs", "ada", "editor")
    assert identity.scopes == {"infer", "feedback"}
    project.create_project("docs")
    project.add_member("docs", "ada", "viewer")
    assert project.authenticate(token).role == "viewer"


def test_only_the_hash_is_kept(project: Registry, url: str) -> None:
    token = project.issue_token("docs", "ada", [])
    engine = sa.create_engine(parse_url(url))
    with engine.connect() as connection:
        kept = repr(connection.execute(sa.select(schema.tokens)).all())
    engine.dispose()
    secret = token.split("-")[2]
    assert len(bytes.fromhex(secret)) * 8 == 256
    assert secret not in kept
    assert token.split("-")[1] in kept


def test_nothing_else_authenticates(project: Registry) -> None:
    token, other = project.issue_token("docs", "ada", []), project.issue_token("docs", "ada", [])
    _, token_id, secret = token.split("-")
    wrong = [
        "", "lr", "lr--", "nonsense", token[:-1], token + "0", token.upper(), f"lr-{token_id}-{'0' * 64}",
        f"lr-{other.split('-')[1]}-{secret}", f"lr-{token_id}-", f"{token}\0", "lr-é-ü", "lr-\ud800-x",
    ]  # fmt: skip
    assert [project.authenticate(one) for one in wrong] == [None] * len(wrong)


def test_tokens_end(project: Registry, clock: Clock) -> None:
    short = project.issue_token("docs", "ada", [], expires_at=clock.now + timedelta(seconds=60))
    revoked, kept = project.issue_token("docs", "ada", []), project.issue_token("docs", "ada", [])
    assert project.authenticate(short) is not None
    clock.now += timedelta(seconds=60)
    assert project.authenticate(short) is None
    project.revoke_token(revoked)
    project.revoke_token(revoked.split("-")[1])
    assert project.authenticate(revoked) is None
    assert project.authenticate(kept) is not None
    with pytest.raises(NotFoundError, match="no such token"):
        project.revoke_token("lr-0-0")


def test_only_members_of_a_project_with_a_known_role(project: Registry) -> None:
    with pytest.raises(NotFoundError, match="no member"):
        project.issue_token("docs", "bob", [])
    with pytest.raises(NotFoundError, match="no project"):
        project.add_member("nowhere", "ada", "viewer")
    with pytest.raises(ConfigError, match="owner, editor, viewer"):
        project.add_member("docs", "ada", "king")


def test_tokens_are_listed_without_their_secrets_and_stay_when_they_have_ended(project: Registry, clock: Clock) -> None:
    assert not project.any_tokens()
    token = project.issue_token("docs", "ada", ["infer"], expires_at=clock.now + timedelta(days=1))
    clock.now += timedelta(seconds=1)
    project.create_project("other")
    project.add_member("other", "bob", "viewer")
    project.issue_token("other", "bob", [])
    project.revoke_token(token)
    first, second = project.tokens()
    assert (first.id, first.project, first.user, first.scopes) == (token.split("-")[1], "docs", "ada", {"infer"})
    assert (first.revoked_at, second.revoked_at) == (clock.now, None)
    assert [one.user for one in project.tokens("other")] == ["bob"]
    assert project.any_tokens()


def test_a_project_has_a_quota(project: Registry) -> None:
    assert project.quota("docs") == Quota()
    project.set_quota("docs", Quota(requests_per_minute=60))
    project.set_quota("docs", Quota(requests_per_minute=60, tokens_per_minute=1000))
    assert project.quota("docs") == Quota(requests_per_minute=60, tokens_per_minute=1000)
    with pytest.raises(ConfigError, match="tokens_per_minute"):
        project.set_quota("docs", Quota(tokens_per_minute=0))
    with pytest.raises(NotFoundError, match="llmray keys create"):
        project.set_quota("nowhere", Quota())
    with pytest.raises(NotFoundError):
        project.quota("nowhere")
