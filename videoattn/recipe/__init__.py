"""Builds objects from a recipe. No package below this one knows the keys of a recipe."""
