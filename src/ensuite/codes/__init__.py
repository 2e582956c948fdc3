"""How does an item become a few tokens? Codes from item vectors."""
