"""`clair completion`: the script by which a shell completes commands and options.

The script asks `clair` itself, so it need not be renewed when options change.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
import typer.completion

from clair_cli.cli.streams import write_out

_completion: Any = typer.completion  # which exports nothing by name

VARIABLE = "_CLAIR_COMPLETE"
"""Set by the script when it asks for completions."""


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(metavar="<bash|zsh|fish>", help="The shell.")
    ],
) -> None:
    """Print the script by which a shell completes this.

    \b
    bash:  eval "$(clair completion bash)"                        in ~/.bashrc
    zsh:   eval "$(clair completion zsh)"                         in ~/.zshrc
    fish:  clair completion fish > ~/.config/fish/completions/clair.fish
    """
    script = _completion.get_completion_script(
        prog_name="clair", complete_var=VARIABLE, shell=shell
    )
    write_out(f"{script}\n")


def prepare_to_answer() -> None:
    """Make typer understand the questions of its scripts."""
    _completion.get_completion_inspect_parameters()
