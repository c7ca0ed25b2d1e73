"""Scores of maps: does hiding the places that a map marks change the answer of the network?"""
