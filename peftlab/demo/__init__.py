"""The main job on a real small model and real bundled data: `bench` on the configuration beside."""
