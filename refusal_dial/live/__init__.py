"""The live dial: one prompt on a loaded model, steered as far as a slider says."""
