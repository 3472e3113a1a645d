"""Images in, neighbours out. Torch-free: what serving, indexing and the evaluation of training share."""
