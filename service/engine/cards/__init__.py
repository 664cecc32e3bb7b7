"""Model cards and class labels: what an operator writes down about a model. Knows no torch."""
