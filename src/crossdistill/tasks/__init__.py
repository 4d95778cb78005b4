"""Tasks: what the targets mean, and how well a student does."""

from crossdistill.tasks.classification import Classification as Classification
from crossdistill.tasks.no_labels import NoLabels as NoLabels

KNN = "val/knn"
"""The score of the embedding by nearest neighbours, percent, where a run asks for it."""
LINEAR_PROBE = "val/linear_probe"
"""The score of the embedding by a linear classifier, percent, where a run asks for it."""
Task = Classification | NoLabels


def task_class(labels: str) -> type[Classification] | type[NoLabels]:
    """Return the class of the task for data with labels of this kind."""
    return NoLabels if labels == "none" else Classification
