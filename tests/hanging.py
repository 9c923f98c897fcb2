"""How long a test waits for what must come: a guard against hanging, which no result depends on."""

import os

HANGS_AFTER = float(os.environ.get("PEFTLAB_TEST_HANGS_AFTER", "900"))
"""Seconds, for a machine that is busy with other work."""
