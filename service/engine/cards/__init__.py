"""Model cards and class labels: the files in which an operator describes a model. Nothing here imports torch."""
