"""The blocks of the attention systems, one file each.

Every block raises a ValueError for an option, or an input, that its docstring does not allow.
"""
