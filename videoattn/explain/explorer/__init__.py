"""Writes attention as one HTML file: a click on a pixel shows where the network looks from there.

The page is `page.html` with `page.css` and the scripts, in the order of `SCRIPTS`. `encode` chooses
how a map is stored, and `pack` writes the file.
"""
