"""Writes attention as one HTML file: click a pixel to see where the network looks from there.

The page is `page.html` in `shell.html`, with `page.css` and the scripts, in the order of `SCRIPTS`.
`encode` chooses how a map is stored, and `pack` writes the file.
"""
