"""Work without gradient, recorded once a shape and repeated: CUDA graphs, and when they end."""
