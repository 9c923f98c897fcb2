"""One process trains: several would each count their own rows."""

from __future__ import annotations

import os

from peftlab.errors import ConfigError


def refuse_many_processes() -> None:
    """Raise `ConfigError` where a launcher (accelerate, torchrun) started several processes."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world.isdecimal() and int(world) > 1:
        raise ConfigError(
            f"peftlab trains in one process, but a launcher started {world} (WORLD_SIZE={world}); "
            "start it with `peftlab train` alone, or with --num_processes 1."
        )
