"""A generator of synthetic driving scenes in the nuScenes format, for tests and the demo."""
