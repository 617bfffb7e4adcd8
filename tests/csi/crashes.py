"""We ourselves die at the N-th step of something: an exception that nothing catches takes our place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sequences.storage_world import Crash

Dies = Callable[..., bool]  # step, what to do, its arguments: whether that died at the step


def crashing(patch: pytest.MonkeyPatch, *places: tuple[Any, str]) -> Dies:
    """Each call of a method named here is two steps: before it is done, and when it is."""
    left = [0]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Crash

    for owner, name in places:
        real = getattr(owner, name)

        def dying(*args: Any, real: Any = real, **options: Any) -> Any:
            step()
            result = real(*args, **options)
            step()
            return result

        patch.setattr(owner, name, dying)

    def dies(number: int, do: Callable[..., Any], *args: Any) -> bool:
        left[0] = number
        try:
            do(*args)
        except Crash:
            return True
        finally:
            left[0] = 0
        return False

    return dies
