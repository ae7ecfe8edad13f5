"""The name of a run that was given none."""

from __future__ import annotations

import datetime
import os


def run_time() -> str:
    """The time at which this command started, as a name.

    Lightning starts the command again for each further GPU, which must find the first one's name: it is handed on in
    the environment.
    """
    return os.environ.setdefault("TISYNTH_RUN", datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))
