"""`rgtg push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a reward model.", show_default=False)],
    repository: Annotated[
        str,
        typer.Argument(
            metavar="REPOSITORY",
            help="Name on the Hub: organisation/name, or just a name for your own account.",
            show_default=False,
        ),
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Visibility if the repository is created.", show_default="the namespace's"
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch, created if it does not exist.", show_default="main"),
    ] = None,
    commit_message: Annotated[str, typer.Option(metavar="TITLE", help="Title of the commit.")] = "Upload reward model",
    commit_description: Annotated[str | None, typer.Option(metavar="BODY", help="Body of the commit message.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
) -> None:
    """Uploads a reward model to the Hub in one commit: weights, configuration, tokenizer, card, and nothing else.

    The folder is checked first. The access token is that of HF_TOKEN or of `hf auth login`.
    """
    from rgtg_logits.hub import PushOptions
    from rgtg_logits.reward_model import push_folder

    options = PushOptions(
        private=private, revision=revision, commit_message=commit_message, commit_description=commit_description,
        create_pr=create_pr,
    )  # fmt: skip
    Console(soft_wrap=True).print(push_folder(folder, repository, options), highlight=False)
