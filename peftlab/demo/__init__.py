"""The demo: `bench` on a real small model and bundled real data, configured by demo.yaml."""

from peftlab.demo.main_job import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
