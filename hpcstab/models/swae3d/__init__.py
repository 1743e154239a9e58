"""SWAE 3D: a block-wise sliced-Wasserstein autoencoder for scientific volumes."""
