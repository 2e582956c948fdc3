"""How are the best of millions of items found? Searchers over item vectors, and the index beside a run."""
