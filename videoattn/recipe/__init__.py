"""Turns a recipe into objects: the only package that reads settings by name."""
