"""Tasks: what the targets mean, and how well a student does."""

from crossdistill.tasks.classification import Classification as Classification
