"""Acting by packed copies of the weights: what is copied, when it is made again, the layers that read it."""
