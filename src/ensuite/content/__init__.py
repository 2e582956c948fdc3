"""How do text and images become vectors? Templates, encoders, and a cache by content."""
