"""The command line: `peftlab VERB [CONFIG.yaml] [key.path=value ...] [flags]`."""

from peftlab.cli.app import main

__all__ = ["main"]
