"""Attention blocks, how they are put into a backbone, and how their maps are recorded."""

from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.insert import insert_attention, insertion_places
from videoattn.attention.record import PairwiseMap, record_attention

__all__ = ["NonLocal", "PairwiseMap", "insert_attention", "insertion_places", "record_attention"]
