"""Data sets of instance retrieval: queries with lists of judged images, and sets to train on."""
