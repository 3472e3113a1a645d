"""HTTP over a Retriever: pictures in, neighbours and a label out."""
