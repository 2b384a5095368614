"""Language models: embeddings harvested from them, and dictionaries put back into them."""
