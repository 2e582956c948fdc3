"""What users say they want: the file of preferences, who writes it, and what a model can be asked with it."""
