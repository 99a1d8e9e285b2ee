"""The data of a Hub: repositories with commits, branches and pull requests, accounts, and its rules for cards."""

import hashlib
import re
import secrets
from dataclasses import dataclass, field

import yaml

DATE = "2026-01-01T00:00:00.000Z"
LICENSES = ("apache-2.0", "mit", "other", "cc-by-4.0", "llama3", "gemma")


@dataclass(frozen=True)
class Account:
    """The owner of an access token."""

    name: str
    orgs: tuple[str, ...] = ()
    writes: bool = True

    def owns(self, repository):
        return repository.partition("/")[0] in (self.name, *self.orgs)


ACCOUNTS = {
    "hf_writer": Account("ada", ("org",)),
    "hf_reader": Account("ada", ("org",), writes=False),
    "hf_stranger": Account("eve"),
}


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    sha: str
    parent: str | None
    title: str
    description: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A repository; `refs` maps branches and pull requests to their last commits."""

    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, ref, title, files, description=""):
        """Adds a commit to a branch, which is created if it does not exist."""
        parent = self.refs.get(ref)
        sha = secrets.token_hex(20)
        self.commits[sha] = Commit(sha, parent, title, description, dict(files))
        self.refs[ref] = sha
        return sha

    def at(self, revision):
        """The last commit of a branch, or the commit of a hash; None if there is neither."""
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, revision):
        """The commits of a branch, the newest first."""
        commit = self.at(revision)
        while commit is not None:
            yield commit
            commit = self.commits.get(commit.parent)


def is_large(path):
    """Whether the Hub stores a file with Git LFS."""
    return path.endswith((".safetensors", ".bin", ".png"))


def oid(path, content):
    """SHA-256 of a large file, Git's own hash of a small one."""
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def listing(commit):
    """The files of a commit in the format in which the Hub lists a folder."""
    for path, content in sorted(commit.files.items()):
        item = {"type": "file", "path": path, "size": len(content), "oid": oid(path, content)}
        if is_large(path):
            item["lfs"] = {"oid": item["oid"], "sha256": item["oid"], "size": len(content), "pointerSize": 130}
        yield item


def card_errors(content):
    """The Hub's error messages about the metadata of a card."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(data, dict):
        return ["must be an object"]
    errors = []
    if data.get("license", "other") not in LICENSES:
        errors.append(f'"license" must be one of {LICENSES}')
    for key in ("library_name", "pipeline_tag"):
        if not isinstance(data.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "language", "metrics", "base_model"):
        values = data.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be strings')
        elif key in ("datasets", "base_model"):
            names = [value for value in values if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value)]
            errors += [f'"{key}" with value {name!r} is no name of a repository' for name in names]
    for index in data.get("model-index", []):
        if not index.get("name") or not all({"task", "dataset", "metrics"} <= set(item) for item in index["results"]):
            errors.append('"model-index" lacks a name, task, dataset or metrics')
    return errors
