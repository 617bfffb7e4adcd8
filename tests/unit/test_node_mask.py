"""`netplane agent --node-mask`: what is not a mask is refused before anything starts."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from netplane.cli import netplane


@pytest.mark.parametrize("mask", ["20,64,1", "x", "24,", "-1"])
def test_a_node_mask_that_is_none_is_wrong_usage(mask: str) -> None:
    done = CliRunner().invoke(netplane, ["agent", "--node", "n1", "--node-mask", mask])
    assert done.exit_code == 2 and "in bits, such as 24,64" in done.output
