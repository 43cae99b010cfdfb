"""What a model does, as a number or a label: logit scores, judges, text scorers, agreement."""
