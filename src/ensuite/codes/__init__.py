"""How an item becomes a few tokens: tables of codes, tokenisers, and the search over codes."""
