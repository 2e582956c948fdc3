"""What is minimised, apart from who computes it: every objective reads the encoder's output at the positions
that have a target, the targets, and the item vectors."""

from ensuite.objectives.base import ItemVectors, Objective, ObjectiveConfig
from ensuite.objectives.build import build_objective

__all__ = ["ItemVectors", "Objective", "ObjectiveConfig", "build_objective"]
