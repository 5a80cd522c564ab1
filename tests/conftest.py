"""Settings that all tests share."""

from __future__ import annotations

from hypothesis import settings

# On a busy machine the first example of a property may take long; that is no fault of the code.
settings.register_profile("etude", deadline=None)
settings.load_profile("etude")
