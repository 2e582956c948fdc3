"""How do text and images become vectors? Templates, encoders, and a cache by content."""

IMAGE_ENCODER = "efficientnet-lite0"
"""The encoder of images that `ensuite[image]` brings."""
