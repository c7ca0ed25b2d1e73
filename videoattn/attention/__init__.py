"""Provides attention blocks, inserts them into networks, and records their maps."""

from videoattn.attention.archive import load_maps, save_maps
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.insert import insert_attention, insertion_places
from videoattn.attention.maps import GateMap, PairwiseMap, to_input
from videoattn.attention.record import record_attention

__all__ = [
    "GateMap",
    "NonLocal",
    "PairwiseMap",
    "insert_attention",
    "insertion_places",
    "load_maps",
    "record_attention",
    "save_maps",
    "to_input",
]
