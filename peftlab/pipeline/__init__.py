"""The steps of a job, for scripts: plan, preview, train, open a run, inspect.

Importing this package imports neither torch nor Transformers: a call imports what it needs.
"""

from peftlab.pipeline.inspection import inspect
from peftlab.pipeline.plan import Plan, plan, preview
from peftlab.pipeline.run import Run, open_run
from peftlab.pipeline.train import train

__all__ = ["Plan", "Run", "inspect", "open_run", "plan", "preview", "train"]
