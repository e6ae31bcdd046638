"""Data sets, one file per family; importing one loads neither torch nor any data."""
