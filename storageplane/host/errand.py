"""Work in threads that nobody has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from netplane.model.errors import KernelError


class Errand:
    """One piece of work; ``error`` is what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name="errand", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except OSError as exc:
            self.error = KernelError(exc.errno or 5, str(exc))
        except Exception as exc:  # raised again in the thread that asks
            self.error = exc

    def done(self, patience: float) -> bool:
        self._thread.join(patience)
        return not self._thread.is_alive()


class Errands:
    """Errands by name. One that went well is forgotten: its work, asked for again, finds nothing to do."""

    def __init__(self) -> None:
        self._out: dict[str, Errand] = {}

    def done(self, name: str, work: Callable[[], object], patience: float) -> bool:
        """Whether the work is through; False while it is under way. Raises what it raised."""
        errand = self._out.get(name)
        if errand is None:
            errand = self._out[name] = Errand(lambda: self._well(name, work))
        if not errand.done(patience):
            return False
        self._out.pop(name, None)
        if errand.error is not None:
            raise errand.error
        return True

    def busy(self, name: str, patience: float) -> bool:
        """Whether somebody is still at this errand after a while."""
        errand = self._out.get(name)
        return errand is not None and not errand.done(patience)

    def _well(self, name: str, work: Callable[[], object]) -> None:
        work()
        self._out.pop(name, None)
