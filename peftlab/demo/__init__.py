"""The main job on a real small model and real bundled data: `bench` on the configuration beside."""

from peftlab.demo.main_job import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
