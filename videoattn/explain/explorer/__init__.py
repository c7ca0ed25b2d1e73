"""Writes attention as one HTML file: click a pixel to see where the network looks from there.

`encode` chooses how a map is stored, and `pack` writes the file.
"""
