"""The command line of netplane: it gathers the groups of commands and translates errors, once.

Exit status: 0 done; 1 refused or failed, with one clear line on stderr; 2 wrong usage.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from .model.errors import NetplaneError

# command -> the module of netplane.commands that has it
COMMANDS = {
    **dict.fromkeys(("apply", "get", "describe", "delete"), "objects"),
    **{
        name: name
        for name in (
            "agent",
            "status",
            "install",
            "dns",
            "doctor",
            "explain",
            "flows",
            "policy",
            "clean",
            "lab",
        )
    },
}


class Commands(click.Group):
    """Loads a command's module when it is asked for: an agent holds no other's, and none waits for all."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            import_module(f".commands.{COMMANDS[cmd_name]}", __package__).register(self)
        return super().get_command(ctx, cmd_name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="netplane")
def netplane() -> None:
    """The network data plane of a container node: CNI, overlay, services, DNS."""


def main() -> None:
    """The console script. One line on stderr for every error that has a name."""
    try:
        netplane.main(prog_name="netplane", standalone_mode=True)
    except NetplaneError as exc:
        click.echo(f"netplane: {exc}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
