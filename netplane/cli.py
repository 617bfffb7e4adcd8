"""The command line of netplane: it gathers the groups of commands and translates errors, once.

Exit status: 0 done; 1 refused or failed, with one clear line on stderr; 2 wrong usage.
"""

from __future__ import annotations

import sys

import click

from .commands import agent, clean, dns, doctor, explain, flows, install, lab, objects, policy, status
from .model.errors import NetplaneError

GROUPS = (agent, status, objects, install, dns, doctor, explain, flows, policy, clean, lab)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="netplane")
def netplane() -> None:
    """The network data plane of a container node: CNI, overlay, services, DNS."""


for _group in GROUPS:
    _group.register(netplane)


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
