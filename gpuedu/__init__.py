"""gpuedu: the reference implementations of an executable textbook on GPU clusters.

Each technique has one folder, named by its slug, with the same rooms: ``plan`` (what happens, in
which order), ``cost`` (what that costs on given hardware), ``plot`` (how it looks) and ``run`` (the
plan carried out on real tensors). The first three need the standard library alone.
"""

__version__ = "0.1.0"
