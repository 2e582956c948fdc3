"""Which settings suit a dataset? A search over recipes with Optuna, resumable, pruned by validation in
passing."""
